"""A model's files: in a directory, or in the hub's cache, downloaded once.

Files on this disk are used without a network request, so that a run is the same with and without
a network; `download` fetches a newer revision. Weights are safetensors if there are any, else torch
files, which are read only with `weights_only=True`.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.errors import NotAvailableError, UserError, no_such
from zeroshot.models.files.model_faults import check_settings, check_weights, read_settings
from zeroshot.models.names import ModelName

__all__ = [
    "OPEN_CLIP",
    "TOKENIZER",
    "TRANSFORMERS",
    "FileLayout",
    "Files",
    "cached",
    "download",
    "fetch",
    "locate",
    "present",
    "read_by_loading",
]

NETWORK_SECONDS = 5.0
OFFLINE = "offline by request"


@dataclass(frozen=True)
class FileLayout:
    """The files that a library saves for a model."""

    config: str | None
    """Name of the file that a model must have; None if its name says everything."""
    safetensors: str | None
    """Regular expression of the names of weight files; None for files without weights."""
    torch: str | None


TRANSFORMERS = FileLayout(
    config="config.json",
    safetensors=r"model(-\d+-of-\d+)?\.safetensors",
    torch=r"pytorch_model(-\d+-of-\d+)?\.bin",
)
OPEN_CLIP = FileLayout(
    config="open_clip_config.json",
    safetensors=r"open_clip_(pytorch_)?model\.safetensors",
    torch=r"open_clip_pytorch_model\.bin",
)

TOKENIZER = FileLayout("tokenizer_config.json", safetensors=None, torch=None)

# Configuration, tokenizer, code, and the modules of a sentence-transformers model.
COMPANIONS = (
    r"[^/]+\.json|[^/]+\.jinja|[^/]+\.model|[^/]+\.py|vocab\.txt|merges\.txt"
    r"|\d+_\w+/(config\.json|model\.safetensors|pytorch_model\.bin)"
)


@dataclass(frozen=True)
class Files:
    """A model's files on this disk."""

    name: ModelName
    directory: Path
    revision: str
    """12 hex digits: the hub's commit, or a hash of the directory's files."""
    weights: tuple[Path, ...]

    @property
    def identity(self) -> str:
        """Canonical name and revision; it does not depend on where the files are."""
        return f"{self.name.label}@{self.revision}"

    @property
    def safe(self) -> bool:
        """Whether the weights are safetensors."""
        return all(path.suffix == ".safetensors" for path in self.weights)

    @property
    def model_type(self) -> str:
        """The family that `config.json` names; empty if it names none."""
        return str(self.read("config.json").get("model_type", ""))

    @property
    def architecture(self) -> str:
        """The class that `config.json` names."""
        named = self.read("config.json").get("architectures")
        return str(named[0]) if isinstance(named, list) and named else "model without a class"

    def read(self, file: str) -> dict[str, Any]:
        """A JSON file of the directory; empty if there is none."""
        path = self.directory / file
        content = read_settings(path) if path.is_file() else {}
        if not isinstance(content, dict):
            raise UserError(f"'{path}' is no object of settings")
        return content


def locate(name: ModelName, layout: FileLayout, *, offline: bool = False) -> Files:
    """The files of the model called `name`: its directory, or its snapshot in the hub's cache.

    NotAvailableError if they are neither on this disk nor downloadable.
    """
    if name.directory is None:
        directory = fetch(name.target, layout, model=str(name), offline=offline)
        return _checked(Files(name, directory, directory.name[:12], weights_in(directory, layout)))
    if not name.directory.is_dir():
        raise NotAvailableError(f"no model at {name}: {no_such(name.directory, 'directory')}")
    if not _complete(name.directory, layout):
        raise UserError(
            f"{name} is no complete model: it needs {layout.config} and weights "
            f"({_example(layout)}) beside the tokenizer and preprocessing files"
        )
    weights = weights_in(name.directory, layout)
    revision = _content_hash(name.directory, layout)
    return _checked(Files(name, name.directory, revision, weights))


def present(name: ModelName, layout: FileLayout) -> Files | None:
    """The files of a model as `locate` finds them, unchecked; None if they are not on this disk.

    The revision of a directory is empty, since its files are not read.
    """
    directory = name.directory or cached(name.target, layout)
    if directory is None or not directory.is_dir():
        return None
    revision = "" if name.directory else directory.name[:12]
    return Files(name, directory, revision, weights_in(directory, layout))


