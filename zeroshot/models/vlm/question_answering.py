"""Question answering by a classifier over known answers: from images, or from their regions.

ViLT (Kim et al. 2021, arXiv:2102.03334) reads pixels. LXMERT (Tan and Bansal 2019,
arXiv:1908.07490) and VisualBERT (Li et al. 2019, arXiv:1908.03557) read a detector's regions, which
the user supplies: for the published weights 36 feature vectors of 2048 numbers from a Faster R-CNN.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image, Regions
from zeroshot.models.files.model_files import Files
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.model_inputs import image_inputs
from zeroshot.models.vlm.image_text_inputs import (
    ModelBatch,
    UnpaddedTexts,
    best_answers,
    score_rows,
)

__all__ = [
    "CLASSIFIERS",
    "REGION_ANSWERERS",
    "ViltAnswerer",
    "load_region_answerer",
    "load_vilt",
]

PREPROCESSING = "answers.1"
CLASSIFIERS = ("ViltForQuestionAnswering",)


class ViltAnswerer(UnpaddedTexts):
    """ViLT's head over the answers of VQA v2, a sigmoid for each, as it was trained."""

    scored = "sigmoid"

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, tokenizer)
        self.image_processor = image_processor
        self.vocabulary = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.Answerer`."""
        self.check_length(questions)
        rows = [
            {**image_inputs(self.image_processor, [image], self.model), **self.tokens(question)}
            for image, question in zip(images, questions, strict=True)
        ]
        scores = score_rows(
            rows, len(self.vocabulary), lambda batch: self.model(**batch).logits.float().sigmoid()
        )
        return best_answers(scores, self.vocabulary, top_k)


class TransformersRegionAnswerer(UnpaddedTexts):
    """Common base of LXMERT and VisualBERT."""

    scored: str
    boxed: bool
    width_key: ClassVar[str]
    """The configuration's name for the width of a region's feature vector."""
    answers_key: ClassVar[str]
    """The configuration's name for the number of answers."""

    def __init__(self, name: str, model: Any, tokenizer: Any, vocabulary: Sequence[str]) -> None:
        super().__init__(name, model, tokenizer)
        self.vocabulary = vocabulary

    @property
    def answers(self) -> int:
        """As `base.RegionAnswerer`."""
        return len(self.vocabulary)

    @property
    def width(self) -> int:
        """As `base.RegionAnswerer`."""
        return int(getattr(self.model.config, self.width_key))

    def answer_regions(
        self, regions: Sequence[Regions], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.RegionAnswerer`."""
        self.check_length(questions)
        rows = [
            {**self._region_inputs(region), **self.tokens(question)}
            for region, question in zip(regions, questions, strict=True)
        ]
        return best_answers(score_rows(rows, self.answers, self._scores), self.vocabulary, top_k)

    def _region_inputs(self, regions: Regions) -> dict[str, Tensor]:
        raise NotImplementedError

    def _scores(self, batch: ModelBatch) -> Tensor:
        raise NotImplementedError

    def _to_model(self, rows: Tensor) -> Tensor:
        return rows[None].to(self.model.device, self.model.dtype)


class LxmertAnswerer(TransformersRegionAnswerer):
    """LXMERT: features and boxes; fine-tuned with a sigmoid for each answer."""

    scored = "sigmoid"
    boxed = True
    width_key = "visual_feat_dim"
    answers_key = "num_qa_labels"

    def _region_inputs(self, regions: Regions) -> dict[str, Tensor]:
        if regions.boxes is None:
            raise UserError(
                f"{self.name} also reads the regions' boxes; add an array `boxes` to the features"
            )
        return {
            "visual_feats": self._to_model(regions.features),
            "visual_pos": self._to_model(regions.boxes),
        }

    def _scores(self, batch: ModelBatch) -> Tensor:
        logits: Tensor = self.model(**batch).question_answering_score
        return logits.float().sigmoid()


class VisualBertAnswerer(TransformersRegionAnswerer):
    """VisualBERT: only features; fine-tuned with a softmax over the answers."""

    scored = "softmax"
    boxed = False
    width_key = "visual_embedding_dim"
    answers_key = "num_labels"

    def _region_inputs(self, regions: Regions) -> dict[str, Tensor]:
        features = self._to_model(regions.features)
        ones = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
        # The authors set the type of every region to 1.
        return {
            "visual_embeds": features,
            "visual_token_type_ids": ones,
            "visual_attention_mask": ones,
        }

    def _scores(self, batch: ModelBatch) -> Tensor:
        logits: Tensor = self.model(**batch).logits
        return logits.float().softmax(1)


REGION_ANSWERERS: dict[str, type[TransformersRegionAnswerer]] = {
    "LxmertForQuestionAnswering": LxmertAnswerer,
    "VisualBertForQuestionAnswering": VisualBertAnswerer,
}


def load_vilt(checkpoint: Checkpoint) -> ViltAnswerer:
    """The ViLT with a head over answers in `checkpoint`."""
    model = checkpoint.load_model()
    model.config.max_image_length = -1  # else ViLT drops patches at random
    return ViltAnswerer(
        checkpoint.name(PREPROCESSING),
        model,
        checkpoint.load_image_processor(),
        checkpoint.load_tokenizer(),
    )


def load_region_answerer(
    checkpoint: Checkpoint, answers: Sequence[str] | None
) -> TransformersRegionAnswerer:
    """The LXMERT or VisualBERT with a head over answers in `checkpoint`.

    The published ones do not name their answers; then `answers` does, one for each output.

    UserError for another model, and for a wrong number of answers.
    """
    files = checkpoint.files
    if files.architecture not in REGION_ANSWERERS:
        raise UserError(
            f"{files.name} is a {files.architecture}, which reads no regions; these do: "
            f"{', '.join(REGION_ANSWERERS)}"
        )
    answerer = REGION_ANSWERERS[files.architecture]
    model = checkpoint.load_model()
    count = getattr(model.config, answerer.answers_key)
    return answerer(
        checkpoint.name(PREPROCESSING),
        model,
        checkpoint.load_tokenizer(),
        _vocabulary(files, model.config, count, answers),
    )


def _vocabulary(files: Files, config: Any, count: int, answers: Sequence[str] | None) -> list[str]:
    if answers is not None:
        if len(answers) != count:
            raise UserError(f"{len(answers)} answers, but the head of {files.name} has {count}")
        return list(answers)
    names = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(count)]
    if names and names[0] == "LABEL_0":
        raise UserError(
            f"{files.name} does not say what its {count} answers are; give them, one a line "
            "(--answers FILE)"
        )
    return names
