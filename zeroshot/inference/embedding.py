"""Images and texts to embeddings, through the cache: the first half of every task."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    Answerer,
    ClipEncoder,
    DualEncoder,
    FramewiseEncoder,
    ImageEncoder,
    LanguageModel,
    PairScorer,
    PixelEncoder,
    RegionAnswerer,
    TextEncoder,
)
from zeroshot.models.deferred import TEXTS, DeferredTextEncoder
from zeroshot.results.result import Failure

TextReader = TextEncoder | PairScorer | Answerer | RegionAnswerer

TEXT_KIND = TEXTS
VIEWS = "crop-1"
"""Kind of the random parts of images; an id is made of the image's id and the part's number."""
FRAMES = "frames"
"""Kind of the frames of videos, likewise."""
AUTO_BATCH = 32
TEXT_BATCH = 1024
"""Texts that are encoded, and then written to the cache, together."""


def embed_images(
    sources: Iterable[Source],
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Iterator[EmbeddingBatch]:
    """Embeddings of every image, batch by batch, in order.

    Only images that the cache lacks are read and encoded; one that cannot be read is a failure.
    Later images are read while earlier ones are encoded, or while the caller works on a batch.
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
    """Embeddings of images that a run needs; the meter does not count them.

    Raises:
        UserError: an image that cannot be read.
    """
    parts, own = [], Meter()
    with meter.phase("embedding", len(sources)) as phase:
        for batch in embed_images(sources, encoder, cache, own, batch_size):
            for source, failure in zip(batch.sources, batch.failures, strict=True):
                if failure is not None:
                    raise UserError(f"'{source.path}': {failure.message}; remove it or replace it")
            parts.append(batch.embeddings)
            phase.done += len(batch.sources)
    meter.add_stages(own)
    return torch.cat(parts)


def with_views(
    batches: Iterable[EmbeddingBatch],
    count: int,
    encoder: ImageEncoder,
    cache: EmbeddingCache,
    meter: Meter,
) -> Iterator[EmbeddingBatch]:
    """Batches with `count` views of each image: the image itself, and random parts of it.

    The image's content decides which parts, so that the cache can hold them too. The views of a
    video are the video and its frames.
    """
    kind = f"{image_kind(encoder)}/{FRAMES if isinstance(encoder, FramewiseEncoder) else VIEWS}"
    for batch in batches:
        views = batch.embeddings[:, None].repeat(1, count, 1)
        wanted = [(i, number) for i in batch.readable for number in range(1, count)]
        keys = {w: _view_id(batch.ids[w[0]] or "", w[1]) for w in wanted}
        with meter.stage("cache"):
            embeddings, hits = cache.get(encoder.name, kind, list(keys.values()))
        known = (w for w, hit in zip(wanted, hits, strict=True) if hit)
        cached = dict(zip(known, embeddings, strict=True))
        with meter.stage("encoder"):
            fresh = _encode_views(batch, [w for w in wanted if w not in cached], encoder)
            if fresh:
                block = torch.stack(list(fresh.values()))
                cache.put(encoder.name, kind, [keys[w] for w in fresh], block)
        for (i, number), embedding in (cached | fresh).items():
            views[i, number] = embedding
        yield replace(batch, views=views)


def _encode_views(
    batch: EmbeddingBatch, wanted: Sequence[tuple[int, int]], encoder: ImageEncoder
) -> dict[tuple[int, int], Tensor]:
    """Embeddings of the views `(index of the image, number)`. Each image is read once."""
    numbers: dict[int, list[int]] = {}
    for i, number in wanted:
        numbers.setdefault(i, []).append(number)
    if isinstance(encoder, FramewiseEncoder):
        return _encode_frames(batch, numbers, encoder)
    embeddings: dict[tuple[int, int], Tensor] = {}
    for i, image in zip(numbers, read_ahead([batch.sources[i] for i in numbers]), strict=True):
        if isinstance(image, UnreadableImageError):
            raise UserError(f"'{batch.sources[i].path}' changed while it was read: {image}")
        parts = [view(image.image, _view_id(image.id, number)) for number in numbers[i]]
        batches = batched_with_oom_retry(encoder.encode_images, parts, AUTO_BATCH)
        encoded = torch.cat([part for _, part in batches])
        embeddings |= {(i, n): one for n, one in zip(numbers[i], encoded, strict=True)}
    return embeddings


def _encode_frames(
    batch: EmbeddingBatch, numbers: Mapping[int, Sequence[int]], encoder: FramewiseEncoder
) -> dict[tuple[int, int], Tensor]:
    """Embeddings of the frames of each video; frames are numbered from 1."""
    embeddings: dict[tuple[int, int], Tensor] = {}
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
        embeddings |= {(i, number): frames[number - 1] for number in wanted}
    return embeddings


def _view_id(image_id: str, number: int) -> str:
    return hashlib.sha256(f"{image_id}/{number}".encode()).hexdigest()


