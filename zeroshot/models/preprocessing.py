"""An image encoder's preprocessing in two halves: sizes in threads, tones on the device.

What a library does to a picture is resizing and cropping, which leaves bytes, and then a function
of each byte and its channel: rescaling and normalising. The first half runs ahead of the network,
picture by picture; the second is a table of 3 x 256 numbers that the library itself fills, and runs
on a batch where the network is. A byte is a quarter of a float32 to hold and to send.

The halves, and the resizing done here instead of there, are tried on pictures against the whole,
bit for bit. Preprocessing that is something else (patches of any number, masks) runs whole, still
picture by picture; where pictures of a batch are padded to the largest, it runs on the batch.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Pixels

__all__ = ["Geometry", "Preprocessing", "of_processor", "of_transform"]

Inputs = dict[str, Tensor]
"""What a network takes, by name, the batch first."""

FAST = "fast-1"
"""Names the shortcuts of `Preprocessing.faster`; changes when pixels would."""
OVERSAMPLED = 2
"""A JPEG decoded smaller keeps at least so many pixels, each way, for one that the network sees."""
TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class Geometry:
    """How a picture comes to the size of the network's input."""

    resize: int | tuple[int, int]
    """The shorter side, or height and width."""
    crop: tuple[int, int] | None
    """Height and width of the middle that is kept."""
    resample: Image.Resampling
    offset: Callable[[int], int] = lambda spare: spare // 2
    """Where the middle begins, by how much longer the side is."""

    @property
    def side(self) -> int:
        """The longest side that a picture is made to have, as far as that is fixed."""
        return self.resize if isinstance(self.resize, int) else max(self.resize)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        long = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, long) if width <= height else (long, self.resize)

    def sized(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """As the libraries do it, by PIL."""
        image = image.resize(self.resized(*image.size), self.resample)
        left, top, width, height = self._middle(*image.size)
        image = image.crop((left, top, left + width, top + height))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def sized_fast(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """By torch, which takes a quarter of the time; a few bytes differ by one."""
        width, height = self.resized(*image.size)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        values = torch.nn.functional.interpolate(
            values, size=(height, width), mode=TORCH_MODES[self.resample], antialias=True
        )
        left, top, width, height = self._middle(width, height)
        return values[0, :, top : top + height, left : left + width].contiguous()

    def _middle(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of what is kept."""
        high, wide = self.crop or (height, width)
        return self.offset(width - wide), self.offset(height - high), wide, high


class Preprocessing:
    """From pictures to what a network takes; `pixels` is for threads, `batch` for the device."""

    shortcuts: str = ""
    """Names what makes pixels differ from the library's; nothing does but by `faster`."""
    draft_side: int | None = None
    """A JPEG may be decoded smaller, with no side below this."""

    def __init__(
        self,
        whole: Callable[[Sequence[Image.Image]], Inputs],
        sized: Callable[[Image.Image], UInt8[Tensor, "3 h w"]],
        toned: Callable[[Image.Image], Float[Tensor, "3 h w"]],
        geometry: Geometry | None,
        name: str = "pixel_values",
        together: bool = False,
    ) -> None:
        """`sized` and `toned` are the halves of `whole`, which gives `name` and nothing else.

        `geometry` is how `sized` is believed to go about it; `together` says that what becomes of a
        picture depends on its batch.
        """
        self._whole = whole
        self._name = name
        self._together = together
        self._tones = None if together else _tones(whole, sized, toned, name)
        known = self._tones is not None and geometry is not None and _same(geometry, sized)
        self._geometry = geometry if known else None
        self._sized = sized if self._geometry is None else self._geometry.sized

    def faster(self) -> "Preprocessing":
        """The same with shortcuts that change pixels a little; itself where it knows none.

        Resizing is torch's, and large JPEG files are decoded at a fraction of their size.
        """
        if self._geometry is None or self._geometry.resample not in TORCH_MODES:
            return self
        fast = copy.copy(self)
        fast._sized = self._geometry.sized_fast
        fast.shortcuts = FAST
        fast.draft_side = OVERSAMPLED * self._geometry.side
        return fast

    def pixels(self, image: Image.Image) -> Pixels:
        """One picture, as far as it can be prepared without the others and the device."""
        if self._together:
            return image
        return self._whole([image]) if self._tones is None else self._sized(image)

    def batch(self, pixels: Sequence[Pixels], device: torch.device, dtype: torch.dtype) -> Inputs:
        """What the network takes of these pictures, on its device."""
        if self._tones is not None:
            sent = _sent(torch.stack(list(pixels)), device)
            return {self._name: _looked_up(sent, self._tones.to(device, dtype))}
        if self._together:
            inputs = self._whole(pixels)
        else:
            inputs = {key: torch.cat([p[key] for p in pixels]) for key in pixels[0]}
        return {
            key: _sent(value, device, dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }

    def toned(
        self, images: Sequence[Image.Image], device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "n 3 h w"]:
        """Pictures of one size as the network takes them, with no step that changes their size.

        UserError for preprocessing that is more than sizes and tones.
        """
        if self._tones is None:
            raise UserError(
                "this encoder's preprocessing does not part into sizes and tones, so that it "
                "cannot look at parts of a picture in their own size"
            )
        values = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images])
        return _looked_up(_sent(values, device), self._tones.to(device, dtype))


def _sent(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """On the device; to a GPU from pinned memory, so that the CPU does not wait for the copy."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, dtype, non_blocking=device.type == "cuda")


def _looked_up(
    values: UInt8[Tensor, "n 3 h w"], tones: Float[Tensor, "3 256"]
) -> Float[Tensor, "n 3 h w"]:
    """The tone of each byte by its channel."""
    out = tones.new_empty(values.shape)
    for channel, table in enumerate(tones):
        out[:, channel] = table[values[:, channel].int()]
    return out


def _tones(
    whole: Callable[[Sequence[Image.Image]], Inputs],
    sized: Callable[[Image.Image], Tensor],
    toned: Callable[[Image.Image], Tensor],
    name: str,
) -> Float[Tensor, "3 256"] | None:
    """What becomes of each byte in each channel; None where the halves are not the whole."""
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)  # [1, 256, 3]
    probe = next(_probes())
    try:
        tones = toned(Image.fromarray(levels))[:, 0]
        small = sized(probe)
        expected = whole([probe])
    except Exception:  # a library refuses what it does not know with any exception
        return None
    if tones.shape != (3, 256) or small.dtype != torch.uint8 or list(expected) != [name]:
        return None
    return tones if torch.equal(_looked_up(small[None], tones), expected[name]) else None


def _probes() -> Iterator[Image.Image]:
    """Noise, wide, high and small."""
    for height, width in ((300, 451), (517, 389), (97, 130)):
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        yield Image.fromarray(noise)


def _same(geometry: Geometry, sized: Callable[[Image.Image], Tensor]) -> bool:
    """Whether the library resizes and crops as believed."""
    return all(torch.equal(geometry.sized(probe), sized(probe)) for probe in _probes())


def of_processor(processor: Any) -> Preprocessing:
    """That of an image processor of transformers."""

    def run(images: Sequence[Image.Image], **switched_off: bool) -> Inputs:
        return dict(processor(images=list(images), return_tensors="pt", **switched_off))

    def sized(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        values: Tensor = run([image], do_rescale=False, do_normalize=False)["pixel_values"]
        return values[0]

    def toned(image: Image.Image) -> Float[Tensor, "3 h w"]:
        return run([image], do_resize=False, do_center_crop=False)["pixel_values"][0]

    together = bool(getattr(processor, "do_pad", False))
    return Preprocessing(run, sized, toned, _geometry_of(processor), together=together)


def _geometry_of(processor: Any) -> Geometry | None:
    """As the processor's settings say it; None for settings that say something else."""
    size, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    if not getattr(processor, "do_resize", False) or size is None:
        return None
    given = {key: value for key, value in dict(size).items() if value is not None}
    if set(given) == {"shortest_edge"}:
        resize: int | tuple[int, int] = given["shortest_edge"]
    elif set(given) == {"height", "width"}:
        resize = given["height"], given["width"]
    else:
        return None
    crops = bool(getattr(processor, "do_center_crop", False))
    middle = (crop["height"], crop["width"]) if crops and crop is not None else None
    return _fitting(resize, middle, processor.resample)


def _fitting(
    resize: int | tuple[int, int],
    crop: tuple[int, int] | None,
    resample: Any,
    offset: Callable[[int], int] = lambda spare: spare // 2,
) -> Geometry | None:
    """A geometry; None where the middle is larger than the picture, which takes padding."""
    least = (resize, resize) if isinstance(resize, int) else resize
    if crop is not None and (crop[0] > least[0] or crop[1] > least[1]):
        return None
    return Geometry(resize, crop, Image.Resampling(resample), offset)


def of_transform(transform: Any) -> Preprocessing:
    """That of open_clip: a `Compose` of torchvision, in which `ToTensor` parts the halves."""
    steps = list(getattr(transform, "transforms", []))
    names = [type(step).__name__ for step in steps]
    cut = next((i for i, name in enumerate(names) if name.endswith("ToTensor")), len(steps))

    def whole(images: Sequence[Image.Image]) -> Inputs:
        return {"image": torch.stack([transform(image) for image in images])}

    def sized(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        for step in steps[:cut]:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def toned(image: Image.Image) -> Float[Tensor, "3 h w"]:
        tones: Any = image
        for step in steps[cut:]:
            tones = step(tones)
        values: Tensor = tones
        return values

    return Preprocessing(whole, sized, toned, _geometry_in(steps[:cut]), name="image")


def _geometry_in(steps: Sequence[Any]) -> Geometry | None:
    """That of `Resize` and perhaps `CenterCrop`; None where there is anything else."""
    by_name = {type(step).__name__: step for step in steps}
    resize, crop = by_name.pop("Resize", None), by_name.pop("CenterCrop", None)
    if resize is None or any("Convert" not in name and name != "function" for name in by_name):
        return None
    size = resize.size if isinstance(resize.size, int) else tuple(resize.size)
    if not isinstance(size, int) and len(size) == 1:
        size = size[0]
    middle = None if crop is None else tuple(crop.size)
    modes = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    mode = modes.get(resize.interpolation.value)
    return None if mode is None else _fitting(size, middle, mode, lambda spare: round(spare / 2))
