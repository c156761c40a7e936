"""An image encoder's preprocessing in two steps: resizing in threads, normalization on the device.

A library's preprocessing first resizes and crops an image, which gives bytes, and then maps each
byte by its channel: it rescales and normalizes. The first step runs ahead of the network, image by
image. The second is a lookup table of 3 x 256 numbers, filled by the library itself and applied to
a batch on the network's device: a byte takes a quarter of the memory of a float32.

Test images show whether the two steps, and our own resizing, equal the library's preprocessing bit
for bit. If not (patches of any number, masks), the library's runs as it is, image by image, or on
a whole batch if it pads images to the largest.
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
from zeroshot.models.devices import sent

__all__ = ["Geometry", "Preprocessing", "from_processor", "from_transform"]

ModelInputs = dict[str, Tensor]
"""A network's inputs by name, the batch first."""

Whole = Callable[[Sequence[Image.Image]], ModelInputs]
Resize = Callable[[Image.Image], UInt8[Tensor, "3 h w"]]
Normalize = Callable[[Image.Image], Float[Tensor, "3 h w"]]

FAST = "fast-1"
"""Names the shortcuts of `Preprocessing.faster`; changes whenever their pixels would."""
OVERSAMPLING = 2
"""A JPEG is decoded at no less than this multiple of the network's input, in both directions."""
TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class Geometry:
    """How an image is resized and cropped to the network's input."""

    resize: int | tuple[int, int]
    """The shorter side, or height and width."""
    crop: tuple[int, int] | None
    """Height and width of the center crop."""
    resample: Image.Resampling
    offset: Callable[[int], int] = lambda excess: excess // 2
    """Start of the crop, by the number of pixels that the side is too long."""

    @property
    def side(self) -> int:
        """The shorter side if that alone is fixed, else the longer of height and width."""
        return self.resize if isinstance(self.resize, int) else max(self.resize)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        long = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, long) if width <= height else (long, self.resize)

    def apply(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """As the libraries do it, by PIL."""
        image = image.resize(self.resized_size(*image.size), self.resample)
        left, top, width, height = self._crop_box(*image.size)
        return _bytes(image.crop((left, top, left + width, top + height)))

    def apply_fast(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """By torch, in a quarter of the time; a few bytes differ by one."""
        width, height = self.resized_size(*image.size)
        values = torch.nn.functional.interpolate(
            _bytes(image)[None],
            size=(height, width),
            mode=TORCH_MODES[self.resample],
            antialias=True,
        )
        left, top, width, height = self._crop_box(width, height)
        return values[0, :, top : top + height, left : left + width].contiguous()

    def _crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        crop_height, crop_width = self.crop or (height, width)
        left, top = self.offset(width - crop_width), self.offset(height - crop_height)
        return left, top, crop_width, crop_height


class Preprocessing:
    """Images to a network's inputs: `pixels` for threads, `batch` for the device."""

    shortcuts: str = ""
    """Names what makes pixels differ from the library's; empty unless made by `faster`."""
    draft_side: int | None = None
    """A JPEG may be decoded at reduced size as long as no side is shorter than this."""

    def __init__(
        self,
        whole: Whole,
        resize: Resize,
        normalize: Normalize,
        geometry: Geometry | None,
        name: str = "pixel_values",
        batch_dependent: bool = False,
    ) -> None:
        """`resize` and `normalize` are the steps of `whole`, which gives `name` and nothing else.

        `geometry` is what `resize` probably does. `batch_dependent` means that an image's inputs
        depend on the other images of its batch.
        """
        self._whole = whole
        self._name = name
        self._batch_dependent = batch_dependent
        self._table = None if batch_dependent else _lookup_table(whole, resize, normalize, name)
        confirmed = self._table is not None and geometry is not None and _equals(geometry, resize)
        self._geometry = geometry if confirmed else None
        self._resize = resize if self._geometry is None else self._geometry.apply

    def faster(self) -> "Preprocessing":
        """The same with shortcuts that change pixels a little, or itself if there are none.

        torch resizes, and large JPEG files are decoded at reduced size.
        """
        if self._geometry is None or self._geometry.resample not in TORCH_MODES:
            return self
        fast = copy.copy(self)
        fast._resize = self._geometry.apply_fast
        fast.shortcuts = FAST
        fast.draft_side = OVERSAMPLING * self._geometry.side
        return fast

    def pixels(self, image: Image.Image) -> Pixels:
        """One image, as far as it can be prepared without the others and the device."""
        if self._batch_dependent:
            return image
        return self._whole([image]) if self._table is None else self._resize(image)

    def batch(
        self, pixels: Sequence[Pixels], device: torch.device, dtype: torch.dtype
    ) -> ModelInputs:
        """The network's inputs for these images, on its device."""
        if self._table is not None:
            values = sent(torch.stack(list(pixels)), device)
            return {self._name: _look_up(values, self._table.to(device, dtype))}
        if self._batch_dependent:
            inputs = self._whole(pixels)
        else:
            inputs = {key: torch.cat([p[key] for p in pixels]) for key in pixels[0]}
        return {
            key: sent(value, device).to(dtype if value.is_floating_point() else value.dtype)
            for key, value in inputs.items()
        }

    def normalize(
        self, images: Sequence[Image.Image], device: torch.device, dtype: torch.dtype
    ) -> Float[Tensor, "n 3 h w"]:
        """The network's inputs for images of one size, which keep their size.

        UserError if the preprocessing is more than resizing and normalization.
        """
        if self._table is None:
            raise UserError(
                "this encoder's preprocessing cannot be split into resizing and normalization, so "
                "it cannot encode parts of an image at their own size; use another encoder, such "
                "as a CLIP"
            )
        values = torch.stack([_bytes(image) for image in images])
        return _look_up(sent(values, device), self._table.to(device, dtype))


def _bytes(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _look_up(
    values: UInt8[Tensor, "n 3 h w"], table: Float[Tensor, "3 256"]
) -> Float[Tensor, "n 3 h w"]:
    """Each byte by its channel."""
    out = table.new_empty(values.shape)
    for channel, numbers in enumerate(table):
        out[:, channel] = numbers[values[:, channel].int()]
    return out


def _lookup_table(
    whole: Whole, resize: Resize, normalize: Normalize, name: str
) -> Float[Tensor, "3 256"] | None:
    """The normalization of each byte in each channel; None if the two steps are not the whole."""
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)  # [1, 256, 3]
    probe = next(_probes())
    try:
        table = normalize(Image.fromarray(levels))[:, 0]
        small = resize(probe)
        expected = whole([probe])
    except Exception:  # a library refuses what it does not know with any exception
        return None
    if table.shape != (3, 256) or small.dtype != torch.uint8 or list(expected) != [name]:
        return None
    return table if torch.equal(_look_up(small[None], table), expected[name]) else None


def _probes() -> Iterator[Image.Image]:
    """Noise: a wide, a high and a small image."""
    for height, width in ((300, 451), (517, 389), (97, 130)):
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        yield Image.fromarray(noise)


def _equals(geometry: Geometry, resize: Resize) -> bool:
    """Whether the library resizes and crops in this way."""
    return all(torch.equal(geometry.apply(probe), resize(probe)) for probe in _probes())


def from_processor(processor: Any) -> Preprocessing:
    """The preprocessing of an image processor of transformers."""

    def run(images: Sequence[Image.Image], **switches: bool) -> ModelInputs:
        return dict(processor(images=list(images), return_tensors="pt", **switches))

    def resize(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        values: Tensor = run([image], do_rescale=False, do_normalize=False)["pixel_values"]
        return values[0]

    def normalize(image: Image.Image) -> Float[Tensor, "3 h w"]:
        return run([image], do_resize=False, do_center_crop=False)["pixel_values"][0]

    pads = bool(getattr(processor, "do_pad", False))
    return Preprocessing(
        run, resize, normalize, _processor_geometry(processor), batch_dependent=pads
    )


def _processor_geometry(processor: Any) -> Geometry | None:
    """The geometry of the processor's settings; None for settings of another kind."""
    size, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None)
    if not getattr(processor, "do_resize", False) or size is None:
        return None
    sides = {key: value for key, value in dict(size).items() if value is not None}
    if set(sides) == {"shortest_edge"}:
        resize: int | tuple[int, int] = sides["shortest_edge"]
    elif set(sides) == {"height", "width"}:
        resize = sides["height"], sides["width"]
    else:
        return None
    crops = bool(getattr(processor, "do_center_crop", False))
    center = (crop["height"], crop["width"]) if crops and crop is not None else None
    return _geometry(resize, center, processor.resample)


def _geometry(
    resize: int | tuple[int, int],
    crop: tuple[int, int] | None,
    resample: Any,
    offset: Callable[[int], int] = lambda excess: excess // 2,
) -> Geometry | None:
    """A geometry; None if the crop is larger than the image, which would need padding."""
    smallest = (resize, resize) if isinstance(resize, int) else resize
    if crop is not None and (crop[0] > smallest[0] or crop[1] > smallest[1]):
        return None
    return Geometry(resize, crop, Image.Resampling(resample), offset)


def from_transform(transform: Any) -> Preprocessing:
    """The preprocessing of open_clip: a `Compose` of torchvision, split at `ToTensor`."""
    steps = list(getattr(transform, "transforms", []))
    names = [type(step).__name__ for step in steps]
    cut = next((i for i, name in enumerate(names) if name.endswith("ToTensor")), len(steps))

    def whole(images: Sequence[Image.Image]) -> ModelInputs:
        return {"image": torch.stack([transform(image) for image in images])}

    def resize(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        for step in steps[:cut]:
            image = step(image)
        return _bytes(image)

    def normalize(image: Image.Image) -> Float[Tensor, "3 h w"]:
        values: Any = image
        for step in steps[cut:]:
            values = step(values)
        tensor: Tensor = values
        return tensor

    return Preprocessing(whole, resize, normalize, _transform_geometry(steps[:cut]), name="image")


def _transform_geometry(steps: Sequence[Any]) -> Geometry | None:
    """The geometry of `Resize` and perhaps `CenterCrop`; None for any other step."""
    by_name = {type(step).__name__: step for step in steps}
    resize, crop = by_name.pop("Resize", None), by_name.pop("CenterCrop", None)
    if resize is None or any("Convert" not in name and name != "function" for name in by_name):
        return None
    size = resize.size if isinstance(resize.size, int) else tuple(resize.size)
    if not isinstance(size, int) and len(size) == 1:
        size = size[0]
    center = None if crop is None else tuple(crop.size)
    modes = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    mode = modes.get(resize.interpolation.value)
    return None if mode is None else _geometry(size, center, mode, lambda excess: round(excess / 2))
