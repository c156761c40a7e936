"""Images and questions to answers, as a task."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache, hash_file
from zeroshot.datasets.region_features import read_regions
from zeroshot.errors import UserError
from zeroshot.inference.coupled_models import (
    SENTENCES,
    refuse_coupling,
    with_coupling_for_task,
)
from zeroshot.inference.embedding import AUTO_BATCH, canonical_names
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import Answerer, RegionAnswerer, Regions
from zeroshot.results.text import AskResult
from zeroshot.tasks.options import several
from zeroshot.tasks.task import OpenedTask, Task
from zeroshot.tasks.vqa import answering
from zeroshot.tasks.vqa.answering import ByMatching
from zeroshot.tasks.vqa.ask_options import AskOptions

Questions = str | Sequence[str] | Mapping[str, Sequence[str]]
"""About every image, or by path."""


@dataclass(frozen=True, kw_only=True)
class Ask(Task[AskOptions]):
    """Answers to the same questions about every image, or to each image's own questions."""

    questions: Sequence[str] | Mapping[str, Sequence[str]] = ()
    answers: Sequence[str] = ()
    among: Sequence[str] = ()

    schema: ClassVar[str] = AskResult.schema

    @classmethod
    def from_options(
        cls, models: ModelSet, options: AskOptions, questions: Questions = ()
    ) -> "Ask":
        """See `Task`."""
        return cls(
            models=models,
            options=options,
            questions=questions if isinstance(questions, Mapping) else several(questions),
            answers=prompts.load_labels(options.answers) if options.answers else (),
            among=prompts.load_labels(options.among) if options.among else (),
        )

    def about(self) -> dict[str, Any]:
        """See `Task`; each image's own questions are in its row."""
        asked = self.questions
        return {} if isinstance(asked, Mapping) else {"questions": list(asked)}

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "AskRunner":
        """Load the model that answers, and read the regions."""
        if not self.questions:
            raise UserError("there is no question")
        ready, regions = self._answerer(cache, meter)
        return AskRunner(
            task=self, ready=ready, regions=regions, cache=cache, batch_size=batch_size
        )

    def _answerer(
        self, cache: EmbeddingCache, meter: Meter
    ) -> tuple[Answerer | RegionAnswerer | ByMatching, Mapping[str, Regions]]:
        model, file = self.options.model, self.options.regions
        if model is None:
            if file is not None:
                raise UserError("LXMERT and VisualBERT read --regions: name one with --model")
            self.models.require(language_model=False)
            models = with_coupling_for_task(
                self.models, self.options.coupling, SENTENCES, cache, meter
            )
            ready = answering.matching(
                models.encoder,
                cache,
                meter,
                answers=self.answers,
                among=self.among,
                present=self.options.present,
            )
            return ready, {}
        refuse_coupling(self.options.coupling)
        if self.among:
            raise UserError("--among is for answers by matching; a model (--model) needs none")
        if file is None:
            if self.answers:
                raise UserError(
                    "--answers are for matching, or name the outputs of a model that reads "
                    "regions; a model that reads images has its own answers"
                )
            return self.models.answerer(model), {}
        reader = self.models.region_answerer(model, self.answers or None)
        return reader, read_regions(Path(file), reader.width, reader.boxed)


@dataclass(frozen=True, kw_only=True)
class AskRunner(OpenedTask[Ask]):
    """The model that answers, loaded."""

    ready: Answerer | RegionAnswerer | ByMatching
    regions: Mapping[str, Regions]

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        task, options, questions = self.task, self.task.options, self.task.questions
        by_path = questions.items() if isinstance(questions, Mapping) else [("", questions)]
        settings: dict[str, Any] = {
            "questions": prompts.fingerprint([[path, *texts] for path, texts in by_path]),
            "top_k": options.top_k,
        }
        if isinstance(self.ready, ByMatching):
            settings["models"] = canonical_names(self.ready.encoder)
            settings |= {"answers": list(task.answers), "among": list(task.among)}
            settings |= {"present": options.present} if task.among else {}
        else:
            settings["models"] = {"answerer": self.ready.name}
            settings |= {"answers": list(task.answers)} if task.answers else {}
            settings |= {"regions": hash_file(options.regions)} if options.regions else {}
        return settings

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[AskResult]:
        """One result per image, in order."""
        size, top_k, ready = self.batch_size, self.task.options.top_k, self.ready
        if isinstance(ready, ByMatching):
            return answering.by_matching(
                sources, ready, self._questions, self.cache, meter, batch_size=size, top_k=top_k
            )
        if isinstance(ready, RegionAnswerer):
            return answering.by_regions(
                sources, ready, self.regions, self._questions, meter, batch_size=size, top_k=top_k
            )
        return answering.by_model(
            sources, ready, self._questions, meter, batch_size=size, top_k=top_k
        )

    def _questions(self, source: Source) -> Sequence[str]:
        questions = self.task.questions
        return questions.get(source.path or "", ()) if isinstance(questions, Mapping) else questions
