"""Decode the bytes of an image file to an upright RGB image.

Supported are JPEG (and the first image of an MPO), PNG, WebP, GIF, TIFF and AVIF (first frame or
page), BMP, netpbm's PBM, PGM, PPM and grey PFM, HEIC by pillow-heif (the extra `heic`), and the
JPEG in a raw file. JPEG 2000 is not: what its decoder allocates depends on more than the image's
size. Nor is JPEG XL: of its two plug-ins one, under the GPL, decodes all when it opens a file, and
the other is a beta.
Embedded colour profiles are not applied, because the preprocessing of the encoders does not apply
them either.
"""

import io
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import PIL.Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from zeroshot.errors import UnreadableImageError
from zeroshot.images.limits import check_jpeg, check_ppm, check_tiff
from zeroshot.images.raw_previews import raw_preview
from zeroshot.inputs.source import MAX_PIXELS, SIGNATURES
from zeroshot.packaging.extras import how_to_install

try:
    from PIL.AvifImagePlugin import SUPPORTED as HAS_AVIF, AvifImageFile
except ImportError:  # Pillow 11.2
    HAS_AVIF = False

MAX_RATIO = 200
"""Limit of long side to short side. An encoder that resizes the short side of a 65500 x 1 image to
224 would make 3 gigapixels of it."""

OPENERS: dict[str, tuple[re.Pattern[bytes], type[ImageFile]]] = {
    "JPEG": (SIGNATURES["JPEG"], JpegImageFile),
    "PNG": (SIGNATURES["PNG"], PngImageFile),
    "WebP": (SIGNATURES["WebP"], WebPImageFile),
    "GIF": (SIGNATURES["GIF"], GifImageFile),
    "BMP": (SIGNATURES["BMP"], BmpImageFile),
    "TIFF": (SIGNATURES["TIFF"], TiffImageFile),
    "PPM": (SIGNATURES["PPM"], PpmImageFile),
}
"""The first bytes of each format, and its opener.

The openers are called directly: `PIL.Image.open` checks for decompression bombs with a global limit
and a warning, and neither is safe to change while other threads decode.
"""

if HAS_AVIF:
    OPENERS["AVIF"] = SIGNATURES["AVIF"], AvifImageFile

BLOCK = 1 << 26
"""Bytes that Pillow allocates at a time. What is larger than 32 MiB goes back to the system when it
is freed; smaller blocks stay with the thread that decoded the image, so each would keep a large
one."""
if "PILLOW_BLOCK_SIZE" not in os.environ:
    PIL.Image.core.set_block_size(BLOCK)  # type: ignore[attr-defined]

OTHER_KINDS = (
    (rb"\Z", "an empty file"),
    (rb"version https://git-lfs", "a Git LFS pointer (fetch it with 'git lfs pull')"),
    (SIGNATURES["AVIF"].pattern, "an AVIF picture"),
    (rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", "a video"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (rb"8BPS", "a Photoshop picture"),
    (rb"PF\s", "a colour PFM picture"),
    (rb"P7\n", "a PAM picture"),
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
SIDEWAYS = (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8])
"""Transforms that exchange width and height."""
LAST_ROW_FIRST = (UPRIGHT[3], UPRIGHT[4], UPRIGHT[6], UPRIGHT[7])
"""Transforms that put the last row at the top or at the left."""
BAND = 1 << 24
"""Pixels of an image that are converted at a time."""
BYTES_PER_PIXEL = 12
"""Memory while an image is decoded: the decoder's, PIL's four bytes, and those of another copy."""


def _other_kind(data: bytes) -> UnreadableImageError:
    head = data[:4096]
    what = next(what for kind, what in OTHER_KINDS if re.match(kind, head, re.DOTALL))
    kinds = ", ".join(SIGNATURES)
    return UnreadableImageError(
        f"{what}; read are {kinds}" if what.endswith("picture") else f"{what}, not a picture"
    )


def _broken(kind: str, error: Exception) -> UnreadableImageError:
    fault = "truncated" if re.search("(?i)truncated|not enough", str(error)) else "damaged"
    return UnreadableImageError(f"{fault} {kind} ({error})")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if min(size) < 1:
        raise UnreadableImageError(f"a picture of {width} x {height} pixels")
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        hint = "; --max-megapixels allows more" if max_pixels >= MAX_PIXELS else ""
        raise UnreadableImageError(f"{width} x {height} pixels are more than {limit}{hint}")
    if max(size) > MAX_RATIO * min(size):
        raise UnreadableImageError(f"{width} x {height} pixels are too narrow to be encoded")


def _bands(image: Image) -> Iterator[tuple[int, Image]]:
    """The image in parts of at most `BAND` pixels, each after the number of its first row."""
    width, height = image.size
    rows = max(1, BAND // width)
    if rows >= height:
        yield 0, image
        return
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(height, top + rows)))


