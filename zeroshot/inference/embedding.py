"""Pictures and texts to rows, through the cache: the first half of every task."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.clips import open_clip
from zeroshot.images.pixels import view
from zeroshot.images.reading import read_ahead
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch, EmbeddingPipeline, image_kind
from zeroshot.inputs.source import Source
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.models.base import (
    ClipEncoder,
    DualEncoder,
    FramewiseEncoder,
    ImageEncoder,
    LanguageModel,
    PixelEncoder,
    TextEncoder,
)

TEXT_KIND = "text"
VIEWS = "crop-1"
"""Random parts of pictures; the id is that of the picture and the number of the part."""
FRAMES = "frames"
"""As `VIEWS`, of clips."""
AUTO_BATCH = 32
TEXTS_AT_ONCE = 1024
"""Texts that are encoded, and then kept, together."""


def embed_pictures(
    sources: Iterable[Source],
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[EmbeddingBatch]:
    """Rows of `encoder` for every picture, batch by batch, in order.

    Only what the cache does not hold is opened and encoded; what cannot be opened is a failure.
    Later pictures are read while earlier ones are encoded, or while the caller works on a batch.
    """
    pipeline = EmbeddingPipeline(sources, encoder, cache, meter, batch_size)
    try:
        yield from pipeline
    finally:
        pipeline.close()


def embed_all(
    sources: Sequence[Source],
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Float[Tensor, "n d"]:
    """Rows of pictures that a method learns from.

    Raises:
        UserError: a picture that cannot be read.
    """
    parts = []
    for batch in embed_pictures(sources, encoder, cache, Meter(), batch_size):
        for source, failure in zip(batch.sources, batch.failures, strict=True):
            if failure is not None:
                raise UserError(f"'{source.path}': {failure.message}; remove it or replace it")
        parts.append(batch.rows)
    return torch.cat(parts)


def with_views(
    batches: Iterable[EmbeddingBatch],
    count: int,
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
) -> Iterator[EmbeddingBatch]:
    """Batches whose pictures have `count` views: themselves, and random parts of them.

    Which parts follows from a picture's content, so that they too are found in the cache. A clip's
    views are itself and its frames.
    """
    kind = f"{image_kind(encoder)}/{FRAMES if isinstance(encoder, FramewiseEncoder) else VIEWS}"
    for batch in batches:
        views = batch.rows[:, None].repeat(1, count, 1)
        wanted = [(i, number) for i in batch.readable for number in range(1, count)]
        keys = {w: _view_id(batch.ids[w[0]] or "", w[1]) for w in wanted}
        rows, found = cache.get(encoder.name, kind, list(keys.values()))
        held = dict(
            zip((w for w, hit in zip(wanted, found, strict=True) if hit), rows, strict=True)
        )
        with meter.stage("encoder"):
            fresh = _encode_views(batch, [w for w in wanted if w not in held], encoder)
            if fresh:
                kept = torch.stack(list(fresh.values()))
                cache.put(encoder.name, kind, [keys[w] for w in fresh], kept)
        for (i, number), row in (held | fresh).items():
            views[i, number] = row
        yield replace(batch, views=views)


def _encode_views(
    batch: EmbeddingBatch, wanted: Sequence[tuple[int, int]], encoder: ImageEncoder
) -> dict[tuple[int, int], Tensor]:
    """Rows of the views `(picture, number)`, each picture opened once."""
    numbers: dict[int, list[int]] = {}
    for i, number in wanted:
        numbers.setdefault(i, []).append(number)
    if isinstance(encoder, FramewiseEncoder):
        return _encode_frames(batch, numbers, encoder)
    rows: dict[tuple[int, int], Tensor] = {}
    for i, picture in zip(numbers, read_ahead([batch.sources[i] for i in numbers]), strict=True):
        if isinstance(picture, UnreadableImageError):
            raise UserError(f"'{batch.sources[i].path}' changed while it was read: {picture}")
        parts = [view(picture.image, _view_id(picture.id, number)) for number in numbers[i]]
        encoded = [
            rows for _, rows in batched_with_oom_retry(encoder.encode_images, parts, AUTO_BATCH)
        ]
        rows |= {(i, n): row for n, row in zip(numbers[i], torch.cat(encoded), strict=True)}
    return rows


def _encode_frames(
    batch: EmbeddingBatch, numbers: Mapping[int, Sequence[int]], encoder: FramewiseEncoder
) -> dict[tuple[int, int], Tensor]:
    """Rows of frames, which are numbered from 1, of each clip."""
    rows: dict[tuple[int, int], Tensor] = {}
    for i, wanted in numbers.items():
        try:
            with open_clip(batch.sources[i]) as clip:
                if clip.id != batch.ids[i]:
                    raise UnreadableImageError("other bytes")
                read = encoder.read_clip(clip.file)
        except UnreadableImageError as error:
            path = batch.sources[i].path
            raise UserError(f"'{path}' changed while it was read: {error}") from error
        (frames,) = encoder.encode_frames([read])
        rows |= {(i, number): frames[number - 1] for number in wanted}
    return rows


def _view_id(picture: str, number: int) -> str:
    return hashlib.sha256(f"{picture}/{number}".encode()).hexdigest()


def embed_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    cache: EmbeddingCache,
    meter: Meter,
) -> Float[Tensor, "n d"]:
    """Rows of `encoder` for every text, through the cache."""

    def encode(missing: Sequence[str]) -> Tensor:
        meter.texts_encoded += len(missing)
        return encoder.encode_texts(missing)

    with meter.stage("encoder"):
        before = meter.texts_encoded
        distinct = sorted(set(texts))  # those that begin alike go to the encoder together
        ids = [hashlib.sha256(text.encode()).hexdigest() for text in distinct]
        rows = cache(
            encode,
            distinct,
            ids=ids,
            encoder=encoder.name,
            kind=TEXT_KIND,
            batch_size=TEXTS_AT_ONCE,
        )
        meter.texts_cached += len(distinct) - (meter.texts_encoded - before)
        place = {text: number for number, text in enumerate(distinct)}
        return rows[[place[text] for text in texts]]


def refuse_long(texts: Sequence[str], encoder: TextEncoder, what: str = "a prompt") -> None:
    """UserError for the first text that is longer than the encoder reads."""
    limit = encoder.context_length
    if limit is None:
        return
    for text, length in zip(texts, encoder.count_tokens(texts), strict=True):
        if length > limit:
            raise UserError(
                f"{what} of {length} tokens, but the text encoder reads {limit}: "
                f"'{text[:60]}...'; shorten it, or cut it off with --long-text truncate"
            )


def image_encoder_of(encoder: DualEncoder) -> ImageEncoder:
    """The encoder whose rows are cached: a coupled pair's own image encoder."""
    return encoder.image_encoder if isinstance(encoder, CoupledEncoder) else encoder


