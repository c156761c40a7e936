"""Vision transformers taken apart, so that the last block's attention can be another.

Trained for one embedding of the whole picture, a CLIP's last block gathers what the class token
wants. Whoever wants to know what is where lets the patches attend to each other in another way
there, and projects each patch as the class token is projected (methods/naclip.py and others).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

from zeroshot.errors import UserError
from zeroshot.models.base import Attend, Pixels
from zeroshot.models.preprocessing import Preprocessing
from zeroshot.models.towers.text_tower import Block, Rows
from zeroshot.ops import normalize

__all__ = ["DensePatches", "VisionTower", "interpolated_positions", "patch_rows", "plain", "run"]

IMAGES_AT_ONCE = 16
"""Fewer than for one row each: every token of the tower is kept to the end."""


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer of any library: a class token before its patches, pre-norm blocks."""

    embed: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b s d"]]
    """Pixels of any size that the patches divide to the first block's input."""
    blocks: Sequence[Block]
    heads: int
    finish: Rows
    """Final norm and projection into the space of the texts."""
    patch_size: int
    image_size: int
    device: torch.device
    dtype: torch.dtype


def plain(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    grid: tuple[int, int],
) -> Float[Tensor, "b h s d"]:
    """The attention that the model was trained with."""
    return scaled_dot_product_attention(query, key, value)


def run(
    block: Block,
    states: Float[Tensor, "b s d"],
    heads: int,
    grid: tuple[int, int],
    attend: Attend = plain,
    whole: bool = True,
) -> Float[Tensor, "b s d"]:
    """One block; what its attention gives alone, if it is not to be the `whole` block."""
    normed = block.before(states)
    query, key, value = (
        part(normed).view(*normed.shape[:2], heads, -1).transpose(1, 2)  # [b, h, s, d / h]
        for part in (block.query, block.key, block.value)
    )
    gathered = block.after(attend(query, key, value, grid).transpose(1, 2).flatten(2))
    if not whole:
        return gathered
    states = states + gathered
    return states + block.feed_forward(states)


def patch_rows(
    tower: VisionTower, pixels: Float[Tensor, "b 3 h w"], attend: Attend, whole_block: bool
) -> Float[Tensor, "b s e"]:
    """What each token is in the space of the texts, the class token first; not of unit length."""
    grid = (pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size)
    states = tower.embed(pixels)
    for block in tower.blocks[:-1]:
        states = run(block, states, tower.heads, grid)
    states = run(tower.blocks[-1], states, tower.heads, grid, attend, whole_block)
    return tower.finish(states)


def interpolated_positions(
    positions: Float[Tensor, "s d"], own: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "t d"]:
    """Position embeddings, the class token's first, of another grid of patches than their own.

    Bicubic, as DINO and after it SCLIP and NACLIP have it.
    """
    if own == grid:
        return positions
    patches = positions[1:].T.reshape(1, -1, *own)  # [1, d, h, w]
    # In float32: bicubic interpolation of half precision is not there on every device.
    resized = interpolate(patches.float(), size=grid, mode="bicubic").to(positions.dtype)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


class DensePatches:
    """What dual encoders share that can be asked patch by patch (`base.DenseEncoder`).

    An encoder gives its tower by `_vision_tower`.
    """

    name: str
    preprocessing: Preprocessing
    _image_features: Callable[[list[Pixels]], Tensor]

    def _vision_tower(self) -> VisionTower | None:
        """The vision tower taken apart; None for one that is not built of plain blocks."""
        return None

    @property
    def patch_size(self) -> int:
        """As `base.DenseEncoder`."""
        return self._tried_tower.patch_size

    @property
    def image_size(self) -> int:
        """As `base.DenseEncoder`."""
        return self._tried_tower.image_size

    def encode_patches(
        self, images: Sequence[Image.Image], attend: Attend, *, whole_block: bool = False
    ) -> Float[Tensor, "n h w d"]:
        """As `base.DenseEncoder`."""
        tower, images = self._tried_tower, list(images)
        width, height = images[0].size
        rows, columns = height // tower.patch_size, width // tower.patch_size
        starts = range(0, len(images), IMAGES_AT_ONCE)
        with torch.inference_mode():
            found = [
                patch_rows(
                    tower, self._toned(images[s : s + IMAGES_AT_ONCE], tower), attend, whole_block
                )
                for s in starts
            ]
        patches = torch.cat([rows[:, 1:].float().cpu() for rows in found])
        return normalize(patches).view(len(images), rows, columns, -1)

    def _toned(self, images: list[Image.Image], tower: VisionTower) -> Float[Tensor, "b 3 h w"]:
        """Pixels of pictures that have their size already, as the tower takes them."""
        return self.preprocessing.toned(images, tower.device, tower.dtype)

    @cached_property
    def _tried_tower(self) -> VisionTower:
        """The tower, if it gives the model's own embedding of a picture: tried, not believed."""
        tower = self._vision_tower()
        if tower is None:
            raise UserError(
                f"{self.name} has no vision transformer with a class token and plain blocks (as "
                "those of CLIP have), so that its patches cannot be asked one by one; an "
                "OpenAI or OpenCLIP ViT can, and so can --model with a segmentation model"
            )
        side = tower.image_size
        gradient = Image.linear_gradient("L").resize((side, side))
        probe = Image.merge("RGB", [gradient, gradient.rotate(90), gradient.rotate(180)])
        with torch.inference_mode():
            own = self._image_features([self.preprocessing.pixels(probe)])
            ours = patch_rows(tower, self._toned([probe], tower), plain, whole_block=True)[:, 0]
        apart = float((normalize(own.float()) - normalize(ours.float())).norm())
        if not apart < (1e-3 if tower.dtype == torch.float32 else 0.1):
            raise UserError(
                f"{self.name}: its vision tower does not compute what its class says "
                f"(embeddings {apart:.2g} apart), so that its patches cannot be asked"
            )
        return tower
