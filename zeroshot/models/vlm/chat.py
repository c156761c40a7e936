"""Instructed models that meet pictures in their prompt: LLaVA, Qwen-VL, SmolVLM, PaliGemma, ...

Whatever `AutoModelForImageTextToText` loads. The model's own processor puts the picture into the
prompt, by its chat template where it has one; without one (PaliGemma) the prompt is the text.
"""

from collections.abc import Sequence
from typing import Any

import torch

from zeroshot.models.base import Answer, Image
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.hf.text_inputs import Reading
from zeroshot.models.model_files import Files
from zeroshot.models.vlm.captioners import ANSWER_TOKENS, CAPTION_TOKENS, as_set
from zeroshot.models.vlm.generation import Row, written

__all__ = ["TransformersChat", "load_chat"]

PREPROCESSING = "chat.1"
DESCRIBE = "Describe the picture in one short sentence."


class TransformersChat(Reading):
    """An instructed model with its processor."""

    scored = "probability"

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        super().__init__(processor.tokenizer, model.config)
        self.name = name
        self.model = model
        self.processor = processor

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], top_k: int = 1
    ) -> list[tuple[Answer, ...]]:
        """As `base.Answerer`; more than one answer by as many beams."""
        return self._written(images, questions, ANSWER_TOKENS, top_k)

    def write(self, images: Sequence[Image], prompts: Sequence[str] | None = None) -> list[Answer]:
        """As `base.Writer`, but for a prompt, which is an instruction here and not repeated."""
        asked = [DESCRIBE] * len(images) if prompts is None else prompts
        return [best for (best,) in self._written(images, asked, CAPTION_TOKENS, 1, mean=True)]

    def _written(
        self,
        images: Sequence[Image],
        texts: Sequence[str],
        tokens: int,
        top_k: int,
        mean: bool = False,
    ) -> list[tuple[Answer, ...]]:
        self.refuse_long(texts)
        rows = [self._row(image, text) for image, text in zip(images, texts, strict=True)]
        return written(
            self.model.generate,
            rows,
            lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            as_set(self.model.generation_config.eos_token_id),
            max_new_tokens=tokens,
            positions=getattr(
                self.model.config.get_text_config(decoder=True), "max_position_embeddings", None
            ),
            top_k=top_k,
            mean=mean,
        )

    def _row(self, image: Image, text: str) -> Row:
        inputs = self.processor(text=[self._prompt(text)], images=[image], return_tensors="pt")
        row = {name: tensor for name, tensor in inputs.items() if torch.is_tensor(tensor)}
        if not self._reads_types:
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

    @property
    def _reads_types(self) -> bool:
        return "token_type_ids" in common.arguments(self.model)


def load_chat(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> TransformersChat:
    """The instructed model in `files`; UserError for one that transformers does not load so."""
    auto = common.AutoModelForImageTextToText
    model, _ = common.load_model(auto, files, device, dtype, trust_remote_code)
    processor = common.load_processor(files, trust_remote_code)
    return TransformersChat(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}", model, processor
    )
