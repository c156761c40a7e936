"""Pictures to a label for each pixel, as a job."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import LabeledImages
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import Segmenter
from zeroshot.results.regions import SegmentResult
from zeroshot.tasks.localization import segmentation as task
from zeroshot.tasks.localization.image_folder import Gallery


@dataclass(frozen=True)
class SegmentJob:
    """A label for each pixel of pictures."""

    models: ModelSet
    labels: Sequence[str]
    sentences: Sequence[Sequence[str]]
    """Of each label."""
    background: Sequence[Sequence[str]] = ()
    """Sentences of each thing that is no label."""
    model: str | None = None
    """A segmentation model; without one the set's dual encoder, patch by patch."""
    method: str | None = None
    """Of the dual encoder: `naclip` without one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    examples: LabeledImages | None = None
    """Pictures of labels, as prompts."""
    mix: float = 0.5
    """Their share in a label's row."""
    threshold: float | None = None
    resolution: int = 0
    window: int | None = None
    masks: Path | None = None
    """A folder for masks as PNG files."""
    draw: Path | None = None
    """A folder for pictures with the regions drawn on them."""
    overwrite: bool = False

    schema: ClassVar[str] = SegmentResult.schema

    def on(self, device: str) -> "SegmentJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "SegmentWorker":
        """Load the model and encode the prompts."""
        ready = task.prompted(
            self._segmenter(),
            self.labels,
            self.sentences,
            self.background,
            cache,
            meter,
            examples=self.examples,
            mix=self.mix,
            threshold=self.threshold,
        )
        return SegmentWorker(self, ready, batch_size)

    def _segmenter(self) -> Segmenter:
        if self.model is None:
            self.models.require(language_model=False)
            return task.dense_segmenter(
                self.models, self.method, dict(self.options), self.resolution, self.window
            )
        if self.method or self.options or self.resolution or self.window is not None:
            raise UserError(
                "a segmentation model (--model) takes no --method, -o, --resolution or --window: "
                "these make a dual encoder segment"
            )
        return self.models.segmenter(self.model)


@dataclass(frozen=True)
class SegmentWorker:
    """A segmenter with its prompts."""

    job: SegmentJob
    ready: task.Prompted
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the rows."""
        job = self.job
        held = task.settings(self.ready) | {"prompts": prompts.fingerprint(job.sentences)}
        held["labels"] = list(job.labels)
        held |= {"files": [bool(job.masks), bool(job.draw)]}
        if job.background:
            held["background"] = prompts.fingerprint(job.background)
        if job.examples is not None:
            pairs = zip(job.examples.sources, job.examples.classes, strict=True)
            held["examples"] = [[source.path, place] for source, place in pairs]
            held["mix"] = job.mix
        return held

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[SegmentResult]:
        """One result per picture, in order."""
        job = self.job
        outputs = task.Outputs(
            None if job.masks is None else Gallery(job.masks, job.overwrite),
            None if job.draw is None else Gallery(job.draw, job.overwrite),
        )
        return task.segment(sources, self.ready, meter, outputs, batch_size=self.batch_size)
