"""Captioning by retrieval: the best caption of a pool, nothing generated.

    caption(x) = argmax_j cos(text_j, x)

The baseline every captioner has to beat: with CLIP and the training captions of COCO it reaches
CIDEr 53.4, and MaGiC 49.3 (reported by Zeng et al. 2024, "MeaCap").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._caption_pool import Pool
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Caption
from zeroshot.models.base import DualEncoder, LanguageModel
from zeroshot.ops import topk_stream


@dataclass(frozen=True)
class Retrieve(Method):
    """The caption of the pool with the largest cosine to the image."""

    needs: ClassVar[frozenset[str]] = frozenset({"pool"})
    takes: ClassVar[frozenset[str]] = frozenset()

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
        prompts: Sequence[str] | None = None,
        trace: bool = False,
    ) -> list[Caption]:
        """One caption of `pool` per unit image embedding."""
        if prompts or trace:
            raise UserError("retrieve generates nothing: it takes no prompt and leaves no trace")
        if pool is None or not pool.texts:
            raise UserError("retrieve needs a pool of captions to choose from")
        cosine, index = topk_stream(images, pool.embeddings, 1)
        return [
            Caption(pool.texts[i], score)
            for i, score in zip(index[:, 0].tolist(), cosine[:, 0].tolist(), strict=True)
        ]
