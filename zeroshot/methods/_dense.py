"""Attention of a vision transformer's last block, as those make it who want dense features.

Whose tokens attend by what they are (keys to keys, queries to queries) gather from tokens like
themselves; whose attention is the identity gather nothing but their own value.
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
    """How much each token gathers of each; rows sum to 1, those of `csa` to 2.

    Args:
        attention: `vanilla` softmax(q k'), `value` the identity, `qq` softmax(q q'), `kk`
            softmax(k k'), `csa` the sum of these two (SCLIP), `naclip` softmax(k k' + neighbours);
            q and k scaled by the root of the head's width.
        neighbours: of `naclip`, added to the logits.
    """
    scale = query.shape[-1] ** -0.5

    def alike(a: Tensor, b: Tensor) -> Tensor:
        similar: Tensor = scale * a @ b.mT
        return similar

    match attention:
        case "vanilla":
            return alike(query, key).softmax(-1)
        case "value":
            own = torch.eye(query.shape[-2], dtype=query.dtype, device=query.device)
            return own.expand(*query.shape[:2], -1, -1)
        case "qq":
            return alike(query, query).softmax(-1)
        case "kk":
            return alike(key, key).softmax(-1)
        case "csa":
            return alike(query, query).softmax(-1) + alike(key, key).softmax(-1)
        case "naclip":
            near = 0.0 if neighbours is None else neighbours
            return (alike(key, key) + near).softmax(-1)
    raise UserError(f"attention={attention}; possible: {', '.join(get_args(Attention))}")


def neighbours(
    grid: tuple[int, int], std: float, before: int = 1, like: Tensor | None = None
) -> Float[Tensor, "s s"]:
    """exp(-distance^2 / 2 std^2) between patches, distances in patches; 0 for other tokens.

    Args:
        grid: rows and columns of patches; patches are in reading order.
        before: tokens that come before the patches.
        like: a tensor whose type and device to take.
    """
    like = torch.zeros(()) if like is None else like
    down, across = (
        torch.exp(-((at[:, None] - at[None]) ** 2) / (2 * std**2))
        for at in (torch.arange(n, dtype=like.dtype, device=like.device) for n in grid)
    )
    near = torch.kron(down, across)
    return torch.nn.functional.pad(near, (before, 0, before, 0))
