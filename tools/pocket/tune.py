"""Which settings caption pocket's scenes best: `python tools/pocket/tune.py --models DIR`.

On 150 scenes of its own seed, none of them held out: the held-out scenes are for the figures that
are reported. The best line goes into `[caption]` of `train.py`'s MODELS_TOML.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from evaluate import names_everything, names_nothing_else  # noqa: E402
from pool import held_out_scenes  # noqa: E402
from world import draw_scene, render  # noqa: E402

from zeroshot.methods.magic import MaGiC  # noqa: E402
from zeroshot.model_set.model_set import resolve  # noqa: E402


def main() -> None:
    """Print a line for each setting, best last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="pocket")
    parser.add_argument("--scenes", type=int, default=150)
    options = parser.parse_args()
    rng, banned = np.random.default_rng(77), held_out_scenes()
    scenes = [draw_scene(rng, 1 + i % 3) for i in range(options.scenes)]
    scenes = [scene for scene in scenes if scene not in banned]
    models = resolve(options.models)
    images = models.encoder.encode_images([render(rng, scene).image for scene in scenes])
    found = []
    for k, alpha, beta in product((6, 10, 20), (0.0, 0.05, 0.1), (0.3, 0.6, 1.0, 1.5)):
        captions = MaGiC(k, alpha, beta, 32).caption(
            images, models.encoder, language_model=models.language_model
        )
        said = [(c.text, s) for c, s in zip(captions, scenes, strict=True)]
        named = np.mean([names_everything(*pair) for pair in said])
        exact = np.mean([names_everything(*p) and names_nothing_else(*p) for p in said])
        found.append((exact, named, f"k={k} alpha={alpha} beta={beta}"))
        print(f"{found[-1][2]}: everything {named:.3f}, and nothing else {exact:.3f}", flush=True)
    print("best:", max(found))


if __name__ == "__main__":
    main()
