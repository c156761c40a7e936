"""Tensor maths that two methods share. Functions of tensors, free of models and files."""

import math

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor


def normalize(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rows at unit L2 norm; a zero row stays zero (a missing prompt, say) instead of NaN."""
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1)


def masked_mean(
    values: Float[Tensor, "*n t d"], mask: Bool[Tensor, "*n t"] | None
) -> Float[Tensor, "*n d"]:
    """Mean over `t` of the entries that `mask` keeps (all of them without one)."""
    if mask is None:
        return values.mean(dim=-2)
    weight = mask.to(values.dtype).unsqueeze(-1)
    return (values * weight).sum(dim=-2) / weight.sum(dim=-2)


def filled(
    texts: Float[Tensor, "c t d"], mask: Bool[Tensor, "c t"] | None
) -> Float[Tensor, "c t d"]:
    """Prompts where every class has as many: in place of a missing one, the class's mean prompt."""
    if mask is None:
        return texts
    return torch.where(mask[..., None], texts, masked_mean(texts, mask)[:, None])


def topk_stream(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "a d"], k: int, block: int = 16384
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The `min(k, a)` largest dot products of each query and their keys, largest first.

    Keys pass in blocks, so memory is `n x (block + k)` however many keys there are.
    """
    k = min(k, keys.shape[0])
    values = queries.new_empty(queries.shape[0], 0)
    index = torch.empty(queries.shape[0], 0, dtype=torch.long, device=queries.device)
    for start in range(0, keys.shape[0], block):
        similarity = queries @ keys[start : start + block].T  # [n, block]
        best, where = similarity.topk(min(k, similarity.shape[1]), dim=1)
        values = torch.cat([values, best], dim=1)
        index = torch.cat([index, where + start], dim=1)
        if values.shape[1] > k:
            values, keep = values.topk(k, dim=1)
            index = index.gather(1, keep)
    return values, index


def hold_out(
    count: int, most: int = 200, seed: int = 0
) -> tuple[Int[Tensor, " h"], Int[Tensor, " r"]]:
    """A random fifth of `range(count)`, at most `most` of it, and the rest."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    size = min(most, count // 5)
    return order[:size], order[size:]


def matching_scale(similarity: Float[Tensor, "n n"], largest: float = 1000.0) -> float:
    """The factor that makes `softmax(factor * similarity)` most likely to match row i with i.

    The negative log-likelihood is convex in the factor, so a bounded line search finds it.
    """
    scores = similarity.double()

    def loss(log_scale: float) -> float:
        log_probability = (math.exp(log_scale) * scores).log_softmax(1)
        return float(-log_probability.diagonal().mean())

    found = minimize_scalar(loss, bounds=(0.0, math.log(largest)), method="bounded")
    return math.exp(found.x)
