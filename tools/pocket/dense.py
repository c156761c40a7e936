"""Segmentation and detection by a dual encoder alone, measured on drawn scenes: `python tools/pocket/dense.py`.

The renderer knows the pixels of every thing. Settings were chosen by `--tune`, on scenes of another
seed; the figures are of the held-out scenes. Mean IoU is over labels, intersections and unions
being summed over all pictures, each picture counting as 1 whatever its size.
"""

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pool import held_out_renders  # noqa: E402
from world import BACKGROUNDS, Render, Scene, draw_scene, labels, render  # noqa: E402

import zeroshot  # noqa: E402
from zeroshot.cache.embedding_cache import NullCache  # noqa: E402

TUNING_SEED = 99
BACKGROUND = ["background", *(f"{name} background" for name in BACKGROUNDS)]
SETTINGS = {"threshold": 0.7, "resolution": 128, "window": 64}
DETECTION = {"threshold": 0.7, "resolution": 128}
"""Both of `--tune`."""

Drawn = tuple[Scene, Render]


def scenes_of(seed: int, count: int) -> list[Drawn]:
    """Random scenes of one, two and three things in turn."""
    rng = np.random.default_rng(seed)
    scenes = (draw_scene(rng, 1 + i % 3) for i in range(count))
    return [(scene, render(rng, scene)) for scene in scenes]


def names(scene: Scene) -> list[str]:
    """`red circle` of each thing."""
    return [f"{thing.colour} {thing.shape}" for thing in scene.things]


def truth(drawn: Drawn) -> dict[str, np.ndarray]:
    """The pixels of each label, and of the background."""
    scene, picture = drawn
    held: dict[str, np.ndarray] = {}
    for name, mask in zip(names(scene), picture.masks, strict=True):
        held[name] = held.get(name, False) | mask
    return held | {"background": ~picture.masks.any(0)}


