"""One data set, one task, one set of models: what `zeroshot eval` asks of each method."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zeroshot import methods, prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets import ground_truth
from zeroshot.datasets.captions import CaptionDataset
from zeroshot.datasets.labels import ClassificationDataset
from zeroshot.datasets.multilabel_images import MultilabelDataset
from zeroshot.datasets.protocols import Protocol, Task, protocol as named
from zeroshot.errors import UserError
from zeroshot.evaluation import predict, predictions
from zeroshot.evaluation.clip_score import Judge
from zeroshot.evaluation.predict import Answers, Choice
from zeroshot.inference.content_ids import to_do
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.output.formats import Row
from zeroshot.output.resumable import Output
from zeroshot.results.result import CaptionResult
from zeroshot.tasks.captioning import captioner as captioning
from zeroshot.tasks.classification import classifier as classification
from zeroshot.tasks.classification.heads import Head

Watch = Callable[[Iterable[CaptionResult]], Iterable[CaptionResult]]
"""Passes captions on as they come, to show that they do."""


@dataclass(frozen=True)
class Question:
    """What is measured, on what, of which models."""

    task: Task
    place: Path
    """the data, as they were named"""
    data: ClassificationDataset | MultilabelDataset | CaptionDataset
    models: ModelSet
    cache: EmbeddingCache
    meter: Meter
    protocol: Protocol | None = None
    split: str | None = None
    head: Head | None = None
    batch_size: int = AUTO_BATCH
    truncate: bool = False
    judge: Judge | None = None
    coupling: str | None = None
    """of captions, in place of the set's; see `tasks.captioning.captioner.models_for_captions`"""
    choice: Choice = field(default_factory=Choice)
    """of the threshold from which one of several labels holds"""
    against: tuple[str, ...] = ()
    """what each of several labels is weighed against"""

    def limited(self, pictures: int) -> "Question":
        """About the first pictures alone; a protocol is no longer kept."""
        data = self.data
        first: ClassificationDataset | MultilabelDataset | CaptionDataset
        if isinstance(data, ClassificationDataset):
            first = replace(data, sources=data.sources[:pictures], classes=data.classes[:pictures])
        elif isinstance(data, MultilabelDataset):
            first = replace(data, sources=data.sources[:pictures], truth=data.truth[:pictures])
        else:
            first = replace(
                data, sources=data.sources[:pictures], references=data.references[:pictures]
            )
        return replace(self, data=first, protocol=None)

    def answers(
        self,
        method: str | None,
        options: Mapping[str, Any],
        *,
        keep: Path | None = None,
        overwrite: bool = False,
        watch: Watch = lambda results: results,
    ) -> Answers:
        """What a method says, or the models' own where none is named.

        Args:
            keep: a folder that captions are written to as they come; a run that was cut short goes
                on there.
            overwrite: begin anew there.
            watch: see `Watch`.

        Raises:
            UserError: a method that cannot do this, or captions of other settings in `keep`.
        """
        if isinstance(self.data, ClassificationDataset):
            ready = self._classifier(method, options, self.data.labels, self.data.sentences)
            return predict.classified(self.data, ready, self.cache, self.meter, self.batch_size)
        if isinstance(self.data, MultilabelDataset):
            ready = self._classifier(method, options, self.data.labels, self.data.sentences)
            return predict.multilabelled(
                self.data, ready, self.cache, self.meter, self.batch_size, self.choice
            )
        if self.task == "retrieve":
            texts = [text for own in self.data.references for text in own]
            ready = self._classifier(method, options, texts, [[text] for text in texts])
            return predict.retrieved(self.data, ready, self.cache, self.meter, self.batch_size)
        return self._captions(self.data, method, options, keep, overwrite, watch)

    def told(self, file: Path) -> Answers:
        """What an earlier run wrote.

        Raises:
            UserError: rows that do not fit the pictures.
        """
        if isinstance(self.data, ClassificationDataset):
            given = predictions.read_labels(file)
            rows = predictions.in_order(given, self.data.sources)
            return predict.classified_before(given.name, self.data, rows)
        if isinstance(self.data, MultilabelDataset):
            given = predictions.read_labels(file)
            rows = predictions.in_order(given, self.data.sources)
            return predict.multilabelled_before(given.name, self.data, rows, self.choice)
        if self.task == "retrieve":
            raise UserError("--predictions holds captions or labels, and retrieval needs scores")
        given = predictions.read_captions(file, self.data.ids)
        rows = predictions.in_order(given, self.data.sources)
        return predict.captioned(given.name, self.data, rows, judge=self.judge)

    def about(self, answers: Answers) -> dict[str, Any]:
        """The data, the question and the models, for the result."""
        model, pretrained = _named(self.models, answers)
        truth: Sequence[int] | Sequence[Sequence[int]] | Sequence[Sequence[str]]
        if isinstance(self.data, ClassificationDataset):
            truth = self.data.classes
        elif isinstance(self.data, MultilabelDataset):
            truth = self.data.truth
        else:
            truth = self.data.references
        told: dict[str, Any] = {
            "dataset": self.place.resolve().name,
            "model": model,
            "pretrained": pretrained,
            "protocol": self.protocol.name if self.protocol else None,
            "split": self.protocol.split if self.protocol else self.split,
            "truth": ground_truth.fingerprint(self.place, self.data.sources, truth),
        }
        if isinstance(self.data, ClassificationDataset | MultilabelDataset):
            told["prompts"] = {
                "classes": list(self.data.labels),
                "templates": self.data.templates,
                "fingerprint": prompts.fingerprint(self.data.sentences),
            }
        return told

    def truth_rows(self) -> list[dict[str, Any]]:
        """What is true of each picture, as `--truth` reads it."""
        if isinstance(self.data, ClassificationDataset):
            labels = [self.data.labels[number] for number in self.data.classes]
            pairs = zip(self.data.sources, labels, strict=True)
            return [{"path": source.path, "label": label} for source, label in pairs]
        if isinstance(self.data, MultilabelDataset):
            each = zip(self.data.sources, self.data.truth, strict=True)
            names = self.data.labels
            return [{"path": s.path, "labels": [names[i] for i in own]} for s, own in each]
        told = zip(self.data.sources, self.data.references, strict=True)
        return [{"path": source.path, "references": list(own)} for source, own in told]

    def _classifier(
        self,
        method: str | None,
        options: Mapping[str, Any],
        labels: Sequence[str],
        sentences: Sequence[Sequence[str]],
    ) -> classification.Classifier:
        return classification.classifier(
            self.models,
            labels,
            sentences,
            self.cache,
            self.meter,
            method=method,
            options=dict(options),
            head="cosine" if self.task == "retrieve" else self.head,
            truncate=self.truncate,
            multi=self.task == "multilabel",
            against=self.against,
        )

    def _captions(
        self,
        data: CaptionDataset,
        method: str | None,
        options: Mapping[str, Any],
        keep: Path | None,
        overwrite: bool,
        watch: Watch,
    ) -> Answers:
        chosen = captioning.captioner(self.models, method, options)
        models = captioning.models_for_captions(self.models, self.coupling, self.cache, self.meter)
        name, used = methods.name_of(chosen), captioning.settings(models, chosen)
        begun = time.perf_counter()

        def said(sources: Sequence[Source]) -> Iterable[CaptionResult]:
            return watch(
                captioning.caption(
                    sources, models, chosen, self.cache, self.meter, batch_size=self.batch_size
                )
            )

        rows: Sequence[Row]
        if keep is None:
            rows = [result.row() for result in said(data.sources)]
        else:
            file = keep / f"{name}.rows.jsonl"
            with Output(file, predictions.CAPTION, used, overwrite=overwrite) as output:
                for result in said(to_do(data.sources, output, self.cache)):
                    output.write([result.row()])
            rows = predictions.in_order(predictions.read_captions(file), data.sources)
        seconds = time.perf_counter() - begun
        return predict.captioned(name, data, rows, settings=used, seconds=seconds, judge=self.judge)


