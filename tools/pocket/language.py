"""What can be said about a scene: whole captions, parts, prefixes, and sentences false of it.

Because the world is known, truth is decided by looking at the scene and never guessed from a
batch: a wrong continuation offered to the text tower is certainly wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing

Words = list[str]
INVERSE = {"left of": "right of", "above": "below"}
JOINTS = ("left", "right", "above", "below", "on", "and", ",")
WRAPPERS = (
    "{}",
    "{}",
    "{}",
    "{}.",
    "a photo of {}",
    "a picture of {}",
    "there is {}",
    "a photo of {}.",
    "this is {}",
)
# How people dress a label; the last ones are from open_clip's "simple" set.
LABEL_TEMPLATES = (
    "{}", "a {}", "a {}.", "the {}", "one {}", "a photo of a {}", "a photo of a {}.",
    "a photo of the {}", "a picture of a {}", "there is a {}", "this is a {}",
    "an image of a {}.", "a drawing of a {}", "{}.", "itap of a {}.", "a bad photo of the {}.",
    "a origami {}.", "a {} in a video game.", "art of the {}.",
)  # fmt: skip
OTHER_WORDS = (
    "photo of the large small itap bad origami video game art shape thing two three scene with no "
    "it in an beside next to and or color coloured colored colors image images objects object "
    "under over between good"
)


def vocabulary() -> list[str]:
    """Every word of the world and of the usual prompts, sorted: what the tokenizers keep whole."""
    text = " ".join(
        [*WRAPPERS, *LABEL_TEMPLATES, OTHER_WORDS, *INVERSE, *INVERSE.values(), "background"]
    )
    text += " " + " ".join(
        [
            *SIZES,
            *COLOURS,
            *SHAPES,
            *BACKGROUNDS,
            *(f"{s}s" for s in SHAPES if s != "cross"),
            "crosses",
        ]
    )
    return sorted(set(text.replace("{}", " ").replace(".", " ").split()))


def join(words: Words) -> str:
    """Words to text; commas stick to the word before."""
    return " ".join(words).replace(" ,", ",")


def phrase(thing: Thing, sized: bool = True) -> Words:
    """`a small red circle`"""
    words = [*([thing.size] if sized else []), thing.colour, thing.shape]
    return ["an" if words[0] == "orange" else "a", *words]


def sentences(scene: Scene) -> list[Words]:
    """Every whole caption that is true of the scene; the first is *the* caption."""
    found = []
    for sized in (True, False):
        a, *rest = (phrase(thing, sized) for thing in scene.things)
        if not rest:
            bodies = [a]
        elif len(rest) == 1:
            relation, inverse = scene.relation.split(), INVERSE[scene.relation].split()
            bodies = [[*a, *relation, *rest[0]], [*rest[0], *inverse, *a]]
        else:
            bodies = [[*a, ",", *rest[0], "and", *rest[1]]]
        found += [[*body, "on", "a", scene.background, "background"] for body in bodies]
    return found


def caption(scene: Scene) -> str:
    """The scene's caption."""
    return join(sentences(scene)[0])


def pick(rng: np.random.Generator, items):
    """One of `items`, uniformly."""
    return items[int(rng.integers(len(items)))]


def say(rng: np.random.Generator, scene: Scene, plain: bool = False) -> str:
    """The scene in one of its forms: sizes mostly there, dressed up unless `plain`."""
    forms = sentences(scene)
    half = len(forms) // 2
    words = pick(rng, forms[:half] if rng.random() < 0.85 else forms[half:])
    return ("{}" if plain else pick(rng, WRAPPERS)).format(join(words))


def wrong_words(rng: np.random.Generator, word: str, alike: int) -> Iterator[str]:
    """First `alike` other words of the same kind as `word`, then any words without end."""
    kinds = (tuple(SIZES), tuple(COLOURS), SHAPES, BACKGROUNDS, JOINTS)
    kind = next((k for k in kinds if word in k), JOINTS)
    others = [w for w in kind if w != word]
    yield from (others[i] for i in rng.permutation(len(others))[:alike])
    every = [w for k in kinds for w in k] + ["a", "an", "of", "background"]
    while True:
        yield pick(rng, every)


