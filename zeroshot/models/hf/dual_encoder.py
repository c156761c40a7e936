"""Dual encoders of transformers: CLIP and its relatives.

`FAMILIES` lists how the families differ: text padding, pooling, scale. The rest is the same code.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.models.base import Pixels
from zeroshot.models.files.model_files import Files
from zeroshot.models.hf import model_inputs
from zeroshot.models.hf.checkpoint import AutoModel, Checkpoint
from zeroshot.models.hf.model_inputs import repair_text
from zeroshot.models.preprocessing import from_processor
from zeroshot.models.towers.cached_text_encoder import CachedTextEncoder
from zeroshot.models.towers.clip_towers import clip_text_tower, clip_vision_tower
from zeroshot.models.towers.text_tower import Tokens, Tower
from zeroshot.models.towers.vision_tower import DensePatches, VisionTower
from zeroshot.models.towers.word_tokens import WordTokens, token_rows

__all__ = ["FAMILIES", "TransformersDualEncoder", "load_dual_encoder"]

PUNCTUATION = str.maketrans("", "", string.punctuation)

PREPROCESSING = "pil.1"
"""Names the image processor's backend, and the version of this file's own steps."""


def exp_logit_scale(model: Any) -> float:
    """CLIP and most others: `exp` of a parameter."""
    return float(model.logit_scale.exp())


def inverse_temperature(model: Any) -> float:
    """ALIGN and TIPSv2 divide by a temperature."""
    return float(1 / model.temperature)


def unpooled(features: Tensor) -> Float[Tensor, "b d"]:
    """Most families: the model has pooled already."""
    return features


def first_token(features: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
    """FLAVA: the first token stands for the whole input."""
    return features[:, 0]


@dataclass(frozen=True)
class DualEncoderFamily:
    """What distinguishes one family of dual encoders."""

    scale: Callable[[Any], float] = exp_logit_scale
    pool: Callable[[Tensor], Tensor] = unpooled
    padded: bool = False
    """Trained on texts padded to full length, with the padding visible to the model (SigLIP)."""
    context_length: int | None = None
    """For families that were trained on fewer tokens than their tower has positions."""
    optional: tuple[str, ...] = ()
    """Weights that may be missing because the embedding does not depend on them."""
    clip_text: bool = False
    """Whether the text tower consists of CLIP's modules."""
    clip_vision: bool = False
    """Whether the vision tower consists of CLIP's modules."""
    eager_text: bool = False
    """For a causal text tower whose fused attention sees the future where no text is padded:
    transformers leaves out the mask then, and the tower does not say that it is causal."""


FAMILIES = {
    "clip": DualEncoderFamily(clip_text=True, clip_vision=True),
    "metaclip_2": DualEncoderFamily(clip_text=True, clip_vision=True),
    "chinese_clip": DualEncoderFamily(optional=("text_model.pooler",), clip_vision=True),
    "altclip": DualEncoderFamily(optional=("text_model.pooler",), clip_vision=True),
    "align": DualEncoderFamily(
        scale=inverse_temperature, context_length=64, optional=("text_model.pooler",)
    ),
    "flava": DualEncoderFamily(pool=first_token, optional=("pooler", "multimodal")),
    "aimv2": DualEncoderFamily(eager_text=True),
    "tipsv2": DualEncoderFamily(scale=inverse_temperature, optional=("temperature",)),
    "siglip": DualEncoderFamily(padded=True),
    "siglip2": DualEncoderFamily(padded=True),
    "vision-text-dual-encoder": DualEncoderFamily(),
}


