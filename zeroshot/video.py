"""Clips, in Python, as `zeroshot.video`: the functions of `zeroshot` on means of frames.

zeroshot.video.classify("clips/", ["cooking", "running"])
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from zeroshot import api, images as pictures, prompts
from zeroshot.api import Asked
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inputs.source import CLIPS, Input, Source
from zeroshot.inputs.tables import InputOptions
from zeroshot.model_set.frame_encoder import FRAMES, ClipModels
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import (
    CaptionResult,
    ClassifyResult,
    EmbedResult,
    Results,
    SearchResult,
)
from zeroshot.tasks.classification.clip_task import ClipClassifyJob
from zeroshot.tasks.classification.heads import Head

__all__ = ["caption", "classify", "embed", "search"]


def classify(
    clips: Input | Iterable[Input],
    labels: str | Sequence[str],
    models: str | ModelSet = "base",
    method: str | None = None,
    *,
    model: str | None = None,
    pooling: Literal["mean", "attention"] = "mean",
    frames: int | None = None,
    templates: str | None = None,
    score: Head | None = None,
    top_k: int | None = None,
    shots: str | Path | None = None,
    bank: Input | Iterable[Input] = (),
    prior: Sequence[float] = (),
    explain: int = 0,
    multi: bool = False,
    against: str | Sequence[str] = (),
    threshold: float | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
    **options: Any,
) -> Results[ClassifyResult]:
    """One result per clip, in order, with the best labels.

    Args:
        clips: paths, folders or bytes of video, one or many.
        model: a model of clips (X-CLIP), which has no method and reads frames of its own number.
        pooling: a clip is the mean of its frames, or each text attends to the frames that fit it;
            the latter has no method.
        frames: of each clip, in the middle of as many equal parts: 8.
        templates: as for `zeroshot.classify`; without, `simple`, and `none` for a `model`.
        models, method, score, top_k, shots, bank, prior, explain, multi, against, threshold,
            batch_size, cache, options: as for `zeroshot.classify`; `shots` and `bank` are of clips.

    Raises:
        UserError: an unknown name or option, options that do not fit each other, a prompt longer
            than the text encoder reads.
        NotAvailableError: a model that is not here, or PyAV is not installed.
    """
    if model is None and pooling == "mean":
        return api.classify(
            _sources(clips),
            labels,
            _models(models, frames),
            method,
            templates=templates or "simple",
            score=score,
            top_k=top_k,
            shots=shots,
            bank=_sources(bank),
            prior=prior,
            explain=explain,
            multi=multi,
            against=against,
            threshold=threshold,
            batch_size=batch_size,
            cache=cache,
            **options,
        )
    if model is not None and (frames is not None or pooling == "attention"):
        raise UserError("a model of clips takes no frames and no pooling")
    if method or options or shots or any((bank != (), prior, explain)):
        raise UserError(
            "method, its options, shots, bank, prior and explain need one row for a clip, whatever "
            "the text: leave them, or model and pooling='attention'"
        )
    names = prompts.load_labels(labels)
    written = prompts.load_templates(templates or ("none" if model else "simple"), names)
    job = ClipClassifyJob(
        api._set(models),
        names,
        prompts.expand(names, written),
        model,
        frames or FRAMES,
        top_k,
        score,
        multi,
        (against,) if isinstance(against, str) else tuple(against),
        threshold,
    )
    return Results(api._run(job, _sources(clips), cache, batch_size))


def search(
    query: Asked | Sequence[Asked],
    clips: Input | Iterable[Input],
    models: str | ModelSet = "base",
    method: str | None = None,
    *,
    frames: int | None = None,
    **more: Any,
) -> Results[SearchResult]:
    """The `top_k` best clips for each query, best first, then the clips that have an `error`.

    Args:
        query: words, a clip (a path as an object, or bytes), or several queries.
        clips, frames: as for `classify`.
        models, method, more: as for `zeroshot.search`.
    """
    return api.search(query, _sources(clips), _models(models, frames), method, **more)


def caption(
    clips: Input | Iterable[Input],
    models: str | ModelSet = "base",
    method: str | None = None,
    *,
    frames: int | None = None,
    **more: Any,
) -> Results[CaptionResult]:
    """One result per clip, in order.

    Args:
        clips, frames: as for `classify`.
        models, method, more: as for `zeroshot.caption`, but for trained captioners, which write
            about one picture.
    """
    if method == "native" or more.get("model") is not None:
        raise UserError("a trained captioner writes about one picture: no model, for clips")
    return api.caption(_sources(clips), _models(models, frames), method, **more)


def embed(
    clips: Input | Iterable[Input],
    models: str | ModelSet = "base",
    *,
    frames: int | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | None = None,
) -> Results[EmbedResult]:
    """Unit rows, the means of the frames' own, one result per clip, in order."""
    return api.embed(_sources(clips), _models(models, frames), batch_size=batch_size, cache=cache)


def _sources(clips: Input | Iterable[Input]) -> tuple[Source, ...]:
    return pictures.find(clips, options=InputOptions(suffixes=CLIPS)).sources


def _models(models: str | ModelSet, frames: int | None) -> ClipModels:
    given = api._set(models)
    if isinstance(given, ClipModels) and frames in (None, given.frames):
        return given
    return ClipModels.of(given, frames or FRAMES)
