"""What detectors, segmenters and clip scorers with the text tower of CLIP have in common."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.model_inputs import (
    check_length,
    count_tokens,
    image_inputs,
    repair_text,
    tokenize,
)
from zeroshot.models.isolation import FrozenModel

__all__ = ["PromptedModel"]

TEXTS_AT_ONCE = 256

Model = TypeVar("Model", bound="PromptedModel")


class PromptedModel(FrozenModel):
    """A model with an image processor and a tokenizer, whose prompts are never cut off."""

    preprocessing: ClassVar[str]
    """Names the preprocessing in the model's name."""

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    @classmethod
    def load(cls: type[Model], checkpoint: Checkpoint, model_class: str) -> Model:
        """The model in `checkpoint`, by a class of transformers; its small files first."""
        images, tokenizer = checkpoint.load_image_processor(), checkpoint.load_tokenizer()
        model = checkpoint.load_model(model_class)
        return cls(checkpoint.name(cls.preprocessing), model, images, tokenizer)

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a prompt, special tokens included."""
        return int(self.model.config.text_config.max_position_embeddings)

    def embed_prompts(
        self, prompts: Sequence[str], embed: Callable[[Any], Tensor], padding: str = "longest"
    ) -> Float[Tensor, "c d"]:
        """Embeddings in float32 on the CPU; `embed` maps a batch of tokens to them.

        UserError for a prompt that is longer than the text tower.
        """
        texts = [repair_text(prompt) for prompt in prompts] or ["a"]
        check_length(texts, count_tokens(self.tokenizer, texts), self.context_length)
        embeddings = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                batch = texts[start : start + TEXTS_AT_ONCE]
                tokens = tokenize(self.tokenizer, batch, self.context_length, padding)
                tokens.pop("token_type_ids", None)
                embeddings.append(embed(tokens.to(self.model.device)).float().cpu())
        return torch.cat(embeddings)[: len(prompts)]

    def pixel_values(self, images: Sequence[Image]) -> Float[Tensor, "n 3 h w"]:
        """Images as the model reads them, in its precision and on its device."""
        return image_inputs(self.image_processor, images, self.model)["pixel_values"]
