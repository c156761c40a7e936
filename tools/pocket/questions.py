"""Questions about held-out pocket scenes, answered by matching: `python tools/pocket/questions.py`.

Everything goes through `zeroshot.ask` and `zeroshot.match`, as a user's pictures would; only the
world knows the answers. A question whether something is there has two pictures' worth of truth: one
thing that is in the scene, and one that shares its colour or its shape with such a thing and is not.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from language import phrase, pick  # noqa: E402
from pool import held_out  # noqa: E402
from world import COLOURS, SHAPES, Scene, Thing, labels  # noqa: E402

import zeroshot  # noqa: E402
from zeroshot.cache.embedding_cache import NullCache  # noqa: E402
from zeroshot.inputs.source import Source  # noqa: E402
from zeroshot.tasks.matching.thresholds import learn  # noqa: E402

SEED = 20261125


def things(scene: Scene) -> set[tuple[str, str]]:
    """Colour and shape of all that is in a scene; two alike are one."""
    return {(thing.colour, thing.shape) for thing in scene.things}


def named(colour: str, shape: str) -> str:
    """`a red circle`."""
    return " ".join(phrase(Thing("", colour, shape), sized=False))


def there(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """What is in a scene, and what looks like it and is not."""
    is_there = pick(rng, sorted(things(scene)))
    while True:
        colour, shape = pick(rng, sorted(things(scene)))
        if rng.random() < 0.5:
            colour = pick(rng, tuple(COLOURS))
        else:
            shape = pick(rng, SHAPES)
        if (colour, shape) not in things(scene):
            return named(*is_there), named(colour, shape)


def answers(pictures: Sequence, questions: Sequence[Sequence[str]], **how) -> list[list[str]]:
    """The best answer to each picture's own questions."""
    sources = [Source(str(place), picture) for place, picture in enumerate(pictures)]
    asked = {str(place): texts for place, texts in enumerate(questions)}
    results = zeroshot.ask(sources, asked, "pocket", cache=NullCache(), **how)
    return [[question.answers[0].text for question in result.questions] for result in results]


def share(right: Sequence[bool]) -> str:
    """`0.943 (n=230)`."""
    return f"{np.mean(right):.3f} (n={len(right)})"


def yes_or_no(scenes: Sequence[Scene], pictures: Sequence, **how) -> list[bool]:
    """Whether each of two questions a scene is answered rightly: the first by yes."""
    rng = np.random.default_rng(SEED)
    questions = [[f"Is there {name}?" for name in there(rng, scene)] for scene in scenes]
    said = answers(pictures, questions, **how)
    return [a == right for row in said for a, right in zip(row, ("yes", "no"), strict=True)]


def by_threshold(scenes: Sequence[Scene], pictures: Sequence) -> list[bool]:
    """The same by `match` and a threshold learned on the first half, told of the second."""
    rng = np.random.default_rng(SEED)
    texts = [there(rng, scene) for scene in scenes]
    pairs = [(p, text) for p, pair in zip(pictures, texts, strict=True) for text in pair]
    results = zeroshot.match(pairs, models="pocket", cache=NullCache())
    scores = [result.texts[0].score for result in results]
    truth = ["yes", "no"] * len(scenes)
    half = len(scores) // 2
    learned = learn(scores[:half], truth[:half], ("no", "yes"), "pocket")
    return [
        learned.label(score) == right
        for score, right in zip(scores[half:], truth[half:], strict=True)
    ]


def counted(scenes: Sequence[Scene], pictures: Sequence, **how) -> list[bool]:
    """Whether the number of all shapes is right."""
    said = answers(pictures, [["How many shapes are there?"]] * len(scenes), **how)
    return [a == [str(len(things(s)))] for a, s in zip(said, scenes, strict=True)]


def counted_by_colour(scenes: Sequence[Scene], pictures: Sequence, **how) -> list[bool]:
    """The same of the first thing's colour, and of any."""
    rng = np.random.default_rng(SEED)
    colours = [(s.things[0].colour, pick(rng, tuple(COLOURS))) for s in scenes]
    questions = [[f"How many {c} shapes are there?" for c in pair] for pair in colours]
    said = answers(pictures, questions, **how)
    return [
        a == str(sum(c == colour for c, _ in things(scene)))
        for scene, pair, row in zip(scenes, colours, said, strict=True)
        for colour, a in zip(pair, row, strict=True)
    ]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args()
    scenes, pictures = map(list, zip(*held_out(options.scenes), strict=True))
    among = {"among": labels()}
    print("is it there, among the 64 names    ", share(yes_or_no(scenes, pictures, **among)))
    print("is it there, with and without      ", share(yes_or_no(scenes, pictures)))
    print("is it there, a learned threshold   ", share(by_threshold(scenes, pictures)))
    print("how many shapes, among the names   ", share(counted(scenes, pictures, **among)))
    print("how many shapes, number words      ", share(counted(scenes, pictures)))
    print(
        "how many of a colour, among names  ", share(counted_by_colour(scenes, pictures, **among))
    )
    print("how many of a colour, number words ", share(counted_by_colour(scenes, pictures)))


if __name__ == "__main__":
    main()
