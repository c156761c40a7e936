"""The functions of `api` that say where: `zeroshot.segment`, `zeroshot.detect`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zeroshot import images as pictures
from zeroshot import prompts as sentences_of
from zeroshot.api import _run, _set
from zeroshot.images import Input
from zeroshot.jobs.segment import SegmentJob
from zeroshot.located import SegmentResult
from zeroshot.model_set import ModelSet
from zeroshot.results import Results
from zeroshot.store import EmbeddingCache
from zeroshot.tasks.embedding import AUTO_BATCH
from zeroshot.tasks.labelled import read_labelled


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
        None if examples is None else read_labelled(Path(examples), names),
        mix,
        threshold,
        resolution,
        window,
        None if masks is None else Path(masks),
        None if draw is None else Path(draw),
        overwrite,
    )
    return Results(_run(job, pictures.find(images).sources, cache, batch_size))
