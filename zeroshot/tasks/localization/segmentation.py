"""Images and labels to a label for each pixel."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot import methods, prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import LabeledImages, read_labeled_images
from zeroshot.errors import UserError
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.decoded_images import load_all, load_images
from zeroshot.inference.embedding import AUTO_BATCH, TEXT_KIND
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Picture, Source
from zeroshot.methods import Dense
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DenseEncoder, Segmenter
from zeroshot.results.coco_rle import encode
from zeroshot.results.regions import Region, SegmentResult
from zeroshot.results.result import Failure
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.drawing import draw_regions, palette_png
from zeroshot.tasks.localization.image_folder import ImageFolder
from zeroshot.tasks.localization.label_maps import LabelMap, label_map
from zeroshot.tasks.localization.segment_options import SegmentOptions
from zeroshot.tasks.task import OpenedTask, Task

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
    """Where images are written, if anywhere."""

    masks: ImageFolder | None = None
    drawn: ImageFolder | None = None


@dataclass(frozen=True, kw_only=True)
class Segment(Task[SegmentOptions]):
    """A label for each pixel."""

    labels: Sequence[str]
    prompts: Sequence[Sequence[str]]
    """Of each label."""
    background: Sequence[Sequence[str]] = ()
    """Prompts of each thing that is none of the labels."""
    examples: LabeledImages | None = None

    schema: ClassVar[str] = SegmentResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: SegmentOptions) -> "Segment":
        """See `Task`."""
        if not options.labels:
            raise UserError("segment needs --labels: cat,dog,sky, or a .txt or .json file")
        labels = prompts.load_labels(options.labels)
        others = prompts.load_labels(options.background) if options.background else ()
        default = "simple" if options.model is None else "a photo of a {}"
        templates = prompts.load_templates(options.templates or default, [*labels, *others])
        examples = options.examples
        return cls(
            models=models,
            options=options,
            labels=labels,
            prompts=prompts.expand(labels, templates),
            background=prompts.expand(others, templates),
            examples=None if examples is None else read_labeled_images(Path(examples), labels),
        )

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "SegmentRunner":
        """Load the model and encode the prompts."""
        ready = prompted(
            self._segmenter(),
            self.labels,
            self.prompts,
            self.background,
            cache,
            meter,
            examples=self.examples,
            mix=self.options.mix,
            threshold=self.options.threshold,
        )
        return SegmentRunner(task=self, ready=ready, cache=cache, batch_size=batch_size)

    def _segmenter(self) -> Segmenter:
        given = self.options
        if given.model is None:
            self.models.require(language_model=False)
            own = dict(given.options)
            return dense_segmenter(self.models, given.method, own, given.resolution, given.window)
        if given.method or given.options or given.resolution or given.window is not None:
            raise UserError(
                "a segmentation model (--model) takes no --method, -o, --resolution or --window: "
                "these are for a dual encoder"
            )
        return self.models.segmenter(given.model)


@dataclass(frozen=True, kw_only=True)
class SegmentRunner(OpenedTask[Segment]):
    """A segmenter with its prompts."""

    ready: Prompted

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        task, options = self.task, self.task.options
        found = settings(self.ready) | {"prompts": prompts.fingerprint(task.prompts)}
        found["labels"] = list(task.labels)
        found["files"] = [bool(options.masks), bool(options.draw)]
        if task.background:
            found["background"] = prompts.fingerprint(task.background)
        if task.examples is not None:
            pairs = zip(task.examples.sources, task.examples.classes, strict=True)
            found["examples"] = [[source.path, place] for source, place in pairs]
            found["mix"] = options.mix
        return found

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[SegmentResult]:
        """One result per image, in order; files are written as their rows come."""
        outputs = Outputs(
            self._folder(self.task.options.masks), self._folder(self.task.options.draw)
        )
        return segment(sources, self.ready, meter, outputs, batch_size=self.batch_size)

    def _folder(self, path: str | Path | None) -> ImageFolder | None:
        return (
            None
            if path is None
            else ImageFolder(Path(path).absolute(), self.task.options.overwrite)
        )


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
        examples: images of the labels, which show what words do not say.
        mix: how much of a label's row the mean of its examples is, where it has any.
        threshold: without one 0.5 for a sigmoid and none for a softmax, where labels compete.
    """
    groups = [*sentences, *background]
    flat = [sentence for group in groups for sentence in group]
    rows = torch.split(_rows(segmenter, flat, cache, meter), [len(group) for group in groups])
    means = torch.stack([group.mean(0) for group in rows])
    if examples is not None:
        means = _mixed(means, segmenter, examples, mix, meter)
    own = 0.5 if segmenter.head == "sigmoid" else 0.0
    return Prompted(segmenter, labels, means, own if threshold is None else threshold)


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
        rows = segmenter.encode_examples(load_all(examples.sources, "an example"))
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
    """One result per image, in order; files are written as their rows come."""
    outputs = outputs or Outputs()
    if outputs.masks is not None and len(ready.labels) > MOST_LABELS:
        raise UserError(
            f"{len(ready.labels)} labels, but a mask in a file has room for {MOST_LABELS}; the "
            "rows hold masks of any number of labels"
        )
    for batch in load_images(sources, meter, batch_size):
        pictures = [picture for _, picture in batch if isinstance(picture, Picture)]
        with meter.stage("encoder"):
            maps = [
                found
                for _, part in batched_with_oom_retry(
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
