"""The pocket world: scenes of one to three coloured shapes, and how they are drawn.

A `Scene` is the whole truth about a picture except for pose and pixels: what things, how they
stand to each other, on what background. `render` draws it with everything else left to chance:
place, turn, tint, noise, source size. Two renders of one scene therefore differ as two photographs
of one arrangement do. All chance comes from one generator.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 35),
    "orange": (250, 135, 20),
    "yellow": (250, 220, 40),
    "green": (35, 160, 60),
    "blue": (40, 90, 225),
    "purple": (130, 45, 175),
    "pink": (250, 140, 190),
    "brown": (125, 75, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
SIZES = {
    "small": (0.095, 0.125),
    "large": (0.17, 0.225),
}  # radius, as a share of the picture's side
BACKGROUNDS = ("white", "grey", "black", "striped", "dotted", "checkered")
SOURCE_SIZES = (64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Thing:
    """One shape: `a small red circle`."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """Things in reading order: left before right, above before below; three stand in a row."""

    things: tuple[Thing, ...]
    relation: str  # "" for one thing, "left of" or "above" for two, "row" for three
    background: str


@dataclass(frozen=True)
class Render:
    """A picture, the thing that covers each 8x8 patch (-1: none), and where things are."""

    image: Image.Image
    grid: np.ndarray  # [8 8] int8
    mask: np.ndarray  # [64 64] bool: where there is anything
    masks: np.ndarray  # [o side side] bool: the picture's own pixels that each thing covers

    @property
    def boxes(self) -> np.ndarray:
        """The smallest box [o 4] around each thing's pixels: left, top, right, bottom."""
        return np.array([around(mask) for mask in self.masks])


def labels() -> list[str]:
    """All names a single thing can have, size left out: `red circle`, ..."""
    return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def draw_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """A random scene; every attribute is uniform and independent of the others."""
    count = count or int(rng.integers(1, 4))
    pick = lambda names: str(rng.choice(list(names)))
    things = tuple(Thing(pick(SIZES), pick(COLOURS), pick(SHAPES)) for _ in range(count))
    relation = ("", pick(("left of", "above")), "row")[count - 1]
    return Scene(things, relation, pick(BACKGROUNDS))


def outline(shape: str) -> np.ndarray:
    """Corner points [m 2] of a shape around the origin, y downwards, radius about 1."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if shape in ("circle", "ring"):
        return np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape == "square":
        return 0.86 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "diamond":
        return np.array([(0, -1.2), (0.72, 0), (0, 1.2), (-0.72, 0)])
    if shape == "triangle":
        return np.array([(0, -1.1), (1.08, 0.8), (-1.08, 0.8)])
    if shape == "star":
        radius = np.where(np.arange(10) % 2 == 0, 1.2, 0.5)
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    if shape == "cross":
        a, b = 0.34, 1.05
        arm = np.array([(-a, -b), (a, -b), (a, -a)])
        quarter = np.array([(0, 1), (-1, 0)])
        return np.concatenate([arm @ np.linalg.matrix_power(quarter, i) for i in range(4)])
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([x / 15, -(y + 2.5) / 15], 1)
    raise ValueError(f"unknown shape {shape!r}; available: {', '.join(SHAPES)}")


def place(rng: np.random.Generator, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Centres [o 2] and radii [o], shares of the side: nothing overlaps, the relation is plain.

    Rejection sampling; radii shrink to the small end of their class as tries fail.
    """
    span = np.array([SIZES[thing.size] for thing in scene.things])
    for attempt in range(10_000):
        ease = max(0.0, 1 - attempt / 300)
        radii = span[:, 0] + (span[:, 1] - span[:, 0]) * ease * rng.random(len(span))
        room = 1.22 * radii[:, None] + 0.01
        unit = rng.random((len(span), 2))
        if scene.relation in ("row", "left of"):
            unit[:, 0].sort()
        centres = room + (1 - 2 * room) * unit
        if stands(scene.relation, centres, radii):
            return centres, radii
    raise RuntimeError(f"no room for {scene}")


