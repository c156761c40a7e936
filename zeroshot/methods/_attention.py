"""Attention variants for dense features in a vision transformer's last block.

If tokens attend by their own kind (keys to keys, queries to queries) they gather from similar
tokens; if the attention is the identity each token gets its own value.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError

Attention = Literal["naclip", "kk", "qq", "csa", "value", "vanilla"]


def weights(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b h s d"],
    attention: Attention,
    neighbours: Float[Tensor, "s s"] | None = None,
) -> Float[Tensor, "b h s s"]:
    """Attention weights of each token for each token; rows sum to 1, those of `csa` to 2.

    Args:
        attention: `vanilla` softmax(q k'), `value` the identity, `qq` softmax(q q'), `kk`
            softmax(k k'), `csa` the sum of these two (SCLIP), `naclip` softmax(k k' + neighbours);
            q and k scaled by the root of the head's width.
        neighbours: for `naclip`, added to the logits.
    """
    scale = query.shape[-1] ** -0.5

    def logits(a: Tensor, b: Tensor) -> Tensor:
        product: Tensor = scale * a @ b.mT
        return product

    match attention:
        case "vanilla":
            return logits(query, key).softmax(-1)
        case "value":
            identity = torch.eye(query.shape[-2], dtype=query.dtype, device=query.device)
            return identity.expand(*query.shape[:2], -1, -1)
        case "qq":
            return logits(query, query).softmax(-1)
        case "kk":
            return logits(key, key).softmax(-1)
        case "csa":
            return logits(query, query).softmax(-1) + logits(key, key).softmax(-1)
        case "naclip":
            bias = 0.0 if neighbours is None else neighbours
            return (logits(key, key) + bias).softmax(-1)
    raise UserError(f"attention={attention}; possible: {', '.join(get_args(Attention))}")


def gaussian_neighbourhood(
    grid: tuple[int, int], std: float, before: int = 1, like: Tensor | None = None
) -> Float[Tensor, "s s"]:
    """exp(-distance^2 / 2 std^2) between patches, distances in patches; 0 for other tokens.

    Args:
        grid: rows and columns of patches; patches are in reading order.
        before: tokens that come before the patches.
        like: a tensor with the type and device of the result.
    """
    like = torch.zeros(()) if like is None else like
    down, across = (
        torch.exp(-((at[:, None] - at[None]) ** 2) / (2 * std**2))
        for at in (torch.arange(n, dtype=like.dtype, device=like.device) for n in grid)
    )
    patches = torch.kron(down, across)
    return torch.nn.functional.pad(patches, (before, 0, before, 0))
