"""Detection models of transformers that take prompts: OWL-ViT, OWLv2 and Grounding DINO.

A model's prompts are encoded once and then meet every picture; transformers' own pipeline encodes
each label anew for each picture.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from zeroshot.models.base import Detections, Detector
from zeroshot.models.boxes import corners
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.hf.dual_encoder import repaired
from zeroshot.models.hf.grounding_dino import GroundingDINO
from zeroshot.models.model_files import Files

__all__ = ["FAMILIES", "OWL", "load_detector"]

PREPROCESSING = "pil.1"
IMAGES_AT_ONCE = 8
TEXTS_AT_ONCE = 256


class OWL:
    """Minderer et al. 2022 and 2023, OWL-ViT (ECCV) and OWLv2 (NeurIPS).

    Each patch has a box and an embedding that prompts, texts or pictures of a thing, are compared
    with; its score is a sigmoid. Transformers keeps the best prompt of each patch; here a patch
    gives a box for every prompt above the threshold, and overlapping ones of one label go later.
    """

    template = "a photo of a {}"

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, padded: bool
    ) -> None:
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.padded = padded
        """Whether pictures are padded to a square before they are resized (OWLv2)."""

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Detector`; unit rows."""
        texts = [repaired(prompt) for prompt in prompts]
        positions = int(self.model.config.text_config.max_position_embeddings)
        common.refuse_long(self.tokenizer, texts, positions)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                # The model was trained on texts padded to full length, and pads with token 0.
                tokens = common.tokenize(
                    self.tokenizer, texts[start : start + TEXTS_AT_ONCE], positions, "max_length"
                ).to(self.model.device)
                seen = self._base.text_model(tokens["input_ids"], tokens["attention_mask"])
                rows.append(self._base.text_projection(seen.pooler_output))
        return torch.cat(rows).float().cpu()

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """As `base.Detector`: of each picture, the embedding of the box that covers it best.

        OWL-ViT takes among the boxes that fill the picture the one whose embedding is least like
        the picture's others, OWLv2 the box with the highest objectness.
        """
        rows = []
        with torch.inference_mode():
            for example in examples:
                grid = self._feature_map([example])
                query, _, _ = self.model.embed_image_query(grid.flatten(1, 2), grid)
                rows.append(query.flatten(0, -2))
        return torch.cat(rows).float().cpu()

    def detect(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"], threshold: float
    ) -> list[Detections]:
        """As `base.Detector`."""
        found = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            batch = list(images[start : start + IMAGES_AT_ONCE])
            logits, boxes = self.logits(batch, prompts)
            for image, own, where in zip(batch, logits, boxes, strict=True):
                found.append(self._above(image, own.sigmoid(), where, threshold))
        return found

    def logits(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> tuple[Float[Tensor, "n p c"], Float[Tensor, "n p 4"]]:
        """Of each patch: a logit for each prompt, and its box (centre, width, height)."""
        with torch.inference_mode():
            grid = self._feature_map(images)
            patches = grid.flatten(1, 2)
            rows = prompts.to(grid.device, grid.dtype)[None].expand(len(patches), -1, -1)
            logits, _ = self.model.class_predictor(patches, rows)
            boxes = self.model.box_predictor(patches, grid)
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
        sides = (max(width, height),) * 2 if self.padded else (width, height)
        scale = boxes.new_tensor([*sides, *sides])
        found = corners(boxes[patch]) * scale
        return Detections.within(image.size, found, scores[patch, label], label)

    @property
    def _base(self) -> Any:
        """The CLIP inside: its text side, its vision side."""
        return self.model.owlv2 if self.padded else self.model.owlvit

    def _feature_map(self, images: Sequence[Image]) -> Float[Tensor, "n h w d"]:
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        grid: Tensor = self.model.image_embedder(pixels.to(self.model.device, self.model.dtype))[0]
        return grid


FAMILIES = {
    "owlvit": "OwlViTForObjectDetection",
    "owlv2": "Owlv2ForObjectDetection",
    "grounding-dino": "GroundingDinoForObjectDetection",
}


def load_detector(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> Detector:
    """The detection model in `files`."""
    kind = str(files.read("config.json")["model_type"])
    model, _ = common.load_model(
        common.named_class(FAMILIES[kind]), files, device, dtype, trust_remote_code
    )
    name = f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}"
    image_processor = common.load_image_processor(files, trust_remote_code)
    tokenizer = common.load_tokenizer(files, trust_remote_code)
    if kind == "grounding-dino":
        return GroundingDINO(name, model, image_processor, tokenizer)
    return OWL(name, model, image_processor, tokenizer, padded=kind == "owlv2")
