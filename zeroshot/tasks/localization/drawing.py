"""Masks and boxes drawn on images, in colours that colour-blind people can tell apart.

The first colours are those of Okabe and Ito (2008, "Color Universal Design"). Further hues are a
golden angle apart, with three lightnesses in turn. Colour is never the only cue: regions and boxes
have outlines, and a legend below the image names the label of each colour.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zeroshot.tasks.localization.name_tags import (
    INK,
    PAPER,
    Colour,
    Font,
    Tags,
    beside,
    near,
    shortened,
)

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
    tags = Tags(ImageDraw.Draw(drawn), _font(drawn), drawn.size)
    for i in sorted(range(len(masks)), key=lambda i: -masks[i].mean()):
        if masks[i].mean() >= MIN_TAGGED:
            x, y = (drawn.width / masks[i].shape[1] * at for at in _middle(masks[i]))
            name = shortened(names[i], drawn.width // 3, tags.draw, tags.font)
            tags.put(name, colour(labels[i]), near((x, y), tags.size(name)))
    return _with_legend(drawn, legend)


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[tuple[float, float, float, float]],
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float],
) -> Image.Image:
    """The image with its boxes, names and scores, the best on top, and a legend below.

    Names do not cover each other. A box whose name finds no free place gets a number, and its name
    is in the legend.
    """
    large = _enlarge(image)
    factor = large.width / image.width
    draw = ImageDraw.Draw(large)
    line = max(2, round(max(large.size) / 250))
    scaled = [tuple(factor * side for side in box) for box in boxes]
    for box, label in reversed(list(zip(scaled, labels, strict=True))):
        left, top, right, bottom = box
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PAPER, width=line + 2)
        draw.rectangle((left, top, right, bottom), outline=colour(label), width=line)
    tags = Tags(draw, _font(large), large.size)
    unplaced: list[tuple[Colour, str]] = []
    for box, label, name, score in zip(scaled, labels, names, scores, strict=True):
        left, top, right, bottom = box
        text = f"{shortened(name, large.width // 3, draw, tags.font)} {score:.2f}"
        if not tags.put(text, colour(label), beside((left, top, right, bottom), tags.size(text))):
            number = str(len(unplaced) + 1)
            tags.put(number, colour(label), beside((left, top, right, bottom), tags.size(number)))
            unplaced.append((colour(label), f"{number}: {score:.2f} {name}"))
    seen = dict(zip(labels, names, strict=True))
    count = {label: list(labels).count(label) for label in seen}
    legend = [
        (colour(label), f"{seen[label]} ({count[label]})" if count[label] > 1 else seen[label])
        for label in sorted(seen)
    ]
    return _with_legend(large, [*legend, *unplaced])


def _enlarge(image: Image.Image) -> Image.Image:
    factor = max(1, -(-MIN_SIDE // max(image.size)))
    size = (factor * image.width, factor * image.height)
    return image.resize(size, Image.Resampling.BICUBIC)


def _font(image: Image.Image) -> Font:
    return ImageFont.load_default(size=_text_size(image))


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


def _with_legend(image: Image.Image, entries: Sequence[tuple[Colour, str]]) -> Image.Image:
    """Add a legend below the image, in as many lines as it needs."""
    if not entries:
        return image
    size = _text_size(image)
    font, gap = _font(image), size // 2
    measure = ImageDraw.Draw(image)
    line = round(1.5 * size)
    placed, x, y = [], gap, gap
    for tint, name in entries:
        name = shortened(name, image.width - 3 * gap - size, measure, font)
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
