"""Captions beside their pictures, `a.txt` for `a.jpg`, as a job around another."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.output import atomic
from zeroshot.output.formats import utf8
from zeroshot.results.result import CaptionResult, Result
from zeroshot.tasks.captioning.caption_task import CaptionJob
from zeroshot.tasks.captioning.trained_task import NativeCaptionJob
from zeroshot.tasks.task import Worker


@dataclass(frozen=True)
class SidecarJob:
    """Captions as they come, each also in a file of its own; the rows stay what they are."""

    captions: CaptionJob | NativeCaptionJob
    overwrite: bool = False
    """Whether a file that is there gives way; else it is left alone, and counted."""

    schema: ClassVar[str] = CaptionResult.schema

    @property
    def models(self) -> ModelSet:
        """Those of the captions."""
        return self.captions.models

    def on(self, device: str) -> "SidecarJob":
        """The same job on another device."""
        return replace(self, captions=self.captions.on(device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "SidecarWorker":
        """Load the models."""
        return SidecarWorker(self.captions.open(cache, meter, batch_size), self.overwrite)


@dataclass(frozen=True)
class SidecarWorker:
    """Writes what another worker says."""

    inner: Worker
    overwrite: bool

    @property
    def batch_size(self) -> int:
        """Of the captions."""
        return self.inner.batch_size

    def settings(self) -> dict[str, Any]:
        """Of the captions: where else they are written decides no row."""
        return self.inner.settings()

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[Result]:
        """One result per picture, its file written before it is passed on.

        Raises:
            UserError: a picture that is no file of its own.
            OutputError: a file cannot be written.
        """
        for result in self.inner(sources, meter):
            if result.error is None:
                meter.left_alone += not self._write(result)
            yield result

    def _write(self, result: Result) -> bool:
        """Whether the caption is in the file now."""
        file = sidecar(result.path)
        text = utf8(result.summary()) + b"\n"
        with atomic.writing(file):
            if self.overwrite:
                atomic.replace(file, text)
                return True
            return atomic.publish(file, text) or file.read_bytes() == text


def sidecar(path: str | None) -> Path:
    """Where the caption of a picture belongs.

    Raises:
        UserError: the picture is no file: in memory, in an archive, behind a URL.
    """
    if path is None or not Path(path).is_file() or not Path(path).suffix:
        raise UserError(
            f"'{path}' is no file with a suffix, so that no .txt can stand beside it: leave "
            "--sidecar out, or name pictures in folders"
        )
    return Path(path).with_suffix(".txt")
