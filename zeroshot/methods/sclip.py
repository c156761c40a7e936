"""SCLIP: patches attend by queries and by keys, each among themselves.

Wang, Mei, Yuille 2024, "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference",
ECCV, arXiv:2312.01597; authors' code wangf3014/SCLIP (no licence file).

    A = (softmax(q q' / sqrt(d)) + softmax(k k' / sqrt(d))) v

in the last block of the vision transformer, with its residual connections and feed-forward part.
The two maps are summed, not averaged, as in the authors' code: the weights sum to 2.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from zeroshot.methods._attention import weights
from zeroshot.methods._door import Method


@dataclass(frozen=True)
class SCLIP(Method):
    """Attention for dense features, and how the logits of patches become a map."""

    scale: float = 40.0
    """factor of the cosines before the softmax over labels"""

    whole_block: ClassVar[bool] = True

    def attend(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "b h s d"]:
        """The output of each token."""
        return weights(query, key, "csa") @ value
