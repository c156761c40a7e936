"""Segmentation and detection by a dual encoder alone, measured on drawn scenes: `python tools/pocket/dense.py`.

The renderer knows the pixels of every thing. Settings were chosen on scenes of another seed
(`--tune`); the figures are of the held-out scenes, or of others (`--seed`). Mean IoU of maps is over
labels, intersections and unions being summed over all pictures, each picture counting as 1 whatever
its size. Of boxes, the best of its label counts for each thing (0 if there is none), and average
precision is over all boxes by their scores, at IoU 0.5.
"""

import argparse
import itertools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from pool import held_out_renders  # noqa: E402
from world import BACKGROUNDS, Render, Scene, draw_scene, labels, render  # noqa: E402

import zeroshot  # noqa: E402
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache  # noqa: E402

TUNING_SEED = 99
BACKGROUND = ["background", *(f"{name} background" for name in BACKGROUNDS)]
PUBLISHED = {
    "threshold": 0.7,
    "resolution": 128,
    "window": 64,
    "background": BACKGROUND,
    "refine": 0,
}
"""The methods alone, as published, with the backgrounds of this world; of `--tune`."""

POCKET = f"hf:{Path(zeroshot.__file__).parent}/models/pocket"
SECOND: dict[str, dict[str, object]] = {
    "naclip": {"method": "naclip"},
    "value": {"method": "naclip", "attention": "value"},
    "proxyclip by clip": {"method": "proxyclip", "patches_by": f"{POCKET}/clip"},
    "proxyclip, chosen": {"method": "proxyclip", "patches_by": f"{POCKET}/clip", "beta": 0.5},
    "proxyclip by resnet": {"method": "proxyclip", "patches_by": f"{POCKET}/image_encoder"},
    "lposs": {"method": "lposs"},
    "lposs, chosen": {"method": "lposs", "alpha": 0.9, "sigma": 0.03, "scale": 16},
    "lposs by resnet": {"method": "lposs", "patches_by": f"{POCKET}/image_encoder"},
}
"""Methods that compare patches by an encoder, and what they are measured against; as published, and
with options chosen on scenes of their own."""

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
        results = zeroshot.segment(pictures, own, models, cache=NullCache(), **options)
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
    """Of random scenes, with the labels of each picture."""
    drawn = scenes_of(seed, scenes)
    found = segmented(drawn, [names(s) for s, _ in drawn], **options)
    return score(found, drawn)[0]


@dataclass(frozen=True)
class Boxes:
    """How good boxes are."""

    best: float
    """Mean over the things of the IoU of the best box of their label."""
    precision_by_rank: float
    """Average precision."""
    recall: float
    precision: float
    boxes: float
    """Per picture."""

    def __str__(self) -> str:
        measured = (self.best, self.precision_by_rank, self.recall, self.precision)
        return " ".join(f"{value:.3f}" for value in measured) + f" {self.boxes:.2f}"


def detected(drawn: Sequence[Drawn], asked: Sequence[Sequence[str]], **options: object) -> Boxes:
    """A box is right if it has the label of a thing not yet found, and an IoU of 0.5 with it."""
    best: list[float] = []
    scored: list[tuple[float, bool]] = []
    models = zeroshot.load("pocket")
    with tempfile.TemporaryDirectory() as folder:
        cache = EmbeddingCache(Path(folder))
        results = [
            zeroshot.detect(picture.image, sorted(set(own)), models, cache=cache, **options)[0]
            for (_, picture), own in zip(drawn, asked, strict=True)
        ]
    for (scene, picture), own, result in zip(drawn, asked, results, strict=True):
        things = list(zip(names(scene), picture.boxes.tolist(), strict=True))
        for name, box in things:
            same = [iou(found.box, box) for found in result.boxes if found.label == name]
            best += [max(same, default=0.0)] if name in own else []
        left = dict(enumerate(things))
        for found in result.boxes:
            overlap = {i: iou(found.box, box) for i, (n, box) in left.items() if n == found.label}
            nearest = max(overlap, key=overlap.__getitem__, default=None)
            right = nearest is not None and overlap[nearest] >= 0.5
            scored.append((found.score, right))
            if right:
                del left[nearest]
    right = sum(one for _, one in scored)
    return Boxes(
        float(np.mean(best or [0.0])),
        average_precision(scored, len(best)),
        right / max(len(best), 1),
        right / max(len(scored), 1),
        len(scored) / len(drawn),
    )


def average_precision(scored: Sequence[tuple[float, bool]], things: int) -> float:
    """Area below the curve of recall and the best precision at that recall or a higher one."""
    right = np.array([one for _, one in sorted(scored, key=lambda pair: -pair[0])], float)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * right).sum() / max(things, 1))


