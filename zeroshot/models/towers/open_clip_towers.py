"""The two towers of an open_clip model, and its text features without padding."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.models.towers.text_tower import Block, Tower
from zeroshot.models.towers.vision_tower import VisionTower, interpolated_positions

__all__ = [
    "can_trim",
    "pool_type",
    "text_module",
    "text_tower",
    "trimmed_text_features",
    "vision_tower",
]


def can_trim(model: Any) -> bool:
    """Whether the text tower is causal, ends at the highest token id and projects by a matrix."""
    return (
        getattr(model, "text_pool_type", None) == "argmax"
        and model.attn_mask is not None
        and isinstance(model.text_projection, torch.nn.Parameter)
    )


def trimmed_text_features(model: Any, tokens: Int[Tensor, "b s"]) -> Float[Tensor, "b d"]:
    """`CLIP.encode_text` on no more positions than the longest text has.

    Equals the original: the tower is causal, so that nothing after a text's end reaches it.
    """
    from open_clip.transformer import text_global_pool

    length = int(tokens.argmax(dim=1).max()) + 1
    tokens, mask = tokens[:, :length], model.attn_mask[:length, :length]
    dtype = model.transformer.get_cast_dtype()
    hidden = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    hidden = model.ln_final(model.transformer(hidden, attn_mask=mask))
    pooled: Tensor = text_global_pool(hidden, tokens, "argmax")
    projected: Tensor = pooled @ model.text_projection
    return projected


def text_module(model: Any) -> Any:
    """The module with the text tower: the model (`CLIP`) or its `text` (`CustomTextCLIP`)."""
    return model if hasattr(model, "token_embedding") else getattr(model, "text", None)


def pool_type(text: Any) -> str | None:
    """How a text module pools its tokens."""
    return getattr(text, "text_pool_type", getattr(text, "pool_type", None))


def text_tower(model: Any, device: torch.device) -> Tower | None:
    """The text tower; None if it does not consist of plain causal blocks."""
    from open_clip.transformer import ResidualAttentionBlock

    text: Any = text_module(model)
    transformer: Any = getattr(text, "transformer", None)
    blocks: Any = getattr(transformer, "resblocks", ())
    plain = all(type(block) is ResidualAttentionBlock for block in blocks) and len(blocks)
    masked = getattr(text, "attn_mask", None) is not None
    at_end = pool_type(text) in ("argmax", "eos") and getattr(text, "cls_emb", None) is None
    if not (plain and masked and at_end) or text.text_projection is None:
        return None

    def embed(tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
        dtype = transformer.get_cast_dtype()
        states: Tensor = text.token_embedding(tokens).to(dtype)
        states = states + text.positional_embedding[positions].to(dtype)
        return states

    def finish(states: Float[Tensor, "n w"]) -> Float[Tensor, "n d"]:
        states, projection = text.ln_final(states), text.text_projection
        projected: Tensor = (
            projection(states) if isinstance(projection, torch.nn.Linear) else states @ projection
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
    """The vision tower; None if its embedding is not that of a class token."""
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
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = interpolated_positions(visual.positional_embedding, visual.grid_size, grid)
        states = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
        normed: Tensor = visual.ln_pre(states + positions.to(states.dtype))
        return normed

    return VisionTower(
        embed=embed,
        blocks=[_block(block) for block in blocks],
        heads=blocks[0].attn.num_heads,
        finish=lambda states: visual.ln_post(states) @ visual.proj,
        patch_size=visual.patch_size[0],
        image_size=visual.image_size[0],
        device=device,
        dtype=dtype,
    )


def _block(block: Any) -> Block:
    """A residual block, whose attention has one matrix for the three projections."""
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
        after=lambda states: block.ls_1(attention.out_proj(states)),
        feed_forward=lambda states: block.ls_2(block.mlp(block.ln_2(states))),
    )
