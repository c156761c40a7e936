"""Decode the bytes of an image file to an upright RGB image.

Six formats are supported: JPEG (and the first image of an MPO), PNG, WebP, GIF and TIFF (first
frame or page) and BMP. Embedded colour profiles are not applied, because the preprocessing of the
encoders does not apply them either.
"""

import io
import random
import re

import numpy as np
import PIL.Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from zeroshot.errors import UnreadableImageError

MAX_RATIO = 200
"""Limit of long side to short side. An encoder that resizes the short side of a 65500 x 1 image to
224 would make 3 gigapixels of it."""

OPENERS: dict[str, tuple[re.Pattern[bytes], type[ImageFile]]] = {
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "WebP": (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "BMP": (re.compile(rb"BM"), BmpImageFile),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
}
"""The first bytes of each format, and its opener.

The openers are called directly: `PIL.Image.open` checks for decompression bombs with a global limit
and a warning, and neither is safe to change while other threads decode.
"""

OTHER_KINDS = (
    (rb"\Z", "an empty file"),
    (rb"version https://git-lfs", "a Git LFS pointer (fetch it with 'git lfs pull')"),
    (rb"....ftyp(hei|mif1|msf1)", "a HEIC picture"),
    (rb"....ftypavi", "an AVIF picture"),
    (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video"),
    (rb"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (rb"8BPS", "a Photoshop picture"),
    (rb"\0\0\x01\0", "an icon"),
    (rb"%PDF", "a PDF document"),
    (rb"PK\x03\x04|\x1f\x8b", "an archive"),
    (rb"MZ|\x7fELF", "a program"),
    (rb"\0+\Z", "a file of zero bytes only"),
    (rb"(?i:[^<]*<(!doctype html|html))", "a web page"),
    (rb"(?i:\s*<[^\0]*svg)", "an SVG drawing"),
    (rb"[^\0-\x08\x0b\x0e-\x1a\x1c-\x1f]+\Z", "a text file"),
    (rb"", "a file of an unknown kind"),
)
"""Patterns for the first 4096 bytes of other files; the first match counts."""

UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""The transform that undoes each EXIF orientation."""


def _other_kind(data: bytes) -> UnreadableImageError:
    head = data[:4096]
    what = next(what for kind, what in OTHER_KINDS if re.match(kind, head, re.DOTALL))
    kinds = ", ".join(OPENERS)
    return UnreadableImageError(
        f"{what}; read are {kinds}" if what.endswith("picture") else f"{what}, not a picture"
    )


def _broken(kind: str, error: Exception) -> UnreadableImageError:
    fault = "truncated" if "truncated" in str(error).lower() else "damaged"
    return UnreadableImageError(f"{fault} {kind} ({error})")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < 1:
        raise UnreadableImageError(f"a picture of {width} x {height} pixels")
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise UnreadableImageError(f"{width} x {height} pixels are more than {limit}")
    if max(size) > MAX_RATIO * min(size):
        raise UnreadableImageError(f"{width} x {height} pixels are too narrow to be encoded")


def _eight_bits(image: Image) -> Image:
    """An 8-bit image from grey values of 16 bits (mode `I` or `I;16`) or floats in 0..1."""
    values = np.asarray(image)
    top = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):  # also if one is NaN
        raise UnreadableImageError(f"grey values outside 0..{top}; convert it to 8 bits first")
    return PIL.Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def _to_rgb(image: Image) -> Image:
    """Convert to RGB; transparency becomes white, as in web pages and viewers.

    Without the alpha channel the image would show the hidden colour of transparent pixels.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = PIL.Image.new("RGBA", layer.size, "white")
        return PIL.Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _turn(image: Image) -> PIL.Image.Transpose | None:
    """The transform that EXIF or XMP asks for; None if they cannot be parsed, as in viewers."""
    try:
        return UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # broken tags raise every type of exception
        return None


def _checked(image: Image, max_pixels: int) -> Image:
    """A new upright RGB image without metadata, which would ask to turn it once more."""
    _check_size(image.size, max_pixels)
    image.load()
    turn = _turn(image)
    rgb = _to_rgb(image)
    rgb.info = {}
    return rgb if turn is None else rgb.transpose(turn)


def upright(image: Image, max_pixels: int, kind: str = "picture") -> Image:
    """A PIL image, loaded or not, as a new upright RGB image without metadata.

    UnreadableImageError if it has more than `max_pixels`, is extremely narrow or broken.
    """
    try:
        return _checked(image, max_pixels)
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise every type of exception for broken files
        raise _broken(kind, error) from error


def _kind_of(data: bytes) -> str:
    """The format by its first bytes; UnreadableImageError for another one."""
    kind = next((kind for kind, (begins, _) in OPENERS.items() if begins.match(data)), None)
    if kind is None:
        raise _other_kind(data)
    return kind


def _opened(data: bytes) -> ImageFile:
    kind = _kind_of(data)
    try:
        return OPENERS[kind][1](io.BytesIO(data))
    except Exception as error:  # as above
        raise _broken(kind, error) from error


def decode(data: bytes, max_pixels: int, draft_side: int | None = None) -> Image:
    """Decode the bytes of a file as `upright` does; UnreadableImageError also for other formats.

    With `draft_side` the decoder reduces a JPEG to a half, a quarter or an eighth of its size: the
    smallest with no side below `draft_side`.
    """
    image = _opened(data)
    with image:
        if draft_side is not None and isinstance(image, JpegImageFile):
            _check_size(image.size, max_pixels)
            image.draft(None, (draft_side, draft_side))
        return upright(image, max_pixels, _kind_of(data))


def check(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height as the file's head says; no pixel is decoded.

    UnreadableImageError as from `decode`, for what the head alone shows.
    """
    with _opened(data) as image:
        _check_size(image.size, max_pixels)
        return image.size


def view(image: Image, seed: str) -> Image:
    """A random crop of an image, perhaps mirrored: the same one for the same seed.

    As torchvision's RandomResizedCrop and RandomHorizontalFlip with their defaults, which TPT, MTA
    and ZERO use: 8 to 100 % of the area, sides in a ratio of 3:4 to 4:3, resized to a square.
    """
    source = random.Random(seed)
    width, height = image.size
    for _ in range(10):
        area = source.uniform(0.08, 1.0) * width * height
        ratio = (3 / 4) ** source.uniform(-1, 1)
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            break
    else:  # a very long image: the largest crop that the ratio allows
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = source.randint(0, width - w), source.randint(0, height - h)
    side = max(w, h)
    part = image.crop((left, top, left + w, top + h))
    part = part.resize((side, side), PIL.Image.Resampling.BICUBIC)
    if source.random() < 0.5:
        part = part.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return part