def _check_grey(image: Image, most: int) -> None:
    for _, band in _bands(image):
        values = np.asarray(band)
        if not (values.min() >= 0 and values.max() <= most):  # also if one is NaN
            raise UnreadableImageError(f"grey values outside 0..{most}; convert it to 8 bits first")


def _eight_bits(image: Image, most: int) -> Image:
    """An 8-bit image from grey values of 0 to `most`."""
    return PIL.Image.fromarray(np.rint(np.asarray(image) * (255 / most)).astype(np.uint8))


def _on_white(image: Image) -> Image:
    layer = image.convert("RGBA")
    white = PIL.Image.new("RGBA", layer.size, "white")
    return PIL.Image.alpha_composite(white, layer).convert("RGB")


def _to_rgb(image: Image, turn: PIL.Image.Transpose | None) -> Image:
    """A new RGB image, turned; transparency becomes white, as in web pages and viewers.

    Without the alpha channel the image would show the hidden colour of transparent pixels.
    """
    if image.mode.startswith("I") or image.mode == "F":
        most = 1 if image.mode == "F" else 65535  # mode `I` or `I;16` is of 16 bits
        _check_grey(image, most)
        return _converted(image, turn, lambda band: _eight_bits(band, most).convert("RGB"))
    if image.has_transparency_data:
        return _converted(image, turn, _on_white)
    return _converted(image, turn, lambda band: band.convert("RGB"))


def _converted(
    image: Image, turn: PIL.Image.Transpose | None, convert: Callable[[Image], Image]
) -> Image:
    """The image, converted and turned band by band: so a large one is in memory twice at most."""
    sideways, from_end = turn in SIDEWAYS, turn in LAST_ROW_FIRST
    size = image.size[::-1] if sideways else image.size
    whole = None
    for top, band in _bands(image):
        part = convert(band) if turn is None else convert(band).transpose(turn)
        if part.size == size:
            return part
        whole = whole or PIL.Image.new("RGB", size)
        place = image.height - top - band.height if from_end else top
        whole.paste(part, (place, 0) if sideways else (0, place))
    assert whole is not None
    return whole


def _turn(image: Image, otherwise: int = 1) -> PIL.Image.Transpose | None:
    """The transform that EXIF or XMP asks for, else `otherwise`; broken ones ask for nothing."""
    try:
        return UPRIGHT.get(image.getexif().get(0x0112, otherwise))
    except Exception:  # broken tags raise every type of exception
        return UPRIGHT.get(otherwise)


def upright(image: Image, max_pixels: int, kind: str = "picture") -> Image:
    """A PIL image, loaded or not, as a new upright RGB image without metadata.

    UnreadableImageError if it has more than `max_pixels`, is extremely narrow or broken.
    """
    with _complaints(kind):
        _check_size(image.size, max_pixels)
        image.load()
        rgb = _to_rgb(image, _turn(image))
        rgb.info = {}  # it would ask to turn the image once more
        return rgb


