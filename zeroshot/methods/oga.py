"""OGA: images of a stream are scored by Gaussians that the surest images so far describe.

Fuchs, Zanella, De Vleeschouwer 2025, "Online Gaussian Test-Time Adaptation of Vision-Language
Models", arXiv:2501.04352; authors' code: github.com/cfuchs2023/OGA (MIT).

    p_c = softmax(logit_scale x . w_c)
    l_c = -1/2 (x - mu_c)^T S^-1 (x - mu_c)
    z_c  proportional to  p_c softmax(tau l)_c

The images of a batch enter the cache of their predicted class if that has a free slot or an image
of higher entropy; then the batch is scored. `mu_c` is the mean of a class's cached images, `S` the
covariance of all of them around their means, in a shrunk inverse:

    S^-1 = d [(n - 1) S + trace(S) I]^+      for n cached images of width d

| here | paper |
|---|---|
| capacity | M, slots of each class |
| tau | tau, weight of the likelihood against the zero-shot probability |

Departures from the authors' code, which `compat=True` undoes. A mean divides by the number of
images in the cache; theirs divides by the number of slots, full or not. A class with fewer than two
cached images keeps its zero-shot probability; theirs takes its text embedding as the mean of its
images. The shrunk inverse is used throughout; theirs changes at n = 4d to one about n/d times as
large, and with it the meaning of tau. Theirs stores embeddings in float16, which moves posteriors
by up to 0.04; ours never does.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.methods._streams import load_stream, save_stream
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize


@dataclass(frozen=True)
class OGA(Method):
    """Probabilities of images in the order they come."""

    capacity: int = 8
    """images per class in the cache"""
    tau: float = 0.05
    """weight of the Gaussians against the zero-shot probability"""
    batch: int = 32
    """images that enter the caches together, before they are scored"""
    unit_means: bool = False
    """bring the means of classes to unit length"""
    compat: bool = False
    """means, inverse and unseen classes as in the authors' code"""

    transductive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """UserError for an option out of range."""
        if self.capacity < 1 or self.batch < 1 or self.tau < 0:
            raise UserError(
                f"oga: capacity={self.capacity}, batch={self.batch}, tau={self.tau}; capacity and "
                "batch are at least 1, tau at least 0"
            )

    @property
    def output(self) -> Output:
        """Posterior probabilities."""
        return "probability"

    def stream(
        self,
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> "GaussianStream":
        """A stream with empty caches."""
        return GaussianStream.empty(self, Ensemble().classifier(texts, text_mask), logit_scale)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Probabilities of each image given the batches up to its own."""
        capacity = min(self.capacity, max(1, len(images)))  # no class needs more slots
        return replace(self, capacity=capacity).stream(texts, text_mask, logit_scale)(images)


@dataclass
class GaussianStream:
    """The caches after some images; calling it updates the caches and scores more images."""

    method: OGA
    logit_scale: float
    prototypes: Float[Tensor, "c d"]
    keys: Float[Tensor, "c k d"]
    """Cached embeddings."""
    entropy: Float[Tensor, "c k"]
    """Of the cached images, in nats; `log c` for a free slot."""
    used: Bool[Tensor, "c k"]

    @classmethod
    def empty(
        cls, method: OGA, prototypes: Float[Tensor, "c d"], logit_scale: float
    ) -> "GaussianStream":
        """A stream that has seen no image."""
        (classes, width), capacity = prototypes.shape, method.capacity
        return cls(
            method,
            logit_scale,
            prototypes,
            prototypes.new_zeros(classes, capacity, width),
            prototypes.new_full((classes, capacity), math.log(classes)),
            torch.zeros(classes, capacity, dtype=torch.bool, device=prototypes.device),
        )

    def __call__(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Probabilities of images in order, taken in batches of `method.batch`."""
        scores = [
            self.step(batch) for batch in torch.split(images, self.method.batch) if len(batch)
        ]
        return torch.cat(scores) if scores else self.prototypes.new_empty(0, len(self.prototypes))

    def step(self, images: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Probabilities of the next images, after all of them have entered the caches."""
        p = (self.logit_scale * images @ self.prototypes.T).softmax(-1)
        entropies = -(p * (p + 1e-9).log()).sum(1)
        for x, owner, entropy in zip(images, p.argmax(1).tolist(), entropies, strict=True):
            slot = int(self.entropy[owner].argmax())
            if entropy < self.entropy[owner, slot]:
                self.keys[owner, slot], self.entropy[owner, slot] = x, entropy
                self.used[owner, slot] = True
        means, inverse, seen = self.gaussians()
        apart = images[:, None] - means  # [b, c, d]
        likelihood = -0.5 * ((apart @ inverse) * apart).sum(-1)
        if self.method.compat:
            joint = p * (self.method.tau * likelihood).softmax(-1)
            return joint / joint.sum(1, keepdim=True)
        among = (self.method.tau * likelihood).masked_fill(~seen, -torch.inf).softmax(-1)
        joint = (p * among).where(seen, 0)
        share = (p * seen).sum(1, keepdim=True) / joint.sum(1, keepdim=True)
        return (joint * share).where(seen, p)

    def gaussians(self) -> tuple[Float[Tensor, "c d"], Float[Tensor, "d d"], Bool[Tensor, " c"]]:
        """Means of the classes, the inverse of their covariance, and which have a mean."""
        compat, width = self.method.compat, self.keys.shape[2]
        counts = self.used.sum(1)
        seen = counts >= 2
        sizes = torch.full_like(counts, self.method.capacity) if compat else counts.clamp_min(1)
        means = self.keys.sum(1) / sizes[:, None]
        if self.method.unit_means:
            means = normalize(means)
        means = means.where(seen[:, None], self.prototypes)
        eye = torch.eye(width, dtype=means.dtype, device=means.device)
        if not (counts > 2).any():
            return means, width * eye, seen
        among = self.used if compat else self.used & seen[:, None]
        rest = (self.keys - means[:, None])[among]
        rest = rest - rest.mean(0)
        scatter = rest.T @ rest  # (n - 1) S
        spread = scatter / (len(rest) - 1)
        if compat and len(rest) > 4 * width:
            return means, torch.linalg.pinv(spread), seen
        return means, width * torch.linalg.pinv(scatter + spread.trace() * eye), seen

    def save(self, path: Path | str) -> None:
        """Write everything to a safetensors file, all of it or nothing."""
        settings = {"logit_scale": self.logit_scale, "options": asdict(self.method)}
        save_stream(path, "oga", self.tensors(), settings)

    @classmethod
    def load(cls, path: Path | str) -> "GaussianStream":
        """The stream that was saved there, with its options and texts.

        Raises:
            UserError: no such file, or not a saved stream.
        """
        return load_stream(
            path,
            "oga",
            lambda prototypes, settings: cls.empty(
                OGA(**settings["options"]), prototypes, settings["logit_scale"]
            ),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""
        return {
            "prototypes": self.prototypes,
            "keys": self.keys,
            "entropy": self.entropy,
            "used": self.used,
        }
