"""NACLIP: patches attend to similar patches and to the patches around them.

Hajimiri, Ben Ayed, Dolz 2025, "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary
Semantic Segmentation", WACV, arXiv:2404.08181; authors' code sinahmr/NACLIP (MIT).

    A = softmax(k k' / sqrt(d) + G) v,   G_ij = exp(-|p_i - p_j|^2 / 2 std^2)

in the last block of the vision transformer, without its residual connection and feed-forward part
(`block=attention`). Then each patch is projected as the class token is, and compared with the
labels. G is 0 (not -inf) in the row and column of the class token, as in the authors' code.

Other values of `attention`: `kk` without G, `qq`, `csa` (SCLIP, Wang et al. 2024), `value`
(MaskCLIP, Zhou et al. 2022: each patch its own value), and `vanilla`, which the model was trained
with.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._attention import Attention, gaussian_neighbourhood, weights
from zeroshot.methods._door import Method


@dataclass(frozen=True)
class NACLIP(Method):
    """Attention for dense features, and how the logits of patches become a map."""

    attention: Attention = "naclip"
    """which tokens attend to which in the last block"""

    std: float = 5.0
    """width of the Gaussian around each patch, in patches"""

    block: Literal["attention", "whole"] = "attention"
    """keep the attention of the last block alone, or the whole block"""

    scale: float = 40.0
    """factor of the cosines before the softmax over labels"""

    def __post_init__(self) -> None:
        if not self.std > 0:
            name = type(self).__name__.lower()
            raise UserError(f"{name}: std={self.std}; a width in patches, greater than 0")

    @property
    def whole_block(self) -> bool:
        """Whether the last block keeps its residual connections and its feed-forward part."""
        return self.block == "whole"

    def attend(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "b h s d"]:
        """The output of each token; tokens before the patches (the class token) come first."""
        before = query.shape[-2] - grid[0] * grid[1]
        nearby = gaussian_neighbourhood(grid, self.std, before, like=query)
        return weights(query, key, self.attention, nearby) @ value
