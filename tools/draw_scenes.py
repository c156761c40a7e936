"""Draw the example scenes: `python tools/draw_scenes.py`. Seeded, so that the files stay the same."""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "pocket"))

from language import caption  # noqa: E402
from world import Scene, Thing, render  # noqa: E402

SCENES = (
    Scene((Thing("large", "red", "heart"),), "", "white"),
    Scene((Thing("small", "blue", "star"),), "", "black"),
    Scene((Thing("large", "green", "ring"),), "", "striped"),
    Scene((Thing("large", "yellow", "circle"), Thing("small", "purple", "cross")), "left of", "grey"),
    Scene((Thing("small", "orange", "triangle"), Thing("large", "brown", "square")), "above", "dotted"),
    Scene((Thing("large", "pink", "diamond"), Thing("small", "blue", "circle")), "above", "white"),
    Scene(
        (Thing("small", "red", "square"), Thing("small", "green", "heart"), Thing("small", "blue", "ring")),
        "row",
        "checkered",
    ),
    Scene(
        (Thing("small", "yellow", "star"), Thing("large", "purple", "triangle"), Thing("small", "pink", "cross")),
        "row",
        "black",
    ),
)  # fmt: skip


def draw(folder: Path, seed: int = 20) -> None:
    """Write the pictures, and `captions.jsonl` with what is true of each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(SCENES, 1):
        name = "-".join(f"{t.colour}-{t.shape}" for t in scene.things)
        file = folder / f"{number}-{name}.png"
        render(rng, scene, side=128).image.save(file, optimize=True)
        lines.append({"path": file.name, "caption": caption(scene)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    draw(HERE.parent / "examples" / "scenes")
