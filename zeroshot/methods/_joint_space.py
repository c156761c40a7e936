"""Couplings with a joint space of few dimensions: a score is a dot product of two vectors there."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.ops import masked_mean, normalize

TemplateMode = Literal["mean", "max"]


class JointSpace(Method):
    """The scores that follow from `map_images` and `map_texts`; see `methods.Coupling`."""

    templates: TemplateMode

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`."""
        raise NotImplementedError

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`."""
        raise NotImplementedError

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Dot products in the joint space, reduced over each class's prompts."""
        prompts = self._map_prompts(texts, text_mask)
        return reduce_prompts(self.map_images(images), prompts, text_mask, self.templates)

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """As `scores`, of unit vectors in the joint space."""
        prompts = normalize(self._map_prompts(texts, text_mask))
        joint = normalize(self.map_images(images))
        return reduce_prompts(joint, prompts, text_mask, self.templates)

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """Cosines of joint image vectors with `k` text embeddings each."""
        joint = normalize(self.map_texts(texts.flatten(0, 1)))
        joint = joint.view(*texts.shape[:2], joint.shape[1])
        return (joint @ normalize(images)[:, :, None])[..., 0]

    def _map_prompts(
        self, texts: Float[Tensor, "c t e"], text_mask: Bool[Tensor, "c t"] | None
    ) -> Float[Tensor, "c t m"]:
        present = torch.ones(texts.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
        return map_present(self.map_texts, texts, present)


def map_present(
    map_texts: Callable[[Tensor], Tensor],
    texts: Float[Tensor, "c t e"],
    present: Bool[Tensor, "c t"],
) -> Float[Tensor, "c t m"]:
    """The prompts that are present, mapped; the others are zero."""
    mapped = map_texts(texts[present])
    out = mapped.new_zeros(*texts.shape[:2], mapped.shape[1])
    out[present] = mapped
    return out


def reduce_prompts(
    images: Float[Tensor, "n m"],
    prompts: Float[Tensor, "c t m"],
    text_mask: Bool[Tensor, "c t"] | None,
    templates: TemplateMode,
) -> Float[Tensor, "n c"]:
    """Dot products of images with the prompts of each class, reduced over `t`."""
    if templates == "mean":
        return images @ masked_mean(prompts, text_mask).T
    similarity = torch.einsum("nm,ctm->nct", images, prompts)
    if text_mask is not None:
        similarity = similarity.masked_fill(~text_mask, -torch.inf)
    return similarity.amax(-1)
