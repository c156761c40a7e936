"""Which method for my images: `python examples/tune.py [LABELLED] [IMAGES] [MODEL SET]`.

LABELLED has a folder for each label, IMAGES are others of the same kind. Without them, leaves of
three trees are drawn: their colour, size and place say nothing, their outline says everything.
"""

import math
import random
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import zeroshot

TREES = ("linden", "sweetgum", "poplar")
SIDE = 128


def outline(tree: str) -> list[tuple[float, float]]:
    """A leaf is a heart, a star or a diamond."""
    if tree == "poplar":
        return [(64, 12), (106, 74), (64, 100), (22, 74)]
    if tree == "sweetgum":
        turns = [(i * math.pi / 5, (46, 20)[i % 2]) for i in range(10)]
        return [(64 + r * math.sin(a), 62 - r * math.cos(a)) for a, r in turns]
    return [
        (
            64 + 42 * math.sin(t) ** 3,
            60 - 34 * math.cos(t) + 13 * math.cos(2 * t) + 5 * math.cos(3 * t),
        )
        for t in (i / 10 for i in range(63))
    ]


def draw(tree: str, seed: object) -> Image.Image:
    chance = random.Random(f"{tree} {seed}")
    picture = Image.new("RGB", (SIDE, SIDE), tuple(chance.randint(200, 255) for _ in range(3)))
    leaf = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(leaf)
    pen.line([64, 90, 64, 124], fill=255, width=4)
    pen.polygon(outline(tree), fill=255)
    size = chance.randint(76, SIDE)
    leaf = leaf.rotate(chance.uniform(-25, 25)).resize((size, size))
    colour = (chance.randint(20, 200), chance.randint(90, 170), chance.randint(20, 60))
    at = (chance.randint(0, SIDE - size), chance.randint(0, SIDE - size))
    picture.paste(colour, at, leaf)
    return picture


def draw_leaves(folder: Path, labelled: int = 8, others: int = 24) -> tuple[Path, Path]:
    """Labelled leaves in a folder for each tree, and others in one folder."""
    for tree in TREES:
        (folder / "labelled" / tree).mkdir(parents=True)
        (folder / "others").mkdir(exist_ok=True)
        for i in range(labelled):
            draw(tree, i).save(folder / "labelled" / tree / f"{i}.png")
        for i in range(others):
            draw(tree, labelled + i).save(folder / "others" / f"{tree}-{i}.png")
    return folder / "labelled", folder / "others"


def main(labelled: str = "", images: str = "", models: str = "pocket") -> None:
    with tempfile.TemporaryDirectory() as folder:
        shots, others = (Path(labelled), Path(images)) if labelled else draw_leaves(Path(folder))
        labels = sorted(place.name for place in shots.iterdir() if place.is_dir())
        recipe = zeroshot.tune(others, labels, models, shots=shots, suggest=3)
        print(recipe.verdict)
        if f := recipe.figures:
            print(f"right: {f.accuracy:.0%}, 95 % interval {f.low:.0%} to {f.high:.0%}")
        print("label next:", *(Path(path).name for path in recipe.suggested))
        for result in zeroshot.classify(others, recipe=recipe, models=models, top_k=1):
            best = ", ".join(f"{x.label} {x.score:.2f}" for x in result.labels)
            print(f"{Path(result.path or '').name}: {best or result.error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
