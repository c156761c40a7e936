"""What models that meet a picture and a text together share: their texts, their pixels."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Image
from zeroshot.models.hf import common
from zeroshot.models.model_files import Files

__all__ = ["Reading", "architecture", "best_answers", "pixels_of"]


class Reading:
    """Texts that are tokenized one by one, never cut and never padded."""

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        text = getattr(config, "text_config", None) or config
        self.context_length: int | None = common.context_length(tokenizer, text)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.ReadsTexts`."""
        return common.count_tokens(self.tokenizer, texts)

    def refuse_long(self, texts: Sequence[str]) -> None:
        """UserError for a text of more tokens than the model reads."""
        if self.context_length is None:
            return
        for text, length in zip(texts, self.count_tokens(texts), strict=True):
            if length > self.context_length:
                raise UserError(
                    f"a text of {length} tokens, but the model reads {self.context_length}: "
                    f"'{text[:60]}...'"
                )

    def tokens(self, text: str) -> dict[str, Tensor]:
        """One text as the model reads it, tensors `[1 s]`."""
        device = self.model.device  # type: ignore[attr-defined]
        return dict(self.tokenizer([text], return_tensors="pt").to(device))


def architecture(files: Files) -> str:
    """The class that the model's configuration names."""
    return str((files.read("config.json").get("architectures") or ["model without a class"])[0])


def pixels_of(image_processor: Any, images: Sequence[Image], model: Any) -> dict[str, Tensor]:
    """Pictures as the model reads them, in its precision and on its device."""
    pixels = image_processor(images=list(images), return_tensors="pt")
    return dict(pixels.to(model.device, model.dtype))


def best_answers(scores: Tensor, names: Sequence[str], top_k: int) -> list[tuple[Answer, ...]]:
    """The `top_k` best columns of each row `[n a]`, best first."""
    values, places = scores.float().cpu().topk(min(top_k, scores.shape[1]), dim=1)
    return [
        tuple(Answer(names[i], value) for i, value in zip(*row, strict=True))
        for row in zip(places.tolist(), values.tolist(), strict=True)
    ]
