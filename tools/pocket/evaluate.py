"""The figures of the pocket set on 500 held-out scenes: `python tools/pocket/evaluate.py`.

Everything goes through the package, as a user's pictures would; only the world knows the answers.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from language import caption as describe  # noqa: E402
from pool import held_out  # noqa: E402
from world import SHAPES, Scene, labels  # noqa: E402

import zeroshot  # noqa: E402
from zeroshot.cache.embedding_cache import NullCache  # noqa: E402
from zeroshot.model_set.model_set import ModelSet, resolve  # noqa: E402


def share(answers: Iterable[bool]) -> str:
    """`0.943 (n=230)`."""
    answers = list(answers)
    return f"{sum(answers) / len(answers):.3f} (n={len(answers)})"


def names_everything(caption: str, scene: Scene) -> bool:
    """Whether every thing's colour and shape stand next to each other in the caption."""
    said = f" {caption.lower().replace(',', ' ').replace('.', ' ')} "
    return all(f" {thing.colour} {thing.shape} " in said for thing in scene.things)


def names_nothing_else(caption: str, scene: Scene) -> bool:
    """Whether no shape is named more often than it is there."""
    words = caption.lower().replace(",", " ").replace(".", " ").split()
    there = [thing.shape for thing in scene.things]
    return all(words.count(shape) <= there.count(shape) for shape in SHAPES)


def labelled(pictures: list, scenes: list[Scene], models: ModelSet, **options: str) -> list[bool]:
    """Whether the best of all colour-shape labels is right, for scenes of one thing."""
    ones = [i for i, scene in enumerate(scenes) if len(scene.things) == 1]
    results = zeroshot.classify(
        [pictures[i] for i in ones], labels(), models, top_k=1, cache=NullCache(), **options
    )
    truth = [f"{scenes[i].things[0].colour} {scenes[i].things[0].shape}" for i in ones]
    return [r.labels[0].label == name for r, name in zip(results, truth, strict=True)]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="pocket", help="a model set of the same layout")
    parser.add_argument("--scenes", type=int, default=500)
    options = parser.parse_args()
    scenes, pictures = map(list, zip(*held_out(options.scenes), strict=True))
    models = resolve(options.models)

    images = models.encoder.encode_images(pictures)
    texts = models.encoder.encode_texts([describe(scene) for scene in scenes])
    right = (texts @ images.T).argmax(1) == torch.arange(len(scenes))
    print("text-to-image retrieval R@1        ", share(right.tolist()))
    print("labels of one-object scenes        ", share(labelled(pictures, scenes, models)))
    coupled = resolve(options.models, encoder="coupled")
    print("the same by ASIF, unimodal encoders", share(labelled(pictures, scenes, coupled)))

    results = zeroshot.caption(pictures, models, cache=NullCache())
    pairs = list(zip(results, scenes, strict=True))
    for count in (1, 2, 3):
        found = [names_everything(r.caption or "", s) for r, s in pairs if len(s.things) == count]
        print(f"MaGiC names all of {count} object(s)       ", share(found))
        exact = [
            names_everything(r.caption or "", s) and names_nothing_else(r.caption or "", s)
            for r, s in pairs
            if len(s.things) == count
        ]
        print("    and nothing else               ", share(exact))
    for result, scene in pairs[:: len(pairs) // 12]:
        print(f"    {describe(scene)}  ->  {result.caption}")


if __name__ == "__main__":
    main()
