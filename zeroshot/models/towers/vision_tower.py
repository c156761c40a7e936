"""Vision transformers whose last block can have another attention.

A CLIP is trained for one embedding of the whole image, so its last block collects what the class
token needs. For dense prediction the patches attend to each other in another way there, and each
patch is projected as the class token is (methods/naclip.py and others).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

from zeroshot.errors import UserError
from zeroshot.models.base import Attend
from zeroshot.models.encoding import WithPreprocessing
from zeroshot.models.isolation import own_state
from zeroshot.models.towers.text_tower import Block, Rows
from zeroshot.ops import normalize

__all__ = [
    "DensePatches",
    "VisionTower",
    "interpolated_positions",
    "patch_embeddings",
    "plain_attention",
    "run_block",
]

IMAGES_AT_ONCE = 16
"""Fewer than for image embeddings, since the output of every token is kept."""


@dataclass(frozen=True)
class VisionTower:
    """A vision transformer of any library: a class token before the patches, pre-norm blocks."""

    embed: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b s d"]]
    """Pixels, of any size that is a multiple of the patch size, to the first block's input."""
    blocks: Sequence[Block]
    heads: int
    finish: Rows
    """Final norm and projection into the space of the texts."""
    patch_size: int
    image_size: int
    device: torch.device
    dtype: torch.dtype


def plain_attention(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    grid: tuple[int, int],
) -> Float[Tensor, "b h s d"]:
    """The attention that the model was trained with."""
    return scaled_dot_product_attention(query, key, value)


def run_block(
    block: Block,
    states: Float[Tensor, "b s d"],
    heads: int,
    grid: tuple[int, int],
    attend: Attend = plain_attention,
    whole: bool = True,
) -> Float[Tensor, "b t d"]:
    """One block, or only the output of its attention if not `whole`.

    As many tokens as go in, unless `attend` gives those of another grid.
    """
    normed = block.before(states)
    query, key, value = (
        part(normed).view(*normed.shape[:2], heads, -1).transpose(1, 2)  # [b, h, s, d / h]
        for part in (block.query, block.key, block.value)
    )
    output = block.after(attend(query, key, value, grid).transpose(1, 2).flatten(2))
    if not whole:
        return output
    states = states + output
    return states + block.feed_forward(states)


def patch_embeddings(
    tower: VisionTower, pixels: Float[Tensor, "b 3 h w"], attend: Attend, whole_block: bool
) -> Float[Tensor, "b s e"]:
    """Each token in the space of the texts, the class token first; not of unit length.

    With an `attend` by a second encoder, the patches of that encoder's grid alone.
    """
    grid = (pixels.shape[2] // tower.patch_size, pixels.shape[3] // tower.patch_size)
    states = tower.embed(pixels)
    for block in tower.blocks[:-1]:
        states = run_block(block, states, tower.heads, grid)
    states = run_block(tower.blocks[-1], states, tower.heads, grid, attend, whole_block)
    return tower.finish(states)


def interpolated_positions(
    positions: Float[Tensor, "s d"], trained: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "t d"]:
    """Position embeddings, the class token's first, for another grid of patches than in training.

    Bicubic, as in DINO, SCLIP and NACLIP.
    """
    if trained == grid:
        return positions
    patches = positions[1:].T.reshape(1, -1, *trained)  # [1, d, h, w]
    # In float32: not every device has bicubic interpolation in half precision.
    resized = interpolate(patches.float(), size=grid, mode="bicubic").to(positions.dtype)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


class DensePatches(WithPreprocessing):
    """Mixin of `base.DenseEncoder`; the encoder provides its tower by `_vision_tower`."""

    name: str

    def _vision_tower(self) -> VisionTower | None:
        """The vision tower; None if it does not consist of plain blocks."""
        return None

    @property
    def patch_size(self) -> int:
        """As `base.DenseEncoder`."""
        return self._checked_tower.patch_size

    @property
    def image_size(self) -> int:
        """As `base.DenseEncoder`."""
        return self._checked_tower.image_size

    def encode_patches(
        self,
        images: Sequence[Image.Image],
        attend: Attend,
        *,
        whole_block: bool = False,
        features: Float[Tensor, "n y x e"] | None = None,
    ) -> Float[Tensor, "n h w d"]:
        """As `base.DenseEncoder`."""
        tower, images = self._checked_tower, list(images)
        width, height = images[0].size
        grid = (height // tower.patch_size, width // tower.patch_size)
        batches = [slice(i, i + IMAGES_AT_ONCE) for i in range(0, len(images), IMAGES_AT_ONCE)]
        tokens = []
        for batch in batches:
            own: Attend = attend
            if features is not None:
                two: Callable[..., Tensor] = attend
                own = partial(two, features=features[batch].to(tower.device))
            pixels = self._normalize(images[batch], tower)
            with torch.inference_mode():
                tokens.append(patch_embeddings(tower, pixels, own, whole_block).float().cpu())
        rows, columns = grid if features is None else features.shape[1:3]
        patches = torch.cat(tokens)[:, -rows * columns :]
        return normalize(patches).view(len(images), rows, columns, -1)

    def patch_features(self, images: Sequence[Image.Image]) -> Float[Tensor, "n h w d"]:
        """As `base.PatchEncoder`."""
        return self.encode_patches(images, plain_attention, whole_block=True)

    def _normalize(self, images: list[Image.Image], tower: VisionTower) -> Float[Tensor, "b 3 h w"]:
        """The tower's input for images that keep their size."""
        return self.preprocessing.normalize(images, tower.device, tower.dtype)

    @cached_property
    def _checked_tower(self) -> VisionTower:
        """The tower, if a test shows that its embedding of an image is the model's own."""
        tower = self._vision_tower()
        if tower is None:
            raise UserError(
                f"{self.name} gives no embeddings of patches: that takes a vision transformer with "
                "a class token and plain blocks. Use an OpenAI or OpenCLIP ViT, or --model with a "
                "segmentation model"
            )
        side = tower.image_size
        gradient = Image.linear_gradient("L").resize((side, side))
        probe = Image.merge("RGB", [gradient, gradient.rotate(90), gradient.rotate(180)])
        with own_state(), torch.inference_mode():
            expected = self._image_features([self.preprocessing.pixels(probe)])
            pixels = self._normalize([probe], tower)
            computed = patch_embeddings(tower, pixels, plain_attention, whole_block=True)[:, 0]
        distance = float((normalize(expected.float()) - normalize(computed.float())).norm())
        if not distance < (1e-3 if tower.dtype == torch.float32 else 0.1):
            raise UserError(
                f"{self.name} gives no embeddings of patches: its vision tower does not compute "
                f"what its class says (embeddings differ by {distance:.2g}). Use another encoder"
            )
        return tower
