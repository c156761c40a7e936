"""Pictures and labels to a label for each pixel."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import LabeledImages
from zeroshot.errors import UserError
from zeroshot.inference.batching import in_batches
from zeroshot.inference.embedding import AUTO_BATCH, TEXT_KIND
from zeroshot.inference.meter import Meter
from zeroshot.inference.opened import open_all, open_pictures
from zeroshot.inputs.source import Picture, Source
from zeroshot.methods import Dense
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DenseEncoder, Segmenter
from zeroshot.results.coco_rle import encode
from zeroshot.results.regions import Region, SegmentResult
from zeroshot.results.result import Failure
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.drawing import draw_regions, palette_png
from zeroshot.tasks.localization.image_folder import Gallery
from zeroshot.tasks.localization.label_maps import LabelMap, label_map

__all__ = ["Outputs", "Prompted", "dense_segmenter", "prompted", "segment", "settings"]

MOST_LABELS = 255
"""What a PNG with a palette has room for beside the background."""


@dataclass(frozen=True)
class Prompted:
    """A segmenter with its prompts, encoded."""

    segmenter: Segmenter
    labels: Sequence[str]
    prompts: Float[Tensor, "c d"]
    """Of the labels, and after them of what is background."""
    threshold: float
    """Pixels whose best label is less sure than this are background."""


@dataclass(frozen=True)
class Outputs:
    """Where pictures go, where they go anywhere."""

    masks: Gallery | None = None
    drawn: Gallery | None = None


def dense_segmenter(
    models: ModelSet,
    method: str | None,
    options: dict[str, Any],
    resolution: int = 0,
    window: int | None = None,
) -> DenseSegmenter:
    """The set's dual encoder as a segmenter, by `naclip` unless another method is named.

    UserError for a method that is none of dense features, and for an encoder without patches.
    """
    chosen = methods.configure(method or "naclip", options)
    if not isinstance(chosen, Dense):
        dense = [n for n in methods.names() if "segment" in methods.describe(n).does]
        raise UserError(f"{method} makes no dense features; methods that do: {', '.join(dense)}")
    encoder = models.encoder
    if not isinstance(encoder, DenseEncoder):
        raise UserError(
            f"model set '{models.name}' has no dual encoder whose patches can be asked one by one "
            "(a coupled pair has none): name one by --encoder, or a segmentation model by --model"
        )
    return DenseSegmenter(encoder, chosen, resolution, window)


def prompted(
    segmenter: Segmenter,
    labels: Sequence[str],
    sentences: Sequence[Sequence[str]],
    background: Sequence[Sequence[str]],
    cache: EmbeddingCache,
    meter: Meter,
    *,
    examples: LabeledImages | None = None,
    mix: float = 0.5,
    threshold: float | None = None,
) -> Prompted:
    """Encode all prompts, each once.

    Args:
        sentences: of each label; their rows are averaged.
        background: sentences of what is no label; a pixel that fits one best is background.
        examples: pictures of the labels, which show what words do not say.
        mix: how much of a label's row the mean of its examples is, where it has any.
        threshold: without one 0.5 for a sigmoid and none for a softmax, where labels compete.
    """
    groups = [*sentences, *background]
    flat = [sentence for group in groups for sentence in group]
    rows = torch.split(_rows(segmenter, flat, cache, meter), [len(group) for group in groups])
    prompts = torch.stack([group.mean(0) for group in rows])
    if examples is not None:
        prompts = _mixed(prompts, segmenter, examples, mix, meter)
    own = 0.5 if segmenter.head == "sigmoid" else 0.0
    return Prompted(segmenter, labels, prompts, own if threshold is None else threshold)


def _rows(
    segmenter: Segmenter, texts: Sequence[str], cache: EmbeddingCache, meter: Meter
) -> Float[Tensor, "n d"]:
    def fresh(missing: Sequence[str]) -> Tensor:
        meter.texts_encoded += len(missing)
        return segmenter.encode_prompts(missing)

    with meter.stage("encoder"):
        before = meter.texts_encoded
        ids = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        rows = cache(fresh, texts, ids=ids, encoder=segmenter.name, kind=TEXT_KIND)
        meter.texts_cached += len(set(texts)) - (meter.texts_encoded - before)
        return rows


def _mixed(
    prompts: Float[Tensor, "c d"],
    segmenter: Segmenter,
    examples: LabeledImages,
    mix: float,
    meter: Meter,
) -> Float[Tensor, "c d"]:
    """Rows of labels that have examples, moved towards those."""
    with meter.stage("encoder"):
        rows = segmenter.encode_examples(open_all(examples.sources, "an example"))
    classes = torch.tensor(examples.classes)
    mixed = prompts.clone()
    for place in sorted(set(examples.classes)):
        shown = rows[classes == place].mean(0)
        mixed[place] = (1 - mix) * prompts[place] + mix * shown
    return mixed


def segment(
    sources: Iterable[Source],
    ready: Prompted,
    meter: Meter,
    outputs: Outputs | None = None,
    *,
    batch_size: int = AUTO_BATCH,
) -> Iterator[SegmentResult]:
    """One result per picture, in order; files are written as their rows come."""
    outputs = outputs or Outputs()
    if outputs.masks is not None and len(ready.labels) > MOST_LABELS:
        raise UserError(
            f"{len(ready.labels)} labels, but a mask in a file has room for {MOST_LABELS}; the "
            "rows hold masks of any number of labels"
        )
    for batch in open_pictures(sources, meter, batch_size):
        pictures = [picture for _, picture in batch if isinstance(picture, Picture)]
        with meter.stage("encoder"):
            maps = [
                found
                for _, part in in_batches(
                    lambda some: ready.segmenter.maps([p.image for p in some], ready.prompts),
                    pictures,
                    len(pictures),
                )
                for found in part
            ]
        waiting = iter(maps)
        for source, picture in batch:
            if isinstance(picture, Failure):
                yield SegmentResult(source=source, id=None, error=picture)
                continue
            with meter.stage("scoring"):
                result = _result(source, picture, next(waiting), ready, outputs)
            yield result


def _result(
    source: Source,
    picture: Picture,
    logits: Float[Tensor, "c h w"],
    ready: Prompted,
    outputs: Outputs,
) -> SegmentResult:
    width, height = picture.image.size
    found = label_map(
        logits, (height, width), ready.segmenter.head, len(ready.labels), ready.threshold
    )
    places = [p for p in range(len(ready.labels)) if (found.index == p + 1).any()]
    regions = tuple(_region(found, place, ready.labels[place]) for place in places)
    mask = drawn = None
    if outputs.masks is not None:
        mask = outputs.masks.write(source.path, picture.id, palette_png(found.index))
    if outputs.drawn is not None:
        masks = [found.index == place + 1 for place in places]
        picture_drawn = draw_regions(picture.image, masks, places, [r.label for r in regions])
        drawn = outputs.drawn.write(source.path, picture.id, picture_drawn)
    return SegmentResult(
        source=source,
        id=picture.id,
        models={"segmenter": ready.segmenter.name},
        method=method_name(ready.segmenter),
        width=width,
        height=height,
        regions=regions,
        scored=ready.segmenter.head,
        mask=mask,
        drawn=drawn,
    )


def _region(found: LabelMap, place: int, label: str) -> Region:
    mask = found.index == place + 1
    return Region(label, found.scores[place], int(np.count_nonzero(mask)), encode(mask))


def method_name(segmenter: Segmenter) -> str:
    """A dense method's; `native` of a model that segments itself."""
    return methods.name_of(segmenter.method) if isinstance(segmenter, DenseSegmenter) else "native"


def settings(ready: Prompted) -> dict[str, Any]:
    """What decides the regions, but for the prompts' words."""
    segmenter = ready.segmenter
    held: dict[str, Any] = {
        "models": {"segmenter": segmenter.name},
        "method": method_name(segmenter),
        "threshold": ready.threshold,
    }
    if isinstance(segmenter, DenseSegmenter):
        side, window = segmenter.size
        held["options"] = methods.values(segmenter.method)
        held |= {"resolution": side, "window": window}
    return held