def segmented(drawn: Sequence[Drawn], asked: Sequence[Sequence[str]], **options: object) -> list:
    """Pixels by label of each picture, whose own labels are `asked`."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, own in enumerate(asked):
        groups[tuple(sorted(set(own)))].append(place)
    found: list = [None] * len(drawn)
    models = zeroshot.load("pocket")
    for own, places in groups.items():
        pictures = [drawn[p][1].image for p in places]
        results = zeroshot.segment(
            pictures, own, models, background=BACKGROUND, cache=NullCache(), **options
        )
        for place, result in zip(places, results, strict=True):
            held = {r.label: r.mask for r in result.regions}
            nothing = np.zeros((result.height, result.width), bool)
            found[place] = held | {"background": ~sum(held.values(), nothing)}
    return found


def score(found: list, drawn: Sequence[Drawn]) -> tuple[float, float]:
    """Mean IoU over the labels that are there, and the IoU of the background alone."""
    common: dict[str, float] = defaultdict(float)
    either: dict[str, float] = defaultdict(float)
    for own, one in zip(found, drawn, strict=True):
        real = truth(one)
        for label in {*own, *real}:
            nothing = np.zeros_like(real["background"])
            a, b = own.get(label, nothing), real.get(label, nothing)
            common[label] += (a & b).mean()
            either[label] += (a | b).mean()
    there = {label for one in drawn for label in truth(one)}
    iou = {label: common[label] / either[label] for label in there}
    return float(np.mean(list(iou.values()))), iou["background"]


def mean_iou(scenes: int, seed: int, **options: object) -> float:
    """Of random scenes, with the labels of each picture and the settings chosen here."""
    drawn = scenes_of(seed, scenes)
    found = segmented(drawn, [names(s) for s, _ in drawn], **SETTINGS | options)
    return score(found, drawn)[0]


def detected(
    drawn: Sequence[Drawn], asked: Sequence[Sequence[str]], **options: object
) -> tuple[float, float]:
    """Recall and precision at IoU 0.5: a box is right if it has the label of a thing not yet found."""
    right = boxes = things = 0
    models = zeroshot.load("pocket")
    for (scene, picture), own in zip(drawn, asked, strict=True):
        (result,) = zeroshot.detect(
            picture.image,
            sorted(set(own)),
            models,
            background=BACKGROUND,
            cache=NullCache(),
            **options,
        )
        left = dict(enumerate(zip(names(scene), picture.boxes.tolist(), strict=True)))
        things, boxes = things + len(left), boxes + len(result.boxes)
        for found in result.boxes:
            overlap = {i: iou(found.box, box) for i, (n, box) in left.items() if n == found.label}
            best = max(overlap, key=overlap.__getitem__, default=None)
            if best is not None and overlap[best] >= 0.5:
                right += 1
                del left[best]
    return right / things, right / max(boxes, 1)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    common = max(wide, 0) * max(high, 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (area - common)


def detection(scenes: int, seed: int, **options: object) -> tuple[float, float]:
    """As `mean_iou`, recall and precision of boxes."""
    drawn = scenes_of(seed, scenes)
    return detected(drawn, [names(s) for s, _ in drawn], **DETECTION | options)


def tune(count: int) -> None:
    """Mean IoU for sizes, windows and thresholds, on scenes that nothing is reported of."""
    drawn = scenes_of(TUNING_SEED, count)
    asked = [names(scene) for scene, _ in drawn]
    for side, window, threshold in itertools.product(
        (64, 96, 128, 192), (0, 64, 96), (0.0, 0.5, 0.7)
    ):
        if window < side:
            settings = {"resolution": side, "window": window, "threshold": threshold}
            mean, background = score(segmented(drawn, asked, **settings), drawn)
            print(f"{side} {window} {threshold}  {mean:.3f} (background {background:.3f})")
    for side, threshold in itertools.product((96, 128, 192), (0.3, 0.5, 0.7, 0.9)):
        pair = detected(drawn, asked, resolution=side, threshold=threshold)
        print("{} {}  recall {:.3f}, precision {:.3f}".format(side, threshold, *pair))


def show_segmentation(drawn: list[Drawn], asked: list[list[str]]) -> None:
    """Print the figures of maps."""
    print(f"mean IoU on {len(drawn)} held-out scenes, and IoU of the background")
    for attention in ("naclip", "kk", "qq", "csa", "value", "vanilla"):
        found = segmented(drawn, asked, attention=attention, **SETTINGS)
        print("labels of each picture, {:8} {:.3f} {:.3f}".format(attention, *score(found, drawn)))
    found = segmented(drawn, asked, method="sclip", **SETTINGS)
    print("labels of each picture, {:8} {:.3f} {:.3f}".format("sclip", *score(found, drawn)))
    found = segmented(drawn, [labels()] * len(drawn), **SETTINGS)
    print("all 64 labels at once,  {:8} {:.3f} {:.3f}".format("naclip", *score(found, drawn)))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--tune", action="store_true", help="choose settings instead")
    parser.add_argument("--boxes-only", action="store_true", help="no segmentation")
    options = parser.parse_args()
    if options.tune:
        tune(options.scenes)
        return
    drawn = list(held_out_renders(options.scenes))
    asked = [names(scene) for scene, _ in drawn]
    if not options.boxes_only:
        show_segmentation(drawn, asked)
    print("recall and precision at IoU 0.5")
    pair = detected(drawn, asked, **DETECTION)
    print("labels of each picture, parts    {:.3f} {:.3f}".format(*pair))
    pair = detected(drawn, asked, regions="windows", threshold=DETECTION["threshold"])
    print("labels of each picture, windows  {:.3f} {:.3f}".format(*pair))
    pair = detected(drawn, [labels()] * len(drawn), **DETECTION)
    print("all 64 labels at once,  parts    {:.3f} {:.3f}".format(*pair))


if __name__ == "__main__":
    main()
