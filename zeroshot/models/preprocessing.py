"""An image encoder's preprocessing in two halves: sizes in threads, tones on the device.

What a library does to a picture is resizing and cropping, which leaves bytes, and then a function
of each byte and its channel: rescaling and normalising. The first half runs ahead of the network,
picture by picture; the second is a table of 3 x 256 numbers that the library itself fills, and runs
on a batch where the network is. A byte is a quarter of a float32 to hold and to send.

The halves are tried on a picture against the whole, bit for bit. Preprocessing that is something
else (patches of any number, masks) runs whole, still picture by picture; where pictures of a batch
are padded to the largest of them, it runs on the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from zeroshot.models.base import Pixels

__all__ = ["Preprocessing", "of_processor", "of_transform"]

Inputs = dict[str, Tensor]
"""What a network takes, by name, the batch first."""


class Preprocessing:
    """From pictures to what a network takes; `pixels` is for threads, `batch` for the device."""

    def __init__(
        self,
        whole: Callable[[Sequence[Image.Image]], Inputs],
        sized: Callable[[Image.Image], UInt8[Tensor, "3 h w"]],
        toned: Callable[[Image.Image], Float[Tensor, "3 h w"]],
        name: str = "pixel_values",
        together: bool = False,
    ) -> None:
        """`sized` and `toned` are the halves of `whole`, which gives `name` and nothing else.

        `together` says that what becomes of a picture depends on its batch.
        """
        self._whole = whole
        self._sized = sized
        self._name = name
        self._together = together
        self._tones = None if together else _tones(whole, sized, toned, name)

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
    noise = np.random.default_rng(0).integers(0, 256, (300, 451, 3), np.uint8)
    probe = Image.fromarray(noise)
    try:
        tones = toned(Image.fromarray(levels))[:, 0]
        small = sized(probe)
        expected = whole([probe])
    except Exception:  # a library refuses what it does not know with any exception
        return None
    if tones.shape != (3, 256) or small.dtype != torch.uint8 or list(expected) != [name]:
        return None
    return tones if torch.equal(_looked_up(small[None], tones), expected[name]) else None


def of_processor(processor: Any) -> Preprocessing:
    """That of an image processor of transformers."""

    def run(images: Sequence[Image.Image], **switched_off: bool) -> Inputs:
        return dict(processor(images=list(images), return_tensors="pt", **switched_off))

    def sized(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        values: Tensor = run([image], do_rescale=False, do_normalize=False)["pixel_values"]
        return values[0]

    def toned(image: Image.Image) -> Float[Tensor, "3 h w"]:
        return run([image], do_resize=False, do_center_crop=False)["pixel_values"][0]

    return Preprocessing(run, sized, toned, together=bool(getattr(processor, "do_pad", False)))


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

    return Preprocessing(whole, sized, toned, name="image")
