"""Detection models of transformers with prompts: OWL-ViT, OWLv2, OmDet-Turbo, Grounding DINO.

Prompts are encoded once and then used for every image; transformers' own pipeline encodes each
label again for each image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from zeroshot.boxes import center_to_corners
from zeroshot.errors import UserError
from zeroshot.models.base import Detections, Detector
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.grounding_dino import GroundingDINO
from zeroshot.models.hf.model_inputs import check_length, count_tokens, tokenize
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


@dataclass(frozen=True)
class DetectionTask:
    """Labels that OmDet-Turbo looks for together."""

    first: int
    """Index of the first label."""
    classes: Float[Tensor, "c d"]
    words: Float[Tensor, "s e"]
    """States of the tokens of a sentence with all the labels."""


class OmDetTurbo(PromptedModel):
    """Zhao et al. 2024, "Real-time Transformer-based Open-Vocabulary Detection", IET Comp. Vision.

    A label has an embedding, and the sentence `Detect a, b.` tells the decoder of all. The authors
    cut the sentence to the text tower's context; here labels that do not fit are another task, for
    the same states of the image. The code of transformers encodes the labels for each image.
    """

    preprocessing = "pil.1"
    template = "{}"

    def encode_prompts(self, prompts: Sequence[str]) -> list[DetectionTask]:
        """As `base.Detector`; as few tasks as possible."""
        labels = [" ".join(prompt.split()) for prompt in prompts] or ["a"]
        backbone = self.model.language_backbone
        classes = self.embed_prompts(
            labels, lambda tokens: backbone(tokens["input_ids"], encode_type="class"), "max_length"
        )
        tasks, start = [], 0
        while start < len(labels):
            stop = self._stop(labels, start)
            sentence = _task(labels[start:stop])
            tokens = tokenize(self.tokenizer, [sentence], self._positions, "max_length")
            tokens = tokens.to(self.model.device)
            with torch.inference_mode():
                words, _ = backbone(tokens["input_ids"], tokens["attention_mask"], "task")
            tasks.append(DetectionTask(start, classes[start:stop], words[:, 0].float().cpu()))
            start = stop
        return tasks

    def encode_examples(self, examples: Sequence[Image]) -> Any:
        """UserError: the model reads texts."""
        raise UserError("OmDet-Turbo takes no query image, only texts; OWL-ViT and OWLv2 take both")

    def detect(
        self, images: Sequence[Image], prompts: list[DetectionTask], threshold: float
    ) -> list[Detections]:
        """As `base.Detector`."""
        detections = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            batch = images[start : start + IMAGES_AT_ONCE]
            states = self._states(batch)
            by_task = [(task, *self.logits(batch, task, states)) for task in prompts]
            for index, image in enumerate(batch):
                parts = []
                for task, logits, boxes in by_task:
                    scores = logits[index].sigmoid()
                    query, label = (scores >= threshold).nonzero(as_tuple=True)
                    parts.append((boxes[index][query], scores[query, label], label + task.first))
                found, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
                corners = center_to_corners(found) * found.new_tensor([*image.size, *image.size])
                detections.append(Detections.within(image.size, corners, scores, labels))
        return detections

    def logits(
        self, images: Sequence[Image], task: DetectionTask, states: Any = None
    ) -> tuple[Float[Tensor, "n q c"], Float[Tensor, "n q 4"]]:
        """For each query a logit of each label of a task, and its box (center, width, height)."""
        states = self._states(images) if states is None else states
        device, dtype = self.model.device, self.model.dtype
        classes = task.classes.to(device, dtype)[:, None].expand(-1, len(images), -1)
        words = task.words.to(device, dtype)[:, None].expand(-1, len(images), -1)
        mask = torch.ones(len(images), len(words), dtype=torch.long, device=device)
        with torch.inference_mode():
            output = self.model.decoder(states, classes, words, mask, return_dict=True)
        logits, boxes = output.decoder_classes[-1], output.decoder_coords[-1]
        check_numbers(logits)
        check_numbers(boxes)
        return logits.float().cpu(), boxes.float().cpu()

    def _states(self, images: Sequence[Image]) -> Any:
        with torch.inference_mode():
            features = self.model.vision_backbone(self.pixel_values(images))
            return self.model.encoder(features, return_dict=True).extracted_states

    @property
    def _positions(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def _stop(self, labels: Sequence[str], start: int) -> int:
        """Index after the last label that fits into one sentence with label `start`."""
        stop = start + 1
        check_length([labels[start]], self._count(labels[start:stop]), self._positions)
        while stop < len(labels) and self._count(labels[start : stop + 1])[0] <= self._positions:
            stop += 1
        return stop

    def _count(self, labels: Sequence[str]) -> list[int]:
        return count_tokens(self.tokenizer, [_task(labels)])


def _task(labels: Sequence[str]) -> str:
    return f"Detect {', '.join(labels)}."


FAMILIES: dict[str, tuple[str, type[OWL | GroundingDINO | OmDetTurbo]]] = {
    "owlvit": ("OwlViTForObjectDetection", OWL),
    "owlv2": ("Owlv2ForObjectDetection", OWL),
    "grounding-dino": ("GroundingDinoForObjectDetection", GroundingDINO),
    "omdet-turbo": ("OmDetTurboForObjectDetection", OmDetTurbo),
    "mm-grounding-dino": ("MMGroundingDinoForObjectDetection", GroundingDINO),
}


def load_detector(checkpoint: Checkpoint) -> Detector:
    """The detection model in `checkpoint`."""
    model_class, detector = FAMILIES[checkpoint.files.model_type]
    return detector.load(checkpoint, model_class)
