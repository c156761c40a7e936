"""Write the held-out pocket scenes and what is in them: `python tools/pocket/scenes.py FOLDER`.

`truth.json` is in COCO's instances format: a category for each colour and shape, and the box of
every thing. `zeroshot eval FOLDER --task multilabel` reads it.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pool import held_out_renders
from world import labels


def write(folder: Path, count: int) -> None:
    """The first `count` scenes, always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    names = labels()
    images, annotations = [], []
    for number, (scene, drawn) in enumerate(held_out_renders(count), 1):
        file = f"{number:04d}.png"
        drawn.image.save(folder / file)
        width, height = drawn.image.size
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        for thing, box in zip(scene.things, drawn.boxes.tolist(), strict=True):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(f"{thing.colour} {thing.shape}") + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    held = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(held) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500)
    given = parser.parse_args()
    write(given.folder, given.count)
