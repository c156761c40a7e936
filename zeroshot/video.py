"""Videos, in Python, as `zeroshot.video`: the functions of `zeroshot` on means of frames.

zeroshot.video.classify("clips/", ["cooking", "running"])
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from zeroshot import api
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import CLIPS, Input, Source
from zeroshot.inputs.tables import InputOptions
from zeroshot.methods import Captioner, Scorer
from zeroshot.model_set.frame_encoder import FRAMES, ClipModels
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import (
    CaptionResult,
    ClassifyResult,
    EmbedResult,
    Results,
    SearchResult,
)
from zeroshot.tasks.arguments import checks_arguments
from zeroshot.tasks.classification.calibration import Calibration
from zeroshot.tasks.classification.classify_options import (
    LongText,
    ScoreKind,
    SetRule,
    VideoClassifyOptions,
)
from zeroshot.tasks.classification.classify_task import video_task
from zeroshot.tasks.options import BATCH_SIZE

__all__ = ["caption", "classify", "embed", "search"]


def __dir__() -> list[str]:
    """What Tab shows: the functions."""
    return __all__


@checks_arguments(VideoClassifyOptions, batch_size=BATCH_SIZE)
def classify(
    clips: Input | Iterable[Input],
    labels: str | Path | Sequence[str] = (),
    models: str | Path | ModelSet = "base",
    method: str | Scorer | None = None,
    *,
    model: str | None = None,
    pooling: Literal["mean", "attention"] = "mean",
    frames: int | None = None,
    templates: str | Path | Sequence[str] | None = None,
    score: ScoreKind | None = "auto",
    top_k: int | None = None,
    multi: bool = False,
    against: str | Sequence[str] = (),
    threshold: float | None = None,
    coupling: str | None = None,
    long_text: LongText = "error",
    shots: str | Path | None = None,
    bank: Input | Iterable[Input] = (),
    prior: str | Path | Sequence[float] = (),
    hierarchy: str | Path | None = None,
    calibration: str | Path | Calibration | None = None,
    abstain: float | None = None,
    none_of_these: bool = False,
    words: str | Sequence[str] = "",
    sets: float | None = None,
    set_rule: SetRule = "lac",
    explain: int = 0,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
    **options: Any,
) -> Results[ClassifyResult]:
    """One result per video, in order, with the best labels.

    Args:
        clips: paths, folders or bytes of video, one or many.
        model: a video model (X-CLIP), which has no method and reads its own number of frames.
        pooling: a video is the mean of its frames, or each text attends to the frames that fit it;
            with `attention` there is no method.
        frames: of each video, in the middle of as many equal parts: 8.
        templates: as for `zeroshot.classify`. Default: `simple`, or `none` with a `model`.
        models, method, score, top_k, multi, against, threshold, coupling, long_text, shots, bank,
            prior, hierarchy, calibration, abstain, none_of_these, words, sets, set_rule, explain,
            batch_size, cache, options: as for `zeroshot.classify`; `shots` and `bank` are videos.

    Raises:
        UserError: an unknown name or option, options that do not fit each other, a prompt longer
            than the text encoder reads.
        NotAvailableError: a model that is not here, or PyAV is not installed.
    """
    given = api._options(VideoClassifyOptions, {**locals(), "bank": _sources(bank)})
    return api._results(video_task(api._set(models), given), _sources(clips), locals())


@checks_arguments(VideoClassifyOptions, batch_size=BATCH_SIZE)
def search(
    query: api.QueryTerm | Sequence[api.QueryTerm],
    clips: Input | Iterable[Input],
    models: str | Path | ModelSet = "base",
    method: str | None = None,
    *,
    frames: int | None = None,
    **more: Any,
) -> Results[SearchResult]:
    """The `top_k` best videos for each query, best first, then the videos that have an `error`.

    Args:
        query: words, a video (a path as an object, or bytes), or several queries.
        clips, frames: as for `classify`.
        models, method, more: as for `zeroshot.search`.
    """
    return api.search(query, _sources(clips), _models(models, frames), method, **more)


@checks_arguments(VideoClassifyOptions, batch_size=BATCH_SIZE)
def caption(
    clips: Input | Iterable[Input],
    models: str | Path | ModelSet = "base",
    method: str | Captioner | None = None,
    *,
    frames: int | None = None,
    **more: Any,
) -> Results[CaptionResult]:
    """One result per video, in order.

    Args:
        clips, frames: as for `classify`.
        models, method, more: as for `zeroshot.caption`, but for trained captioners and for
            boxes, which are of one image.
    """
    if method == "native" or more.get("model") is not None:
        raise UserError("a trained captioner describes one image: no model, for videos")
    if more.keys() & {"box", "margin"}:
        raise UserError("a box is a part of one image: no box and no margin, for videos")
    return api.caption(_sources(clips), _models(models, frames), method, **more)


@checks_arguments(VideoClassifyOptions, batch_size=BATCH_SIZE)
def embed(
    clips: Input | Iterable[Input],
    models: str | Path | ModelSet = "base",
    *,
    frames: int | None = None,
    batch_size: int = AUTO_BATCH,
    cache: EmbeddingCache | bool | None = None,
) -> Results[EmbedResult]:
    """Unit embeddings, means of the frames' own, one result per video, in order."""
    return api.embed(_sources(clips), _models(models, frames), batch_size=batch_size, cache=cache)


def _sources(clips: Input | Iterable[Input]) -> tuple[Source, ...]:
    return find(clips, options=InputOptions(suffixes=CLIPS)).sources


def _models(models: str | Path | ModelSet, frames: int | None) -> ClipModels:
    given = api._set(models)
    if isinstance(given, ClipModels) and frames in (None, given.frames):
        return given
    return ClipModels.from_model_set(given, frames or FRAMES)
