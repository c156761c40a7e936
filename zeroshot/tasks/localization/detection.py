"""Images to boxes: of labels, of what query images show, or of the phrases of a sentence."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot import prompts
from zeroshot.boxes import nms
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.coupled_models import LABELS, refuse_coupling, with_coupling_for_task
from zeroshot.inference.decoded_images import apply_to_images, load_all
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    embed_texts,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Picture, Source
from zeroshot.methods.naclip import NACLIP
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DenseEncoder, Detections, Detector, DualEncoder, Grounder, Image
from zeroshot.ops import normalize
from zeroshot.results.regions import Detection, DetectResult
from zeroshot.results.result import Failure
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.detect_options import DetectOptions, RegionSource
from zeroshot.tasks.localization.drawing import draw_boxes
from zeroshot.tasks.localization.image_folder import ImageFolder
from zeroshot.tasks.localization.region_detector import Prompts, RegionDetector
from zeroshot.tasks.options import as_json
from zeroshot.tasks.task import OpenedTask, Task

QUERY = "query"
"""The label of boxes that a single query image finds."""
THRESHOLDS = {"native": 0.1, "sentence": 0.25, "query": 0.6, "regions": 0.5}
"""Defaults: for labels with a detection model (as in transformers), a sentence with Grounding DINO
(as its authors), query images, and regions of a dual encoder."""


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
        labels = prompts.load_labels(options.labels) if options.labels else ()
        return cls(
            models=models,
            options=options,
            labels=labels,
            background=prompts.load_background(options.background, labels),
            queries=find(options.query_images).sources,
        )

    def about(self) -> dict[str, Any]:
        """See `Task`; the templates of a model are its own."""
        if not self.labels:
            return {"sentence": self.options.sentence} if self.options.sentence else {}
        names = [*self.labels, *self.background]
        given, own = self.options.templates, self.options.model is None
        loaded = prompts.load_templates(given, names) if given or own else ()
        return {"labels": list(self.labels)} | ({"templates": as_json(loaded)} if loaded else {})

    @property
    def threshold(self) -> float:
        """The lowest score of a box."""
        if self.options.threshold is not None:
            return self.options.threshold
        if self.options.model is None:
            return THRESHOLDS["regions"]
        sentence = self.options.sentence is not None
        return THRESHOLDS["query" if self.queries else "sentence" if sentence else "native"]

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "DetectRunner":
        """Load the model and encode the labels, images or sentence to look for."""
        targets = [bool(self.labels), bool(self.queries), self.options.sentence is not None]
        if sum(targets) != 1:
            raise UserError("detect looks for labels, query images or a sentence: give one of them")
        finder, used = self._finder(cache, meter)
        return DetectRunner(
            task=self, finder=finder, prompts=used, cache=cache, batch_size=batch_size
        )

    def _prompts(self, default: str) -> list[list[str]]:
        """The prompts of each label; for a dual encoder also of what competes with them."""
        dual = self.options.model is None
        names = [*self.labels, *(self.background if dual else ())]
        templates = prompts.load_templates(self.options.templates, names, default)
        found = prompts.expand(self.labels, templates)
        if dual:
            found += prompts.expand_background(self.background, templates)
            shared = templates if isinstance(templates, tuple) else prompts.load_templates(None)
            found += prompts.expand(prompts.other_colours(self.labels), shared)
        return found

    def _finder(self, cache: EmbeddingCache, meter: Meter) -> "tuple[Finder, list[list[str]]]":
        """The finder, and the prompts of its labels."""
        options = self.options
        if options.model is None:
            return self._by_regions(cache, meter)
        refuse_coupling(options.coupling)
        detector, limits = self.models.detector(options.model), (self.threshold, options.overlap)
        if options.sentence is not None:
            thresholds = (self.threshold, options.word_threshold)
            return by_sentence(detector, options.sentence, meter, *thresholds), []
        if self.queries:
            stems = [Path(source.path or QUERY).stem for source in self.queries]
            names = [QUERY] if len(stems) == 1 else stems
            return by_examples(detector, self.queries, names, meter, *limits), []
        used = self._prompts(detector.template)
        return by_labels(detector, self.labels, used, meter, *limits), used

    def _by_regions(self, cache: EmbeddingCache, meter: Meter) -> "tuple[Finder, list[list[str]]]":
        if not self.labels:
            raise UserError(
                "a query image or a sentence needs a detection model: --model "
                "hf:google/owlv2-base-patch16-ensemble for an image, --model "
                "hf:IDEA-Research/grounding-dino-tiny for a sentence"
            )
        self.models.require(language_model=False)
        used = self._prompts("simple")
        encoder = with_coupling_for_task(
            self.models, self.options.coupling, LABELS, cache, meter
        ).encoder
        detector = RegionDetector(
            encoder,
            _dense_segmenter(encoder, self.options.regions, self.options.resolution),
            self.options.refine,
        )
        flat = [text for group in used for text in group]
        texts = project_texts(encoder, embed_texts(flat, text_encoder_of(encoder), cache, meter))
        means = [group.mean(0) for group in torch.split(texts, [len(group) for group in used])]
        others = len(used) - len(self.labels) - len(self.background)
        encoded = Prompts(normalize(torch.stack(means)), len(self.labels), others)
        limits = (self.threshold, self.options.overlap)
        return _finder(detector, "regions", self.labels, encoded, *limits), used


@dataclass(frozen=True)
class Finder:
    """A model with its encoded prompts or examples; `find` gives the detections of each image."""

    name: str
    """The canonical name of the model."""
    method: str
    """`native` for a detection model, `regions` for a dual encoder."""
    labels: Sequence[str]
    find: Callable[[Sequence[Image]], list[list[Detection]]]


def by_labels(
    detector: Detector,
    labels: Sequence[str],
    prompts: Sequence[Sequence[str]],
    meter: Meter,
    threshold: float,
    overlap: float,
) -> Finder:
    """A detection model that looks for labels; UserError if a label has several prompts."""
    if any(len(group) > 1 for group in prompts):
        raise UserError(
            "a detection model takes one prompt per label: --templates none, or one such as "
            "'a photo of a {}'"
        )
    with meter.stage("encoder"):
        encoded = detector.encode_prompts([group[0] for group in prompts])
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
    """A detection model that looks for the things that example images show."""
    with meter.stage("encoder"):
        encoded = detector.encode_examples(load_all(examples, "a query image"))
    return _finder(detector, "native", names, encoded, threshold, overlap)


def by_sentence(
    detector: Detector, sentence: str, meter: Meter, threshold: float, word_threshold: float
) -> Finder:
    """A detection model that looks for the things in a sentence; its words are the labels."""
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


def _dense_segmenter(
    encoder: DualEncoder, regions: RegionSource, resolution: int
) -> DenseSegmenter | None:
    """The segmenter that proposes regions; None for windows."""
    if not isinstance(encoder, DenseEncoder):
        if regions == "dense" or resolution:
            raise UserError(
                f"{encoder.name} has no embeddings of patches, which --regions dense and "
                "--resolution need: leave them out, and regions are windows of many sizes"
            )
        return None
    if regions == "windows":
        return None
    try:
        return DenseSegmenter(encoder, NACLIP(), resolution or encoder.image_size * 3 // 2)
    except UserError:  # it has no patches
        if regions == "dense" or resolution:
            raise
        return None


def _finder(
    detector: Detector,
    method: str,
    labels: Sequence[str],
    prompts: Any,
    threshold: float,
    overlap: float,
) -> Finder:
    def find(images: Sequence[Image]) -> list[list[Detection]]:
        each = detector.detect(images, prompts, threshold)
        return [_with_labels(boxes, labels, overlap) for boxes in each]

    return Finder(detector.name, method, labels, find)


def _with_labels(boxes: Detections, labels: Sequence[str], overlap: float) -> list[Detection]:
    """Boxes with their labels, without those that a better box of the same label covers."""
    return [
        Detection(labels[int(boxes.labels[i])], float(boxes.scores[i]), _box(boxes.boxes[i]))
        for i in nms(boxes.boxes, boxes.scores, boxes.labels, overlap).tolist()
    ]


def _box(sides: Float[Tensor, " 4"]) -> tuple[float, float, float, float]:
    left, top, right, bottom = sides.tolist()
    return left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class DetectRunner(OpenedTask[Detect]):
    """A model with its encoded prompts or examples."""

    finder: Finder
    prompts: Sequence[Sequence[str]]

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        task, options = self.task, self.task.options
        settings: dict[str, Any] = {
            "models": {"detector": self.finder.name},
            "method": self.finder.method,
            "threshold": task.threshold,
            "overlap": options.overlap,
            "files": bool(options.draw),
        }
        if task.labels:
            settings |= {"labels": list(task.labels), "prompts": prompts.fingerprint(self.prompts)}
        if task.queries:
            settings["queries"] = [source.path for source in task.queries]
        if options.sentence is not None:
            settings["word_threshold"] = options.word_threshold
        if options.model is None:
            settings["background"] = list(task.background)
            settings |= {"regions": options.regions, "resolution": options.resolution}
            settings["refine"] = options.refine
        return settings

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[DetectResult]:
        """One result per image, in order; an image with its boxes is written before its row."""
        folder = ImageFolder.at(self.task.options.draw, self.task.options.overwrite)
        for source, answer in apply_to_images(sources, self.finder.find, meter, self.batch_size):
            if isinstance(answer, Failure):
                yield DetectResult(source=source, id=None, error=answer)
                continue
            with meter.stage("scoring"):
                result = _result(source, *answer, self.finder, folder)
            yield result


def _result(
    source: Source,
    image: Picture,
    boxes: Sequence[Detection],
    finder: Finder,
    folder: ImageFolder | None,
) -> DetectResult:
    file = None
    if folder is not None:
        file = folder.write(source.path, image.id, _draw(image.image, boxes, finder.labels))
    width, height = image.size
    if image.full_size is not None:
        boxes = [
            box.scaled(width / image.image.width, height / image.image.height) for box in boxes
        ]
    return DetectResult(
        source=source,
        id=image.id,
        models={"detector": finder.name},
        method=finder.method,
        width=width,
        height=height,
        boxes=tuple(boxes),
        drawn=file,
    )


def _draw(image: Image, boxes: Sequence[Detection], labels: Sequence[str]) -> Image:
    """Draw boxes in the colour of their label's index; phrases are counted after the labels."""
    names = list(dict.fromkeys([*labels, *(box.label for box in boxes)]))
    return draw_boxes(
        image,
        [box.box for box in boxes],
        [names.index(box.label) for box in boxes],
        [box.label for box in boxes],
        [box.score for box in boxes],
    )
