"""Dual encoders of open_clip: `open_clip:ARCH/TAG`, `hf-hub:org/repo`, `local-dir:./directory`.

open_clip brings torchvision, so it is imported with the first such model and not before.
"""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from zeroshot.errors import UserError, unknown
from zeroshot.models import model_files
from zeroshot.models.base import Pixels
from zeroshot.models.devices import precision_name
from zeroshot.models.encoding import CachedTextEncoder, encode_images, encode_pixels
from zeroshot.models.names import ModelName
from zeroshot.models.preprocessing import of_transform
from zeroshot.models.towers.packed_linear import pack
from zeroshot.models.towers.text_tower import Block, Tokens, Tower
from zeroshot.models.towers.vision_tower import DensePatches, VisionTower, interpolated_positions

__all__ = ["OpenClipDualEncoder", "load_dual_encoder"]

PREPROCESSING = "open_clip.1"
"""Whose preprocessing and tokenizer, and the version of what this file does around the model."""

END_OF_TEXT = "<|endoftext|>"


class OpenClipDualEncoder(CachedTextEncoder, DensePatches):
    """An open_clip model with its own tokenizer, preprocessing and scale."""

    def __init__(
        self,
        name: str,
        model: Any,
        preprocess: Any,
        tokenizer: Any,
        logit_scale: float,
        logit_bias: float | None,
    ) -> None:
        self.name = name
        self.model = model
        self.preprocess = preprocess
        self.preprocessing = of_transform(preprocess)
        self.tokenizer = tokenizer
        self.device, self.dtype = model.logit_scale.device, model.logit_scale.dtype
        self.context_length: int = tokenizer.context_length
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
        return [self._count(text) for text in self._ended(texts)]

    def _vision_tower(self) -> VisionTower | None:
        return vision_tower(self.model.visual, self.device, self.dtype)

    def _image_features(self, pixels: list[Pixels]) -> Float[Tensor, "b d"]:
        inputs = self.preprocessing.batch(pixels, self.device, self.dtype)
        features: Tensor = self.model.encode_image(**inputs)
        return features

    def _text_features(self, texts: list[str]) -> Float[Tensor, "b d"]:
        tokens = self.tokenizer(self._ended(texts)).to(self.device)
        encode = trimmed_text_features if can_trim(self.model) else type(self.model).encode_text
        features: Tensor = encode(self.model, tokens)
        return features

    def _tower(self) -> Tower | None:
        return text_tower(self.model, self.device)

    def _paths(self, texts: Sequence[str]) -> list[Tokens]:
        text = text_part(self.model)
        ends = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        rows = self.tokenizer(self._ended(texts)).tolist()
        if pool_type(text) == "argmax":
            return [tuple(ids[: ids.index(max(ids)) + 1]) for ids in rows]
        return [tuple(ids[: (ids.index(ends) if ends in ids else 0) + 1]) for ids in rows]

    def _ended(self, texts: Sequence[str]) -> list[str]:
        """Texts up to a literal end token.

        There the tokenizers of transformers end a text; open_clip's would spell the token out.
        """
        return [text.partition(END_OF_TEXT)[0] for text in texts]

    def _count(self, text: str) -> int:
        if hasattr(self.tokenizer, "encode"):
            return len(self.tokenizer.encode(text)) + 2
        return len(self.tokenizer.tokenizer(self.tokenizer.clean_fn(text))["input_ids"])


def can_trim(model: Any) -> bool:
    """Whether the text tower is causal, ends at the highest token id and projects by a matrix."""
    return (
        getattr(model, "text_pool_type", None) == "argmax"
        and model.attn_mask is not None
        and isinstance(model.text_projection, torch.nn.Parameter)
    )


