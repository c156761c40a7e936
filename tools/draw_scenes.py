"""Draw the example scenes, always the same: `python tools/draw_scenes.py`."""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "pocket"))

from language import caption  # noqa: E402
from world import Scene, Thing, render  # noqa: E402

SCENES = [
    ("large red heart", "", "white"),
    ("small blue star", "", "black"),
    ("large green ring", "", "striped"),
    ("large yellow circle, small purple cross", "left of", "grey"),
    ("small orange triangle, large brown square", "above", "dotted"),
    ("large pink diamond, small blue circle", "above", "white"),
    ("small red square, small green heart, small blue ring", "row", "checkered"),
    ("small yellow star, large purple triangle, small pink cross", "row", "black"),
]


def scene_of(things: str, relation: str, background: str) -> Scene:
    """A scene from the names of its things, as in `SCENES`."""
    return Scene(tuple(Thing(*thing.split()) for thing in things.split(", ")), relation, background)


def draw(folder: Path, seed: int = 20) -> None:
    """Write the pictures, what is true of each (`captions.jsonl`), and its background."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines, backgrounds = [], []
    for number, scene in enumerate((scene_of(*words) for words in SCENES), 1):
        name = "-".join(f"{t.colour}-{t.shape}" for t in scene.things)
        file = folder / f"{number}-{name}.png"
        render(rng, scene, side=128).image.save(file, optimize=True)
        lines.append({"path": file.name, "caption": caption(scene)})
        backgrounds.append(f"{file.name},{scene.background}\n")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    (folder / "truth.csv").write_text("path,label\n" + "".join(backgrounds), encoding="utf-8")


if __name__ == "__main__":
    draw(HERE.parent / "examples" / "scenes")