def question(
    task: Task | None,
    data: Path | None,
    models: ModelSet,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    protocol: str | None = None,
    truth: Path | None = None,
    split: str | None = None,
    labels: str | None = None,
    templates: str | None = None,
    head: Head | None = None,
    truncate: bool = False,
    judge: DualEncoder | None = None,
    coupling: str | None = None,
    batch_size: int = AUTO_BATCH,
    rows: Path | None = None,
    choice: Choice | None = None,
    against: Sequence[str] = (),
) -> Question:
    """A question about data that are read and checked.

    Args:
        task: what is asked; a protocol knows.
        data, truth, split, labels, templates: see `datasets`.
        protocol: its name.
        head, truncate: see `classify.classifier`.
        judge: an encoder for CLIPScore of captions.
        coupling: of captions, in place of the set's.
        rows: captions that bring their own references, which stand for data and truth.
        choice, against: of several labels: the threshold, and what each is weighed against.

    Raises:
        UserError: no data, data of another kind, or an option that the task has no use for.
    """
    asked = None if protocol is None else named(protocol)
    task = task or (asked.task if asked else None)
    if task is None:
        raise UserError("say what to measure: --task classify, multilabel, caption or retrieve")
    if asked is not None and asked.task != task:
        raise UserError(f"protocol '{asked.name}' is for --task {asked.task}, not {task}")
    if task not in ("classify", "multilabel") and (labels or templates or head):
        raise UserError(f"--labels, --templates and --score are no part of --task {task}")
    if task != "caption" and (judge is not None or coupling is not None):
        raise UserError("--judge and --coupling are for captions")
    choice = choice or Choice()
    _see_to_choice(task, choice, against)
    held: ClassificationDataset | MultilabelDataset | CaptionDataset
    if data is None:
        if task != "caption" or rows is None or truth is not None or asked is not None:
            raise UserError(f"eval --task {task} needs DATA: the pictures and what is true of them")
        data, held = rows, predictions.read_captions(rows).captioned
    elif task == "classify":
        held = ground_truth.load_classification(
            data, truth=truth, split=split, labels=labels, templates=templates, protocol=asked
        )
    elif task == "multilabel":
        held = ground_truth.load_multilabel(
            data,
            truth=truth,
            split=asked.split if asked else split,
            labels=labels,
            templates=templates,
        )
    else:
        held = ground_truth.load_captions(data, truth=truth, split=split, protocol=asked)
    judging = Judge(judge, cache, meter) if judge is not None else None
    return Question(
        task,
        data,
        held,
        models,
        cache,
        meter,
        protocol=asked,
        split=split,
        head=head,
        batch_size=batch_size,
        truncate=truncate,
        judge=judging,
        coupling=coupling,
        choice=choice,
        against=tuple(against),
    )


def _see_to_choice(task: Task, choice: Choice, against: Sequence[str]) -> None:
    chosen = choice.threshold is not None or choice.held_out is not None
    if task != "multilabel" and (chosen or against):
        raise UserError("--threshold, --held-out and --against are for --task multilabel")
    if choice.threshold is not None and choice.held_out is not None:
        raise UserError("--threshold is given, or chosen on pictures held out: give one of them")


def _named(models: ModelSet, answers: Answers) -> tuple[str, str]:
    """What CLIP_benchmark calls model and pretrained; rows made earlier may not tell."""
    spec = models.spec.encoder or ""
    if answers.before:
        model, pretrained = answers.name, ""
    elif spec.startswith("open_clip:"):
        model, _, pretrained = spec.removeprefix("open_clip:").partition("/")
    else:
        model, pretrained = models.name, "coupled" if models.spec.encoder is None else "encoder"
    return model, pretrained
