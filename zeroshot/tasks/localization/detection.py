"""Images to boxes: of labels, of what query images show, or of the phrases of a sentence."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot import prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.decoded_images import load_all, load_images
from zeroshot.inference.embedding import AUTO_BATCH, embed_texts
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Picture, Source
from zeroshot.methods.naclip import NACLIP
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DenseEncoder, Detections, Detector, DualEncoder, Grounder, Image
from zeroshot.models.boxes import nms
from zeroshot.ops import normalize
from zeroshot.results.regions import Detection, DetectResult
from zeroshot.results.result import Failure
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.detect_options import DetectOptions, Regions
from zeroshot.tasks.localization.drawing import draw_boxes
from zeroshot.tasks.localization.image_folder import ImageFolder
from zeroshot.tasks.localization.region_detector import Prompts, RegionDetector
from zeroshot.tasks.task import OpenedTask, Task

QUERY = "query"
"""Label of what one query image finds."""
THRESHOLDS = {"native": 0.1, "sentence": 0.25, "query": 0.6, "regions": 0.5}
"""Defaults: labels to a detection model (as in transformers), a sentence to Grounding DINO (as its
authors), a query image, regions of a dual encoder."""


@dataclass(frozen=True, kw_only=True)
class Detect(Task[DetectOptions]):
    """Boxes of labels, of query images, or of the phrases of a sentence."""

    labels: Sequence[str] = ()
    background: Sequence[str] = ()
    queries: Sequence[Source] = ()

    schema: ClassVar[str] = DetectResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: DetectOptions) -> "Detect":
        """See `Task`."""
        return cls(
            models=models,
            options=options,
            labels=prompts.load_labels(options.labels) if options.labels else (),
            background=prompts.load_labels(options.background),
            queries=find(options.query_images).sources,
        )

    @property
    def threshold(self) -> float:
        """Lowest score of a box."""
        if self.options.threshold is not None:
            return self.options.threshold
        if self.options.model is None:
            return THRESHOLDS["regions"]
        sentence = self.options.sentence is not None
        return THRESHOLDS["query" if self.queries else "sentence" if sentence else "native"]

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "DetectRunner":
        """Load the model and encode what is looked for."""
        targets = [bool(self.labels), bool(self.queries), self.options.sentence is not None]
        if sum(targets) != 1:
            raise UserError("detect looks for labels, query images or a sentence: give one of them")
        finder, sentences = self._finder(cache, meter)
        return DetectRunner(
            task=self, finder=finder, sentences=sentences, cache=cache, batch_size=batch_size
        )

    def _prompts(self, default: str) -> list[list[str]]:
        """Of each label, then of the background."""
        words = [*self.labels, *(self.background if self.options.model is None else ())]
        return prompts.expand(
            words, prompts.load_templates(self.options.templates or default, words)
        )

    def _finder(self, cache: EmbeddingCache, meter: Meter) -> "tuple[Finder, list[list[str]]]":
        """What finds, and the prompts it looks for."""
        options = self.options
        if options.model is None:
            return self._by_regions(cache, meter)
        detector, cut = self.models.detector(options.model), (self.threshold, options.overlap)
        if options.sentence is not None:
            limits = (self.threshold, options.word_threshold)
            return by_sentence(detector, options.sentence, meter, *limits), []
        if self.queries:
            stems = [Path(source.path or QUERY).stem for source in self.queries]
            names = [QUERY] if len(stems) == 1 else stems
            return by_examples(detector, self.queries, names, meter, *cut), []
        sentences = self._prompts(detector.template)
        return by_labels(detector, self.labels, sentences, meter, *cut), sentences

    def _by_regions(self, cache: EmbeddingCache, meter: Meter) -> "tuple[Finder, list[list[str]]]":
        if not self.labels:
            raise UserError(
                "a query image or a sentence needs a detection model: --model "
                "hf:google/owlv2-base-patch16-ensemble for an image, --model "
                "hf:IDEA-Research/grounding-dino-tiny for a sentence"
            )
        self.models.require(language_model=False)
        sentences = self._prompts("simple")
        encoder = self.models.encoder
        if isinstance(encoder, CoupledEncoder):
            raise UserError(
                f"model set '{self.models.name}' has no dual encoder to look at regions with: name "
                "one by --encoder, or a detection model by --model"
            )
        detector = RegionDetector(
            encoder, _dense(encoder, self.options.regions, self.options.resolution)
        )
        rows = embed_texts([text for group in sentences for text in group], encoder, cache, meter)
        means = [group.mean(0) for group in torch.split(rows, [len(group) for group in sentences])]
        encoded = Prompts(normalize(torch.stack(means)), len(self.labels))
        cut = (self.threshold, self.options.overlap)
        return _finder(detector, "regions", self.labels, encoded, *cut), sentences


@dataclass(frozen=True)
class Finder:
    """A model with what it looks for, encoded: images to what was found in each."""

    name: str
    """Canonical, of the model."""
    method: str
    """`native` of a detection model, `regions` of a dual encoder."""
    labels: Sequence[str]
    find: Callable[[Sequence[Image]], list[list[Detection]]]


def by_labels(
    detector: Detector,
    labels: Sequence[str],
    sentences: Sequence[Sequence[str]],
    meter: Meter,
    threshold: float,
    overlap: float,
) -> Finder:
    """A detection model that looks for labels; UserError for more than one sentence of each."""
    if any(len(group) > 1 for group in sentences):
        raise UserError(
            "a detection model reads one sentence for each label: --templates none, or one such as "
            "'a photo of a {}'"
        )
    prompts = [group[0] for group in sentences]
    with meter.stage("encoder"):
        encoded = detector.encode_prompts(prompts)
    meter.texts_encoded += len(prompts)
    return _finder(detector, "native", labels, encoded, threshold, overlap)


def by_examples(
    detector: Detector,
    examples: Sequence[Source],
    names: Sequence[str],
    meter: Meter,
    threshold: float,
    overlap: float,
) -> Finder:
    """A detection model that looks for what images show."""
    with meter.stage("encoder"):
        encoded = detector.encode_examples(load_all(examples, "a query image"))
    return _finder(detector, "native", names, encoded, threshold, overlap)


def by_sentence(
    detector: Detector, sentence: str, meter: Meter, threshold: float, word_threshold: float
) -> Finder:
    """A detection model that looks for what a sentence speaks of; labels are its words."""
    if not isinstance(detector, Grounder):
        raise UserError(
            f"{detector.name} reads labels, not sentences; Grounding DINO does: --model "
            "hf:IDEA-Research/grounding-dino-tiny"
        )
    meter.texts_encoded += 1

    def find(images: Sequence[Image]) -> list[list[Detection]]:
        return [
            [
                Detection(" ".join(sentence[b:e] for b, e in p.spans), p.score, p.box, p.spans)
                for p in own
            ]
            for own in detector.ground(images, sentence, threshold, word_threshold)
        ]

    return Finder(detector.name, "native", (), find)


def _dense(encoder: DualEncoder, regions: Regions, resolution: int) -> DenseSegmenter | None:
    """What proposes regions; None for windows."""
    if regions == "windows" or not isinstance(encoder, DenseEncoder):
        return None
    try:
        side = resolution or 2 * encoder.image_size
    except UserError:  # it has no patches
        if regions == "dense" or resolution:
            raise
        return None
    return DenseSegmenter(encoder, NACLIP(), side)


def _finder(
    detector: Detector,
    method: str,
    labels: Sequence[str],
    prompts: Any,
    threshold: float,
    overlap: float,
) -> Finder:
    def find(images: Sequence[Image]) -> list[list[Detection]]:
        return [_named(one, labels, overlap) for one in detector.detect(images, prompts, threshold)]

    return Finder(detector.name, method, labels, find)


def _named(one: Detections, labels: Sequence[str], overlap: float) -> list[Detection]:
    """Boxes with their labels, but for those that a better one of the same label covers."""
    kept = nms(one.boxes, one.scores, one.labels, overlap)
    return [
        Detection(labels[int(one.labels[k])], float(one.scores[k]), _box(one.boxes[k]))
        for k in kept.tolist()
    ]


def _box(row: Float[Tensor, " 4"]) -> tuple[float, float, float, float]:
    left, top, right, bottom = row.tolist()
    return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class DetectRunner(OpenedTask[Detect]):
    """A model with what it looks for."""

    finder: Finder
    sentences: Sequence[Sequence[str]]

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        task, options = self.task, self.task.options
        found: dict[str, Any] = {
            "models": {"detector": self.finder.name},
            "method": self.finder.method,
            "threshold": task.threshold,
            "overlap": options.overlap,
            "files": bool(options.draw),
        }
        if task.labels:
            found |= {"labels": list(task.labels), "prompts": prompts.fingerprint(self.sentences)}
        if task.queries:
            found["queries"] = [source.path for source in task.queries]
        if options.sentence is not None:
            found["word_threshold"] = options.word_threshold
        if options.model is None:
            found["background"] = list(task.background)
            found |= {"regions": options.regions, "resolution": options.resolution}
        return found

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[DetectResult]:
        """One result per image, in order; boxes are drawn as the rows come."""
        options, finder = self.task.options, self.finder
        folder = None if options.draw is None else Path(options.draw).absolute()
        drawn = None if folder is None else ImageFolder(folder, options.overwrite)
        for batch in load_images(sources, meter, self.batch_size):
            pictures = [picture for _, picture in batch if isinstance(picture, Picture)]
            with meter.stage("encoder"):
                found = [
                    one
                    for _, part in batched_with_oom_retry(
                        lambda some: finder.find([p.image for p in some]), pictures, len(pictures)
                    )
                    for one in part
                ]
            waiting = iter(found)
            for source, picture in batch:
                if isinstance(picture, Failure):
                    yield DetectResult(source=source, id=None, error=picture)
                    continue
                with meter.stage("scoring"):
                    result = _result(source, picture, next(waiting), finder, drawn)
                yield result


def _result(
    source: Source,
    picture: Picture,
    found: Sequence[Detection],
    finder: Finder,
    drawn: ImageFolder | None,
) -> DetectResult:
    file = None
    if drawn is not None:
        file = drawn.write(source.path, picture.id, _drawn(picture.image, found, finder.labels))
    width, height = picture.image.size
    return DetectResult(
        source=source,
        id=picture.id,
        models={"detector": finder.name},
        method=finder.method,
        width=width,
        height=height,
        boxes=tuple(found),
        drawn=file,
    )


def _drawn(image: Image, found: Sequence[Detection], labels: Sequence[str]) -> Image:
    """Colours by the place of a label; those of phrases by their first appearance."""
    places = {name: i for i, name in enumerate(dict.fromkeys([*labels, *(f.label for f in found)]))}
    return draw_boxes(
        image,
        [f.box for f in found],
        [places[f.label] for f in found],
        [f.label for f in found],
        [f.score for f in found],
    )
