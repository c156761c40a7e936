"""The functions of `api` that say where: `zeroshot.segment`, `zeroshot.detect`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zeroshot import images as pictures, prompts as sentences_of
from zeroshot.api import _run, _set
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import read_labeled_images
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inputs.source import Input
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.regions import DetectResult, SegmentResult
from zeroshot.results.result import Results
from zeroshot.tasks.localization.detect_task import DetectJob
from zeroshot.tasks.localization.detection import Regions
from zeroshot.tasks.localization.segment_task import SegmentJob


def segment(
    images: Input | Iterable[Input],
    labels: str | Sequence[str],
    models: str | ModelSet = "base",
    method: str | None = None,
    *,
    model: str | None = None,
    background: str | Sequence[str] = (),
    templates: str | None = None,
    threshold: float | None = None,
    examples: str | Path | None = None,
    mix: float = 0.5,
    resolution: int = 0,
    window: int | None = None,
    masks: str | Path | None = None,
    draw: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
    **options: Any,
) -> Results[SegmentResult]:
    """One result per picture, in order, with the pixels of each label: `result.regions[0].mask`.

    Args:
        images, models, batch_size, cache, options: as for `caption`.
        labels: a list, `"cat,dog"`, or a file.
        method: makes the set's dual encoder say what its patches show: `naclip` without one.
        model: a segmentation model (CLIPSeg, GroupViT) instead.
        background: what is no label, in words; a pixel that fits it best has no label.
        templates: as for `classify`; `simple`, or `a photo of a {}` with a `model`, without it.
        threshold: pixels less sure than this have no label.
        examples: pictures of labels as prompts: a folder per label, or a CSV file.
        mix: share of the examples in a label's prompt.
        resolution: shorter side in pixels that a dual encoder sees; 0 for 1.5 times its own.
        window: side of a dual encoder's windows, its own without; 0 for the picture as a whole.
        masks, draw: folders for masks and for pictures with the regions drawn on them.
        overwrite: write over files there that hold something else.

    Raises:
        UserError: an unknown name or option, an encoder without patches, a file that is in the way.
        NotAvailableError: a model that is not here.
    """
    names = sentences_of.load_labels(labels)
    others = sentences_of.load_labels(background) if background else ()
    spec = templates or ("simple" if model is None else "a photo of a {}")
    made = sentences_of.load_templates(spec, [*names, *others])
    job = SegmentJob(
        _set(models),
        names,
        sentences_of.expand(names, made),
        sentences_of.expand(others, made),
        model,
        method,
        options,
        None if examples is None else read_labeled_images(Path(examples), names),
        mix,
        threshold,
        resolution,
        window,
        None if masks is None else Path(masks),
        None if draw is None else Path(draw),
        overwrite,
    )
    return Results(_run(job, pictures.find(images).sources, cache, batch_size))


def detect(
    images: Input | Iterable[Input],
    labels: str | Sequence[str] = (),
    models: str | ModelSet = "base",
    *,
    model: str | None = None,
    query_images: Input | Iterable[Input] = (),
    sentence: str | None = None,
    threshold: float | None = None,
    word_threshold: float = 0.25,
    overlap: float = 0.5,
    background: str | Sequence[str] = "background",
    templates: str | None = None,
    regions: Regions = "auto",
    resolution: int = 0,
    draw: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
) -> Results[DetectResult]:
    """One result per picture, in order, with its boxes, best first: `result.boxes[0].box`.

    Args:
        images, models, batch_size, cache: as for `caption`.
        labels: a list, `"cat,dog"`, or a file.
        model: a detection model (OWL-ViT, OWLv2, Grounding DINO); without one the set's dual
            encoder labels regions.
        query_images: instead of labels, pictures of what is looked for.
        sentence: instead of labels, a sentence, whose words find their boxes.
        threshold: boxes less sure than this are left out.
        word_threshold: words of the sentence less sure than this do not belong to a box.
        overlap: of two boxes of one label with a larger IoU the less sure goes.
        background: for a dual encoder, what is no label, in words.
        templates: as for `classify`; a detection model reads one sentence for each label.
        regions: `dense` or `windows`: where a dual encoder looks.
        resolution: shorter side in pixels that a dual encoder's dense map is made of.
        draw: a folder for pictures with the boxes drawn on them.
        overwrite: write over files there that hold something else.

    Raises:
        UserError: an unknown option, or a model that cannot do what is asked.
        NotAvailableError: a model that is not here.
    """
    job = DetectJob(
        _set(models),
        sentences_of.load_labels(labels) if labels else (),
        templates,
        sentences_of.load_labels(background),
        model,
        pictures.find(query_images).sources,
        sentence,
        threshold,
        word_threshold,
        overlap,
        regions,
        resolution,
        None if draw is None else Path(draw),
        overwrite,
    )
    return Results(_run(job, pictures.find(images).sources, cache, batch_size))