def continuations(
    rng: np.random.Generator, scene: Scene, count: int, tokens: list[str]
) -> list[str]:
    """`count` texts: a true beginning of a caption, then ones that stop earlier or end wrongly.

    This is the choice a guided caption makes at every step, so the text tower is trained on it.
    One text ends in any of the language model's `tokens`, which need not be a word: among the `k`
    candidates are such, and an encoder that never saw "a red circlen" may well prefer it.
    """
    true = sentences(scene)
    words = pick(rng, true[: len(true) // 2] if rng.random() < 0.8 else true)
    weights = np.array([0.3 if w in ("a", "an", "of", "background") else 1.0 for w in words])
    weights[0] = 0
    at = int(rng.choice(len(words), p=weights / weights.sum()))
    head = words[:at]
    texts = [join(words[: at + 1]), join(head)]
    while len(texts) < 3:
        text = join(head) + pick(rng, tokens)
        if not any(join(t).startswith(text.rstrip()) for t in true):
            texts.append(text)
    for word in wrong_words(rng, words[at], count - 4):
        tail = [*head, word]
        if join(tail) not in texts and all(t[: at + 1] != tail for t in true):
            texts.append(join(tail))
        if len(texts) == count:
            break
    return texts


def distortions(rng: np.random.Generator, scene: Scene, count: int) -> list[str]:
    """`count` captions: a true one, then those of scenes with one thing wrong."""
    form = int(rng.integers(len(sentences(scene)) // 2))
    texts = [join(sentences(scene)[form])]
    while len(texts) < count:
        text = join(sentences(distort(rng, scene))[form])
        if text not in texts and text.split() not in [join(s).split() for s in sentences(scene)]:
            texts.append(text)
    return texts


def distort(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with one thing wrong; it may by chance come out the same."""
    things = list(scene.things)
    kind = rng.random()
    if kind < 0.12:
        return replace(scene, background=pick(rng, BACKGROUNDS))
    if len(things) > 1 and kind < 0.5:  # one attribute, or everything, changes places
        i, j = rng.permutation(len(things))[:2]
        name = pick(rng, ("size", "colour", "shape", "all"))
        if name == "all":
            things[i], things[j] = things[j], things[i]
        else:
            one, other = getattr(things[i], name), getattr(things[j], name)
            things[i], things[j] = (
                replace(things[i], **{name: other}),
                replace(things[j], **{name: one}),
            )
    elif len(things) == 2 and kind < 0.6:
        return replace(scene, relation="above" if scene.relation == "left of" else "left of")
    else:
        i = int(rng.integers(len(things)))
        axis, names = pick(
            rng, (("size", tuple(SIZES)), ("colour", tuple(COLOURS)), ("shape", SHAPES))
        )
        things[i] = replace(things[i], **{axis: pick(rng, names)})
    return replace(scene, things=tuple(things))


@dataclass(frozen=True)
class Part:
    """A partial description: indices of size, colour, shape, background; -1 where silent."""

    size: int
    colour: int
    shape: int
    background: int


def draw_part(rng: np.random.Generator, thing: np.ndarray, background: int) -> tuple[Part, str]:
    """Say only some of what is true: `a red circle`, `a star on a striped background`."""
    size, colour, shape = (
        int(x) if rng.random() < p else -1 for x, p in zip(thing, (0.4, 0.85, 0.85), strict=True)
    )
    ground = background if rng.random() < 0.25 or max(colour, shape) < 0 else -1
    noun = SHAPES[shape] if shape >= 0 else pick(rng, ("shape", "thing", "object"))
    words = ["a"]
    if max(size, colour, shape) >= 0:
        words += [tuple(SIZES)[size]] if size >= 0 else []
        words += [tuple(COLOURS)[colour]] if colour >= 0 else []
        words += [noun] + (["on", "a"] if ground >= 0 else [])
        words[0] = "an" if words[1] in ("orange", "object") else "a"
    words += [BACKGROUNDS[ground], "background"] if ground >= 0 else []
    text = pick(rng, WRAPPERS).format(join(words))
    return Part(size, colour, shape, ground), text


def holds(parts: list[Part], things: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Which partial descriptions [t] are true of which scenes [n]: bool [t n]."""
    want = np.array([(p.size, p.colour, p.shape) for p in parts])
    fits = ((want[:, None, None] == things[None]) | (want[:, None, None] < 0)).all(-1)  # [t n 3]
    there = fits & (things[None, :, :, 0] >= 0)
    ground = np.array([p.background for p in parts])[:, None]
    return there.any(-1) & ((ground < 0) | (ground == background[None]))
