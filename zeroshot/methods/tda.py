"""TDA: images are scored one after the other, with a cache of the most confident of each class.

Karmanov et al. 2024, "Efficient Test-Time Adaptation of Vision-Language Models", CVPR,
arXiv:2403.18293; authors' code: github.com/kdiAAA/TDA (MIT).

    L = logit_scale x . w
        + pos_alpha sum_pos exp(-pos_beta (1 - x . k)) 1_c                            (1)
        - neg_alpha sum_neg exp(-neg_beta (1 - x . k)) 1[lower < p_k < upper]         (2)

Before an image is scored, it enters the positive cache of its predicted class if that has a free
slot or an image of higher entropy. If its entropy lies between two bounds, it enters the negative
cache by the same rule. An image in the negative cache is evidence against the classes whose
probability for it lies between two thresholds.

| here | paper |
|---|---|
| pos_capacity, neg_capacity | shot capacity of the two caches |
| pos_alpha, pos_beta, neg_alpha, neg_beta | alpha and beta of the two caches |
| entropy_lower, entropy_upper | tau_l, tau_h, of the entropy that is tested |
| mask_lower, mask_upper | p_l, thresholds of the negative pseudo-labels |

Departures from the authors' code: none in the numbers. Entropy in nats is divided by `log2 c`, so
that 0.69 is its largest value, as in theirs. They set `pos_alpha` and `pos_beta` by hand for each
data set; the defaults here are those for ImageNet. A `Stream` can be saved and resumed. The order
of images matters: shuffle sorted images.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.methods._streams import load_stream, save_stream
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.zero import entropy


@dataclass(frozen=True)
class TDA(Method):
    """Logits of images in the order they come."""

    pos_capacity: int = 3
    """images per class in the positive cache"""
    pos_alpha: float = 2.0
    """weight of the positive cache"""
    pos_beta: float = 5.0
    """how fast the influence of its images falls with distance"""
    neg_capacity: int = 2
    """images per class in the negative cache"""
    neg_alpha: float = 0.117
    """weight of the negative cache"""
    neg_beta: float = 1.0
    """how fast the influence of its images falls with distance"""
    entropy_lower: float = 0.2
    """least entropy for the negative cache (nats over log2 of the number of classes)"""
    entropy_upper: float = 0.5
    """largest entropy for the negative cache"""
    mask_lower: float = 0.03
    """the negative cache counts against classes of more than this probability"""
    mask_upper: float = 1.0
    """and of less than this probability"""
    view_fraction: float = 0.1
    """share of the views that are averaged, those of lowest entropy"""

    transductive: ClassVar[bool] = True

    @property
    def output(self) -> Output:
        """Zero-shot logits and weighted similarities."""
        return "logit"

    def stream(
        self,
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> "Stream":
        """A stream with empty caches."""
        return Stream.empty(self, Ensemble().classifier(texts, text_mask), logit_scale)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        views: Float[Tensor, "n v d"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Logits of each image given those before it, by its `views` if there are any."""
        slots = max(1, len(images))  # no class needs more
        capacities = [min(own, slots) for own in (self.pos_capacity, self.neg_capacity)]
        method = replace(self, pos_capacity=capacities[0], neg_capacity=capacities[1])
        stream = method.stream(texts, text_mask, logit_scale)
        return stream(images[:, None] if views is None else views)


@dataclass
class Cache:
    """Embeddings of each class and their entropies; the entropy of a free slot is infinite."""

    keys: Float[Tensor, "c k d"]
    entropy: Float[Tensor, "c k"]

    @classmethod
    def empty(cls, prototypes: Float[Tensor, "c d"], capacity: int) -> "Cache":
        """`capacity` free slots for each class."""
        classes, width = prototypes.shape
        return cls(
            prototypes.new_zeros(classes, capacity, width),
            prototypes.new_full((classes, capacity), torch.inf),
        )

    def add(self, owner: int, x: Float[Tensor, " d"], entropy: Float[Tensor, ""]) -> int | None:
        """Put `x` into a free slot, or over an embedding of higher entropy; the slot, if any."""
        if self.entropy.shape[1] == 0:
            return None
        slot = int(self.entropy[owner].argmax())
        if not entropy < self.entropy[owner, slot]:
            return None
        self.keys[owner, slot] = x
        self.entropy[owner, slot] = entropy
        return slot

    def affinity(self, x: Float[Tensor, " d"], beta: float) -> Float[Tensor, "c k"]:
        """`exp(-beta (1 - x . k))`, zero for free slots."""
        affinity = (self.keys @ x).sub_(1).mul_(beta).exp_()
        return affinity.masked_fill_(self.entropy == torch.inf, 0)