def with_absent(asked: Sequence[Sequence[str]], count: int, seed: int = 0) -> list[list[str]]:
    """The labels of each picture, and so many of others."""
    rng = np.random.default_rng(seed)
    others = [[name for name in labels() if name not in own] for own in asked]
    return [
        [*own, *map(str, rng.choice(rest, count, replace=False))]
        for own, rest in zip(asked, others, strict=True)
    ]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    common = max(wide, 0) * max(high, 0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common / (area - common)


def detection(scenes: int, seed: int, **options: object) -> Boxes:
    """As `mean_iou`, of boxes."""
    drawn = scenes_of(seed, scenes)
    return detected(drawn, [names(s) for s, _ in drawn], **options)


def tune(count: int) -> None:
    """Figures for sizes, windows, thresholds and rounds, on scenes that nothing is reported of."""
    drawn = scenes_of(TUNING_SEED, count)
    asked = [names(scene) for scene, _ in drawn]
    for side, window, threshold in itertools.product(
        (64, 96, 128, 192), (0, 64, 96), (0.0, 0.5, 0.7)
    ):
        if window < side:
            settings = {"resolution": side, "window": window, "threshold": threshold}
            mean, background = score(segmented(drawn, asked, **PUBLISHED | settings), drawn)
            print(f"{side} {window} {threshold}  {mean:.3f} (background {background:.3f})")
    for side, rounds in itertools.product((64, 96, 128), (0, 10, 20, 30)):
        settings = {"resolution": side, "refine": rounds}
        mean, _ = score(segmented(drawn, asked, **settings), drawn)
        print(f"{side} {rounds}  map {mean:.3f}, boxes {detected(drawn, asked, **settings)}")


def tune_second(count: int) -> None:
    """As `tune`, for the methods that compare patches by an encoder."""
    drawn = scenes_of(TUNING_SEED, count)
    asked = [names(scene) for scene, _ in drawn]
    spread = [
        {"method": "lposs", "alpha": alpha, "sigma": sigma, "scale": scale}
        for alpha, sigma in itertools.product((0.8, 0.9, 0.95), (0.01, 0.03))
        for scale in (8, 16, 40)
    ]
    proxies = [SECOND["proxyclip by clip"] | {"beta": beta} for beta in (0.0, 0.5, 0.8, 1.2)]
    for options in (SECOND["naclip"], SECOND["value"], *spread, *proxies):
        found = segmented(drawn, asked, **options)
        print("{:.3f} {:.3f}".format(*score(found, drawn)), options, flush=True)


def show_second(drawn: list[Drawn], asked: list[list[str]]) -> None:
    """Print the figures of the methods that compare patches by an encoder."""
    print(
        f"mean IoU on {len(drawn)} scenes, and IoU of the background: --refine 0; default options"
    )
    for name, options in SECOND.items():
        plain, full = (
            score(segmented(drawn, asked, **base | options), drawn) for base in ({"refine": 0}, {})
        )
        print("{:20} {:.3f} {:.3f}  {:.3f} {:.3f}".format(name, *plain, *full), flush=True)


def show_segmentation(drawn: list[Drawn], asked: list[list[str]]) -> None:
    """Print the figures of maps."""
    print(f"mean IoU on {len(drawn)} held-out scenes, and IoU of the background")
    for attention in ("naclip", "kk", "qq", "csa", "value", "vanilla"):
        found = segmented(drawn, asked, attention=attention, **PUBLISHED)
        print("labels of each picture, {:8} {:.3f} {:.3f}".format(attention, *score(found, drawn)))
    found = segmented(drawn, asked, method="sclip", **PUBLISHED)
    print("labels of each picture, {:8} {:.3f} {:.3f}".format("sclip", *score(found, drawn)))
    found = segmented(drawn, asked)
    print("labels of each picture, {:8} {:.3f} {:.3f}".format("defaults", *score(found, drawn)))
    found = segmented(drawn, [labels()] * len(drawn))
    print("all 64 labels at once,  {:8} {:.3f} {:.3f}".format("defaults", *score(found, drawn)))


def show_detection(drawn: list[Drawn], asked: list[list[str]]) -> None:
    """Print the figures of boxes."""
    print("boxes: mean IoU of the best, average precision, recall, precision; boxes per picture")
    absent = [own[-1:] for own in with_absent(asked, 1)]
    for name, own in (
        ("labels of each picture", asked),
        ("these and four absent", with_absent(asked, 4)),
        ("all 64 labels at once", [labels()] * len(drawn)),
        ("one absent label", absent),
    ):
        print(f"{name:24} {detected(drawn, own)}", flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--tune", action="store_true", help="choose settings instead")
    parser.add_argument(
        "--second", action="store_true", help="only methods by an encoder's patches"
    )
    parser.add_argument("--boxes-only", action="store_true", help="no segmentation")
    parser.add_argument("--seed", type=int, help="other scenes than the held-out ones")
    options = parser.parse_args()
    if options.tune:
        (tune_second if options.second else tune)(options.scenes)
        return
    seed = options.seed
    drawn = (
        list(held_out_renders(options.scenes)) if seed is None else scenes_of(seed, options.scenes)
    )
    asked = [names(scene) for scene, _ in drawn]
    if options.second:
        show_second(drawn, asked)
        return
    if not options.boxes_only:
        show_segmentation(drawn, asked)
    show_detection(drawn, asked)


if __name__ == "__main__":
    main()
