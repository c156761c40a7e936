"""Image encoders of transformers: any vision backbone, without its classifier."""

import inspect
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from zeroshot.errors import UserError, ZeroshotError
from zeroshot.models.base import ClassifierHead, Pixels
from zeroshot.models.devices import out_of_memory
from zeroshot.models.encoding import WithPreprocessing
from zeroshot.models.files.classifier_head import read_classifier_head
from zeroshot.models.files.model_files import Files
from zeroshot.models.hf.checkpoint import AutoModel, Checkpoint
from zeroshot.models.preprocessing import from_processor
from zeroshot.ops import normalize

__all__ = ["TransformersImageEncoder", "load_image_encoder"]

PREPROCESSING = "pil.1"
IMAGES_AT_ONCE = 16
"""Fewer than for image embeddings, since the state of every patch is kept."""
IMAGE_SIZE = 224
"""Side of images in pixels for models that name none: convolutions."""


class TransformersImageEncoder(WithPreprocessing):
    """A vision backbone; the embedding is what the backbone itself pools.

    That is its `pooler_output` (ConvNeXt, ResNet, MobileNet, Swin; for DINOv2 the class token after
    the final norm). If there is none, or if the checkpoint lacks the pooler's weights (a ViT saved
    as a classifier), it is the class token, or else the mean over positions.
    """

    def __init__(
        self, name: str, model: Any, image_processor: Any, has_pooler: bool, files: Files
    ) -> None:
        self.name = name
        self.model = model
        self.files = files
        self.image_processor = image_processor
        self.preprocessing = from_processor(image_processor)
        self.has_pooler = has_pooler
        self.has_class_token = any(
            word in key
            for key, _ in model.named_parameters()
            for word in ("cls_token", "class_embedding", "class_token")
        )

    @cached_property
    def classes(self) -> ClassifierHead | None:
        """As `base.ClassifyingEncoder`; from the files, since the backbone has no classifier."""
        return read_classifier_head(self.files)

    def _image_features(self, pixels: list[Pixels]) -> Float[Tensor, "b d"]:
        inputs = self.preprocessing.batch(pixels, self.model.device, self.model.dtype)
        outputs = self.model(**inputs)
        pooled: Tensor | None = outputs.get("pooler_output")
        if self.has_pooler and pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = outputs.last_hidden_state
        if hidden.ndim == 4:  # [b, d, h, w]
            return hidden.mean(dim=(2, 3))
        return hidden[:, 0] if self.has_class_token else hidden.mean(dim=1)

    @property
    def patch_size(self) -> int:
        """As `base.PatchEncoder`."""
        return self._layout[0]

    def patch_features(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w d"]:
        """As `base.PatchEncoder`; the last hidden states."""
        patch, before = self._layout
        width, height = images[0].size
        rows, columns = height // patch, width // patch
        states = [
            self._states(images[i : i + IMAGES_AT_ONCE])
            for i in range(0, len(images), IMAGES_AT_ONCE)
        ]
        hidden = torch.cat(states)
        if hidden.ndim == 3 and hidden.shape[1] == before + rows * columns:
            hidden = hidden[:, before:].reshape(len(hidden), rows, columns, -1)
        if hidden.shape[1:3] != (rows, columns):
            raise self._no_patches(
                f"states of shape {list(hidden.shape[1:])} for an image of {height} x {width} "
                f"pixels and patches of {patch}"
            )
        if not hidden.isfinite().all():
            raise ZeroshotError(
                f"{self.name} gives patches that are not finite; in half precision, fp32 may help"
            )
        return normalize(hidden)

    @cached_property
    def _layout(self) -> tuple[int, int]:
        """Side of a patch in pixels, and the number of tokens before the patches.

        By the states of a square and of two such squares side by side: no two configurations say it
        in the same words.
        """
        size = getattr(self.model.config, "image_size", None) or IMAGE_SIZE
        side = size if isinstance(size, int) else max(size)
        try:
            with self.own_turn():
                one, again, two = (
                    self._states([Image.new("RGB", (width, side), "gray")])
                    for width in (side, side, 2 * side)
                )
        except UserError:
            raise
        except Exception as error:  # whatever a model raises for a size that it does not take
            if out_of_memory(error):
                raise
            raise self._no_patches(f"it takes no images of other sizes ({error})") from error
        if not torch.equal(one, again):  # ViTMAE leaves out patches at random
            raise self._no_patches("the states of one image differ from time to time")
        counts = [math.prod(states.shape[1:-1]) for states in (one, two)]
        patches = counts[1] - counts[0]
        rows = math.isqrt(max(patches, 0))
        if not rows or rows**2 != patches or side % rows or patches > counts[0]:
            raise self._no_patches(f"{counts[0]} states for an image of {side} x {side} pixels")
        return side // rows, counts[0] - patches

    def _states(self, images: Sequence[Image.Image]) -> Tensor:
        """The last hidden states: [n s d], or [n h w d]."""
        pixels = self.preprocessing.normalize(images, self.model.device, self.model.dtype)
        resizes = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        with torch.inference_mode():
            outputs = self.model(pixels, **({"interpolate_pos_encoding": True} if resizes else {}))
        hidden: Tensor = outputs.last_hidden_state.float().cpu()
        return hidden.permute(0, 2, 3, 1) if hidden.ndim == 4 else hidden

    def _no_patches(self, why: str) -> UserError:
        return UserError(
            f"{self.name} gives no grid of patches: {why}. Use a vision transformer such as "
            "hf:facebook/dinov2-base"
        )


def load_image_encoder(checkpoint: Checkpoint) -> TransformersImageEncoder:
    """The vision backbone in `checkpoint`."""
    model, missing = checkpoint.load_model_and_missing(AutoModel, optional=("pooler.",))
    return TransformersImageEncoder(
        checkpoint.name(PREPROCESSING),
        model,
        checkpoint.load_image_processor(),
        has_pooler=not missing,
        files=checkpoint.files,
    )