def text_encoder_of(encoder: DualEncoder) -> TextEncoder:
    """As `image_encoder_of`, for texts."""
    return encoder.text_encoder if isinstance(encoder, CoupledEncoder) else encoder


def project_images(encoder: DualEncoder, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """Rows of `image_encoder_of` in the space that the encoder's texts share."""
    return encoder.project_images(rows) if isinstance(encoder, CoupledEncoder) else rows


def project_texts(encoder: DualEncoder, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """Rows of `text_encoder_of` in the space that the encoder's images share."""
    return encoder.project_texts(rows) if isinstance(encoder, CoupledEncoder) else rows


def canonical_names(
    encoder: DualEncoder, language_model: LanguageModel | None = None
) -> dict[str, str]:
    """Canonical names of what made a result, for its row."""
    if isinstance(encoder, CoupledEncoder):
        names = {
            "image_encoder": encoder.image_encoder.name,
            "text_encoder": encoder.text_encoder.name,
            "coupling": f"{encoder.coupling!r}, anchors {encoder.anchors}",
        }
    else:
        names = {"encoder": encoder.name}
    names |= preprocessing_names(image_encoder_of(encoder))
    return names | ({"language_model": language_model.name} if language_model else {})


def preprocessing_names(encoder: ImageEncoder) -> dict[str, str]:
    """What a result's names say of pixels that are not the model's own; empty where they are."""
    if isinstance(encoder, ClipEncoder):
        return {"clips": encoder.clip_kind}
    shortcuts = encoder.shortcuts if isinstance(encoder, PixelEncoder) else ""
    return {"preprocessing": shortcuts} if shortcuts else {}


def pad_prompts(
    rows: Float[Tensor, "n d"], counts: Sequence[int]
) -> tuple[Float[Tensor, "c t d"], Bool[Tensor, "c t"]]:
    """Consecutive rows of each class as one padded block and the mask of what is no padding."""
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    block = rows.new_zeros(*mask.shape, rows.shape[1])
    block[mask] = rows
    return block, mask


def concat_batches(batches: Iterable[EmbeddingBatch]) -> EmbeddingBatch:
    """All batches as one; a batch of failures alone has no width of its own."""
    parts = list(batches)
    width = max((part.rows.shape[1] for part in parts), default=0)
    rows = [p.rows if p.rows.shape[1] else torch.zeros(len(p.sources), width) for p in parts]
    views = [
        p.views if p.rows.shape[1] else torch.zeros(*p.views.shape[:2], width)
        for p in parts
        if p.views is not None
    ]
    return EmbeddingBatch(
        [s for p in parts for s in p.sources],
        [i for p in parts for i in p.ids],
        torch.cat(rows) if rows else torch.zeros(0, 0),
        [f for p in parts for f in p.failures],
        torch.cat(views) if views else None,
    )
