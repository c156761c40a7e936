"""Model names: one canonical spelling of each, and the spellings of other projects.

hf:org/model                      a transformers model on the hub
hf:./directory                    the same in a directory
open_clip:ViT-B-32/laion2b_...    an architecture and a tag of open_clip
hf-hub:org/repo                   an open_clip model on the hub
local-dir:./directory             the same in a directory
"""

import difflib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zeroshot.errors import UserError
from zeroshot.models.systems import check_is_no_system

__all__ = ["ModelName", "parse"]

Scheme = Literal["hf", "open_clip", "hf-hub", "local-dir"]

PREFIXES: dict[str, Scheme] = {
    "hf": "hf",
    "hf_clip": "hf",
    "open_clip": "open_clip",
    "hf-hub": "hf-hub",
    "local-dir": "local-dir",
}

# `clip.available_models()` of openai/CLIP; without a tag they mean OpenAI's weights.
OPENAI = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".msgpack")

FORMS = (
    "a model is named hf:org/model, open_clip:ARCH/TAG, hf-hub:org/repo, "
    "or by a directory (hf:./directory, local-dir:./directory)"
)


@dataclass(frozen=True)
class ModelName:
    """A model's name in its parts."""

    scheme: Scheme
    target: str
    """`org/model`, `ARCH/TAG` or a directory's absolute path."""
    directory: Path | None = None
    """The directory of a model that is not on a hub."""

    def __str__(self) -> str:
        """The canonical spelling, which `parse` reads."""
        return f"{self.scheme}:{self.target}"

    @property
    def label(self) -> str:
        """The canonical spelling, with only the last part of a directory's path."""
        return f"{self.scheme}:{self.directory.name if self.directory else self.target}"


def parse(name: str, root: Path | None = None) -> ModelName:
    """Read `name` in the spelling of any project; relative directories start at `root`.

    UserError for an unknown form or architecture, and for a weight file without a directory.
    """
    if name.endswith(WEIGHT_SUFFIXES):
        raise UserError(
            f"'{name}' is a bare weight file: its configuration, preprocessing and tokenizer must "
            "come with it. Name the directory that has them all (hf:./directory, or "
            "local-dir:./directory with an open_clip_config.json)"
        )
    prefix, colon, rest = name.partition(":")
    if colon and prefix in PREFIXES and not rest.startswith(":"):
        return _with_scheme(PREFIXES[prefix], rest, root)
    return _without_scheme(name, root)


def _with_scheme(scheme: Scheme, target: str, root: Path | None) -> ModelName:
    directory = _directory(target, root)
    if scheme == "open_clip":
        return _open_clip(target)
    if scheme == "local-dir" or (scheme == "hf" and _is_path(target, directory)):
        return ModelName(scheme, str(directory), directory)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", target):
        raise UserError(f"'{target}' is no repository of the hub; {FORMS}")
    return ModelName(scheme, target)


def _without_scheme(name: str, root: Path | None) -> ModelName:
    directory = _directory(name, root)
    if _is_path(name, directory):
        native = (directory / "open_clip_config.json").is_file()
        return ModelName("local-dir" if native else "hf", str(directory), directory)
    if name in OPENAI:
        return ModelName("open_clip", f"{OPENAI[name]}/openai")
    architecture = re.split(r"::|[,/:]", name)[0]
    if architecture in _architectures():
        return _open_clip(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return ModelName("hf", name)
    check_is_no_system(name)
    close = difflib.get_close_matches(name, [*OPENAI, *_architectures()], n=3)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise UserError(f"unknown model '{name}'; {hint}{FORMS}")


def _open_clip(target: str) -> ModelName:
    """`ARCH/TAG`, also written `ARCH,TAG`, `ARCH::TAG` or `ARCH:TAG`."""
    if target in OPENAI:
        return ModelName("open_clip", f"{OPENAI[target]}/openai")
    architecture, tag = [*re.split(r"::|[,/:]", target, maxsplit=1), ""][:2]
    if architecture not in _architectures():
        close = difflib.get_close_matches(architecture, _architectures(), n=5, cutoff=0.4)
        raise UserError(
            f"unknown open_clip architecture '{architecture}'; "
            f"closest: {', '.join(close) or 'none'}"
        )
    if not tag:
        raise UserError(
            f"'{target}' lacks the weights' tag: open_clip:{architecture}/TAG, for example "
            f"open_clip:ViT-B-32/openai"
        )
    return ModelName("open_clip", f"{architecture}/{tag}")


def _directory(target: str, root: Path | None) -> Path:
    try:
        directory = ((root or Path()) / Path(target).expanduser()).resolve()
        directory.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a null
        raise UserError(f"{target!r:.80} is no name of a model or a directory: {error}") from None
    return directory


def _is_path(target: str, directory: Path) -> bool:
    return bool(target) and (target.startswith((".", "/", "~")) or directory.is_dir())


def _architectures() -> list[str]:
    """open_clip's architectures, by its files, since importing it would import torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return []
    return sorted(p.stem for p in (Path(package.origin).parent / "model_configs").glob("*.json"))
