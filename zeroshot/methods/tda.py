"""TDA: a stream of pictures that remembers the surest ones of each class.

Karmanov et al. 2024, "Efficient Test-Time Adaptation of Vision-Language Models", CVPR,
arXiv:2403.18293; authors' code: github.com/kdiAAA/TDA (MIT).

    L = logit_scale x . w + pos_alpha sum_pos exp(-pos_beta (1 - x . k)) 1_c
                          - neg_alpha sum_neg exp(-neg_beta (1 - x . k)) 1[lower < p_k < upper]

A picture joins the positive cache of the class it seems to be, if that has room or holds a less
certain one; it joins the negative cache likewise, if its entropy lies between two bounds. Then it
is scored. A row of the negative cache speaks against the classes that its picture found possible.

| here | paper |
|---|---|
| pos_capacity, neg_capacity | shot capacity of the two caches |
| pos_alpha, pos_beta, neg_alpha, neg_beta | alpha and beta of the two caches |
| entropy_lower, entropy_upper | tau_l, tau_h, of the entropy that is tested |
| mask_lower, mask_upper | p_l, thresholds of the negative pseudo-labels |

Departures from the authors' code: none in the numbers. Entropy in nats is divided by `log2 c`, so
that 0.69 is its largest value, as theirs. They set `pos_alpha` and `pos_beta` by hand for each data
set; here they are fixed at those for ImageNet. A `Stream` can be saved and resumed. Order matters:
shuffle sorted pictures.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.zero import entropy


@dataclass(frozen=True)
class TDA:
    """Logits of pictures in the order they come."""

    pos_capacity: int = 3
    """sure pictures remembered of each class"""
    pos_alpha: float = 2.0
    """weight of these"""
    pos_beta: float = 5.0
    """how fast their influence falls with distance"""
    neg_capacity: int = 2
    """unsure pictures remembered of each class"""
    neg_alpha: float = 0.117
    """weight of these"""
    neg_beta: float = 1.0
    """how fast their influence falls with distance"""
    entropy_lower: float = 0.2
    """a picture is unsure above this entropy (nats over log2 of the number of classes)"""
    entropy_upper: float = 0.5
    """and below this one"""
    mask_lower: float = 0.03
    """an unsure picture speaks against classes of more than this probability"""
    mask_upper: float = 1.0
    """and of less than this"""
    view_fraction: float = 0.1
    """share of the views, with the lowest entropy, that are averaged"""

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
        """A stream that has seen nothing yet."""
        prototypes = Ensemble().classifier(texts, text_mask)
        return Stream(
            self,
            logit_scale,
            prototypes,
            Cache.empty(prototypes, self.pos_capacity),
            Cache.empty(prototypes, self.neg_capacity),
            torch.zeros(len(texts), self.neg_capacity, len(texts), dtype=torch.bool),
        )

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        views: Float[Tensor, "n v d"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Logits, each picture scored with those before it, by its `views` if there are any."""
        stream = self.stream(texts, text_mask, logit_scale)
        return stream(images[:, None] if views is None else views)


@dataclass
class Cache:
    """Rows remembered for each class and their entropies, infinite where there is room."""

    keys: Float[Tensor, "c k d"]
    entropy: Float[Tensor, "c k"]

    @classmethod
    def empty(cls, prototypes: Float[Tensor, "c d"], capacity: int) -> "Cache":
        """Room for `capacity` rows of each class."""
        classes, width = prototypes.shape
        return cls(
            prototypes.new_zeros(classes, capacity, width),
            prototypes.new_full((classes, capacity), torch.inf),
        )

    def place(self, owner: int, entropy: Float[Tensor, ""]) -> int | None:
        """Where a row of this entropy goes, if anywhere: into room, or over the least certain."""
        if self.entropy.shape[1] == 0:
            return None
        worst = int(self.entropy[owner].argmax())
        return worst if entropy < self.entropy[owner, worst] else None

    def put(self, owner: int, place: int, row: Float[Tensor, " d"], entropy: Tensor) -> None:
        """Remember a row."""
        self.keys[owner, place] = row
        self.entropy[owner, place] = entropy

    def affinity(self, row: Float[Tensor, " d"], beta: float) -> Float[Tensor, "c k"]:
        """`exp(-beta (1 - x . k))`, zero where there is room."""
        near = (self.keys @ row).sub_(1).mul_(beta).exp_()
        return near.masked_fill_(self.entropy == torch.inf, 0)


