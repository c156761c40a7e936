"""Pictures and labels, a query image or a sentence to boxes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.batching import in_batches
from zeroshot.inference.embedding import AUTO_BATCH, embed_texts
from zeroshot.inference.meter import Meter
from zeroshot.inference.opened import open_all, open_pictures
from zeroshot.inputs.source import Picture, Source
from zeroshot.methods.naclip import NACLIP
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DenseEncoder, Detections, Detector, DualEncoder, Grounder, Image
from zeroshot.models.boxes import nms
from zeroshot.ops import normalize
from zeroshot.results.regions import DetectResult, Found
from zeroshot.results.result import Failure
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.drawing import draw_boxes
from zeroshot.tasks.localization.image_folder import Gallery
from zeroshot.tasks.localization.region_detector import Prompts, RegionDetector

__all__ = ["Finder", "by_examples", "by_labels", "by_regions", "by_sentence", "detect"]

QUERY = "query"
"""What a query image finds is called."""

Regions = Literal["auto", "dense", "windows"]


@dataclass(frozen=True)
class Finder:
    """A model with what it looks for, encoded: pictures to what was found in each."""

    name: str
    """Canonical, of the model."""
    method: str
    """`native` of a detection model, `regions` of a dual encoder."""
    labels: Sequence[str]
    find: Callable[[Sequence[Image]], list[list[Found]]]


def by_labels(
    detector: Detector,
    labels: Sequence[str],
    sentences: Sequence[Sequence[str]],
    meter: Meter,
    *,
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
    *,
    threshold: float,
    overlap: float,
) -> Finder:
    """A detection model that looks for what pictures show."""
    with meter.stage("encoder"):
        encoded = detector.encode_examples(open_all(examples, "a query image"))
    return _finder(detector, "native", names, encoded, threshold, overlap)


def by_sentence(
    detector: Detector, sentence: str, meter: Meter, *, threshold: float, word_threshold: float
) -> Finder:
    """A detection model that looks for what a sentence speaks of; labels are its words."""
    if not isinstance(detector, Grounder):
        raise UserError(
            f"{detector.name} reads labels, not sentences; Grounding DINO does: --model "
            "hf:IDEA-Research/grounding-dino-tiny"
        )
    meter.texts_encoded += 1

    def find(images: Sequence[Image]) -> list[list[Found]]:
        return [
            [
                Found(" ".join(sentence[b:e] for b, e in p.spans), p.score, p.box, p.spans)
                for p in own
            ]
            for own in detector.ground(images, sentence, threshold, word_threshold)
        ]

    return Finder(detector.name, "native", (), find)


def by_regions(
    models: ModelSet,
    labels: Sequence[str],
    sentences: Sequence[Sequence[str]],
    cache: EmbeddingCache,
    meter: Meter,
    *,
    regions: Regions = "auto",
    resolution: int = 0,
    threshold: float,
    overlap: float,
) -> Finder:
    """The set's dual encoder, which labels regions of pictures; prompts come from the cache.

    `sentences` are those of the labels, and after them of what is none.

    UserError for an encoder that cannot propose them by its patches, where these are asked for.
    """
    encoder = models.encoder
    if isinstance(encoder, CoupledEncoder):
        raise UserError(
            f"model set '{models.name}' has no dual encoder to look at regions with: name one by "
            "--encoder, or a detection model by --model"
        )
    flat = [sentence for group in sentences for sentence in group]
    counts = [len(group) for group in sentences]
    rows = torch.split(embed_texts(flat, encoder, cache, meter), counts)
    prompts = Prompts(normalize(torch.stack([group.mean(0) for group in rows])), len(labels))
    detector = RegionDetector(encoder, _dense(encoder, regions, resolution))
    return _finder(detector, "regions", labels, prompts, threshold, overlap)


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
    def find(images: Sequence[Image]) -> list[list[Found]]:
        return [_named(one, labels, overlap) for one in detector.detect(images, prompts, threshold)]

    return Finder(detector.name, method, labels, find)


def _named(one: Detections, labels: Sequence[str], overlap: float) -> list[Found]:
    """Boxes with their labels, but for those that a better one of the same label covers."""
    kept = nms(one.boxes, one.scores, one.labels, overlap)
    return [
        Found(labels[int(one.labels[k])], float(one.scores[k]), _box(one.boxes[k]))
        for k in kept.tolist()
    ]


def _box(row: Float[Tensor, " 4"]) -> tuple[float, float, float, float]:
    left, top, right, bottom = row.tolist()
    return left, top, right, bottom


def detect(
    sources: Iterable[Source],
    finder: Finder,
    meter: Meter,
    drawn: Gallery | None = None,
    *,
    batch_size: int = AUTO_BATCH,
) -> Iterator[DetectResult]:
    """One result per picture, in order; pictures are drawn as their rows come."""
    for batch in open_pictures(sources, meter, batch_size):
        pictures = [picture for _, picture in batch if isinstance(picture, Picture)]
        with meter.stage("encoder"):
            found = [
                one
                for _, part in in_batches(
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
    source: Source, picture: Picture, found: Sequence[Found], finder: Finder, drawn: Gallery | None
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


def _drawn(image: Image, found: Sequence[Found], labels: Sequence[str]) -> Image:
    """Colours by the place of a label; those of phrases by their first appearance."""
    places = {name: i for i, name in enumerate(dict.fromkeys([*labels, *(f.label for f in found)]))}
    return draw_boxes(
        image,
        [f.box for f in found],
        [places[f.label] for f in found],
        [f.label for f in found],
        [f.score for f in found],
    )