def stands(relation: str, centres: np.ndarray, radii: np.ndarray) -> bool:
    """Whether things at these places are apart and clearly in this relation."""
    step = np.diff(centres, axis=0)
    if relation == "row":
        if step[:, 0].min() < 0.14:
            return False
    elif relation:
        along, across = step[0] if relation == "left of" else step[0, ::-1]
        if along < 0.2 or abs(across) > 0.45 * along:
            return False
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) - 1.12 * (
        radii[:, None] + radii[None]
    )
    return bool((apart[~np.eye(len(radii), dtype=bool)] > 0.015).all())


def paint_background(rng: np.random.Generator, name: str, side: int) -> np.ndarray:
    """Background pixels [side side 3], float in 0..255."""
    plain = {"white": 246.0, "grey": 150.0, "black": 16.0}
    if name in plain:
        return np.full((side, side, 3), plain[name] + rng.uniform(-9, 9)) + rng.uniform(-3, 3, 3)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    x, y = x + rng.random(), y + rng.random()
    period = rng.uniform(0.13, 0.2)
    if name == "striped":
        angle = rng.choice([0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]) + rng.uniform(-0.1, 0.1)
        wave = (x * np.cos(angle) + y * np.sin(angle)) / period
        on = wave % 1 < 0.5
    elif name == "checkered":
        on = (np.floor(x / period) + np.floor(y / period)) % 2 == 0
    else:
        on = np.hypot(x % period - period / 2, y % period - period / 2) < 0.3 * period
    light, dark = rng.uniform(205, 250), rng.uniform(85, 135)
    if rng.random() < 0.5:
        light, dark = dark, light
    tint = rng.uniform(-5, 5, 3)
    return np.where(on[..., None], dark, light) + tint


def render(rng: np.random.Generator, scene: Scene, side: int | None = None) -> Render:
    """Draw a scene at `side` pixels (by default one of `SOURCE_SIZES`)."""
    side = side or int(rng.choice(SOURCE_SIZES))
    fine = side * max(2, 256 // side)  # masks are drawn finer and averaged down: smooth edges
    pixels = paint_background(rng, scene.background, side)
    centres, radii = place(rng, scene)
    cover = np.zeros((len(radii), 64, 64))
    masks = np.zeros((len(radii), side, side), bool)
    for o, thing in enumerate(scene.things):
        mask = draw_mask(rng, thing.shape, centres[o], radii[o], fine)
        cover[o] = np.asarray(mask.resize((64, 64), Image.Resampling.BOX)) / 255
        alpha = np.asarray(mask.resize((side, side), Image.Resampling.BOX), np.float64)[..., None]
        masks[o] = alpha[..., 0] > 127
        colour = np.array(COLOURS[thing.colour]) * rng.uniform(0.9, 1.06) + rng.uniform(-10, 10, 3)
        pixels = pixels + alpha / 255 * (colour - pixels)
    pixels = pixels + rng.normal(0, rng.uniform(0, 5), pixels.shape)
    cells = cover.reshape(-1, 8, 8, 8, 8).mean((2, 4))
    grid = np.where(cells.max(0) > 0.12, cells.argmax(0), -1).astype(np.int8)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return Render(image, grid, cover.max(0) > 0.5, masks)


def around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box around the true pixels of a mask [h w], its right and bottom outside."""
    down, across = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def draw_mask(
    rng: np.random.Generator, shape: str, centre: np.ndarray, radius: float, side: int
) -> Image.Image:
    """The shape's silhouette, turned by up to 15 degrees, on a `side` x `side` canvas."""
    angle = np.radians(rng.uniform(-15, 15))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    points = outline(shape) @ turn.T
    draw.polygon([tuple(p) for p in (centre + radius * points) * side], fill=255)
    if shape == "ring":
        draw.polygon([tuple(p) for p in (centre + 0.55 * radius * points) * side], fill=0)
    return mask