@dataclass
class Stream:
    """What has been seen so far; calling it scores more pictures and remembers them."""

    method: TDA
    logit_scale: float
    prototypes: Float[Tensor, "c d"]
    positive: Cache
    negative: Cache
    against: Bool[Tensor, "c k c"]
    """which classes each row of the negative cache speaks against"""

    def __call__(self, views: Float[Tensor, "n v d"]) -> Float[Tensor, "n c"]:
        """Logits of pictures in order; one that is not augmented has a single view."""
        # A picture changes what the next one meets, so this loop cannot be a batch.
        scores = [self.step(rows) for rows in views]
        return torch.stack(scores) if scores else self.prototypes.new_empty(0, len(self.prototypes))

    def step(self, views: Float[Tensor, "v d"]) -> Float[Tensor, " c"]:
        """Logits of the next picture, which is remembered if it deserves it."""
        row, logits, probability, uncertainty = self._seen(views)
        m = self.method
        owner = int(logits.argmax())
        place = self.positive.place(owner, uncertainty)
        if place is not None:
            self.positive.put(owner, place, row, uncertainty)
        share = float(uncertainty) / math.log2(len(logits)) if len(logits) > 1 else 0.0
        if m.entropy_lower < share < m.entropy_upper:
            place = self.negative.place(owner, uncertainty)
            if place is not None:
                self.negative.put(owner, place, row, uncertainty)
                possible = (probability > m.mask_lower) & (probability < m.mask_upper)
                self.against[owner, place] = possible
        found = self.positive.affinity(row, m.pos_beta).sum(1)
        used = self.negative.entropy < torch.inf
        doubted = self.negative.affinity(row, m.neg_beta)[used] @ self.against[used].to(row.dtype)
        return logits + m.pos_alpha * found - m.neg_alpha * doubted

    def save(self, path: Path) -> None:
        """Write everything to a safetensors file, whole or not at all."""
        tensors = {
            "prototypes": self.prototypes,
            "positive_keys": self.positive.keys,
            "positive_entropy": self.positive.entropy,
            "negative_keys": self.negative.keys,
            "negative_entropy": self.negative.entropy,
            "against": self.against,
        }
        about = {"logit_scale": self.logit_scale, "options": asdict(self.method)}
        part = path.with_name(path.name + ".part")
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, part, metadata={"zeroshot.tda": json.dumps(about)})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Stream":
        """The stream that was saved there, with its options and texts.

        Raises:
            UserError: the file is not one.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["zeroshot.tda"])
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(f"no such file: '{path}'") from None
        except Exception as error:
            raise UserError(f"'{path}' is no saved tda stream ({error})") from error
        return cls(
            TDA(**about["options"]),
            about["logit_scale"],
            held["prototypes"],
            Cache(held["positive_keys"], held["positive_entropy"]),
            Cache(held["negative_keys"], held["negative_entropy"]),
            held["against"],
        )

    def _seen(self, views: Float[Tensor, "v d"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row, logits, probabilities and entropy of a picture, means over its surest views."""
        logits = self.logit_scale * views @ self.prototypes.T
        if len(views) > 1:
            kept = max(1, int(self.method.view_fraction * len(views)))
            best = entropy(logits).argsort(stable=True)[:kept]
            views, logits = views[best], logits[best]
        probability = logits.softmax(-1).mean(0)
        least = torch.finfo(probability.dtype).tiny
        uncertainty = -(probability * probability.clamp_min(least).log()).sum()
        return views.mean(0), logits.mean(0), probability, uncertainty
