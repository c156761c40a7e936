"""Captions beside their images, `a.txt` for `a.jpg`, as a task around another."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.output import atomic
from zeroshot.output.formats import utf8
from zeroshot.results.result import CaptionResult, Result
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.captioning.caption_task import CaptionImages
from zeroshot.tasks.captioning.trained import NativeCaption
from zeroshot.tasks.task import Runner, Task


@dataclass(frozen=True, kw_only=True)
class SidecarCaption(Task[CaptionOptions]):
    """Captions, each also in its own file; the rows are those of `captions`."""

    captions: CaptionImages | NativeCaption
    overwrite: bool = False
    """Whether existing files are replaced. Otherwise they stay, and are counted."""

    schema: ClassVar[str] = CaptionResult.schema

    def on(self, device: str) -> "SidecarCaption":
        """The same task on another device."""
        return replace(self, captions=self.captions.on(device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "SidecarRunner":
        """Load the models."""
        return SidecarRunner(self.captions.open(cache, meter, batch_size), self.overwrite)


@dataclass(frozen=True)
class SidecarRunner:
    """Writes the captions of another runner."""

    inner: Runner
    overwrite: bool

    @property
    def batch_size(self) -> int:
        """The batch size of the captions."""
        return self.inner.batch_size

    def settings(self) -> dict[str, Any]:
        """The settings of the captions; sidecars decide no row."""
        return self.inner.settings()

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[Result]:
        """One result per image; its file is written first.

        Raises:
            UserError: an image that is no file: in memory, in an archive, behind a URL.
            OutputError: a file cannot be written.
        """
        for result in self.inner(sources, meter):
            if result.error is None:
                meter.skipped_existing += not self._write(result)
            yield result

    def _write(self, result: Result) -> bool:
        """Write a file; False if an existing file with another text stays."""
        file = sidecar(result.path)
        text = utf8(result.summary()) + b"\n"
        with atomic.writing(file):
            if self.overwrite:
                atomic.replace(file, text)
                return True
            return atomic.publish(file, text) or file.read_bytes() == text


def sidecar(path: str | None) -> Path:
    """The file for the caption of an image; UserError if the image is no file with a suffix."""
    if path is None or not Path(path).is_file() or not Path(path).suffix:
        raise UserError(
            f"'{path}' is no file with a suffix, so no .txt file can be written beside it: leave "
            "--sidecar out, or name image files"
        )
    return Path(path).with_suffix(".txt")
