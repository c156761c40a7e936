"""Masks and boxes drawn on images, in colours that colour-blind people can tell apart.

The first colours are those of Okabe and Ito (2008, "Color Universal Design"). Further hues are a
golden angle apart, with three lightnesses in turn. Colour is never the only cue: regions and boxes
have outlines, and a legend below the image names the label of each colour.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

OKABE_ITO: tuple[Colour, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # reddish purple
    (86, 180, 233),  # sky blue
    (240, 228, 66),  # yellow
)
BACKGROUND: Colour = (0, 0, 0)
INK, PAPER = (33, 33, 33), (255, 255, 255)
OPACITY = 0.5
"""Opacity of a region's colour over the image."""
MIN_TAGGED = 0.01
"""A region is tagged with its name if it covers at least this share of the image."""
MIN_SIDE = 360
"""The longer side of a drawing is at least this, so that its legend is legible."""


def colour(label: int) -> Colour:
    """The colour of the label with this index, always the same."""
    if label < len(OKABE_ITO):
        return OKABE_ITO[label]
    hue = (label * 0.618033988749895) % 1
    lightness = (0.35, 0.55, 0.75)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def palette_png(index: np.ndarray[tuple[int, int], np.dtype[np.uint16]]) -> Image.Image:
    """A map of labels [h w], 0 for the background, at most 255 labels, as an indexed image."""
    size = (index.shape[1], index.shape[0])
    image = Image.frombytes("P", size, index.astype(np.uint8).tobytes())
    colours = [BACKGROUND, *(colour(label) for label in range(255))]
    image.putpalette([part for one in colours for part in one])
    return image


def draw_regions(
    image: Image.Image,
    masks: Sequence[np.ndarray[tuple[int, int], np.dtype[np.bool_]]],
    labels: Sequence[int],
    names: Sequence[str],
) -> Image.Image:
    """The image with its regions and their outlines, and a legend below.

    Args:
        masks: [h w] of the size of the image, or of the file if the image is a fraction of it.
        labels: the indices of the labels, which give the colours.
        names: the names of the labels.
    """
    large = _enlarge(image)
    pixels = np.asarray(large, dtype=np.float32)
    outline = max(1, round(max(large.size) / 400))
    for mask, label in zip(masks, labels, strict=True):
        inside = np.asarray(Image.fromarray(mask).resize(large.size, Image.Resampling.NEAREST))
        tint = np.array(colour(label), dtype=np.float32)
        pixels = np.where(inside[..., None], pixels + OPACITY * (tint - pixels), pixels)
        pixels[_next_to(inside, 1) & ~inside] = PAPER
        pixels[inside & _next_to(~inside, outline)] = tint
    drawn = Image.fromarray(np.rint(pixels).astype(np.uint8))
    legend = [
        (colour(label), f"{name} {_percent(mask.mean())}")
        for label, name, mask in zip(labels, names, masks, strict=True)
    ]
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=_text_size(drawn))
    for mask, label, name in zip(masks, labels, names, strict=True):
        if mask.mean() >= MIN_TAGGED:
            x, y = (drawn.width / mask.shape[1] * at for at in _middle(mask))
            _tag(draw, (x, y), name, colour(label), font, drawn.size, centred=True)
    return _with_legend(drawn, legend)


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[tuple[float, float, float, float]],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float],
) -> Image.Image:
    """The image with its boxes, names and scores, the best on top, and a legend below."""
    large = _enlarge(image)
    factor = large.width / image.width
    draw = ImageDraw.Draw(large)
    line = max(2, round(max(large.size) / 250))
    font = ImageFont.load_default(size=_text_size(large))
    drawn = list(zip(boxes, labels, names, scores, strict=True))
    for box, label, name, score in reversed(drawn):
        left, top, right, bottom = (factor * side for side in box)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PAPER, width=line + 2)
        draw.rectangle((left, top, right, bottom), outline=colour(label), width=line)
        name = _shorten(name, large.width // 3, draw, font)
        _tag(draw, (left, top), f"{name} {score:.2f}", colour(label), font, large.size)
    seen = dict(zip(labels, names, strict=True))
    count = {label: list(labels).count(label) for label in seen}
    legend = [
        (colour(label), f"{seen[label]} ({count[label]})" if count[label] > 1 else seen[label])
        for label in sorted(seen)
    ]
    return _with_legend(large, legend)


def _enlarge(image: Image.Image) -> Image.Image:
    factor = max(1, -(-MIN_SIDE // max(image.size)))
    size = (factor * image.width, factor * image.height)
    return image.resize(size, Image.Resampling.BICUBIC)


def _text_size(image: Image.Image) -> int:
    return max(13, round(max(image.size) / 36))


def _next_to(inside: np.ndarray, steps: int) -> np.ndarray:
    """Pixels at most this many steps from a true one."""
    grown = inside
    for _ in range(steps):
        wide = np.pad(grown, 1)
        grown = (
            wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
        )
    return grown


def _middle(mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> tuple[int, int]:
    """The pixel of a mask, across and down, that is nearest to its centre of mass."""
    down, across = mask.nonzero()
    nearest = np.argmin((down - down.mean()) ** 2 + (across - across.mean()) ** 2)
    return int(across[nearest]), int(down[nearest])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"


def _readable(on: Colour) -> Colour:
    """Dark or light text, whichever stands out more."""
    red, green, blue = on
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


def _tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    on: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
    centred: bool = False,
) -> None:
    """Draw a name on its colour: at a point, or above a corner, or below it if there is no room."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x, y = corner
    if centred:
        x, y = x - width / 2, y - height / 2
    elif y >= height:
        y -= height
    x, y = min(max(0.0, x), size[0] - width), min(max(0.0, y), size[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=on, outline=_readable(on))
    draw.text((x + 3 - left, y + 3 - top), text, fill=_readable(on), font=font)


def _with_legend(image: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """Add a legend below the image, in as many lines as it needs."""
    if not entries:
        return image
    size = _text_size(image)
    font, gap = ImageFont.load_default(size=size), size // 2
    measure = ImageDraw.Draw(image)
    line = round(1.5 * size)
    placed, x, y = [], gap, gap
    for tint, name in entries:
        name = _shorten(name, image.width - 3 * gap - size, measure, font)
        width = size + gap + round(measure.textlength(name, font=font)) + 2 * gap
        if x > gap and x + width > image.width:
            x, y = gap, y + line
        placed.append((x, y, tint, name))
        x += width
    whole = Image.new("RGB", (image.width, image.height + y + line), PAPER)
    whole.paste(image)
    draw = ImageDraw.Draw(whole)
    for x, y, tint, name in placed:
        y += image.height
        draw.rectangle((x, y, x + size, y + size), fill=tint, outline=INK)
        draw.text((x + size + gap, y + size / 2), name, fill=INK, font=font, anchor="lm")
    return whole


def _shorten(
    name: str,
    width: int,
    measure: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    if measure.textlength(name, font=font) <= width:
        return name
    while name and measure.textlength(f"{name}...", font=font) > width:
        name = name[:-1]
    return f"{name}..."
