"""Image encoders of transformers: any vision backbone, its head cut off."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from safetensors import safe_open
from torch import Tensor

from zeroshot.models.base import Classes, Pixels
from zeroshot.models.devices import precision_name
from zeroshot.models.encoding import encode_images, encode_pixels
from zeroshot.models.hf import common
from zeroshot.models.model_files import Files
from zeroshot.models.preprocessing import of_processor

__all__ = ["TransformersImageEncoder", "load_image_encoder"]

PREPROCESSING = "pil.1"

HEAD = re.compile(r"classifier(\.\d+)?\.weight")
"""The last layer of a classifier, as most families call it."""


class TransformersImageEncoder:
    """A vision backbone; the embedding is what the backbone itself pools.

    That is its `pooler_output` (ConvNeXt, ResNet, MobileNet, Swin, DINOv2, where it is the class
    token after the final norm). Without one, or where the checkpoint lacks the pooler's weights
    (a ViT saved as a classifier), it is the class token, or the mean over positions of a
    backbone that has none.
    """

    def __init__(
        self, name: str, model: Any, image_processor: Any, has_pooler: bool, files: Files
    ) -> None:
        self.name = name
        self.model = model
        self.files = files
        self.image_processor = image_processor
        self.preprocessing = of_processor(image_processor)
        self.has_pooler = has_pooler
        self.has_class_token = any(
            word in key
            for key, _ in model.named_parameters()
            for word in ("cls_token", "class_embedding", "class_token")
        )

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """As `base.ImageEncoder`."""
        return encode_images(images, self.pixels, self._features)

    @property
    def shortcuts(self) -> str:
        """As `base.PixelEncoder`."""
        return self.preprocessing.shortcuts

    @property
    def draft_side(self) -> int | None:
        """As `base.PixelEncoder`."""
        return self.preprocessing.draft_side

    def pixels(self, image: Image) -> Pixels:
        """As `base.PixelEncoder`."""
        return self.preprocessing.pixels(image)

    def encode_pixels(self, pixels: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """As `base.PixelEncoder`."""
        return encode_pixels(pixels, self._features)

    @cached_property
    def classes(self) -> Classes | None:
        """As `base.ClassifyingEncoder`; read from the files, for the backbone is without it."""
        return read_classes(self.files)

    def _features(self, pixels: list[Pixels]) -> Float[Tensor, "b d"]:
        inputs = self.preprocessing.batch(pixels, self.model.device, self.model.dtype)
        outputs = self.model(**inputs)
        pooled: Tensor | None = outputs.get("pooler_output")
        if self.has_pooler and pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = outputs.last_hidden_state
        if hidden.ndim == 4:  # [b, d, h, w]
            return hidden.mean(dim=(2, 3))
        return hidden[:, 0] if self.has_class_token else hidden.mean(dim=1)


def load_image_encoder(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> TransformersImageEncoder:
    """The vision backbone in `files`."""
    model, missing = common.load_model(
        common.AutoModel, files, device, dtype, trust_remote_code, spare=("pooler.",)
    )
    return TransformersImageEncoder(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        common.load_image_processor(files, trust_remote_code),
        has_pooler=not missing,
        files=files,
    )


def read_classes(files: Files) -> Classes | None:
    """The linear classifier of a model, from safetensors, where its classes have names."""
    labels = files.read("config.json").get("id2label") or {}
    names = tuple(str(labels.get(str(i), "")) for i in range(len(labels)))
    if len(names) < 2 or not all(names) or names[0].startswith("LABEL_") or not files.safe:
        return None
    for path in files.weights:
        with safe_open(path, "pt") as held:
            for key in filter(HEAD.fullmatch, held.keys()):
                weights: Tensor = held.get_tensor(key)
                if weights.ndim == 2 and len(weights) == len(names):
                    return Classes(weights.float(), names)
    return None
