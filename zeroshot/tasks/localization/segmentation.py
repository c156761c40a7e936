"""Images and labels to a label for each pixel."""

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
from zeroshot.errors import UnsupportedError, UserError
from zeroshot.inference.decoded_images import apply_to_images, load_all
from zeroshot.inference.embedding import AUTO_BATCH, encode_through_cache
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Picture, Source
from zeroshot.methods import Dense
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DenseEncoder, Image, Segmenter
from zeroshot.prompts import Templates
from zeroshot.results.coco_rle import encode
from zeroshot.results.regions import Region, SegmentResult
from zeroshot.results.result import Failure
from zeroshot.tasks.localization.dense_segmenter import DenseSegmenter
from zeroshot.tasks.localization.drawing import draw_regions, palette_png
from zeroshot.tasks.localization.image_folder import ImageFolder
from zeroshot.tasks.localization.label_maps import LabelMap, label_map, refined
from zeroshot.tasks.localization.segment_options import SegmentOptions
from zeroshot.tasks.options import as_json
from zeroshot.tasks.task import OpenedTask, Task

MOST_PIXELS = 250_000_000
"""Size limit of a mask."""
MOST_LABELS = 255
"""A PNG with a palette has room for this many labels and the background."""


@dataclass(frozen=True)
class PromptedSegmenter:
    """A segmenter with its encoded prompts."""

    segmenter: Segmenter
    labels: Sequence[str]
    prompts: Float[Tensor, "c d"]
    """Embeddings of the labels, then of the background prompts."""
    threshold: float
    """A pixel is background if the probability of its best label is lower than this."""
    refine: int = 0
    """Rounds of refinement at the edges of the image."""


@dataclass(frozen=True)
class Outputs:
    """The folders that images are written to, if any."""

    masks: ImageFolder | None = None
    drawn: ImageFolder | None = None


@dataclass(frozen=True, kw_only=True)
class Segment(Task[SegmentOptions]):
    """A label for each pixel."""

    labels: Sequence[str]
    prompts: Sequence[Sequence[str]]
    """The prompts of each label."""
    background: Sequence[Sequence[str]] = ()
    """The prompts of each thing that is none of the labels."""
    examples: LabeledImages | None = None
    templates: Templates = ()

    schema: ClassVar[str] = SegmentResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: SegmentOptions) -> "Segment":
        """See `Task`."""
        if not options.labels:
            raise UserError("segment needs --labels: cat,dog,sky, or a .txt or .json file")
        labels = prompts.load_labels(options.labels)
        no_default = options.background is None and options.model is not None
        others = () if no_default else prompts.load_background(options.background, labels)
        default = "simple" if options.model is None else "a photo of a {}"
        templates = prompts.load_templates(options.templates, [*labels, *others], default)
        examples = options.examples
        return cls(
            models=models,
            options=options,
            labels=labels,
            prompts=prompts.expand(labels, templates),
            background=prompts.expand_background(others, templates),
            examples=None if examples is None else read_labeled_images(Path(examples), labels),
            templates=templates,
        )

    def about(self) -> dict[str, Any]:
        """See `Task`."""
        return {"labels": list(self.labels), "templates": as_json(self.templates)}

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "SegmentRunner":
        """Load the model and encode the prompts."""
        segmenter = encode_prompts(
            self._segmenter(),
            self.labels,
            self.prompts,
            self.background,
            cache,
            meter,
            examples=self.examples,
            mix=self.options.mix,
            threshold=self.options.threshold,
            refine=self.options.refine if self.options.model is None else 0,
        )
        return SegmentRunner(task=self, segmenter=segmenter, cache=cache, batch_size=batch_size)

    def _segmenter(self) -> Segmenter:
        options = self.options
        if options.model is None:
            self.models.require(language_model=False)
            return dense_segmenter(
                self.models,
                options.method,
                dict(options.options),
                options.resolution,
                options.window,
                options.patches_by,
            )
        given = (
            *(options.method, options.options, options.resolution, options.patches_by),
            options.window is not None,
        )
        if any(given) or options.refine not in (0, SegmentOptions.refine):
            raise UserError(
                "a segmentation model (--model) takes no --method, -o, --patches-by, --resolution, "
                "--refine or --window: these are for a dual encoder"
            )
        return self.models.segmenter(options.model)


