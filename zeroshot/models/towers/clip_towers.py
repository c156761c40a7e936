"""The two towers of a `CLIPModel` of transformers, and of models that consist of its modules."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.models.towers.text_tower import Block, Tower
from zeroshot.models.towers.vision_tower import VisionTower, interpolated_positions

__all__ = ["clip_text_tower", "clip_vision_tower"]


def clip_text_tower(model: Any) -> Tower:
    """The text tower."""
    text = model.text_model

    def embed(tokens: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
        layer = text.embeddings
        states: Tensor = layer.token_embedding(tokens) + layer.position_embedding(positions)
        return states

    return Tower(
        embed=embed,
        blocks=[_block(layer) for layer in text.encoder.layers],
        heads=text.config.num_attention_heads,
        finish=lambda states: model.text_projection(text.final_layer_norm(states)),
        device=model.device,
    )


def clip_vision_tower(model: Any) -> VisionTower:
    """The vision tower."""
    vision = model.vision_model
    layer, image_size = vision.embeddings, int(vision.config.image_size)
    patch_size = int(vision.config.patch_size)
    trained = (image_size // patch_size, image_size // patch_size)

    def embed(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b s d"]:
        patches = layer.patch_embedding(pixels)  # [b, d, h, w]
        grid = (patches.shape[2], patches.shape[3])
        class_token = layer.class_embedding.expand(len(patches), 1, -1)
        positions = interpolated_positions(layer.position_embedding.weight, trained, grid)
        states = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1) + positions
        normed: Tensor = vision.pre_layrnorm(states)  # transformers spells it so
        return normed

    return VisionTower(
        embed=embed,
        blocks=[_block(block) for block in vision.encoder.layers],
        heads=vision.config.num_attention_heads,
        finish=lambda states: model.visual_projection(vision.post_layernorm(states)),
        patch_size=patch_size,
        image_size=image_size,
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
        feed_forward=lambda states: layer.mlp(layer.layer_norm2(states)),
    )