@contextmanager
def _complaints(kind: str) -> Iterator[None]:
    """Faults of a file of this kind as UnreadableImageError."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise every type of exception for broken files
        raise _broken(kind, error) from error


class OpenedImage:
    """An image file of which only the header was read, and whose limits were checked."""

    def __init__(
        self, kind: str, image: ImageFile, full_size: tuple[int, int], orientation: int = 1
    ) -> None:
        self.kind, self._image, self._full_size = kind, image, full_size
        self._orientation = orientation
        """As in EXIF, for an image that states none itself."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in the file."""
        return self._full_size

    @property
    def memory(self) -> int:
        """Bytes that decoding it takes at most, roughly."""
        return BYTES_PER_PIXEL * self._image.width * self._image.height

    def decoded(self) -> tuple[Image, tuple[int, int]]:
        """The image, upright and RGB, and its width and height in the file."""
        with self._image as file, _complaints(self.kind):
            image = _first_frame(file) if isinstance(file, WebPImageFile) else file
            image.load()
            turn = _turn(file, self._orientation)
            if image.mode == "RGB" and turn is None and not image.has_transparency_data:
                rgb = image._new(image.im)  # nobody else has its pixels
            else:
                rgb = _to_rgb(image, turn)
            rgb.info = {}
            return rgb, self._full_size[::-1] if turn in SIDEWAYS else self._full_size


def _first_frame(file: WebPImageFile) -> Image:
    """As `load`, which would have the pixels in memory four times."""
    data, *_ = file._get_next()
    file._decoder = None
    return PIL.Image.frombytes(file.mode, file.size, data, "raw", file.rawmode)


def opened(data: bytes, max_pixels: int, draft_side: int | None = None) -> OpenedImage:
    """Read the header of an image file; UnreadableImageError for what `decode` refuses."""
    kind = next((kind for kind, begins in SIGNATURES.items() if begins.match(data)), None)
    if kind is None or (kind == "AVIF" and not HAS_AVIF):
        raise _other_kind(data)
    orientation = 1
    with _complaints(kind):
        if kind in ("TIFF", "raw") and (preview := raw_preview(data)) is not None:
            kind, data, orientation = "JPEG", preview.jpeg, preview.orientation
        if kind == "PPM":
            check_ppm(data)
        image = _opener(kind)(io.BytesIO(data))
        size = image.size
        if isinstance(image, JpegImageFile):
            check_jpeg(data)
            _reduce(image, min(max_pixels, MAX_PIXELS), draft_side)
        _check_size(image.size, max_pixels)
        if isinstance(image, TiffImageFile):
            check_tiff(image, len(data), max_pixels)
    return OpenedImage(kind, image, size, orientation)


def _opener(kind: str) -> Callable[[io.BytesIO], ImageFile]:
    if kind != "HEIC":
        return OPENERS[kind][1]
    try:
        found: Callable[[io.BytesIO], ImageFile] = import_module("pillow_heif").HeifImageFile
    except ImportError:
        raise UnreadableImageError(
            f"a HEIC picture, and pillow-heif is not installed: {how_to_install('heic')}"
        ) from None
    return found


def _reduce(image: JpegImageFile, max_pixels: int, draft_side: int | None) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth of its size, if that is asked for.

    At no less than `draft_side` on either side; but at no more than `max_pixels`.
    """
    width, height = image.size
    part = next((p for p in (1, 2, 4, 8) if -(-width // p) * -(-height // p) <= max_pixels), 8)
    across, down = max(1, width // part), max(1, height // part)
    if draft_side is not None:
        across, down = min(across, draft_side), min(down, draft_side)
    if draft_side is not None or part > 1:
        image.draft(None, (across, down))


def decode(data: bytes, max_pixels: int, draft_side: int | None = None) -> Image:
    """Decode the bytes of a file as `upright` does; UnreadableImageError also for other formats.

    A JPEG of more than `max_pixels` is decoded at a half, a quarter or an eighth of its size, which
    then must not be more. With `draft_side` every JPEG is: at the smallest of these sizes with no
    side below `draft_side`.
    """
    return opened(data, max_pixels, draft_side).decoded()[0]


def check(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Width and height as the file's head says; no pixel is decoded.

    UnreadableImageError as from `decode`, for what the head alone shows.
    """
    return opened(data, max_pixels).size


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