@dataclass(frozen=True, kw_only=True)
class SegmentRunner(OpenedTask[Segment]):
    """A segmenter with its prompts."""

    segmenter: PromptedSegmenter

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        task, options = self.task, self.task.options
        found = settings(self.segmenter) | {"prompts": prompts.fingerprint(task.prompts)}
        found["labels"] = list(task.labels)
        found["files"] = [bool(options.masks), bool(options.draw)]
        if task.background:
            found["background"] = prompts.fingerprint(task.background)
        if task.examples is not None:
            pairs = zip(task.examples.sources, task.examples.classes, strict=True)
            found["examples"] = [[source.path, index] for source, index in pairs]
            found["mix"] = options.mix
        return found

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[SegmentResult]:
        """One result per image, in order; its files are written before its row."""
        options = self.task.options
        outputs = Outputs(
            ImageFolder.at(options.masks, options.overwrite),
            ImageFolder.at(options.draw, options.overwrite),
        )
        return segment(sources, self.segmenter, meter, outputs, batch_size=self.batch_size)


def dense_segmenter(
    models: ModelSet,
    method: Any,
    options: dict[str, Any],
    resolution: int = 0,
    window: int | None = None,
    patches_by: str | None = None,
) -> DenseSegmenter:
    """The set's dual encoder as a segmenter, by default with the method `naclip`.

    UserError for a method without dense features, for an encoder without patches, and for a second
    encoder (`patches_by`) that the method lacks or does not use.
    """
    dense = methods.configure("naclip" if method is None else method, options)
    if not isinstance(dense, Dense):
        names = methods.with_verb("attend")
        raise UserError(
            f"{methods.name_of(dense)} makes no dense features; methods that do: {', '.join(names)}"
        )
    encoder = models.encoder
    if not isinstance(encoder, DenseEncoder):
        raise UnsupportedError(
            f"model set '{models.name}' has no dual encoder with embeddings of patches "
            "(a coupled pair has none): name one by --encoder, or a segmentation model by --model"
        )
    second = None if patches_by is None else models.patch_encoder(patches_by)
    return DenseSegmenter(encoder, dense, resolution, window, second)


def encode_prompts(
    segmenter: Segmenter,
    labels: Sequence[str],
    prompts: Sequence[Sequence[str]],
    background: Sequence[Sequence[str]],
    cache: EmbeddingCache,
    meter: Meter,
    *,
    examples: LabeledImages | None = None,
    mix: float = 0.5,
    threshold: float | None = None,
    refine: int = 0,
) -> PromptedSegmenter:
    """Encode all prompts, each once.

    Args:
        prompts: for each label; their embeddings are averaged.
        background: prompts of things that are no labels; a pixel is background if one fits best.
        examples: images of the labels.
        mix: the share of the examples' mean in a label's embedding, if it has examples.
        threshold: by default 0.5 for a sigmoid, none for a softmax.
        refine: rounds of refinement.
    """
    groups = [*prompts, *background]
    flat = [prompt for group in groups for prompt in group]
    encoded = torch.split(
        _embed_prompts(segmenter, flat, cache, meter), [len(group) for group in groups]
    )
    means = torch.stack([group.mean(0) for group in encoded])
    if examples is not None:
        means = _mix_examples(means, segmenter, examples, mix, meter)
    default = 0.5 if segmenter.head == "sigmoid" else 0.0
    least = default if threshold is None else threshold
    return PromptedSegmenter(segmenter, labels, means, least, refine)


def _embed_prompts(
    segmenter: Segmenter, texts: Sequence[str], cache: EmbeddingCache, meter: Meter
) -> Float[Tensor, "n d"]:
    return encode_through_cache(segmenter.encode_prompts, texts, segmenter.name, cache, meter)


def _mix_examples(
    prompts: Float[Tensor, "c d"],
    segmenter: Segmenter,
    examples: LabeledImages,
    mix: float,
    meter: Meter,
) -> Float[Tensor, "c d"]:
    """Move the embeddings of labels with examples towards the mean of those."""
    with meter.stage("encoder"):
        encoded = segmenter.encode_examples(load_all(examples.sources, "an example"))
    classes = torch.tensor(examples.classes)
    mixed = prompts.clone()
    for label in sorted(set(examples.classes)):
        mean = encoded[classes == label].mean(0)
        mixed[label] = (1 - mix) * prompts[label] + mix * mean
    return mixed


