"""Draw many different scenes: `python tools/many_scenes.py FOLDER COUNT`."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "pocket"))

from world import draw_scene, render


def draw(folder: Path, count: int, seed: int = 0, side: int = 64) -> list[Path]:
    """Write `count` pictures, always the same; those that are there are left."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.png" for number in range(count)]
    for number, file in enumerate(files):
        if not file.exists():
            rng = np.random.default_rng([seed, number])
            render(rng, draw_scene(rng), side=side).image.save(file)
    return files


if __name__ == "__main__":
    draw(Path(sys.argv[1]), int(sys.argv[2]))