class TransformersDualEncoder(CachedTextEncoder, DensePatches):
    """A dual encoder with its own tokenizer, padding, preprocessing and scale."""

    def __init__(
        self,
        name: str,
        model: Any,
        image_processor: Any,
        tokenizer: Any,
        prepare: Callable[[str], str],
        family: DualEncoderFamily,
        logit_scale: float,
        logit_bias: float | None,
    ) -> None:
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.preprocessing = from_processor(image_processor)
        self.tokenizer = tokenizer
        self.prepare = prepare
        self.family = family
        self.context_length: int | None = family.context_length or model_inputs.context_length(
            tokenizer, model.config.text_config
        )
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.TextEncoder`."""
        return model_inputs.count_tokens(self.tokenizer, self._prepare(texts))

    def _tower(self) -> Tower | None:
        return clip_text_tower(self.model) if self.family.clip_text else None

    def _paths(self, texts: Sequence[str]) -> list[Tokens]:
        def tokenize(others: list[str]) -> list[list[int]]:
            cut = {"truncation": True, "max_length": self.context_length}
            ids: list[list[int]] = self.tokenizer(self._prepare(others), **cut)["input_ids"]
            return ids

        rows = token_rows(self._words, texts, tokenize)
        return [tuple(row[: self._end(row) + 1]) for row in rows]

    @cached_property
    def _words(self) -> WordTokens | None:
        plain = self.prepare in (repair_text, unchanged)
        return model_inputs.clip_words(self.tokenizer, self.context_length) if plain else None

    def _end(self, ids: Sequence[int]) -> int:
        """Position of CLIP's text embedding; old configurations name token 2."""
        end = self.model.text_model.eos_token_id
        if end == 2 and self.model.config.model_type == "clip":
            return ids.index(max(ids))
        return ids.index(end) if end in ids else 0

    def _vision_tower(self) -> VisionTower | None:
        return clip_vision_tower(self.model) if self.family.clip_vision else None

    def _image_features(self, pixels: list[Pixels]) -> Float[Tensor, "b d"]:
        inputs = self.preprocessing.batch(pixels, self.model.device, self.model.dtype)
        return self.family.pool(self.model.get_image_features(**inputs).pooler_output)

    def _text_features(self, texts: list[str]) -> Float[Tensor, "b d"]:
        prepared, device = self._prepare(texts), self.model.device
        if not (self.family.padded or self.family.clip_text):
            return model_inputs.features_by_length(
                self.tokenizer, prepared, self.context_length, self._pooled, device
            )
        padding = "max_length" if self.family.padded else "longest"
        tokens = model_inputs.tokenize(self.tokenizer, prepared, self.context_length, padding)
        tokens = tokens.to(device)
        if self.family.padded:  # trained without a mask, whatever the tokenizer offers
            tokens.pop("attention_mask", None)
        return self._pooled(tokens)

    def _pooled(self, tokens: Any) -> Float[Tensor, "b d"]:
        return self.family.pool(self.model.get_text_features(**tokens).pooler_output)

    def _prepare(self, texts: Sequence[str]) -> list[str]:
        return [self.prepare(text) for text in texts]


def unchanged(text: str) -> str:
    """Most families: the tokenizer knows what its model was trained on."""
    return text


def strip_punctuation(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(text.lower().translate(PUNCTUATION).split())


def _text_preparation(files: Files, family: DualEncoderFamily) -> Callable[[str], str]:
    """What is done to a text before the tokenizer.

    SigLIP was trained without punctuation and capitals, SigLIP 2 (whose tokenizer is Gemma's, even
    if its `model_type` is `siglip`) without capitals. Not every published tokenizer does this.
    """
    if files.model_type == "clip":
        return repair_text
    if not family.padded:
        return unchanged
    tokenizer_class = files.read("tokenizer_config.json").get("tokenizer_class")
    return strip_punctuation if tokenizer_class == "SiglipTokenizer" else str.lower


def load_dual_encoder(checkpoint: Checkpoint) -> TransformersDualEncoder:
    """The dual encoder in `checkpoint`."""
    family = FAMILIES[checkpoint.files.model_type]
    images, tokenizer = checkpoint.load_image_processor(), checkpoint.load_tokenizer()
    # In float32 first: half precision would turn a scale of 100 into 98.9.
    model = checkpoint.load_model(AutoModel, optional=family.optional, dtype=torch.float32)
    if family.eager_text:
        model.set_attn_implementation({"text_config": "eager"})
    scale, bias = family.scale(model), getattr(model, "logit_bias", None)
    return TransformersDualEncoder(
        checkpoint.name(PREPROCESSING),
        model.to(checkpoint.dtype),
        images,
        tokenizer,
        _text_preparation(checkpoint.files, family),
        family,
        logit_scale=scale,
        logit_bias=None if bias is None else float(bias),
    )