def segment(
    sources: Iterable[Source],
    prompted: PromptedSegmenter,
    meter: Meter,
    outputs: Outputs | None = None,
    *,
    batch_size: int = AUTO_BATCH,
) -> Iterator[SegmentResult]:
    """One result per image, in order; its files are written before its row."""
    outputs = outputs or Outputs()
    if outputs.masks is not None and len(prompted.labels) > MOST_LABELS:
        raise UserError(
            f"{len(prompted.labels)} labels, but a mask file has room for {MOST_LABELS}; the "
            "rows have masks for any number of labels"
        )

    def maps(images: Sequence[Image]) -> list[Float[Tensor, "c h w"]]:
        found = prompted.segmenter.maps(images, prompted.prompts)
        if not prompted.refine:
            return found
        pairs, labels = zip(found, images, strict=True), len(prompted.labels)
        return [refined(own, labels, image, prompted.refine) for own, image in pairs]

    for source, answer in apply_to_images(sources, maps, meter, batch_size):
        failure = answer if isinstance(answer, Failure) else _too_large(answer[0])
        if isinstance(answer, Failure) or failure is not None:
            meter.failed += failure is not answer
            yield SegmentResult(source=source, id=None, error=failure)
            continue
        with meter.stage("scoring"):
            result = _result(source, *answer, prompted, outputs)
        yield result


def _too_large(image: Picture) -> Failure | None:
    """Why an image gets no masks, which are as large as the file's image."""
    width, height = image.size
    if width * height <= MOST_PIXELS:
        return None
    return Failure(
        "UnreadableImage",
        f"masks of {width} x {height} pixels are more than {MOST_PIXELS / 1e6:g} megapixels",
    )


def _result(
    source: Source,
    image: Picture,
    logits: Float[Tensor, "c h w"],
    prompted: PromptedSegmenter,
    outputs: Outputs,
) -> SegmentResult:
    width, height = image.size
    segmenter, labels = prompted.segmenter, prompted.labels
    pixels = label_map(logits, (height, width), segmenter.head, len(labels), prompted.threshold)
    present = [i for i in range(len(labels)) if (pixels.index == i + 1).any()]
    regions = tuple(_region(pixels, i, labels[i]) for i in present)
    mask = drawn = None
    if outputs.masks is not None:
        mask = outputs.masks.write(source.path, image.id, palette_png(pixels.index))
    if outputs.drawn is not None:
        masks = [pixels.index == i + 1 for i in present]
        drawing = draw_regions(image.image, masks, present, [r.label for r in regions])
        drawn = outputs.drawn.write(source.path, image.id, drawing)
    return SegmentResult(
        source=source,
        id=image.id,
        models=models_of(segmenter),
        method=method_name(segmenter),
        width=width,
        height=height,
        regions=regions,
        scored=segmenter.head,
        mask=mask,
        drawn=drawn,
    )


def _region(pixels: LabelMap, index: int, label: str) -> Region:
    mask = pixels.index == index + 1
    return Region(label, pixels.scores[index], int(np.count_nonzero(mask)), encode(mask))


def models_of(segmenter: Segmenter) -> dict[str, str]:
    """The names of the models that decide the regions."""
    second = segmenter.second if isinstance(segmenter, DenseSegmenter) else None
    return {"segmenter": segmenter.name} | ({} if second is None else {"patches": second.name})


def method_name(segmenter: Segmenter) -> str:
    """The name of the dense method; `native` for a segmentation model."""
    return methods.name_of(segmenter.method) if isinstance(segmenter, DenseSegmenter) else "native"


def settings(prompted: PromptedSegmenter) -> dict[str, Any]:
    """The settings that decide the regions, except the prompts."""
    segmenter = prompted.segmenter
    values: dict[str, Any] = {
        "models": models_of(segmenter),
        "method": method_name(segmenter),
        "threshold": prompted.threshold,
    }
    if isinstance(segmenter, DenseSegmenter):
        side, window = segmenter.size
        values["options"] = methods.values(segmenter.method)
        values |= {"resolution": side, "window": window, "refine": prompted.refine}
    return values
