"""Models of transformers that write about a picture: captions, answers, and the lines it shows.

BLIP, BLIP-2, GIT (Wang et al. 2022, arXiv:2205.14100), a picture encoder with a text decoder
(ViT-GPT2, TrOCR: Li et al. 2021, arXiv:2109.10282), and whatever `AutoModelForImageTextToText`
knows and brings a chat template for. The pipelines for these are gone from transformers 5, and no
one call fits all: a row of `FAMILIES` says what each reads and how a question is put to it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.hf.text_inputs import Reading, architecture, pixels_of
from zeroshot.models.model_files import Files
from zeroshot.models.vlm.generation import Row, written

__all__ = ["ANSWERERS", "FAMILIES", "WRITERS", "TransformersGenerator", "load_generator"]

PREPROCESSING = "generate.1"
ANSWER_TOKENS = 20
CAPTION_TOKENS = 50
"""Tokens that are written at most; a line of text may have more (`READ_TOKENS`)."""
READ_TOKENS = 128


def text_as_is(model: Any, tokenizer: Any, text: str) -> list[int]:
    """BLIP: the text with its special tokens, also where there is none."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def after_queries(model: Any, tokenizer: Any, text: str) -> list[int]:
    """BLIP-2: a place for each of the picture's query tokens, then the text."""
    queries = [model.config.image_token_index] * model.config.num_query_tokens
    return queries + text_as_is(model, tokenizer, text)


def after_start(model: Any, tokenizer: Any, text: str) -> list[int]:
    """GIT: the start token and the text, nothing behind it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.cls_token_id, *ids]


@dataclass(frozen=True)
class Family:
    """What sets one family apart."""

    ids: Callable[[Any, Any, str], list[int]] | None
    """Token ids of a text; None for a model that reads no text."""
    question: str = "{}"
    """How a question is put."""
    continues: bool = True
    """Whether what it writes follows the text that it read, in the same positions."""
    end: Callable[[Any], Any] = lambda model: model.generation_config.eos_token_id


FAMILIES = {
    "BlipForConditionalGeneration": Family(
        text_as_is, end=lambda model: model.config.text_config.sep_token_id
    ),
    "BlipForQuestionAnswering": Family(
        text_as_is, continues=False, end=lambda model: model.config.text_config.sep_token_id
    ),
    # The prompt of the paper, section 4.2.
    "Blip2ForConditionalGeneration": Family(
        after_queries,
        "Question: {} Answer:",
        end=lambda model: model.language_model.generation_config.eos_token_id,
    ),
    "GitForCausalLM": Family(after_start),
    "VisionEncoderDecoderModel": Family(None),
}
WRITERS = (
    "BlipForConditionalGeneration",
    "Blip2ForConditionalGeneration",
    "GitForCausalLM",
    "VisionEncoderDecoderModel",
)
ANSWERERS = ("BlipForQuestionAnswering", "Blip2ForConditionalGeneration", "GitForCausalLM")


class TransformersGenerator(Reading):
    """A model that writes, with its own tokenizer and preprocessing."""

    scored = "probability"

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, family: Family
    ) -> None:
        super().__init__(tokenizer, model.config)
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.family = family

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.ReadsTexts`: a question with what is put around it."""
        return super().count_tokens([self.family.question.format(text) for text in texts])

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.Answerer`; more than one answer by as many beams."""
        self.refuse_long(questions)
        asked = [self.family.question.format(question) for question in questions]
        rows = [self._row(image, text) for image, text in zip(images, asked, strict=True)]
        return self._written(rows, ANSWER_TOKENS, top_k)

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """As `base.Writer`."""
        reads = self.family.ids is not None
        if prompts is not None and not reads:
            raise UserError(f"{self.name} reads no text, so that it takes no prompt")
        begun = [""] * len(images) if prompts is None else list(prompts)
        rows = [self._row(image, text) for image, text in zip(images, begun, strict=True)]
        texts = self._written(rows, CAPTION_TOKENS if reads else READ_TOKENS, 1, mean=True)
        return [
            Answer(f"{text} {best.text}".strip(), best.score)
            for text, (best,) in zip(begun, texts, strict=True)
        ]

    @property
    def _positions(self) -> int | None:
        decoder = self.model.config.get_text_config(decoder=True)
        return getattr(decoder, "max_position_embeddings", None)

    def _row(self, image: Image, text: str) -> Row:
        row = pixels_of(self.image_processor, [image], self.model)
        row.pop("pixel_mask", None)  # one picture alone is never padded
        if self.family.ids is not None:
            ids = self.family.ids(self.model, self.tokenizer, text)
            row["input_ids"] = torch.tensor([ids], device=self.model.device)
            row["attention_mask"] = torch.ones_like(row["input_ids"])
        return row

    def _written(
        self, rows: Sequence[Row], tokens: int, top_k: int, mean: bool = False
    ) -> list[tuple[Answer, ...]]:
        return written(
            self.model.generate,
            rows,
            lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            as_set(self.family.end(self.model)),
            max_new_tokens=tokens,
            positions=self._positions if self.family.continues else None,
            top_k=top_k,
            mean=mean,
        )


def as_set(ends: int | Iterable[int] | None) -> frozenset[int]:
    """A configuration names no end token, one, or several."""
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def load_generator(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> TransformersGenerator:
    """The model in `files` whose class is a row of `FAMILIES`."""
    kind = architecture(files)
    model, _ = common.load_model(common.named_class(kind), files, device, dtype, trust_remote_code)
    return TransformersGenerator(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        common.load_image_processor(files, trust_remote_code),
        common.load_tokenizer(files, trust_remote_code),
        FAMILIES[kind],
    )
