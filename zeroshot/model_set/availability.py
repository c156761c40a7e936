"""Which models of a set are on this disk, and their download. Nothing here imports torch."""

from dataclasses import dataclass
from pathlib import Path

from zeroshot.errors import NotAvailableError
from zeroshot.model_set.spec import BUILT_IN, SetSpec, find_set, is_set
from zeroshot.models.files import model_files
from zeroshot.models.names import ModelName, parse

__all__ = [
    "PartStatus",
    "SetStatus",
    "describe",
    "list_sets",
    "missing",
    "pull",
    "require",
]


@dataclass(frozen=True)
class PartStatus:
    """One model of a set, and its files on this disk."""

    part: str
    model: str
    directory: Path | None
    """None if the model is not on this disk."""
    megabytes: int | None
    """Size on this disk."""


@dataclass(frozen=True)
class SetStatus:
    """A set and its models on this disk."""

    spec: SetSpec
    parts: tuple[PartStatus, ...]

    @property
    def on_disk(self) -> bool:
        """Whether all models are."""
        return all(part.directory is not None for part in self.parts)


def list_sets() -> list[SetStatus]:
    """The built-in sets."""
    return [describe(name) for name in BUILT_IN]


def describe(name: str) -> SetStatus:
    """The set called `name`, part by part."""
    spec = find_set(name)
    return SetStatus(spec, tuple(_status(part, model) for part, model in spec.models.items()))


def missing(spec: SetSpec) -> list[str]:
    """The models of a set that are not on this disk."""
    statuses = [_status(part, model) for part, model in spec.models.items()]
    return [status.model for status in statuses if status.directory is None]


def require(spec: SetSpec, *, offline: bool = False) -> None:
    """Download the models of a set that are not on this disk.

    NotAvailableError, naming all missing models, if that fails.
    """
    to_download = missing(spec)
    if to_download and model_files.is_offline(offline):
        raise model_files.not_available(spec.name, to_download, model_files.OFFLINE)
    try:
        for model in to_download:
            _download(model)
    except NotAvailableError as error:
        raise model_files.not_available(spec.name, missing(spec), error.__cause__) from error


def pull(name: str) -> list[Path]:
    """Download the newest revision of a set's models, or of one model; returns the directories.

    NotAvailableError if the network or the repository cannot be reached.
    """
    models = find_set(name).models.values() if is_set(name) else [str(parse(name))]
    return [directory for model in models for directory in _download(model)]


def _download(model: str) -> list[Path]:
    return [
        model_files.download(repository, layout, model=model)
        for repository, layout in _repositories(parse(model))
    ]


def _status(part: str, model: str) -> PartStatus:
    directories = _directories(parse(model))
    if not directories:
        return PartStatus(part, model, None, None)
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return PartStatus(part, model, directories[0], round(size / 1e6))


def _directories(name: ModelName) -> list[Path]:
    """The directories of a model's files; empty unless all are on this disk."""
    if name.directory is not None:
        return [name.directory] if name.directory.is_dir() else []
    snapshots = [model_files.cached(source, layout) for source, layout in _repositories(name)]
    present = [directory for directory in snapshots if directory is not None]
    return present if len(present) == len(snapshots) else []


def _repositories(name: ModelName) -> list[tuple[str, model_files.FileLayout]]:
    """The hub repositories of a model's files, and how they are laid out."""
    if name.directory is not None:
        return []
    if name.scheme == "hf":
        return [(name.target, model_files.TRANSFORMERS)]
    from zeroshot.models import open_clip  # imports torch and torchvision

    return open_clip.repositories(name)
