"""CLIPScore of captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import (
    embed_all,
    embed_texts,
    image_encoder_of,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.metrics.retrieval import PREFIX, clip_score, ref_clip_score
from zeroshot.models.base import DualEncoder


@dataclass(frozen=True)
class Judge:
    """Scores captions with an encoder: CLIPScore if it is the paper's, else a similar score.

    Texts longer than the encoder reads are cut, as the authors do.
    """

    encoder: DualEncoder
    cache: EmbeddingCache
    meter: Meter

    def __call__(
        self,
        sources: Sequence[Source],
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
    ) -> dict[str, np.ndarray]:
        """`CLIPScore` and `RefCLIPScore` of each caption."""
        images = project_images(
            self.encoder, embed_all(sources, image_encoder_of(self.encoder), self.cache, self.meter)
        )
        candidates = self._embed(captions)
        flat = self._embed([text for own in references for text in own])
        each = np.split(flat, np.cumsum(list(map(len, references)))[:-1])
        return {
            "CLIPScore": clip_score(images.numpy(), candidates),
            "RefCLIPScore": ref_clip_score(images.numpy(), candidates, each),
        }

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        embeddings = embed_texts(
            [PREFIX + text for text in texts], text_encoder_of(self.encoder), self.cache, self.meter
        )
        return np.asarray(project_texts(self.encoder, embeddings).numpy())
