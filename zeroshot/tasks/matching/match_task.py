"""How well images and texts fit, as a task."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.coupled_models import (
    SENTENCES,
    refuse_coupling,
    with_coupling_for_task,
)
from zeroshot.inference.embedding import AUTO_BATCH, canonical_names
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder, PairScorer
from zeroshot.results.text import MatchResult
from zeroshot.tasks.matching import scoring
from zeroshot.tasks.matching.match_options import MatchOptions
from zeroshot.tasks.matching.scoring import MatchSpec
from zeroshot.tasks.matching.thresholds import Thresholds, read_thresholds
from zeroshot.tasks.options import several
from zeroshot.tasks.task import OpenedTask, Task


@dataclass(frozen=True, kw_only=True)
class Match(Task[MatchOptions]):
    """Scores of given texts, or of the captions that come with the images."""

    thresholds: Thresholds | None = None
    captions: str | None = None
    """Fingerprint of the captions that come with the images: other captions are another run."""

    schema: ClassVar[str] = MatchResult.schema

    @classmethod
    def from_options(
        cls, models: ModelSet, options: MatchOptions, captions: str | None = None
    ) -> "Match":
        """See `Task`."""
        thresholds = options.thresholds
        if isinstance(thresholds, str | Path):
            thresholds = read_thresholds(Path(thresholds))
        return cls(models=models, options=options, thresholds=thresholds, captions=captions)

    @property
    def negatives(self) -> tuple[str, ...]:
        """Texts that share a softmax with each text."""
        return several(self.options.against)

    def about(self) -> dict[str, Any]:
        """See `Task`."""
        return {"texts": list(several(self.options.texts))} if self.options.texts else {}

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "MatchRunner":
        """Load the model that scores."""
        spec = MatchSpec(
            several(self.options.texts), self.negatives, self.thresholds, self.options.score
        )
        if self.options.model is None:
            self.models.require(language_model=False)
            encoder = with_coupling_for_task(
                self.models, self.options.coupling, SENTENCES, cache, meter
            ).encoder
            scored, scorer = scoring.score_kind(encoder, spec), None
            names = canonical_names(encoder)
        else:
            refuse_coupling(self.options.coupling)
            scoring.check_head(spec)
            encoder = None
            scorer = self.models.pair_scorer(self.options.model)
            names, scored = {"scorer": scorer.name}, scorer.scored
        made_with = scoring.made_with(names, scored, self.negatives)
        if self.thresholds is not None:
            self.thresholds.check(made_with)
        return MatchRunner(
            task=self,
            encoder=encoder,
            scorer=scorer,
            spec=spec,
            made_with=made_with,
            cache=cache,
            batch_size=batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class MatchRunner(OpenedTask[Match]):
    """A scorer with its model."""

    encoder: DualEncoder | None
    """None if a `scorer` reads both."""
    scorer: PairScorer | None
    spec: MatchSpec
    made_with: str
    """The kind of the scores and the models behind them; thresholds record it."""

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        task = self.task
        settings: dict[str, Any] = {"scores": self.made_with}
        if self.spec.texts:
            settings["texts"] = prompts.fingerprint([list(self.spec.texts)])
        if task.captions is not None:
            settings["captions"] = task.captions
        if task.thresholds is not None:
            cuts, labels = list(task.thresholds.cuts), list(task.thresholds.labels)
            settings["thresholds"] = {"labels": labels, "cuts": cuts}
        return settings

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[MatchResult]:
        """One result per image, in order."""
        how = (self.spec, self.cache, meter, self.batch_size)
        if self.encoder is not None:
            return scoring.by_encoder(sources, self.encoder, *how)
        assert self.scorer is not None
        return scoring.by_head(sources, self.scorer, *how)
