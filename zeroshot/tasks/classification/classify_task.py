"""Pictures to labels, as a job."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import Embedded
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import ClassifyResult
from zeroshot.tasks.classification import classifier as task
from zeroshot.tasks.classification.calibration import Calibration, belief
from zeroshot.tasks.classification.classifier import Classifier, Learn
from zeroshot.tasks.classification.heads import Believe, Head, label

TOP = 5
"""Labels in a row."""


def labels_shown(top_k: int | None, multi: bool, labels: int) -> int:
    """How many labels a row has."""
    return top_k or (labels if multi else TOP)


def see_to_threshold(threshold: float | None, multi: bool) -> None:
    """UserError for a threshold where only one label can hold."""
    if threshold is not None and not multi:
        raise UserError("--threshold chooses among labels that may all hold: give --multi")


def told_of_multi(multi: bool, against: Sequence[str], threshold: float | None) -> dict[str, Any]:
    """For the settings of a run; empty where one label holds."""
    if not multi:
        return {}
    return {"multi": True, "against": list(against), "threshold": threshold}


@dataclass(frozen=True)
class ClassifyJob:
    """The best labels of pictures."""

    models: ModelSet
    labels: Sequence[str]
    sentences: Sequence[Sequence[str]]
    """Of each label; those of a hierarchy's kinds follow."""
    method: str | None = None
    """Without one the set's own, else its coupling, else `ensemble`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    score: Head | None = None
    """Without one the model's own."""
    truncate: bool = False
    """Cut prompts that are longer than the text encoder reads instead of refusing them."""
    learn: Learn = field(default_factory=Learn)
    explain: int = 0
    """Anchors named for each picture's best label."""
    top_k: int | None = None
    """Labels in a row; without it 5, and all where several may hold."""
    calibration: Calibration | None = None
    abstain: float | None = None
    """Share of pictures like those of the calibration that nothing is said of."""
    multi: bool = False
    """Several labels may hold: each has a score of its own."""
    against: Sequence[str] = ()
    """Sentences that each label is weighed against then."""
    threshold: float | None = None
    """Then, the least score of a label in a row."""

    schema: ClassVar[str] = ClassifyResult.schema

    def on(self, device: str) -> "ClassifyJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "ClassifyWorker":
        """Encode the prompts and make the method ready."""
        see_to_threshold(self.threshold, self.multi)
        if self.multi and self.calibration is not None:
            raise UserError(
                "--calibration is of the one best label: leave it, or --multi (whose labels "
                "--threshold chooses)"
            )
        ready = task.classifier(
            self.models,
            self.labels,
            self.sentences,
            cache,
            meter,
            method=self.method,
            options=dict(self.options),
            head=self.score,
            truncate=self.truncate,
            learn=self.learn,
            explained=self.explain,
            multi=self.multi,
            against=self.against,
        )
        if self.calibration is not None:
            self.calibration.check(ready)
            ready = replace(ready, temperature=self.calibration.temperature)
        written = prompts.fingerprint(self.sentences)
        believe = belief(self.calibration, self.abstain, written, ready)
        return ClassifyWorker(self, ready, believe, cache, batch_size)


@dataclass(frozen=True)
class ClassifyWorker:
    """A classifier with its models, and what it believes."""

    job: ClassifyJob
    classifier: Classifier
    believe: Believe | None
    cache: EmbeddingCache
    batch_size: int

    @property
    def transductive(self) -> bool:
        """Whether a picture's scores depend on the other pictures."""
        return self.classifier.method.transductive

    @property
    def views(self) -> int:
        """Of each picture, itself included; 0 for none."""
        return self.classifier.views

    @property
    def shown(self) -> int:
        """Labels in a row."""
        return labels_shown(self.job.top_k, self.job.multi, len(self.job.labels))

    def settings(self) -> dict[str, Any]:
        """What decides the scores and which of them are shown."""
        job, made = self.job, self.job.calibration
        held = task.settings(self.classifier)
        held |= {"prompts": prompts.fingerprint(job.sentences), "top_k": self.shown}
        held |= task.learned_from(job.learn)
        if made is not None:
            held |= {"calibration": made.fingerprint, "abstain": job.abstain}
        held |= told_of_multi(job.multi, job.against, job.threshold)
        return held | ({"explain": job.explain} if job.explain else {})

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[ClassifyResult]:
        """One result per picture, in order; of a transductive method, none before the last."""
        batches = task.embedded(sources, self.classifier, self.cache, meter, self.batch_size)
        for batch in batches:
            yield from self.score(batch, meter)

    def embed(self, sources: Iterable[Source], meter: Meter) -> Iterator[Embedded]:
        """Rows and views, batch by batch."""
        return task.embed_for(sources, self.classifier, self.cache, meter, self.batch_size)

    def score(self, everything: Embedded, meter: Meter) -> Iterator[ClassifyResult]:
        """One result per picture of a batch."""
        job = self.job
        return label(everything, self.classifier, meter, self.shown, self.believe, job.threshold)
