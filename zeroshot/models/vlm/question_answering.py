"""Question answering by a head over known answers: from pictures, or from regions of them.

ViLT (Kim et al. 2021, arXiv:2102.03334) reads pixels. LXMERT (Tan and Bansal 2019,
arXiv:1908.07490) and VisualBERT (Li et al. 2019, arXiv:1908.03557) read what a detector saw:
feature rows of regions that the user brings (36 rows of 2048 numbers from a Faster R-CNN, for the
published weights).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image, Regions
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.hf.text_inputs import Reading, architecture, best_answers, pixels_of
from zeroshot.models.model_files import Files
from zeroshot.models.vlm.generation import grouped

__all__ = [
    "CLASSIFIERS",
    "REGION_CLASSIFIERS",
    "ViltAnswerer",
    "load_region_answerer",
    "load_vilt",
]

PREPROCESSING = "answers.1"
CLASSIFIERS = ("ViltForQuestionAnswering",)
REGION_CLASSIFIERS = ("LxmertForQuestionAnswering", "VisualBertForQuestionAnswering")


class ViltAnswerer(Reading):
    """ViLT's head over the answers of VQA v2, each scored by a sigmoid, as it was trained."""

    scored = "sigmoid"

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(tokenizer, model.config)
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.vocabulary = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.Answerer`."""
        self.refuse_long(questions)
        rows = [
            {**pixels_of(self.image_processor, [image], self.model), **self.tokens(question)}
            for image, question in zip(images, questions, strict=True)
        ]
        scores = torch.zeros(len(rows), len(self.vocabulary))
        with torch.inference_mode():
            for places, batch in grouped(rows):
                scores[places] = self.model(**batch).logits.float().sigmoid().cpu()
        return best_answers(scores, self.vocabulary, top_k)


class TransformersRegionAnswerer(Reading):
    """What LXMERT and VisualBERT share."""

    scored: str
    boxed: bool

    def __init__(self, name: str, model: Any, tokenizer: Any, vocabulary: Sequence[str]) -> None:
        super().__init__(tokenizer, model.config)
        self.name = name
        self.model = model
        self.vocabulary = vocabulary

    @property
    def answers(self) -> int:
        """As `base.RegionAnswerer`."""
        return len(self.vocabulary)

    def answer_regions(
        self, regions: Sequence[Regions], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.RegionAnswerer`."""
        self.refuse_long(questions)
        rows = [
            {**self._seen(seen), **self.tokens(question)}
            for seen, question in zip(regions, questions, strict=True)
        ]
        scores = torch.zeros(len(rows), self.answers)
        with torch.inference_mode():
            for places, batch in grouped(rows):
                scores[places] = self._scores(batch).float().cpu()
        return best_answers(scores, self.vocabulary, top_k)

    def _seen(self, seen: Regions) -> dict[str, Tensor]:
        raise NotImplementedError

    def _scores(self, batch: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def _placed(self, rows: Tensor) -> Tensor:
        return rows[None].to(self.model.device, self.model.dtype)


class LxmertAnswerer(TransformersRegionAnswerer):
    """LXMERT: features and boxes; fine-tuned with a sigmoid for each answer."""

    scored = "sigmoid"
    boxed = True

    @property
    def width(self) -> int:
        """As `base.RegionAnswerer`."""
        return int(self.model.config.visual_feat_dim)

    def _seen(self, seen: Regions) -> dict[str, Tensor]:
        if seen.boxes is None:
            raise UserError(f"{self.name} reads the regions' boxes too")
        return {
            "visual_feats": self._placed(seen.features),
            "visual_pos": self._placed(seen.boxes),
        }

    def _scores(self, batch: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.model(**batch).question_answering_score
        return scores.float().sigmoid()


class VisualBertAnswerer(TransformersRegionAnswerer):
    """VisualBERT: features alone; fine-tuned with a softmax over the answers."""

    scored = "softmax"
    boxed = False

    @property
    def width(self) -> int:
        """As `base.RegionAnswerer`."""
        return int(self.model.config.visual_embedding_dim)

    def _seen(self, seen: Regions) -> dict[str, Tensor]:
        features = self._placed(seen.features)
        ones = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
        # The authors set the type of every region to 1.
        return {
            "visual_embeds": features,
            "visual_token_type_ids": ones,
            "visual_attention_mask": ones,
        }

    def _scores(self, batch: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.model(**batch).logits
        return scores.float().softmax(1)


REGION_ANSWERERS: dict[str, type[TransformersRegionAnswerer]] = dict(
    zip(REGION_CLASSIFIERS, (LxmertAnswerer, VisualBertAnswerer), strict=True)
)


def load_vilt(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> ViltAnswerer:
    """The ViLT with a head over answers in `files`."""
    kind = common.named_class(architecture(files))
    model, _ = common.load_model(kind, files, device, dtype, trust_remote_code)
    model.config.max_image_length = -1  # else ViLT drops patches at random
    return ViltAnswerer(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        common.load_image_processor(files, trust_remote_code),
        common.load_tokenizer(files, trust_remote_code),
    )


def load_region_answerer(
    files: Files,
    answers: Sequence[str] | None,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> TransformersRegionAnswerer:
    """The LXMERT or VisualBERT with a head over answers in `files`.

    The published ones do not name their answers: `answers` does, one for each output.

    UserError for another model, and for answers that are as many as something else.
    """
    kind = architecture(files)
    if kind not in REGION_ANSWERERS:
        raise UserError(
            f"{files.name} is a {kind}, which reads no regions; these do: "
            f"{', '.join(REGION_ANSWERERS)}"
        )
    model, _ = common.load_model(common.named_class(kind), files, device, dtype, trust_remote_code)
    count = model.config.num_qa_labels if kind.startswith("Lxmert") else model.config.num_labels
    return REGION_ANSWERERS[kind](
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        common.load_tokenizer(files, trust_remote_code),
        _vocabulary(files, model.config, count, answers),
    )


def _vocabulary(files: Files, config: Any, count: int, answers: Sequence[str] | None) -> list[str]:
    if answers is not None:
        if len(answers) != count:
            raise UserError(f"{len(answers)} answers, but the head of {files.name} has {count}")
        return list(answers)
    own = [str(config.id2label.get(i, f"LABEL_{i}")) for i in range(count)]
    if own and own[0] == "LABEL_0":
        raise UserError(
            f"{files.name} does not say what its {count} answers are; give them, one a line "
            "(--answers FILE)"
        )
    return own
