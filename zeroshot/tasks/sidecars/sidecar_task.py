"""A task around another that also writes files for each image, beside it or elsewhere."""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.source import Source, UnreadableBlob
from zeroshot.output.resumable import written_path
from zeroshot.results.result import CaptionResult, ClassifyResult, Result
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.task import Runner, Task, Transductive

OTHER_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
BESIDE = "beside their images"
HAS_ITS_NAME = "{} has its name"
A_FOLDER = HAS_ITS_NAME.format("a folder")
SEPARATORS = {
    "xmp": (("|", "/"), "a | or a /", "which separate the levels of hierarchical keywords"),
    "txt": ((",",), "a comma", "which separates tags"),
}
"""Characters that no label may have in a sidecar, and why."""
S = TypeVar("S", bound="SidecarTask")


@runtime_checkable
class SidecarWriter(Protocol):
    """What is written for each image, and where."""

    @property
    def what(self) -> str:
        """What is written: `captions`."""

    @property
    def place(self) -> str:
        """Where: `beside their images`."""

    @property
    def option(self) -> str:
        """The option that asks for it: `--sidecar`."""

    def check(self, sources: Iterable[Source]) -> None:
        """UserError, before a run, if some of the images can have no files."""

    def missing(self, sources: Iterable[Source]) -> dict[str | None, Source]:
        """The images of which rows of earlier runs may have to be written, by their paths there."""

    def write(self, source: Source, row: Mapping[str, Any], meter: Meter) -> bool:
        """Write what the row of an image says; whether that was done.

        Raises:
            OutputError: the disk is full. All else is counted by the meter.
        """

    def later(self) -> "SidecarWriter":
        """The writer for rows of earlier runs, which replaces nothing."""


class BesideImages:
    """A writer of one file beside each image."""

    suffix: str
    what: str
    place = BESIDE
    option = "--sidecar"

    def file(self, path: str) -> Path | None:
        """The file of an image; None if it can have none."""
        raise NotImplementedError

    def is_missing(self, file: Path) -> bool:
        """Whether nothing of ours is there yet."""
        raise NotImplementedError

    def check(self, sources: Iterable[Source]) -> None:
        """See `check_sidecars`."""
        check_sidecars(sources, self)

    def missing(self, sources: Iterable[Source]) -> dict[str | None, Source]:
        """The images without a sidecar, by the paths in their rows."""
        found: dict[str | None, Source] = {}
        for source in sources:
            file = None if source.path is None else self.file(source.path)
            if file is not None and self.is_missing(file):
                found[written_path(source.path)] = source
        return found


@dataclass(frozen=True, kw_only=True)
class SidecarTask(Task[Any]):
    """The rows of `inner`, and files for each image."""

    inner: Task[Any]
    writer: SidecarWriter

    def on(self: S, device: str) -> S:
        """The same task on another device."""
        return replace(self, inner=self.inner.on(device))

    def about(self) -> dict[str, Any]:
        """See `Task`."""
        return self.inner.about()

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "SidecarRunner":
        """Load the models."""
        runner = self.inner.open(cache, meter, batch_size)
        if isinstance(runner, Transductive):
            return TransductiveSidecarRunner(runner, self.writer)
        return SidecarRunner(runner, self.writer)


@dataclass(frozen=True, kw_only=True)
class SidecarCaption(SidecarTask):
    """Captions, each also beside its image."""

    schema: ClassVar[str] = CaptionResult.schema


@dataclass(frozen=True, kw_only=True)
class SidecarLabels(SidecarTask):
    """Labels, also beside their images, or as folders of them."""

    schema: ClassVar[str] = ClassifyResult.schema


@dataclass(frozen=True)
class SidecarRunner:
    """Writes the results of another runner."""

    inner: Runner
    writer: SidecarWriter

    @property
    def batch_size(self) -> int:
        """The batch size of the other runner."""
        return self.inner.batch_size

    def settings(self) -> dict[str, Any]:
        """The settings of the rows; sidecars decide none."""
        return self.inner.settings()

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[Result]:
        """One result per image; its file is written first.

        Raises:
            OutputError: the disk is full. All else about one file is counted by the meter.
        """
        return self._written(self.inner(sources, meter), meter)

    def _written(self, results: Iterable[Result], meter: Meter) -> Iterator[Result]:
        for result in results:
            if result.error is None and result.path is not None:
                self.writer.write(result.source, {"id": result.id, **result.answer()}, meter)
            yield result


@dataclass(frozen=True)
class TransductiveSidecarRunner(SidecarRunner):
    """The same for a runner that embeds and scores apart."""

    inner: Transductive

    @property
    def transductive(self) -> bool:
        """See `Transductive`."""
        return self.inner.transductive

    @property
    def views(self) -> int:
        """See `Transductive`."""
        return self.inner.views

    def embed(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbeddingBatch]:
        """See `Transductive`."""
        return self.inner.embed(sources, meter)

    def score(self, everything: EmbeddingBatch, meter: Meter) -> Iterator[Result]:
        """See `Transductive`; the files are written first."""
        return self._written(self.inner.score(everything, meter), meter)


def check_sidecars(sources: Iterable[Source], writer: BesideImages) -> None:
    """Check before a run that each image has a sidecar of its own.

    Raises:
        UserError: an image is no file (in memory, in an archive, behind a URL), or two images
            would have the same sidecar.
    """
    images: dict[str, tuple[str, str]] = {}
    folder = cache(os.path.realpath)
    for source in sources:
        path = source.path
        if isinstance(source.content, UnreadableBlob):
            continue
        if source.content is not None or path is None:
            raise UserError(
                f"'{path or 'an image in memory'}' is no file of its own, so no {writer.suffix} "
                "file can be written beside it: leave --sidecar out, or name image files"
            )
        file = writer.file(path)
        if file is None:
            continue
        where = folder(file.parent)
        image, text = (
            os.path.normcase(f"{where}/{n}") for n in (os.path.basename(path), file.name)
        )
        first, first_path = images.setdefault(text, (image, path))
        if first != image:
            raise UserError(
                f"'{first_path}' and '{path}' would both have their {writer.what} in '{file}': "
                "rename one of them, or leave --sidecar out"
            )


def keywords(row: Mapping[str, Any]) -> list[str]:
    """The labels of a row, be it of JSON or of a table; none if it abstained."""
    labels, abstained = row.get("labels") or [], row.get("abstained")
    if isinstance(labels, str):
        labels = json.loads(labels)
    if abstained is True or str(abstained).lower() == "true":
        return []
    return [label["label"] for label in labels]


def check_keywords(
    options: ClassifyOptions, labels: Iterable[str], sidecar: Literal["txt", "xmp"]
) -> None:
    """UserError if nothing says which labels hold, or one cannot be a keyword or a tag."""
    if not options.multi or options.threshold is None:
        raise UserError(
            f"--sidecar {sidecar} writes the labels that hold, and needs a threshold to know "
            "them: give --multi and --threshold, for example --multi --against 'a photo' "
            "--threshold 0.99"
        )
    separators, wrong, separates = SEPARATORS[sidecar]
    for label in labels:
        if any(separator in label for separator in separators):
            raise UserError(
                f"the label '{label}' has {wrong}, {separates}: rename it, or leave --sidecar out"
            )


def other_kind(file: Path) -> str | None:
    """What is at this path, if it is neither a file nor nothing."""
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    return HAS_ITS_NAME.format(OTHER_KINDS.get(stat.S_IFMT(mode), "something else"))
