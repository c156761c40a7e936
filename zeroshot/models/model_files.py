"""Where a model's files lie: in a directory, or in the hub's cache, fetched there once.

What is on this disk is used without asking the network, so that a run is the same with and
without it; `download` brings a newer revision. Weights are safetensors where there are any, else
torch files, which are only ever read with `weights_only=True`.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.errors import NotAvailableError, UserError
from zeroshot.models.names import ModelName

__all__ = [
    "OPEN_CLIP",
    "TOKENIZER",
    "TRANSFORMERS",
    "Files",
    "Layout",
    "cached",
    "download",
    "fetch",
    "locate",
]

NETWORK_SECONDS = 5.0
OFFLINE = "offline by request"


@dataclass(frozen=True)
class Layout:
    """How a library lays a model's files out."""

    config: str | None
    """The file without which the rest is not a model; None where the name says everything."""
    safetensors: str | None
    """Regular expression of the weight files' names; None for files without weights."""
    torch: str | None


TRANSFORMERS = Layout(
    config="config.json",
    safetensors=r"model(-\d+-of-\d+)?\.safetensors",
    torch=r"pytorch_model(-\d+-of-\d+)?\.bin",
)
OPEN_CLIP = Layout(
    config="open_clip_config.json",
    safetensors=r"open_clip_(pytorch_)?model\.safetensors",
    torch=r"open_clip_pytorch_model\.bin",
)

TOKENIZER = Layout("tokenizer_config.json", safetensors=None, torch=None)

# Configuration, tokenizer and code at the top, and the modules of a sentence-transformers model.
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
    """12 hex digits: the hub's commit, or a hash of what is in the directory."""
    weights: tuple[Path, ...]

    @property
    def identity(self) -> str:
        """Canonical name and revision, the same wherever the files lie."""
        return f"{self.name.label}@{self.revision}"

    @property
    def safe(self) -> bool:
        """Whether the weights are safetensors."""
        return all(path.suffix == ".safetensors" for path in self.weights)

    def read(self, file: str) -> dict[str, Any]:
        """A JSON file of the directory, empty if there is none."""
        path = self.directory / file
        content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return content


def locate(name: ModelName, layout: Layout, *, offline: bool = False) -> Files:
    """The files of the model called `name`: its directory, or its snapshot in the hub's cache.

    NotAvailableError if they are neither on this disk nor reachable.
    """
    if name.directory is None:
        directory = fetch(name.target, layout, asked=str(name), offline=offline)
        return Files(name, directory, directory.name[:12], weights_in(directory, layout))
    if not name.directory.is_dir():
        raise NotAvailableError(f"no model at {name}: there is no such directory")
    if not _complete(name.directory, layout):
        raise UserError(
            f"{name} is no complete model: it needs {layout.config} and weights "
            f"({_example(layout)}), beside its tokenizer and preprocessing files"
        )
    weights = weights_in(name.directory, layout)
    return Files(name, name.directory, _content_hash(name.directory, layout), weights)


def fetch(repository: str, layout: Layout, *, asked: str, offline: bool = False) -> Path:
    """The snapshot of a hub repository: from the cache, else from the network.

    NotAvailableError, about the model `asked` for, if it is in neither, or if `offline` (or
    `HF_HUB_OFFLINE=1`) forbids to ask.
    """
    found = cached(repository, layout)
    if found is not None:
        return found
    if is_offline(offline):
        raise not_available(asked, [repository], OFFLINE)
    return download(repository, layout, asked=asked)


def is_offline(offline: bool) -> bool:
    """Whether the network must not be asked."""
    import huggingface_hub

    return offline or huggingface_hub.is_offline_mode()


def cached(repository: str, layout: Layout) -> Path | None:
    """The snapshot in the hub's cache, or None if it is not there with all its weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return snapshot if _complete(snapshot, layout) else None


def download(repository: str, layout: Layout, *, asked: str) -> Path:
    """Fetch what loading needs of a repository's newest revision, weights in one format only.

    NotAvailableError, about the model `asked` for, if that does not work.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        # One request without retries first: a machine without a network answers in seconds.
        info = HfApi().model_info(repository, timeout=NETWORK_SECONDS)
        files = needed([file.rfilename for file in info.siblings or []], layout)
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=files))
    except Exception as error:  # whatever went wrong there, the model is not here
        raise not_available(asked, [repository], error) from error


def needed(names: Iterable[str], layout: Layout) -> list[str]:
    """Of a repository's file names those that loading reads."""
    names = sorted(names)
    weights = _weights(names, layout)
    return [name for name in names if name in weights or re.fullmatch(COMPANIONS, name)]


def _weights(names: Iterable[str], layout: Layout) -> list[str]:
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


def weights_in(directory: Path, layout: Layout) -> tuple[Path, ...]:
    """The weight files of a directory: its safetensors, else its torch files."""
    return tuple(directory / name for name in _weights(_listing(directory), layout))


def _complete(directory: Path, layout: Layout) -> bool:
    weights = {path.name for path in weights_in(directory, layout)}
    shards = {
        shard
        for index in directory.glob("*.index.json")
        for shard in json.loads(index.read_text())["weight_map"].values()
    }
    configured = layout.config is None or (directory / layout.config).is_file()
    return configured and (layout is TOKENIZER or (bool(weights) and shards <= weights))


def _content_hash(directory: Path, layout: Layout) -> str:
    """Hash of names and contents of what loading reads; moving the directory keeps it."""
    total = hashlib.sha256()
    for name in needed(_listing(directory), layout):
        with (directory / name).open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:12]


def _example(layout: Layout) -> str:
    return "open_clip_model.safetensors" if layout is OPEN_CLIP else "model.safetensors"


def not_available(
    asked: str, missing: Sequence[str], why: BaseException | str | None
) -> NotAvailableError:
    """The one message for a model or set `asked` for of which the parts `missing` are nowhere."""
    from huggingface_hub import constants

    reason = f"{type(why).__name__}: {why}" if isinstance(why, BaseException) else why
    verb = "is" if len(missing) == 1 else "are"
    return NotAvailableError(
        f"'{asked}' is not available: {' and '.join(missing)} {verb} not on this disk (looked in "
        f"{constants.HF_HUB_CACHE}) and not reachable ({reason}). Run `zeroshot models pull "
        f"{asked}` on a machine with a network and copy its HF_HOME here, or name a local "
        f"directory; `--models pocket` works at once"
    )