def read_by_loading(files: Files, layout: FileLayout) -> list[Path]:
    """The files that loading a model reads."""
    return [files.directory / name for name in needed(_listing(files.directory), layout)]


def _checked(files: Files) -> Files:
    """The files, if they say nothing that no model says; UserError."""
    names = (name for name in _listing(files.directory) if re.fullmatch(COMPANIONS, name))
    beside = [files.directory / name for name in names]
    weights = [path for path in beside if path.suffix in (".safetensors", ".bin")]
    check_settings(path for path in beside if path not in weights)
    check_weights([*files.weights, *weights])
    return files


def fetch(repository: str, layout: FileLayout, *, model: str, offline: bool = False) -> Path:
    """The snapshot of a hub repository: from the cache, else from the network.

    NotAvailableError, naming `model`, if that fails, or if the network is needed and `offline` (or
    `HF_HUB_OFFLINE=1`) forbids it.
    """
    snapshot = cached(repository, layout)
    if snapshot is not None:
        return snapshot
    if is_offline(offline):
        raise not_available(model, [repository], OFFLINE)
    return download(repository, layout, model=model)


def is_offline(offline: bool) -> bool:
    """Whether network requests are forbidden."""
    import huggingface_hub

    return offline or huggingface_hub.is_offline_mode()


def cached(repository: str, layout: FileLayout) -> Path | None:
    """The snapshot in the hub's cache; None if it or some of its weights are missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return snapshot if _complete(snapshot, layout) else None


def download(repository: str, layout: FileLayout, *, model: str) -> Path:
    """Download the files of a repository's newest revision that loading needs.

    Weights in one format only. NotAvailableError, naming `model`, if that fails.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        # First one request without retries, so that a machine without a network fails in seconds.
        info = HfApi().model_info(repository, timeout=NETWORK_SECONDS)
        files = needed([file.rfilename for file in info.siblings or []], layout)
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=files))
    except Exception as error:  # whatever went wrong, the model is not here
        raise not_available(model, [repository], error) from error


def needed(names: Iterable[str], layout: FileLayout) -> list[str]:
    """Those of a repository's file names that loading reads."""
    names = sorted(names)
    weights = _weights(names, layout)
    return [name for name in names if name in weights or re.fullmatch(COMPANIONS, name)]


def _weights(names: Iterable[str], layout: FileLayout) -> list[str]:
    names = list(names)
    if layout.safetensors is None or layout.torch is None:
        return []
    safe = [name for name in names if re.fullmatch(layout.safetensors, name)]
    return safe or [name for name in names if re.fullmatch(layout.torch, name)]


def _listing(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix()
        for pattern in ("*", "*/*")
        for path in directory.glob(pattern)
        if path.is_file()
    )


def weights_in(directory: Path, layout: FileLayout) -> tuple[Path, ...]:
    """The weight files of a directory: its safetensors, else its torch files."""
    return tuple(directory / name for name in _weights(_listing(directory), layout))


def _complete(directory: Path, layout: FileLayout) -> bool:
    weights = {path.name for path in weights_in(directory, layout)}
    shards = {shard for index in directory.glob("*.index.json") for shard in _shards(index)}
    configured = layout.config is None or (directory / layout.config).is_file()
    return configured and (layout is TOKENIZER or (bool(weights) and shards <= weights))


def _shards(index: Path) -> set[str]:
    """The weight files that an index names."""
    content = read_settings(index)
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise UserError(f"'{index}' names no weight files: it needs an object weight_map")
    return set(shards.values())


def _content_hash(directory: Path, layout: FileLayout) -> str:
    """Hash of the names and contents of the files that loading reads."""
    total = hashlib.sha256()
    for name in needed(_listing(directory), layout):
        with (directory / name).open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:12]


def _example(layout: FileLayout) -> str:
    return "open_clip_model.safetensors" if layout is OPEN_CLIP else "model.safetensors"


def not_available(
    model: str, missing: Sequence[str], reason: BaseException | str | None
) -> NotAvailableError:
    """The error for a model or set whose parts `missing` cannot be found or downloaded."""
    from huggingface_hub import constants

    cause = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else reason
    verb = "is" if len(missing) == 1 else "are"
    return NotAvailableError(
        f"'{model}' is not available: {' and '.join(missing)} {verb} not on this disk (looked in "
        f"{constants.HF_HUB_CACHE}) and cannot be downloaded ({cause}). Run `zeroshot models pull "
        f"{model}` on a machine with a network and copy its HF_HOME here, or name a local "
        f"directory; `--models pocket` needs no download"
    )