def trimmed_text_features(model: Any, tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b d"]:
    """`CLIP.encode_text` on no more positions than the longest text has.

    Equal to the original: the tower is causal, so that nothing after a text's end reaches it.
    """
    from open_clip.transformer import text_global_pool

    length = int(tokens.argmax(dim=1).max()) + 1
    tokens, mask = tokens[:, :length], model.attn_mask[:length, :length]
    dtype = model.transformer.get_cast_dtype()
    hidden = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    hidden = model.ln_final(model.transformer(hidden, attn_mask=mask))
    row: Tensor = text_global_pool(hidden, tokens, "argmax")
    projected: Tensor = row @ model.text_projection
    return projected


def text_part(model: Any) -> Any:
    """What holds the text tower: the model itself (`CLIP`), or its `text` (`CustomTextCLIP`)."""
    return model if hasattr(model, "token_embedding") else getattr(model, "text", None)


def pool_type(text: Any) -> str | None:
    """Which position the embedding is taken from."""
    return getattr(text, "text_pool_type", getattr(text, "pool_type", None))


def text_tower(model: Any, device: torch.device) -> Tower | None:
    """The text tower taken apart; None for one that is not built of plain causal blocks."""
    from open_clip.transformer import ResidualAttentionBlock

    text: Any = text_part(model)
    transformer: Any = getattr(text, "transformer", None)
    blocks: Any = getattr(transformer, "resblocks", ())
    plain = all(type(block) is ResidualAttentionBlock for block in blocks) and len(blocks)
    masked = getattr(text, "attn_mask", None) is not None
    ends = pool_type(text) in ("argmax", "eos") and getattr(text, "cls_emb", None) is None
    if not (plain and masked and ends) or text.text_projection is None:
        return None

    def embed(tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
        dtype = transformer.get_cast_dtype()
        rows: Tensor = text.token_embedding(tokens).to(dtype)
        placed: Tensor = rows + text.positional_embedding[positions].to(dtype)
        return placed

    def finish(rows: Float[Tensor, "n w"]) -> Float[Tensor, "n d"]:
        rows, projection = text.ln_final(rows), text.text_projection
        projected: Tensor = (
            projection(rows) if isinstance(projection, torch.nn.Linear) else rows @ projection
        )
        return projected

    return Tower(
        embed=embed,
        blocks=[_block(block) for block in blocks],
        heads=blocks[0].attn.num_heads,
        finish=finish,
        device=device,
    )


def vision_tower(visual: Any, device: torch.device, dtype: torch.dtype) -> VisionTower | None:
    """The vision tower taken apart; None for one whose embedding is not a class token's."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if type(visual) is not VisionTransformer:
        return None
    blocks: Any = visual.transformer.resblocks
    plain = all(type(block) is ResidualAttentionBlock for block in blocks)
    square = visual.image_size[0] == visual.image_size[1]
    if not plain or not square or visual.attn_pool is not None or visual.pool_type != "tok":
        return None

    def embed(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s d"]:
        patches = visual.conv1(pixels)  # [b, d, h, w]
        grid = (patches.shape[2], patches.shape[3])
        first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        places = interpolated_positions(visual.positional_embedding, visual.grid_size, grid)
        states = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        normed: Tensor = visual.ln_pre(states + places.to(states.dtype))
        return normed

    return VisionTower(
        embed=embed,
        blocks=[_block(block) for block in blocks],
        heads=blocks[0].attn.num_heads,
        finish=lambda rows: visual.ln_post(rows) @ visual.proj,
        patch_size=visual.patch_size[0],
        image_size=visual.image_size[0],
        device=device,
        dtype=dtype,
    )


def _block(block: Any) -> Block:
    """A residual block; its attention holds the three projections in one matrix."""
    attention = block.attn
    weights = attention.in_proj_weight.chunk(3)
    biases = attention.in_proj_bias.chunk(3)
    query, key, value = (
        partial(torch.nn.functional.linear, weight=weight, bias=bias)
        for weight, bias in zip(weights, biases, strict=True)
    )
    return Block(
        before=block.ln_1,
        query=query,
        key=key,
        value=value,
        after=lambda rows: block.ls_1(attention.out_proj(rows)),
        feed_forward=lambda rows: block.ls_2(block.mlp(block.ln_2(rows))),
    )


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model are, and how open_clip is asked to build it."""

    identity: str
    architecture: str
    """An architecture of open_clip, or `local-dir:/directory`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `open_clip.create_model_from_pretrained`."""


def load_dual_encoder(
    name: ModelName, device: torch.device, dtype: torch.dtype, offline: bool
) -> OpenClipDualEncoder:
    """The open_clip model called `name`.

    UserError for an unknown tag or weights that do not fit, NotAvailableError for files that are
    neither on this disk nor reachable.
    """
    open_clip = import_open_clip()
    parts = _tagged(name, offline) if name.scheme == "open_clip" else _directory(name, offline)
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            parts.architecture, weights_only=True, **parts.options
        )
    except pickle.UnpicklingError as error:
        raise UserError(f"{name}: its weights are a pickle that holds more than tensors") from error
    except RuntimeError as error:
        raise UserError(f"{name}: open_clip cannot build it: {error}") from error
    model.eval().requires_grad_(False)
    # Before half precision, which would turn a scale of 100 into 98.9.
    scale, bias = float(model.logit_scale.exp()), model.logit_bias
    bias = None if bias is None else float(bias)
    return OpenClipDualEncoder(
        f"{parts.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        pack(model.to(device, dtype)),
        preprocess,
        _tokenizer(parts.architecture, str(name), offline),
        logit_scale=scale,
        logit_bias=bias,
    )


def import_open_clip() -> Any:
    """The package; UserError if it, or the torchvision it needs, does not import."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"open_clip does not import ({error}); it needs a torchvision built for torch "
            f"{torch.__version__}: `pip install open_clip_torch torchvision` from torch's own "
            "index. Models named hf:... work without"
        ) from error
    return open_clip


def repositories(name: ModelName) -> list[tuple[str, model_files.Layout]]:
    """The hub repositories of `open_clip:ARCH/TAG` or `hf-hub:org/repo`: weights, tokenizer."""
    if name.scheme == "hf-hub":
        return [(name.target, model_files.OPEN_CLIP)]
    text = import_open_clip().get_model_config(name.target.partition("/")[0])["text_cfg"]
    tokenizer = text.get("hf_tokenizer_name")
    return [_weights(name), *([(tokenizer, model_files.TOKENIZER)] if tokenizer else [])]


def _weights(name: ModelName) -> tuple[str, model_files.Layout]:
    source, _, file = _tag(name)["hf_hub"].rpartition("/")
    if not file:
        return source, model_files.Layout(
            None, model_files.OPEN_CLIP.safetensors, model_files.OPEN_CLIP.torch
        )
    stem = re.escape(Path(file).stem)
    return source, model_files.Layout(None, rf"{stem}\.safetensors", re.escape(file))


def _tag(name: ModelName) -> dict[str, Any]:
    open_clip = import_open_clip()
    architecture, _, tag = name.target.partition("/")
    found: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise unknown(f"tag of open_clip:{architecture}", tag, tags)
    return found


def _tagged(name: ModelName, offline: bool) -> Parts:
    tag, architecture = _tag(name), name.target.partition("/")[0]
    source, layout = _weights(name)
    snapshot = model_files.fetch(source, layout, asked=str(name), offline=offline)
    return Parts(
        f"{name.label}@{snapshot.name[:12]}",
        architecture,
        {
            "pretrained": str(model_files.weights_in(snapshot, layout)[0]),
            # The classic trap: OpenAI's weights under an architecture that has the other GELU.
            "force_quick_gelu": tag.get("quick_gelu", False),
            "image_mean": tag["mean"],
            "image_std": tag["std"],
            "image_interpolation": tag["interpolation"],
            "image_resize_mode": tag["resize_mode"],
        },
    )


def _directory(name: ModelName, offline: bool) -> Parts:
    found = model_files.locate(name, model_files.OPEN_CLIP, offline=offline)
    return Parts(found.identity, f"local-dir:{found.directory}")


def _tokenizer(architecture: str, asked: str, offline: bool) -> Any:
    """The tokenizer the architecture names; one of transformers comes from the hub if need be."""
    open_clip = import_open_clip()
    text = open_clip.get_model_config(architecture)["text_cfg"]
    source = text.get("hf_tokenizer_name")
    if not source:
        return open_clip.get_tokenizer(architecture)
    directory = Path(architecture.removeprefix("local-dir:"))
    if not (directory / "tokenizer_config.json").is_file():
        directory = model_files.fetch(source, model_files.TOKENIZER, asked=asked, offline=offline)
    return open_clip.tokenizer.HFTokenizer(
        str(directory),
        context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )
