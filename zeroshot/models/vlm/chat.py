"""Instruction-tuned models with images in their prompt: LLaVA, Qwen-VL, SmolVLM, PaliGemma, ...

Everything that `AutoModelForImageTextToText` loads. The model's own processor puts the image into
the prompt, by its chat template if it has one; otherwise (PaliGemma) the prompt is the text.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from zeroshot.models.base import Answer, Image
from zeroshot.models.hf.checkpoint import AutoModelForImageTextToText, Checkpoint
from zeroshot.models.vlm.generation import ANSWER_TOKENS, CAPTION_TOKENS, TextGenerator
from zeroshot.models.vlm.image_text_inputs import ModelRow

__all__ = ["TransformersChat", "load_chat"]

PREPROCESSING = "chat.1"
DESCRIBE = "Describe the picture in one short sentence."
CAPTION_PROMPTS = {
    "florence2": "<CAPTION>",
    "paligemma": "caption en",
    "kosmos-2": "An image of",
}
"""By model type, what families that follow no instructions read before a caption."""


class TransformersChat(TextGenerator):
    """An instruction-tuned model with its processor."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        super().__init__(name, model, processor.tokenizer)
        self.processor = processor

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.Answerer`; several answers are those of as many beams."""
        return self.generate(self._rows(images, questions), ANSWER_TOKENS, top_k)

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """As `base.Writer`, but a prompt is an instruction, with which the text does not begin."""
        default = CAPTION_PROMPTS.get(self.model.config.model_type, DESCRIBE)
        instructions = [default] * len(images) if prompts is None else prompts
        texts = self.generate(self._rows(images, instructions), CAPTION_TOKENS, mean=True)
        return [best for (best,) in texts]

    @property
    def end_tokens(self) -> int | Iterable[int] | None:
        """As `TextGenerator`."""
        ends: int | Iterable[int] | None = self.model.generation_config.eos_token_id
        return ends

    def _rows(self, images: Sequence[Image], texts: Sequence[str]) -> list[ModelRow]:
        self.check_length(texts)
        return [self._row(image, text) for image, text in zip(images, texts, strict=True)]

    def _row(self, image: Image, text: str) -> ModelRow:
        inputs = self.processor(text=[self._prompt(text)], images=[image], return_tensors="pt")
        row = {name: tensor for name, tensor in inputs.items() if torch.is_tensor(tensor)}
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
            row.pop("token_type_ids", None)
        return {
            name: tensor.to(self.model.device, self.model.dtype)
            if tensor.is_floating_point()
            else tensor.to(self.model.device)
            for name, tensor in row.items()
        }

    def _prompt(self, text: str) -> str:
        if not getattr(self.processor, "chat_template", None):
            return text
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return prompt


def load_chat(checkpoint: Checkpoint) -> TransformersChat:
    """The instruction-tuned model in `checkpoint`."""
    by_default = checkpoint.files.model_type in CAPTION_PROMPTS
    return TransformersChat(
        checkpoint.name(f"{PREPROCESSING}.prompt" if by_default else PREPROCESSING),
        checkpoint.load_model(AutoModelForImageTextToText),
        checkpoint.load_processor(),
    )
