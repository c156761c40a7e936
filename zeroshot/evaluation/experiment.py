"""One data set, one task, one set of models: what `zeroshot eval` measures for each method."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from zeroshot import methods, prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets import ground_truth
from zeroshot.datasets.captions import CaptionDataset
from zeroshot.datasets.labels import ClassificationDataset
from zeroshot.datasets.multilabel_images import MultilabelDataset
from zeroshot.datasets.protocols import EvaluationTask, Protocol, protocol as named
from zeroshot.errors import UserError
from zeroshot.evaluation import predict, predictions
from zeroshot.evaluation.clip_score import Judge
from zeroshot.evaluation.evaluate_options import EvaluateOptions
from zeroshot.evaluation.predict import Predictions, ThresholdSelection
from zeroshot.inference.content_ids import to_do
from zeroshot.inference.coupled_models import LABELS, SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.output.formats import Row
from zeroshot.output.resumable import ResumableFile
from zeroshot.results.result import CaptionResult
from zeroshot.tasks.captioning import captioner as captioning
from zeroshot.tasks.classification.classifier import Classifier, load_classifier
from zeroshot.tasks.classification.classify_options import ClassifyOptions

Data = ClassificationDataset | MultilabelDataset | CaptionDataset


@dataclass(frozen=True)
class Experiment:
    """A task on a data set, with the models that are measured."""

    task: EvaluationTask
    path: Path
    """the data, as the user named them"""
    data: Data
    models: ModelSet
    options: EvaluateOptions
    cache: EmbeddingCache
    meter: Meter
    protocol: Protocol | None = None
    judge: Judge | None = None
    batch_size: int = AUTO_BATCH

    @property
    def selection(self) -> ThresholdSelection:
        """How the threshold is chosen from which on a label holds."""
        options = self.options
        return ThresholdSelection(options.threshold, options.held_out, options.seed)

    @property
    def default_method(self) -> str:
        """The method that labels, if none is named."""
        spec = self.models.spec
        coupling = spec.coupling if spec.encoder is None else None
        return str(spec.classify.get("method", coupling.method if coupling else "ensemble"))

    def limited(self, images: int) -> "Experiment":
        """The experiment on the first images only, which follows no protocol."""
        data = self.data
        first: Data
        if isinstance(data, ClassificationDataset):
            first = replace(data, sources=data.sources[:images], classes=data.classes[:images])
        elif isinstance(data, MultilabelDataset):
            first = replace(data, sources=data.sources[:images], truth=data.truth[:images])
        else:
            captions = data.references[:images]
            first = replace(data, sources=data.sources[:images], references=captions)
        return replace(self, data=first, protocol=None)

    def evaluate_method(
        self,
        method: str | None,
        options: Mapping[str, Any],
        *,
        keep: Path | None = None,
        overwrite: bool = False,
    ) -> Predictions:
        """Predictions of a method, by default the models' own.

        Args:
            keep: a folder to which captions are written batch by batch, so that an interrupted run
                can continue.
            overwrite: start again in that folder.

        Raises:
            UserError: a method that cannot do this, or captions of other settings in `keep`.
        """
        if isinstance(self.data, ClassificationDataset):
            classifier = self._classifier(method, options, self.data.labels, self.data.prompts)
            return predict.predict_labels(
                self.data, classifier, self.cache, self.meter, self.batch_size
            )
        if isinstance(self.data, MultilabelDataset):
            classifier = self._classifier(method, options, self.data.labels, self.data.prompts)
            return predict.predict_multilabel(
                self.data, classifier, self.cache, self.meter, self.batch_size, self.selection
            )
        if self.task == "retrieve":
            texts = [text for own in self.data.references for text in own]
            classifier = self._classifier(method, options, texts, [[text] for text in texts])
            return predict.predict_retrieval(
                self.data, classifier, self.cache, self.meter, self.batch_size
            )
        return self._captions(self.data, method, options, keep, overwrite)

    def from_predictions(self, file: Path) -> Predictions:
        """Predictions that an earlier run wrote.

        Raises:
            UserError: rows that do not fit the images.
        """
        if self.task == "retrieve":
            raise UserError("--predictions has captions or labels, and retrieval needs scores")
        if isinstance(self.data, CaptionDataset):
            saved = predictions.read_captions(file, self.data.ids)
            rows = predictions.in_order(saved, self.data.sources)
            return predict.score_captions(saved.name, self.data, rows, judge=self.judge)
        saved = predictions.read_labels(file)
        rows = predictions.in_order(saved, self.data.sources)
        if isinstance(self.data, ClassificationDataset):
            return predict.score_predictions(saved.name, self.data, rows)
        return predict.score_multilabel_predictions(saved.name, self.data, rows, self.selection)

    def about(self, answers: Predictions) -> dict[str, Any]:
        """The data, the task and the models, for the result."""
        model, pretrained = _model_names(self.models, answers)
        truth: Sequence[int] | Sequence[Sequence[int]] | Sequence[Sequence[str]]
        if isinstance(self.data, ClassificationDataset):
            truth = self.data.classes
        elif isinstance(self.data, MultilabelDataset):
            truth = self.data.truth
        else:
            truth = self.data.references
        about: dict[str, Any] = {
            "dataset": self.path.resolve().name,
            "model": model,
            "pretrained": pretrained,
            "protocol": self.protocol.name if self.protocol else None,
            "split": self.protocol.split if self.protocol else self.options.split,
            "truth": ground_truth.fingerprint(self.path, self.data.sources, truth),
        }
        if isinstance(self.data, ClassificationDataset | MultilabelDataset):
            about["prompts"] = {
                "classes": list(self.data.labels),
                "templates": self.data.templates,
                "fingerprint": prompts.fingerprint(self.data.prompts),
            }
        return about

    def truth_rows(self) -> list[dict[str, Any]]:
        """The ground truth of each image, as rows that `--truth` reads."""
        if isinstance(self.data, ClassificationDataset):
            labels = [self.data.labels[number] for number in self.data.classes]
            pairs = zip(self.data.sources, labels, strict=True)
            return [{"path": source.path, "label": label} for source, label in pairs]
        if isinstance(self.data, MultilabelDataset):
            each = zip(self.data.sources, self.data.truth, strict=True)
            names = self.data.labels
            return [{"path": s.path, "labels": [names[i] for i in own]} for s, own in each]
        captions = zip(self.data.sources, self.data.references, strict=True)
        return [{"path": source.path, "references": list(own)} for source, own in captions]

    def _classifier(
        self,
        method: str | None,
        options: Mapping[str, Any],
        labels: Sequence[str],
        prompts: Sequence[Sequence[str]],
    ) -> Classifier:
        classify_options = ClassifyOptions(
            method=method,
            options=options,
            score="cosine" if self.task == "retrieve" else self.options.score,
            long_text=self.options.long_text,
            multi=self.task == "multilabel",
            against=self.options.against,
            coupling=self.options.coupling,
        )
        weight = SENTENCES if self.task == "retrieve" else LABELS
        with self.meter.phase("loading models", counts=False):
            classifier = load_classifier(
                self.models,
                labels,
                prompts,
                classify_options,
                self.cache,
                self.meter,
                weight=weight,
            )
            self.meter.opened()
        return classifier

    def _captions(
        self,
        data: CaptionDataset,
        method: str | None,
        options: Mapping[str, Any],
        keep: Path | None,
        overwrite: bool,
    ) -> Predictions:
        chosen = captioning.captioner(self.models, method, options)
        with self.meter.phase("loading models", counts=False):
            models = with_coupling_for_task(
                self.models, self.options.coupling, SENTENCES, self.cache, self.meter
            )
            name, used = methods.name_of(chosen), captioning.settings(models, chosen)
            self.meter.opened()
        start = time.perf_counter()

        def captions(sources: Sequence[Source]) -> Iterable[CaptionResult]:
            results = captioning.caption(
                sources, models, chosen, self.cache, self.meter, batch_size=self.batch_size
            )
            return self.meter.track("images", results, len(sources))

        rows: Sequence[Row]
        if keep is None:
            rows = [result.row() for result in captions(data.sources)]
        else:
            file = keep / f"{name}.rows.jsonl"
            size = self.batch_size  # rows of a batch that was cut short are made again, together
            with ResumableFile(
                file, predictions.CAPTION, used, overwrite=overwrite, batch_size=size
            ) as output:
                results = iter(captions(to_do(data.sources, output, self.cache)))
                while batch := list(islice(results, size)):
                    output.write([result.row() for result in batch])
            rows = predictions.in_order(predictions.read_captions(file), data.sources)
        seconds = time.perf_counter() - start
        return predict.score_captions(
            name, data, rows, settings=used, seconds=seconds, judge=self.judge
        )


def experiment(
    data: Path | None,
    models: ModelSet,
    options: EvaluateOptions,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    judge: Callable[[], DualEncoder] | None = None,
    batch_size: int = AUTO_BATCH,
    rows: Path | None = None,
) -> Experiment:
    """Read and check the data of an experiment.

    Args:
        data: see `datasets.ground_truth`.
        judge: loads an encoder for CLIPScore of captions; it is called once the data is read.
        rows: a file of predictions, for which no image is read; without data, one of captions with
            references.

    Raises:
        UserError: no data, data of another kind, no image where the ground truth has them, or an
            option that the task has no use for.
    """
    own = (options.labels, options.templates, options.split)
    if options.protocol is not None and any(x is not None for x in own):
        raise UserError(
            f"protocol '{options.protocol}' fixes labels, templates and split: leave them out, or "
            "--protocol"
        )
    protocol = None if options.protocol is None else named(options.protocol)
    task = options.task or (protocol.task if protocol else None)
    scored = options.score not in (None, "auto")
    if task is None:
        raise UserError("say what to measure: --task classify, multilabel, caption or retrieve")
    if protocol is not None and protocol.task != task:
        raise UserError(f"protocol '{protocol.name}' is for --task {protocol.task}, not {task}")
    worded = options.labels is not None or options.templates is not None
    if task not in ("classify", "multilabel") and (worded or scored):
        raise UserError(f"--labels, --templates and --score are no part of --task {task}")
    if task != "caption" and judge is not None:
        raise UserError("--judge is for captions")
    _check_threshold_options(task, options)
    dataset: Data
    if data is None:
        if task != "caption" or rows is None or options.truth is not None or protocol is not None:
            raise UserError(f"eval --task {task} needs DATA: images and their truth")
        data, dataset = rows, predictions.read_captions(rows).dataset
    else:
        dataset = _load_data(task, data, options, protocol)
        if rows is None:
            _check_there(data, dataset.sources)
    return Experiment(
        task=task,
        path=data,
        data=dataset,
        models=models,
        options=options,
        cache=cache,
        meter=meter,
        protocol=protocol,
        judge=None if judge is None else Judge(judge(), cache, meter),
        batch_size=batch_size,
    )


def _load_data(
    task: EvaluationTask, data: Path, options: EvaluateOptions, protocol: Protocol | None
) -> Data:
    truth = None if options.truth is None else Path(options.truth)
    words = {"labels": options.labels, "templates": options.templates}
    if task == "classify":
        return ground_truth.load_classification(
            data, truth=truth, split=options.split, protocol=protocol, **words
        )
    if task == "multilabel":
        split = protocol.split if protocol else options.split
        return ground_truth.load_multilabel(data, truth=truth, split=split, **words)
    return ground_truth.load_captions(data, truth=truth, split=options.split, protocol=protocol)


def _check_there(data: Path, sources: Sequence[Source]) -> None:
    """UserError if none of the images exists: then the names or the folder are others."""
    if sources and not any(s.content is not None or os.path.lexists(s.path or "") for s in sources):
        raise UserError(
            f"none of the {len(sources)} images that the ground truth names is there: the first is "
            f"'{sources[0].path}'; names in a file are relative to DATA, '{data}'"
        )


def _check_threshold_options(task: EvaluationTask, options: EvaluateOptions) -> None:
    chosen = options.threshold is not None or options.held_out is not None
    if task != "multilabel" and (chosen or options.against):
        raise UserError("--threshold, --held-out and --against are for --task multilabel")
    if options.threshold is not None and options.held_out is not None:
        raise UserError("--threshold is given, or chosen with --held-out: give one of them")


def _model_names(models: ModelSet, answers: Predictions) -> tuple[str, str]:
    """CLIP_benchmark's `model` and `pretrained`; unknown for rows that an earlier run wrote."""
    spec = models.spec.encoder or ""
    if answers.from_file:
        return answers.name, ""
    if spec.startswith("open_clip:"):
        model, _, pretrained = spec.removeprefix("open_clip:").partition("/")
        return model, pretrained
    return models.name, "coupled" if models.spec.encoder is None else "encoder"
