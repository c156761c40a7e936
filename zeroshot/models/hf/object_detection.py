"""Detection models of transformers with prompts: OWL-ViT, OWLv2, and Grounding DINO with its kin.

Prompts are encoded once and then used for every image; transformers' own pipeline encodes each
label again for each image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from zeroshot.boxes import center_to_corners
from zeroshot.models.base import Detections, Detector
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.grounding_dino import GroundingDINO
from zeroshot.models.hf.prompted_model import PromptedModel
from zeroshot.models.model_checks import check_numbers

__all__ = ["FAMILIES", "OWL", "load_detector"]

IMAGES_AT_ONCE = 8


class OWL(PromptedModel):
    """Minderer et al. 2022 and 2023, OWL-ViT (ECCV) and OWLv2 (NeurIPS).

    Each patch has a box and an embedding, which is compared with prompts, texts or example images;
    its score is a sigmoid. transformers keeps the best prompt of each patch. Here a patch gives a
    box for every prompt above the threshold; overlapping boxes of one label are removed later.
    """

    preprocessing = "pil.1"
    template = "a photo of a {}"

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Detector`; unit vectors."""

        def embed(tokens: Any) -> Tensor:
            output = self._clip.text_model(tokens["input_ids"], tokens["attention_mask"])
            embeddings: Tensor = self._clip.text_projection(output.pooler_output)
            return embeddings

        # The model was trained on texts padded to full length with token 0.
        return self.embed_prompts(prompts, embed, padding="max_length")

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """As `base.Detector`: for each image, the embedding of the box that covers it best.

        Among the boxes that fill the image, OWL-ViT takes the one whose embedding is least like the
        image's others. OWLv2 takes the box with the highest objectness.
        """
        embeddings = []
        with torch.inference_mode():
            for example in examples:
                grid = self._feature_map([example])
                query, _, _ = self.model.embed_image_query(grid.flatten(1, 2), grid)
                embeddings.append(query.flatten(0, -2))
        return torch.cat(embeddings).float().cpu()

    def detect(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"], threshold: float
    ) -> list[Detections]:
        """As `base.Detector`."""
        detections = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            batch = list(images[start : start + IMAGES_AT_ONCE])
            for image, logits, boxes in zip(batch, *self.logits(batch, prompts), strict=True):
                detections.append(self._above(image, logits.sigmoid(), boxes, threshold))
        return detections

    def logits(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> tuple[Float[Tensor, "n p c"], Float[Tensor, "n p 4"]]:
        """For each patch, a logit of each prompt and its box (center, width, height)."""
        with torch.inference_mode():
            grid = self._feature_map(images)
            patches = grid.flatten(1, 2)
            queries = prompts.to(grid.device, grid.dtype)[None].expand(len(patches), -1, -1)
            logits, _ = self.model.class_predictor(patches, queries)
            boxes = self.model.box_predictor(patches, grid)
        check_numbers(logits)
        check_numbers(boxes)
        return logits.float().cpu(), boxes.float().cpu()

    def _above(
        self,
        image: Image,
        scores: Float[Tensor, "p c"],
        boxes: Float[Tensor, "p 4"],
        threshold: float,
    ) -> Detections:
        patch, label = (scores >= threshold).nonzero(as_tuple=True)
        width, height = image.size
        # OWLv2 pads images to a square before it resizes them.
        sides = (max(width, height),) * 2 if self._is_v2 else (width, height)
        scale = boxes.new_tensor([*sides, *sides])
        pixels = center_to_corners(boxes[patch]) * scale
        return Detections.within(image.size, pixels, scores[patch, label], label)

    @property
    def _is_v2(self) -> bool:
        return bool(self.model.config.model_type == "owlv2")

    @property
    def _clip(self) -> Any:
        """The CLIP inside: text tower and vision tower."""
        return self.model.owlv2 if self._is_v2 else self.model.owlvit

    def _feature_map(self, images: Sequence[Image]) -> Float[Tensor, "n h w d"]:
        grid: Tensor = self.model.image_embedder(self.pixel_values(images))[0]
        return grid


FAMILIES: dict[str, tuple[str, type[OWL | GroundingDINO]]] = {
    "owlvit": ("OwlViTForObjectDetection", OWL),
    "owlv2": ("Owlv2ForObjectDetection", OWL),
    "grounding-dino": ("GroundingDinoForObjectDetection", GroundingDINO),
    "mm-grounding-dino": ("MMGroundingDinoForObjectDetection", GroundingDINO),
}


def load_detector(checkpoint: Checkpoint) -> Detector:
    """The detection model in `checkpoint`."""
    model_class, detector = FAMILIES[checkpoint.files.model_type]
    return detector.load(checkpoint, model_class)