def embed_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    cache: EmbeddingCache,
    meter: Meter,
) -> Float[Tensor, "n d"]:
    """Embeddings of every text, through the cache."""
    distinct = sorted(set(texts))  # texts that begin alike go to the encoder together
    encode = encoder.encode_texts
    if isinstance(encoder, DeferredTextEncoder):  # it would look into the cache again
        encode = encoder.encode_anew
    embeddings = encode_through_cache(encode, distinct, encoder.name, cache, meter, TEXT_BATCH)
    index = {text: i for i, text in enumerate(distinct)}
    return embeddings[[index[text] for text in texts]]


def encode_through_cache(
    encode: Callable[[Sequence[str]], Tensor],
    texts: Sequence[str],
    encoder: str,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = 256,
) -> Float[Tensor, "n d"]:
    """Embeddings of texts in this order; `encode` is called for those that the cache lacks.

    Args:
        encoder: name of the encoder in the cache.
    """

    def expect(count: int) -> None:
        phase.total = count

    def encode_and_count(missing: Sequence[str]) -> Tensor:
        with meter.stage("encoder"):
            encoded = encode(missing)
        meter.texts_encoded += len(missing)
        phase.done += len(missing)
        return encoded

    before = meter.texts_encoded
    ids = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in texts]
    with meter.stage("cache"), meter.phase("encoding texts") as phase:
        embeddings = cache(
            encode_and_count,
            texts,
            ids=ids,
            encoder=encoder,
            kind=TEXT_KIND,
            batch_size=batch_size,
            expect=expect,
        )
    meter.texts_cached += len(set(texts)) - (meter.texts_encoded - before)
    return embeddings


def long_text_failure(
    texts: Sequence[str], model: TextReader, name: str = "the model"
) -> Failure | None:
    """The failure of the first text with more tokens than the model reads; None if all fit."""
    limit = model.context_length
    for text, length in zip(texts, model.count_tokens(texts) if limit else (), strict=False):
        if limit and length > limit:
            reason = f"{length} tokens, but {name} reads {limit}: '{text[:60]}...'"
            return Failure("LongText", reason)
    return None


def check_lengths(
    texts: Sequence[str], encoder: TextEncoder, what: str, option: str | None = None
) -> None:
    """UserError for the first text that is longer than the encoder reads.

    `option` is that of the command which cuts texts off, if it has one.
    """
    if (failure := long_text_failure(texts, encoder, "the text encoder")) is not None:
        advice = f", or cut it off with {option}" if option else ""
        raise UserError(f"{what} of {failure.message}; shorten it{advice}")


def image_encoder_of(encoder: DualEncoder) -> ImageEncoder:
    """The encoder whose embeddings are cached: of a coupled pair, its image encoder."""
    return encoder.image_encoder if isinstance(encoder, CoupledEncoder) else encoder


def text_encoder_of(encoder: DualEncoder) -> TextEncoder:
    """As `image_encoder_of`, for texts."""
    return encoder.text_encoder if isinstance(encoder, CoupledEncoder) else encoder


def project_images(encoder: DualEncoder, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """Embeddings of `image_encoder_of` in the space that images and texts share."""
    return encoder.project_images(images) if isinstance(encoder, CoupledEncoder) else images


def project_texts(encoder: DualEncoder, texts: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """Embeddings of `text_encoder_of` in the space that images and texts share."""
    return encoder.project_texts(texts) if isinstance(encoder, CoupledEncoder) else texts


def canonical_names(
    encoder: DualEncoder, language_model: LanguageModel | None = None
) -> dict[str, str]:
    """Canonical names of the models and the preprocessing that made a result, for its row."""
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
    """The name of the preprocessing; empty if it is the model's own."""
    if isinstance(encoder, ClipEncoder):
        return {"clips": encoder.clip_kind}
    shortcuts = encoder.shortcuts if isinstance(encoder, PixelEncoder) else ""
    return {"preprocessing": shortcuts} if shortcuts else {}


def pad_prompts(
    embeddings: Float[Tensor, "n d"], counts: Sequence[int]
) -> tuple[Float[Tensor, "c t d"], Bool[Tensor, "c t"]]:
    """Each class's consecutive embeddings in one padded block; the mask is False for padding."""
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    block = embeddings.new_zeros(*mask.shape, embeddings.shape[1])
    block[mask] = embeddings
    return block, mask


def concat_batches(
    batches: Iterable[EmbeddingBatch], meter: Meter, total: int | None = None
) -> EmbeddingBatch:
    """All batches as one, of `total` images if their number is known.

    A batch in which every image failed has no width, and gets one.
    """
    parts = []
    with meter.phase("embedding", total) as phase:
        for batch in batches:
            parts.append(batch)
            phase.done += len(batch.sources)
    width = max((part.embeddings.shape[1] for part in parts), default=0)

    def widened(block: Tensor) -> Tensor:
        return block if block.shape[-1] else torch.zeros(*block.shape[:-1], width)

    views = [widened(part.views) for part in parts if part.views is not None]
    return EmbeddingBatch(
        [s for p in parts for s in p.sources],
        [i for p in parts for i in p.ids],
        torch.cat([widened(p.embeddings) for p in parts]) if parts else torch.zeros(0, 0),
        [f for p in parts for f in p.failures],
        torch.cat(views) if views else None,
    )
