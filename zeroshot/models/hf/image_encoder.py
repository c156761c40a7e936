"""Image encoders of transformers: any vision backbone, without its classifier."""

from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from zeroshot.models.base import ClassifierHead, Pixels
from zeroshot.models.encoding import WithPreprocessing
from zeroshot.models.files.classifier_head import read_classifier_head
from zeroshot.models.files.model_files import Files
from zeroshot.models.hf.checkpoint import AutoModel, Checkpoint
from zeroshot.models.preprocessing import from_processor

__all__ = ["TransformersImageEncoder", "load_image_encoder"]

PREPROCESSING = "pil.1"


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
