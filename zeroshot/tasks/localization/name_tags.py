"""Names on a drawing: each on its colour, none over another, none outside the image."""

from collections.abc import Iterator

from PIL import ImageDraw, ImageFont

__all__ = ["INK", "PAPER", "Colour", "Font", "Tags", "beside", "near", "readable", "shortened"]

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]
Extent = tuple[float, float]

INK: Colour = (33, 33, 33)
PAPER: Colour = (255, 255, 255)
PADDING = 3
"""Pixels between a name and the edge of its tag."""


class Tags:
    """The tags of one image, which take their places one after another."""

    def __init__(self, draw: ImageDraw.ImageDraw, font: Font, image: tuple[int, int]) -> None:
        self.draw, self.font, self.image = draw, font, image
        self.taken: list[Rectangle] = []

    def size(self, text: str) -> Extent:
        """Width and height of the tag with this text."""
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=self.font)
        return right - left + 2 * PADDING, bottom - top + 2 * PADDING

    def put(self, text: str, on: Colour, spots: Iterator[tuple[float, float]]) -> bool:
        """Draw a tag at the first spot that is free; False if none is.

        Spots are the left top corners of the tag. One beyond the left or right edge is moved
        inwards, one beyond the upper or lower edge is not free.
        """
        width, height = self.size(text)
        for x, y in spots:
            x = min(max(0.0, x), self.image[0] - width)
            box = (x, y, x + width, y + height)
            inside = x >= 0 and y >= 0 and y + height <= self.image[1]
            if inside and not any(_touch(box, other) for other in self.taken):
                self.taken.append(box)
                self._draw(text, on, box)
                return True
        return False

    def _draw(self, text: str, on: Colour, box: Rectangle) -> None:
        left, top, _, _ = self.draw.textbbox((0, 0), text, font=self.font)
        at = (box[0] + PADDING - left, box[1] + PADDING - top)
        self.draw.rectangle(box, fill=on, outline=readable(on))
        self.draw.text(at, text, fill=readable(on), font=self.font)


def beside(box: Rectangle, size: Extent) -> Iterator[tuple[float, float]]:
    """Spots for a tag of this size: above a box, below it, within it; left before right."""
    left, top, right, bottom = box
    for y in (top - size[1], bottom, top, bottom - size[1]):
        yield left, y
        yield right - size[0], y


def near(point: Extent, size: Extent) -> Iterator[tuple[float, float]]:
    """Spots for a tag of this size: around a point, and up to two tags above or below."""
    for steps in (0.0, -1.0, 1.0, -2.0, 2.0):
        yield point[0] - size[0] / 2, point[1] + (1.1 * steps - 0.5) * size[1]


def _touch(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def readable(on: Colour) -> Colour:
    """Dark or light text, whichever stands out more."""
    red, green, blue = on
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


def shortened(name: str, width: float, draw: ImageDraw.ImageDraw, font: Font) -> str:
    """The name, or its beginning and three dots, in so many pixels."""
    if draw.textlength(name, font=font) <= width:
        return name
    while name and draw.textlength(f"{name}...", font=font) > width:
        name = name[:-1]
    return f"{name}..."
