"""Dual encoders of transformers: CLIP and its relatives behind one contract.

What tells one family from another is a row of `FAMILIES`: how long its padded texts are, which
position holds the embedding, where its scale is. Everything else is shared.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ftfy
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from zeroshot.models.base import Pixels
from zeroshot.models.devices import precision_name
from zeroshot.models.encoding import CachedTextEncoder, encode_images, encode_pixels
from zeroshot.models.hf import common
from zeroshot.models.model_files import Files
from zeroshot.models.preprocessing import of_processor
from zeroshot.models.towers.text_tower import Block, Tokens, Tower
from zeroshot.models.towers.vision_tower import DensePatches, VisionTower, interpolated_positions

__all__ = ["FAMILIES", "TransformersDualEncoder", "load_dual_encoder"]

PUNCTUATION = str.maketrans("", "", string.punctuation)

PREPROCESSING = "pil.1"
"""Backend of the image processor, and the version of what this file does around the model."""


def exp_of_scale(model: Any) -> float:
    """CLIP and most others: `exp` of a parameter."""
    return float(model.logit_scale.exp())


def inverse_temperature(model: Any) -> float:
    """ALIGN divides by a temperature."""
    return float(1 / model.temperature)


def pooled(features: Tensor) -> Float[Tensor, "b d"]:
    """Most families: one row per input."""
    return features


def first_token(features: Float[Tensor, "b s d"]) -> Float[Tensor, "b d"]:
    """FLAVA: one row per token, of which the first stands for the whole."""
    return features[:, 0]


@dataclass(frozen=True)
class Family:
    """What sets one family of dual encoders apart."""

    scale: Callable[[Any], float] = exp_of_scale
    pool: Callable[[Tensor], Tensor] = pooled
    padded: bool = False
    """Trained on texts padded to full length, with the padding visible to the model (SigLIP)."""
    context_length: int | None = None
    """Where the family was trained on fewer tokens than its tower has positions."""
    spare: tuple[str, ...] = ()
    """Weights that may be missing since the embedding does not pass them."""
    clip_tower: bool = False
    """Whether its text tower is built of CLIP's modules."""
    clip_vision: bool = False
    """Whether its vision tower is."""


