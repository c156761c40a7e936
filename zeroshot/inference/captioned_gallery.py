"""Images and the captions that came with them, as one gallery."""

import itertools
import warnings

import torch
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnsuitableWarning, counted
from zeroshot.inference.embedding import embed_texts, project_texts, text_encoder_of
from zeroshot.inference.embedding_matrix import EmbeddingMatrix
from zeroshot.inference.meter import Meter
from zeroshot.models.base import DualEncoder
from zeroshot.ops import BLOCK, normalize
from zeroshot.ranking.exact import Gallery, Places
from zeroshot.ranking.modality_means import ModalityMeans, mean_of_kind


def with_captions(
    gallery: Gallery,
    matrix: EmbeddingMatrix,
    encoder: DualEncoder,
    weight: float,
    cache: EmbeddingCache,
    meter: Meter,
) -> tuple[Gallery, ModalityMeans]:
    """Images, blended with the captions that came with them, and the means that centre both.

    Raises:
        UserError: too few images, or images with captions, for a mean.
    """
    reader = text_encoder_of(encoder)
    captions = [[text for text in s.captions if text.strip()] for s in matrix.sources]
    place = {text: i for i, text in enumerate(dict.fromkeys(itertools.chain(*captions)))}
    limit = reader.context_length
    if place and limit is not None:
        cut = sum(tokens > limit for tokens in reader.count_tokens(list(place)))
        if cut:
            warnings.warn(
                f"{counted(cut, 'caption')} longer than the {limit} tokens that the encoder reads: "
                "the search knows their beginnings",
                UnsuitableWarning,
                stacklevel=2,
            )
    encoded = embed_texts(list(place), reader, cache, meter) if place else torch.zeros(0, 1)
    texts = torch.zeros(len(captions), encoded.shape[1], dtype=matrix.embeddings.dtype)
    for i, own in enumerate(captions):
        if own:
            texts[i] = normalize(encoded[[place[text] for text in own]].mean(0)).to(texts.dtype)
    has = torch.tensor([bool(own) for own in captions])
    count, sums = int(has.sum()), [torch.zeros(()), torch.zeros(())]
    for at, images in zip(
        torch.split(torch.arange(len(has)), BLOCK), gallery.blocks(BLOCK), strict=True
    ):
        sums[0] = sums[0] + images.double().sum(0)
        if has[at].any():
            sums[1] = sums[1] + project_texts(encoder, texts[at[has[at]]].float()).double().sum(0)
    by_kind = zip(("images", "captions"), sums, (len(gallery), count), strict=True)
    means = ModalityMeans(*(mean_of_kind(*one).float() for one in by_kind))
    weights = has * weight

    def blend(images: Tensor, places: Places) -> Tensor:
        own = means.texts.expand(len(images), -1).clone()
        known = has[places]
        if known.any():
            own[known] = project_texts(encoder, texts[places][known].float())
        return means.rows(images, own, weights[places])

    return gallery.then(blend), means
