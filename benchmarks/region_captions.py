"""Margins around boxes: `python benchmarks/region_captions.py` says what captions of regions name.

New scenes of the pocket set with one to three things, and the box around each. "named" is the share
of boxes whose caption has the thing's colour and shape, "alone" those that name nothing else.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import zeroshot

sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "pocket"))

from world import SHAPES, draw_scene, render


def main() -> None:
    """Print a row for each margin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--method", default="magic")
    parser.add_argument("--margins", default="0,0.1,0.25,0.5,1")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    scenes = [draw_scene(rng, 1 + number % 3) for number in range(options.scenes)]
    drawn = [render(rng, scene, side=128) for scene in scenes]
    things = [f"{thing.colour} {thing.shape}" for scene in scenes for thing in scene.things]
    models = zeroshot.load("pocket")
    for margin in map(float, options.margins.split(",")):
        captions = [
            region.caption
            for render in drawn
            for result in zeroshot.caption(
                render.image, models, options.method, box=render.boxes, margin=margin, cache=False
            )
            for region in result.regions
        ]
        named = [thing in caption for thing, caption in zip(things, captions, strict=True)]
        shapes = [sum(caption.count(shape) for shape in SHAPES) for caption in captions]
        alone = [own and count == 1 for own, count in zip(named, shapes, strict=True)]
        print(
            f"margin {margin:g}: {len(things)} boxes, named {np.mean(named):.2f}, "
            f"alone {np.mean(alone):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