FAMILIES = {
    "clip": Family(clip_tower=True, clip_vision=True),
    "metaclip_2": Family(clip_tower=True, clip_vision=True),
    "chinese_clip": Family(spare=("text_model.pooler",), clip_vision=True),
    "altclip": Family(spare=("text_model.pooler",), clip_vision=True),
    "align": Family(scale=inverse_temperature, context_length=64, spare=("text_model.pooler",)),
    "flava": Family(pool=first_token, spare=("pooler", "multimodal")),
    "siglip": Family(padded=True),
    "siglip2": Family(padded=True),
    "vision-text-dual-encoder": Family(),
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
        family: Family,
        logit_scale: float,
        logit_bias: float | None,
    ) -> None:
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.preprocessing = of_processor(image_processor)
        self.tokenizer = tokenizer
        self.prepare = prepare
        self.family = family
        self.context_length: int | None = family.context_length or common.context_length(
            tokenizer, model.config.text_config
        )
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "n d"]:
        """As `base.ImageEncoder`."""
        return encode_images(images, self.pixels, self._image_features)

    @property
    def shortcuts(self) -> str:
        """As `base.PixelEncoder`."""
        return self.preprocessing.shortcuts

    @property
    def draft_side(self) -> int | None:
        """As `base.PixelEncoder`."""
        return self.preprocessing.draft_side

    def pixels(self, image: Image) -> Pixels:
        """As `base.PixelEncoder`."""
        return self.preprocessing.pixels(image)

    def encode_pixels(self, pixels: Sequence[Pixels]) -> Float[Tensor, "n d"]:
        """As `base.PixelEncoder`."""
        return encode_pixels(pixels, self._image_features)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.TextEncoder`."""
        return common.count_tokens(self.tokenizer, self._prepared(texts))

    def _tower(self) -> Tower | None:
        return clip_tower(self.model) if self.family.clip_tower else None

    def _paths(self, texts: Sequence[str]) -> list[Tokens]:
        ids = self.tokenizer(
            self._prepared(texts), truncation=True, max_length=self.context_length
        )["input_ids"]
        return [tuple(row[: self._end(row) + 1]) for row in ids]

    def _end(self, ids: list[int]) -> int:
        """Where CLIP's text tower takes the embedding from; old configurations name token 2."""
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
        padding = "max_length" if self.family.padded else "longest"
        tokens = common.tokenize(
            self.tokenizer, self._prepared(texts), self.context_length, padding
        )
        tokens = tokens.to(self.model.device)
        if self.family.padded:  # trained without a mask, whatever the tokenizer offers
            tokens.pop("attention_mask", None)
        return self.family.pool(self.model.get_text_features(**tokens).pooler_output)

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        return [self.prepare(text) for text in texts]


def clip_tower(model: Any) -> Tower:
    """The text tower of a `CLIPModel` and of those built like it."""
    text = model.text_model

    def embed(tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
        held = text.embeddings
        rows: Tensor = held.token_embedding(tokens) + held.position_embedding(positions)
        return rows

    return Tower(
        embed=embed,
        blocks=[_block(layer) for layer in text.encoder.layers],
        heads=text.config.num_attention_heads,
        finish=lambda rows: model.text_projection(text.final_layer_norm(rows)),
        device=model.device,
    )


def clip_vision_tower(model: Any) -> VisionTower:
    """The vision tower of a `CLIPModel` and of those built like it."""
    vision = model.vision_model
    held, side = vision.embeddings, int(vision.config.image_size)
    patch = int(vision.config.patch_size)

    def embed(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s d"]:
        patches = held.patch_embedding(pixels)  # [b, d, h, w]
        grid = (patches.shape[2], patches.shape[3])
        first = held.class_embedding.expand(len(patches), 1, -1)
        own = (side // patch, side // patch)
        places = interpolated_positions(held.position_embedding.weight, own, grid)
        states = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + places
        normed: Tensor = vision.pre_layrnorm(states)  # transformers spells it so
        return normed

    return VisionTower(
        embed=embed,
        blocks=[_block(layer) for layer in vision.encoder.layers],
        heads=vision.config.num_attention_heads,
        finish=lambda rows: model.visual_projection(vision.post_layernorm(rows)),
        patch_size=patch,
        image_size=side,
        device=model.device,
        dtype=model.dtype,
    )


def _block(layer: Any) -> Block:
    attention = layer.self_attn
    return Block(
        before=layer.layer_norm1,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        after=attention.out_proj,
        feed_forward=lambda rows: layer.mlp(layer.layer_norm2(rows)),
    )


def as_is(text: str) -> str:
    """Most families: the tokenizer knows what its model was trained on."""
    return text


def without_punctuation(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(text.lower().translate(PUNCTUATION).split())


def repaired(text: str) -> str:
    """Broken Unicode, control characters and typographic quotes as OpenAI's tokenizer has them.

    Transformers 4 did this in its CLIP tokenizer where ftfy was installed, open_clip does; the
    tokenizer of transformers 5 does not, and control characters change its tokens.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text  # ftfy has nothing to do here, and takes its time over it
    fixed: str = ftfy.fix_text(text)
    return fixed


def _prepare(files: Files, family: Family) -> Callable[[str], str]:
    """What a text goes through before the tokenizer.

    SigLIP was trained without punctuation and capitals, SigLIP 2 (whose tokenizer is Gemma's, also
    where its `model_type` is `siglip`) without capitals. Not every published tokenizer does this.
    """
    if files.read("config.json")["model_type"] == "clip":
        return repaired
    if not family.padded:
        return as_is
    kind = files.read("tokenizer_config.json").get("tokenizer_class")
    return without_punctuation if kind == "SiglipTokenizer" else str.lower


def load_dual_encoder(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> TransformersDualEncoder:
    """The dual encoder in `files`."""
    family = FAMILIES[str(files.read("config.json")["model_type"])]
    # In float32 first: half precision would turn a scale of 100 into 98.9.
    model, _ = common.load_model(
        common.AutoModel, files, device, torch.float32, trust_remote_code, spare=family.spare
    )
    scale, bias = family.scale(model), getattr(model, "logit_bias", None)
    bias = None if bias is None else float(bias)
    return TransformersDualEncoder(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model.to(dtype),
        common.load_image_processor(files, trust_remote_code),
        common.load_tokenizer(files, trust_remote_code),
        _prepare(files, family),
        family,
        logit_scale=scale,
        logit_bias=bias,
    )
