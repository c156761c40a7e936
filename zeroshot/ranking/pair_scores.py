"""How well images and texts fit, beyond the cosine of a pair.

negCLIPLoss and NormSim: Wang et al. 2024, "CLIPLoss and Norm-Based Data Selection Methods for
Multimodal Contrastive Learning", NeurIPS, arXiv:2405.19547; code: ypwang61/negCLIPLoss_NormSim.
F-CLIPScore: Oh and Hwang 2025, arXiv:2502.20034; code: abzb1/f-clip. Neither has a licence; these
are written from the equations.

    negclip   s_ii - T/2 log sum_j exp(s_ij / T) - T/2 log sum_j exp(s_ji / T)
    normsim   (sum_g |x . g|^p)^(1/p) over images g that are wanted; the largest x . g for p = inf
    fclip     mean of the cosines of the text and of each of its nouns

Departures. They draw batches of 32768 anew for each run and shard, and a short last batch has
higher scores. Here j runs over all pairs, up to `BATCH` of them exactly, and beyond over batches of
equal size by a fixed order; a caption that equals the own is no alternative. NormSim for p = inf is
signed as in the paper, while their code takes absolute values. F-CLIPScore has cosines, not 100
times them, and keeps negative ones, which `floor` raises as they do.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BATCH = 32768
"""Pairs among which alternatives are sought."""
BLOCK = 1024


def negclip(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "n d"],
    captions: Int[Tensor, " n"],
    temperature: float = 0.01,
) -> Float[Tensor, " n"]:
    """negCLIPLoss of each pair of unit rows; equal numbers in `captions` are equal texts.

    `temperature` is 1 by the model's logit scale.
    """
    scores = torch.empty(len(images), dtype=torch.float64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for batch in torch.tensor_split(order, math.ceil(len(order) / BATCH) or 1):
        v, t, same = images[batch].double(), texts[batch].double(), captions[batch]
        for kind in torch.split(torch.arange(len(batch)), BLOCK):
            over_texts = _alternatives(v[kind], t, kind, same, temperature)
            over_images = _alternatives(t[kind], v, kind, same, temperature)
            own = (v[kind] * t[kind]).sum(1)
            scores[batch[kind]] = own - (over_texts + over_images) / 2
    return scores


def _alternatives(
    rows: Float[Tensor, "m d"],
    others: Float[Tensor, "n d"],
    places: Int[Tensor, " m"],
    same: Int[Tensor, " n"],
    temperature: float,
) -> Float[Tensor, " m"]:
    """T log sum exp of the cosines, without other pairs of the same caption."""
    logits = rows @ others.T / temperature
    equal = same[places][:, None] == same[None]
    equal[torch.arange(len(places)), places] = False
    return temperature * logits.masked_fill(equal, -math.inf).logsumexp(1)


def normsim(
    images: Float[Tensor, "n d"], targets: Float[Tensor, "g d"], p: float = math.inf
) -> Float[Tensor, " n"]:
    """How near each image is to images that are wanted."""
    parts = [rows.double() @ targets.double().T for rows in torch.split(images, BLOCK)]
    if math.isinf(p):
        return torch.cat([part.amax(1) for part in parts])
    return torch.cat([part.norm(p, dim=1) for part in parts])


def fclip(
    texts: Float[Tensor, "*n"],
    nouns: Float[Tensor, "*n k"],
    mask: Bool[Tensor, "*n k"],
    floor: float | None = None,
) -> Float[Tensor, "*n"]:
    """F-CLIPScore of cosines of texts and of those of their nouns that exist."""
    if floor is not None:
        texts, nouns = (torch.where(x > 0, x, floor) for x in (texts, nouns))
    return (texts + (nouns * mask).sum(-1)) / (1 + mask.sum(-1))
