"""Masks and boxes drawn on images, with colours that colour-blind people tell apart.

The first colours are those of Okabe and Ito (2008, "Color Universal Design"); further ones step
around the circle of hues by the golden angle, at lightnesses that alternate. A colour is never the
only sign: regions and boxes have outlines, and each label stands beside its colour below the
image.
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
"""Of a region's colour over the image."""
TAGGED = 0.01
"""Of the image, what a region covers at least to bear its name."""
SHORTEST = 360
"""A drawn image's longer side is at least this, so that its legend can be read."""


def colour(place: int) -> Colour:
    """The colour of the label at this place, always the same."""
    if place < len(OKABE_ITO):
        return OKABE_ITO[place]
    hue = (place * 0.618033988749895) % 1
    lightness = (0.35, 0.55, 0.75)[place % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def palette_png(index: np.ndarray[tuple[int, int], np.dtype[np.uint16]]) -> Image.Image:
    """A map of labels [h w], 0 for the background, at most 255 labels, as an indexed image."""
    size = (index.shape[1], index.shape[0])
    picture = Image.frombytes("P", size, index.astype(np.uint8).tobytes())
    colours = [BACKGROUND, *(colour(place) for place in range(255))]
    picture.putpalette([part for one in colours for part in one])
    return picture


def draw_regions(
    picture: Image.Image,
    masks: Sequence[np.ndarray[tuple[int, int], np.dtype[np.bool_]]],
    places: Sequence[int],
    names: Sequence[str],
) -> Image.Image:
    """The image under its regions, each with an outline, and a legend below.

    Args:
        masks: [h w] of the image's size.
        places: of the labels, which give the colours.
        names: of the labels.
    """
    large = _enlarged(picture)
    pixels = np.asarray(large, dtype=np.float32)
    outline = max(1, round(max(large.size) / 400))
    for mask, place in zip(masks, places, strict=True):
        held = Image.fromarray(mask).resize(large.size, Image.Resampling.NEAREST)
        inside = np.asarray(held)
        tint = np.array(colour(place), dtype=np.float32)
        pixels = np.where(inside[..., None], pixels + OPACITY * (tint - pixels), pixels)
        pixels[_next_to(inside, 1) & ~inside] = PAPER
        pixels[inside & _next_to(~inside, outline)] = tint
    drawn = Image.fromarray(np.rint(pixels).astype(np.uint8))
    legend = [
        (colour(place), f"{name} {_percent(mask.mean())}")
        for place, name, mask in zip(places, names, masks, strict=True)
    ]
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=_text_size(drawn))
    factor = drawn.width / picture.width
    for mask, place, name in zip(masks, places, names, strict=True):
        if mask.mean() >= TAGGED:
            x, y = (factor * at for at in _middle(mask))
            _tag(draw, (x, y), name, colour(place), font, drawn.size, centred=True)
    return _with_legend(drawn, legend)


def draw_boxes(
    picture: Image.Image,
    boxes: Sequence[tuple[float, float, float, float]],
    places: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float],
) -> Image.Image:
    """The image with its boxes, named and scored, and a legend below; the best lie on top."""
    large = _enlarged(picture)
    factor = large.width / picture.width
    draw = ImageDraw.Draw(large)
    line = max(2, round(max(large.size) / 250))
    font = ImageFont.load_default(size=_text_size(large))
    drawn = list(zip(boxes, places, names, scores, strict=True))
    for box, place, name, score in reversed(drawn):
        left, top, right, bottom = (factor * side for side in box)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PAPER, width=line + 2)
        draw.rectangle((left, top, right, bottom), outline=colour(place), width=line)
        name = _shortened(name, large.width // 3, draw, font)
        _tag(draw, (left, top), f"{name} {score:.2f}", colour(place), font, large.size)
    seen = dict(zip(places, names, strict=True))
    count = {place: list(places).count(place) for place in seen}
    legend = [
        (colour(place), f"{seen[place]} ({count[place]})" if count[place] > 1 else seen[place])
        for place in sorted(seen)
    ]
    return _with_legend(large, legend)


def _enlarged(picture: Image.Image) -> Image.Image:
    factor = max(1, -(-SHORTEST // max(picture.size)))
    size = (factor * picture.width, factor * picture.height)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _text_size(picture: Image.Image) -> int:
    return max(13, round(max(picture.size) / 36))


def _next_to(inside: np.ndarray, steps: int) -> np.ndarray:
    """Pixels within so many steps of true ones."""
    grown = inside
    for _ in range(steps):
        wide = np.pad(grown, 1)
        grown = (
            wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
        )
    return grown


def _middle(mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> tuple[int, int]:
    """The pixel of a mask, across and down, that is nearest to the mean of all."""
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
    """A word on its colour: around a point, or above a corner, or below where there is no room."""
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


def _with_legend(picture: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """Swatches and names below the image, in as many lines as they need."""
    if not entries:
        return picture
    size = _text_size(picture)
    font, gap = ImageFont.load_default(size=size), size // 2
    measure = ImageDraw.Draw(picture)
    line = round(1.5 * size)
    places, x, y = [], gap, gap
    for tint, name in entries:
        name = _shortened(name, picture.width - 3 * gap - size, measure, font)
        width = size + gap + round(measure.textlength(name, font=font)) + 2 * gap
        if x > gap and x + width > picture.width:
            x, y = gap, y + line
        places.append((x, y, tint, name))
        x += width
    whole = Image.new("RGB", (picture.width, picture.height + y + line), PAPER)
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    for x, y, tint, name in places:
        y += picture.height
        draw.rectangle((x, y, x + size, y + size), fill=tint, outline=INK)
        draw.text((x + size + gap, y + size / 2), name, fill=INK, font=font, anchor="lm")
    return whole


def _shortened(
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
