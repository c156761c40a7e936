"""Pictures to boxes, as a job."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.regions import DetectResult
from zeroshot.tasks.localization import detection as task
from zeroshot.tasks.localization.image_folder import Gallery

THRESHOLDS = {"native": 0.1, "sentence": 0.25, "query": 0.6, "regions": 0.5}
"""Where none is given: of labels to a detection model (transformers' own), of a sentence to
Grounding DINO (the authors'), of a query image, and of a dual encoder's regions."""


@dataclass(frozen=True)
class DetectJob:
    """Boxes of labels, of what query images show, or of what a sentence speaks of."""

    models: ModelSet
    labels: Sequence[str] = ()
    templates: str | None = None
    """Without any, `simple` for a dual encoder, and its own sentence for a detection model."""
    background: Sequence[str] = ("background",)
    """What is no label, in words, for a dual encoder."""
    model: str | None = None
    """A detection model; without one the set's dual encoder looks at regions."""
    queries: Sequence[Source] = ()
    sentence: str | None = None
    threshold: float | None = None
    word_threshold: float = 0.25
    """From which on a word of the sentence belongs to a box."""
    overlap: float = 0.5
    """IoU above which the less sure of two boxes of one label goes."""
    regions: task.Regions = "auto"
    resolution: int = 0
    draw: Path | None = None
    """A folder for pictures with the boxes drawn on them."""
    overwrite: bool = False

    schema: ClassVar[str] = DetectResult.schema

    def on(self, device: str) -> "DetectJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "DetectWorker":
        """Load the model and encode what is looked for."""
        asked = [bool(self.labels), bool(self.queries), self.sentence is not None]
        if sum(asked) != 1:
            raise UserError("detect looks for labels, query images or a sentence: give one of them")
        finder, sentences = self._finder(cache, meter)
        return DetectWorker(self, finder, sentences, batch_size)

    @property
    def least(self) -> float:
        """The threshold."""
        if self.threshold is not None:
            return self.threshold
        kind = "query" if self.queries else "sentence" if self.sentence is not None else "native"
        return THRESHOLDS["regions" if self.model is None else kind]

    def _sentences(self, own: str) -> list[list[str]]:
        """Of each label, and after them of what is none."""
        words = [*self.labels, *(self.background if self.model is None else ())]
        return prompts.expand(words, prompts.load_templates(self.templates or own, words))

    def _finder(self, cache: EmbeddingCache, meter: Meter) -> tuple[task.Finder, list[list[str]]]:
        """What finds, and the sentences it looks for."""
        if self.model is None:
            return self._by_regions(cache, meter)
        detector, least = self.models.detector(self.model), self.least
        if self.sentence is not None:
            words = self.word_threshold
            return task.by_sentence(
                detector, self.sentence, meter, threshold=least, word_threshold=words
            ), []
        if self.queries:
            names = [task.QUERY if len(self.queries) == 1 else _stem(q) for q in self.queries]
            return task.by_examples(
                detector, self.queries, names, meter, threshold=least, overlap=self.overlap
            ), []
        sentences = self._sentences(detector.template)
        return task.by_labels(
            detector, self.labels, sentences, meter, threshold=least, overlap=self.overlap
        ), sentences

    def _by_regions(
        self, cache: EmbeddingCache, meter: Meter
    ) -> tuple[task.Finder, list[list[str]]]:
        if not self.labels:
            raise UserError(
                "a query image or a sentence needs a detection model: --model "
                "hf:google/owlv2-base-patch16-ensemble for an image, --model "
                "hf:IDEA-Research/grounding-dino-tiny for a sentence"
            )
        self.models.require(language_model=False)
        sentences = self._sentences("simple")
        return task.by_regions(
            self.models,
            self.labels,
            sentences,
            cache,
            meter,
            regions=self.regions,
            resolution=self.resolution,
            threshold=self.least,
            overlap=self.overlap,
        ), sentences


def _stem(source: Source) -> str:
    return Path(source.path or task.QUERY).stem


@dataclass(frozen=True)
class DetectWorker:
    """A finder and where it draws."""

    job: DetectJob
    finder: task.Finder
    sentences: Sequence[Sequence[str]]
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the rows."""
        job = self.job
        held: dict[str, Any] = {
            "models": {"detector": self.finder.name},
            "method": self.finder.method,
            "threshold": job.least,
            "overlap": job.overlap,
            "files": bool(job.draw),
        }
        if job.labels:
            held |= {"labels": list(job.labels), "prompts": prompts.fingerprint(self.sentences)}
        if job.queries:
            held["queries"] = [source.path for source in job.queries]
        if job.sentence is not None:
            held |= {"sentence": job.sentence, "word_threshold": job.word_threshold}
        if job.model is None:
            held["background"] = list(job.background)
            held |= {"regions": job.regions, "resolution": job.resolution}
        return held

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[DetectResult]:
        """One result per picture, in order."""
        job = self.job
        drawn = None if job.draw is None else Gallery(job.draw, job.overwrite)
        return task.detect(sources, self.finder, meter, drawn, batch_size=self.batch_size)