@dataclass
class Stream:
    """The caches after some images; calling it scores more images and updates the caches."""

    method: TDA
    logit_scale: float
    prototypes: Float[Tensor, "c d"]
    positive: Cache
    negative: Cache
    against: Bool[Tensor, "c k c"]
    """the classes that each slot of the negative cache counts against"""

    @classmethod
    def empty(cls, method: TDA, prototypes: Float[Tensor, "c d"], logit_scale: float) -> "Stream":
        """A stream that has seen no image."""
        classes, negative = len(prototypes), method.neg_capacity
        return cls(
            method,
            logit_scale,
            prototypes,
            Cache.empty(prototypes, method.pos_capacity),
            Cache.empty(prototypes, negative),
            torch.zeros(classes, negative, classes, dtype=torch.bool, device=prototypes.device),
        )

    def __call__(self, views: Float[Tensor, "n v d"]) -> Float[Tensor, "n c"]:
        """Logits of images in order; an image that is not augmented has a single view."""
        # Each image changes the caches for the next one, so this loop cannot be a batch.
        scores = [self.step(own) for own in views]
        return torch.stack(scores) if scores else self.prototypes.new_empty(0, len(self.prototypes))

    def step(self, views: Float[Tensor, "v d"]) -> Float[Tensor, " c"]:
        """Logits of the next image, after it has entered the caches."""
        x, logits, probability, entropy = self._average(views)
        m = self.method
        owner = int(logits.argmax())
        self.positive.add(owner, x, entropy)
        share = float(entropy) / math.log2(len(logits)) if len(logits) > 1 else 0.0
        if m.entropy_lower < share < m.entropy_upper:
            slot = self.negative.add(owner, x, entropy)
            if slot is not None:
                possible = (probability > m.mask_lower) & (probability < m.mask_upper)
                self.against[owner, slot] = possible
        positive = self.positive.affinity(x, m.pos_beta).sum(1)
        used = self.negative.entropy < torch.inf
        negative = self.negative.affinity(x, m.neg_beta)[used] @ self.against[used].to(x.dtype)
        return logits + m.pos_alpha * positive - m.neg_alpha * negative  # (1), (2)

    def save(self, path: Path | str) -> None:
        """Write everything to a safetensors file, all of it or nothing."""
        settings = {"logit_scale": self.logit_scale, "options": asdict(self.method)}
        save_stream(path, "tda", self.tensors(), settings)

    @classmethod
    def load(cls, path: Path | str) -> "Stream":
        """The stream that was saved there, with its options and texts.

        Raises:
            UserError: no such file, or not a saved stream.
        """

        return load_stream(
            path,
            "tda",
            lambda prototypes, settings: cls.empty(
                TDA(**settings["options"]), prototypes, settings["logit_scale"]
            ),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""
        return {
            "prototypes": self.prototypes,
            "positive_keys": self.positive.keys,
            "positive_entropy": self.positive.entropy,
            "negative_keys": self.negative.keys,
            "negative_entropy": self.negative.entropy,
            "against": self.against,
        }

    def _average(self, views: Float[Tensor, "v d"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embedding, logits, probabilities and entropy of an image, by its most confident views."""
        logits = self.logit_scale * views @ self.prototypes.T
        if len(views) > 1:
            count = max(1, int(self.method.view_fraction * len(views)))
            best = entropy(logits).argsort(stable=True)[:count]
            views, logits = views[best], logits[best]
        probability = logits.softmax(-1).mean(0)
        least = torch.finfo(probability.dtype).tiny
        uncertainty = -(probability * probability.clamp_min(least).log()).sum()
        return views.mean(0), logits.mean(0), probability, uncertainty
