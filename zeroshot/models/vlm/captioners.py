"""Models of transformers that write about an image: captions, answers, and text that it shows.

BLIP, BLIP-2, GIT (Wang et al. 2022, arXiv:2205.14100), and image encoders with a text decoder
(ViT-GPT2, TrOCR: Li et al. 2021, arXiv:2109.10282). transformers 5 has no pipelines for them, and
no call fits all: `FAMILIES` says what each family reads and how it is asked a question.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.model_inputs import image_inputs
from zeroshot.models.vlm.generation import ANSWER_TOKENS, CAPTION_TOKENS, TextGenerator
from zeroshot.models.vlm.image_text_inputs import ModelRow

__all__ = ["ANSWERERS", "FAMILIES", "WRITERS", "TransformersGenerator", "load_generator"]

PREPROCESSING = "generate.1"
READ_TOKENS = 128
"""Maximum number of new tokens of a model that reads no text, such as TrOCR."""


def with_special_tokens(model: Any, tokenizer: Any, text: str) -> list[int]:
    """BLIP: the text with its special tokens, even if it is empty."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def after_image_queries(model: Any, tokenizer: Any, text: str) -> list[int]:
    """BLIP-2: a placeholder for each of the image's query tokens, then the text."""
    queries = [model.config.image_token_index] * model.config.num_query_tokens
    return queries + with_special_tokens(model, tokenizer, text)


def after_start_token(model: Any, tokenizer: Any, text: str) -> list[int]:
    """GIT: the start token and the text, no end token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.cls_token_id, *ids]


@dataclass(frozen=True)
class GeneratorFamily:
    """What distinguishes one family."""

    ids: Callable[[Any, Any, str], list[int]] | None
    """Token ids of a text; None for a model that reads no text."""
    question: str = "{}"
    """Prompt template for a question."""
    continues: bool = True
    """Whether the new text follows the prompt in the same positions."""
    ends: Callable[[Any], Any] = lambda model: model.generation_config.eos_token_id


FAMILIES = {
    "BlipForConditionalGeneration": GeneratorFamily(
        with_special_tokens, ends=lambda model: model.config.text_config.sep_token_id
    ),
    "BlipForQuestionAnswering": GeneratorFamily(
        with_special_tokens,
        continues=False,
        ends=lambda model: model.config.text_config.sep_token_id,
    ),
    # The prompt of the paper, section 4.2.
    "Blip2ForConditionalGeneration": GeneratorFamily(
        after_image_queries,
        "Question: {} Answer:",
        ends=lambda model: model.language_model.generation_config.eos_token_id,
    ),
    "GitForCausalLM": GeneratorFamily(after_start_token),
    "VisionEncoderDecoderModel": GeneratorFamily(None),
}
WRITERS = (
    "BlipForConditionalGeneration",
    "Blip2ForConditionalGeneration",
    "GitForCausalLM",
    "VisionEncoderDecoderModel",
)
ANSWERERS = ("BlipForQuestionAnswering", "Blip2ForConditionalGeneration", "GitForCausalLM")


class TransformersGenerator(TextGenerator):
    """A model that writes, with its own tokenizer and preprocessing."""

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, family: GeneratorFamily
    ) -> None:
        super().__init__(name, model, tokenizer)
        self.image_processor = image_processor
        self.family = family

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.ImageTextModel`, of questions in the prompt template."""
        return super().count_tokens([self.family.question.format(text) for text in texts])

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.Answerer`; several answers are those of as many beams."""
        self.check_length(questions)
        prompts = [self.family.question.format(question) for question in questions]
        return self.generate(self._rows(images, prompts), ANSWER_TOKENS, top_k)

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """As `base.Writer`."""
        reads_text = self.family.ids is not None
        if prompts is not None and not reads_text:
            raise UserError(f"{self.name} reads no text and takes no prompt; leave it out")
        prompts = [""] * len(images) if prompts is None else prompts
        max_tokens = CAPTION_TOKENS if reads_text else READ_TOKENS
        texts = self.generate(self._rows(images, prompts), max_tokens, mean=True)
        return [
            Answer(f"{prompt} {best.text}".strip(), best.score)
            for prompt, (best,) in zip(prompts, texts, strict=True)
        ]

    @property
    def end_tokens(self) -> int | Iterable[int] | None:
        """As `TextGenerator`."""
        ends: int | Iterable[int] | None = self.family.ends(self.model)
        return ends

    @property
    def positions(self) -> int | None:
        """As `TextGenerator`."""
        return super().positions if self.family.continues else None

    def _rows(self, images: Sequence[Image], prompts: Sequence[str]) -> list[ModelRow]:
        return [self._row(image, text) for image, text in zip(images, prompts, strict=True)]

    def _row(self, image: Image, text: str) -> ModelRow:
        row = image_inputs(self.image_processor, [image], self.model)
        row.pop("pixel_mask", None)  # a single image is never padded
        if self.family.ids is not None:
            ids = self.family.ids(self.model, self.tokenizer, text)
            row["input_ids"] = torch.tensor([ids], device=self.model.device)
            row["attention_mask"] = torch.ones_like(row["input_ids"])
        return row


def load_generator(checkpoint: Checkpoint) -> TransformersGenerator:
    """The model in `checkpoint`, whose class is one of `FAMILIES`."""
    return TransformersGenerator(
        checkpoint.name(PREPROCESSING),
        checkpoint.load_model(),
        checkpoint.load_image_processor(),
        checkpoint.load_tokenizer(),
        FAMILIES[checkpoint.files.architecture],
    )
