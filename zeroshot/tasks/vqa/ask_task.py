"""Pictures and questions to answers, as a job."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache, hash_file
from zeroshot.datasets.region_features import read_regions
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH, canonical_names
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import Answerer, RegionAnswerer, Regions
from zeroshot.results.text import AskResult
from zeroshot.tasks.vqa import answering as task
from zeroshot.tasks.vqa.answering import ByMatching
from zeroshot.tasks.vqa.statements import PRESENT


@dataclass(frozen=True)
class AskJob:
    """Answers to the same questions about every picture, or to each picture's own."""

    models: ModelSet
    questions: Sequence[str] | Mapping[str, Sequence[str]]
    """For every picture, or by path."""
    model: str | None = None
    """A model that answers; without one the set's encoder answers by matching."""
    top_k: int = 1
    answers: Sequence[str] = ()
    """To choose from, by matching; of a model that reads regions, the names of its outputs."""
    among: Sequence[str] = ()
    """Names of what may be in the pictures, by matching."""
    present: float = PRESENT
    regions: Path | None = None
    """What a detector saw, for a model that reads regions."""

    schema: ClassVar[str] = AskResult.schema

    def on(self, device: str) -> "AskJob":
        """The same job on another device."""
        return replace(self, models=replace(self.models, device=device))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "AskWorker":
        """Load what answers, and read the regions."""
        if not self.questions:
            raise UserError("there is no question")
        if self.model is None:
            if self.regions is not None:
                raise UserError("--regions are read by LXMERT and VisualBERT; name one (--model)")
            self.models.require(language_model=False)
            ready = task.matching(
                self.models.encoder,
                cache,
                meter,
                answers=self.answers,
                among=self.among,
                present=self.present,
            )
            return AskWorker(self, ready, {}, cache, batch_size)
        if self.among:
            raise UserError("--among is for answers by matching; a model (--model) needs none")
        if self.regions is None:
            if self.answers:
                raise UserError(
                    "--answers are chosen from by matching, or name the outputs of a model that "
                    "reads regions; a model that reads pixels says its own"
                )
            return AskWorker(self, self.models.answerer(self.model), {}, cache, batch_size)
        reader = self.models.region_answerer(self.model, self.answers or None)
        regions = read_regions(self.regions, reader.width, reader.boxed)
        return AskWorker(self, reader, regions, cache, batch_size)


@dataclass(frozen=True)
class AskWorker:
    """What answers, with its models."""

    job: AskJob
    ready: Answerer | RegionAnswerer | ByMatching
    regions: Mapping[str, Regions]
    cache: EmbeddingCache
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """What decides the answers."""
        job, asked = self.job, self.job.questions
        each = asked.items() if isinstance(asked, Mapping) else [("", asked)]
        told: dict[str, Any] = {
            "questions": prompts.fingerprint([[path, *texts] for path, texts in each]),
            "top_k": job.top_k,
        }
        if isinstance(self.ready, ByMatching):
            told["models"] = canonical_names(self.ready.encoder)
            told |= {"answers": list(job.answers), "among": list(job.among)}
            told |= {"present": job.present} if job.among else {}
        else:
            told["models"] = {"answerer": self.ready.name}
            told |= {"answers": list(job.answers)} if job.answers else {}
            told |= {"regions": hash_file(job.regions)} if job.regions else {}
        return told

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[AskResult]:
        """One result per picture, in order."""
        size, top_k, ready = self.batch_size, self.job.top_k, self.ready
        if isinstance(ready, ByMatching):
            return task.by_matching(
                sources, ready, self._asked, self.cache, meter, batch_size=size, top_k=top_k
            )
        if isinstance(ready, RegionAnswerer):
            return task.by_regions(
                sources, ready, self.regions, self._asked, meter, batch_size=size, top_k=top_k
            )
        return task.by_model(sources, ready, self._asked, meter, batch_size=size, top_k=top_k)

    def _asked(self, source: Source) -> Sequence[str]:
        questions = self.job.questions
        if isinstance(questions, Mapping):
            return questions.get(source.path or "", ())
        return questions
