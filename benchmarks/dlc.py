"""What DLC changes on the pocket set: `python benchmarks/dlc.py`.

New scenes with one to three things. The set's language model sees no image, so its own caption is
one for all; `dlc` corrects its logits, `magic` guides it. "right" is the share of scenes whose
caption names every thing, "things" that of the things, "cosine" the caption's fit by the encoder.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import zeroshot

sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "pocket"))

from world import draw_scene, render

RUNS = (
    ("dlc", {"strength": 0.0}),
    ("dlc", {}),
    ("dlc", {"start": 1}),
    ("magic", {}),
)


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    scenes = [draw_scene(rng, 1 + number % 3) for number in range(options.scenes)]
    images = [render(rng, scene, side=128).image for scene in scenes]
    models = zeroshot.load("pocket")
    zeroshot.caption(images[:1], models, "magic", cache=False)  # loads
    for method, given in RUNS:
        begin = time.process_time()
        found = zeroshot.caption(images, models, method, cache=False, **given)
        seconds = (time.process_time() - begin) / len(images)
        named = [
            [f"{thing.colour} {thing.shape}" in (result.caption or "") for thing in scene.things]
            for scene, result in zip(scenes, found, strict=True)
        ]
        each = [one for own in named for one in own]
        shown = ", ".join(f"{name}={value:g}" for name, value in given.items())
        print(
            f"{method} {shown}: right {np.mean([all(own) for own in named]):.2f}, "
            f"things {np.mean(each):.2f}, "
            f"cosine {np.mean([result.score for result in found]):.3f}, "
            f"{seconds:.2f} CPU-s per image",
            flush=True,
        )


if __name__ == "__main__":
    main()
