"""Labels, and the sentences a text encoder reads in their place.

The template sets `openai` (80) and `simple` (7) and the 1000 ImageNet names are open_clip's, who
took them from OpenAI's notebook "Prompt Engineering for ImageNet"; `prompt_data.json` says which
version and carries the licence. Two of the ImageNet names stand for two classes each, so a class
is known by its place in the list, never by its name.
"""

import difflib
import functools
import hashlib
import json
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError, unknown

Templates = tuple[str, ...] | dict[str, tuple[str, ...]]
"""Sentences with a place for the label, the same for every class; or each class's own sentences."""

PLACE = re.compile(r"\{c?\}")
"""Where the label goes: `{}`, or `{c}` as CLIP_benchmark writes it."""


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files("zeroshot").joinpath("prompt_data.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error


def _read_lines(path: str) -> list[str]:
    """Lines that hold something, stripped."""
    return [line.strip() for line in _read_text(path).split("\n") if line.strip()]


def _read_json(path: str) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not JSON: {error}") from error


def _strings(values: object, where: str) -> list[str]:
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}: expected a list of strings, got {type(values).__name__}")
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"{where}: expected strings, got {value!r}")
        if not value.strip():
            raise UserError(f"{where} has an empty entry")
    return [value.strip() for value in values]


def _checked_labels(values: object, where: str) -> tuple[str, ...]:
    labels = _strings(values, where)
    if not labels:
        raise UserError(f"{where} has no labels")
    for label in labels:
        if "{" in label or "}" in label:
            raise UserError(
                f"{where}: label '{label}' has braces, which mark the label's place in a template"
            )
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise UserError(f"{where} has labels more than once: {', '.join(map(repr, twice))}")
    return tuple(labels)


def _without_commas(labels: list[str], path: str) -> list[str]:
    for label in labels:
        if "," in label:
            raise UserError(
                f"'{path}': '{label}' has a comma; a .txt file holds one label per line "
                "(a .json list may hold labels with commas)"
            )
    return labels


def _checked_templates(values: object, where: str) -> tuple[str, ...]:
    templates = _strings(values, where)
    if not templates:
        raise UserError(f"{where} has no templates")
    for template in templates:
        if not PLACE.search(template):
            raise UserError(f"{where}: template '{template}' has no {{}} where the label goes")
    return tuple(templates)


def _own_sentences(classes: dict[str, object], path: str) -> dict[str, tuple[str, ...]]:
    sentences = {
        label.strip(): tuple(_strings(values, f"'{path}', class '{label}'"))
        for label, values in classes.items()
    }
    for label, values in sentences.items():
        if not values:
            raise UserError(f"'{path}': class '{label}' has no sentences")
    return sentences


def _fill(template: str, label: str) -> str:
    return PLACE.sub(lambda _: label, template)


def _missing(labels: Sequence[str], classes: Sequence[str]) -> UserError:
    """`no sentences for 2 of 5 classes: 'cta' (did you mean 'cat'?), 'dog'`."""
    absent = [label for label in dict.fromkeys(labels) if label not in classes]
    named = []
    for label in absent[:10]:
        close = difflib.get_close_matches(label, classes, n=1)
        named.append(f"'{label}'" + (f" (did you mean '{close[0]}'?)" if close else ""))
    more = [f"and {len(absent) - 10} more"] if len(absent) > 10 else []
    return UserError(
        f"no sentences for {len(absent)} of {len(labels)} classes: {', '.join(named + more)}"
    )


def waffle(labels: Sequence[str], pairs: int = 15, seed: int = 0) -> tuple[str, ...]:
    """Templates with descriptors that mean nothing, the same for every class.

    Roth et al. 2023, "Waffling around for Performance", ICCV, arXiv:2306.07282: what a language
    model's descriptions gain over one template, random ones mostly gain too. Each pair is a
    descriptor of random words and one of random characters, as long as the labels are on average.
    The authors draw words from a list; here they are made of alternating consonants and vowels.
    They average the scores (`ensemble -o mode=score`).
    """
    source = random.Random(seed)
    words = [word for label in labels for word in label.split()]
    count = max(1, round(len(words) / len(labels)))
    length = max(1, round(sum(map(len, words)) / len(words)))
    vowels = "aeiou"
    consonants = [c for c in string.ascii_lowercase if c not in vowels]

    def word() -> str:
        begin = source.randrange(2)
        return "".join(
            source.choice(vowels if (begin + i) % 2 else consonants) for i in range(length)
        )

    def noise() -> str:
        return "".join(source.choices(string.ascii_lowercase + string.digits, k=length))

    descriptors = [
        " ".join(make() for _ in range(count)) for _ in range(pairs) for make in (word, noise)
    ]
    return tuple(f"A photo of a {{}}, which has {descriptor}." for descriptor in descriptors)


def template_sets() -> list[str]:
    """Names that `load_templates` knows."""
    return [*_data()["templates"], "none", "waffle"]


def load_templates(spec: str, labels: Sequence[str] = ()) -> Templates:
    """Templates by name, as one sentence with `{}` or `{c}`, or from a file.

    `none` is the bare label; `waffle` makes random templates for the labels, `waffle:7` those of
    seed 7. A `.json` file holds a list of templates, or an object that gives each class its own
    sentences (the layout of CuPL and DCLIP); a `.txt` file holds one template per line. Raises
    UserError for anything else.
    """
    if spec == "none":
        return ("{}",)
    if match := re.fullmatch(r"waffle(?::(\d+))?", spec):
        return waffle(labels or ["label"], seed=int(match[1] or 0))
    if spec.endswith(".txt"):
        return _checked_templates(_read_lines(spec), f"'{spec}'")
    if spec.endswith(".json"):
        held = _read_json(spec)
        if isinstance(held, dict):
            return _own_sentences(held, spec)
        return _checked_templates(held, f"'{spec}'")
    if PLACE.search(spec):
        return (spec,)
    if spec in _data()["templates"]:
        return tuple(_data()["templates"][spec])
    if " " in spec:
        raise UserError(f"template '{spec}' has no {{}} where the label goes")
    raise unknown("template set", spec, template_sets())


def load_labels(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Labels from a list, `person,dog`, a `.txt` file (one per line), a `.json` file, `imagenet`.

    A `.json` file holds a list of labels, or an object whose keys they are. Labels come stripped
    of surrounding space and must be distinct; only `imagenet` keeps the two names that two classes
    share. Raises UserError for anything doubtful.
    """
    if not isinstance(spec, str):
        return _checked_labels(list(spec), "the list of labels")
    if spec == "imagenet":
        return tuple(_data()["imagenet"])
    if spec.endswith(".txt"):
        return _checked_labels(_without_commas(_read_lines(spec), spec), f"'{spec}'")
    if spec.endswith(".json"):
        held = _read_json(spec)
        return _checked_labels(list(held) if isinstance(held, dict) else held, f"'{spec}'")
    return _checked_labels(spec.split(","), f"'{spec}'")


def expand(labels: Sequence[str], templates: Templates) -> list[list[str]]:
    """The prompts of each class, in the order of `labels`; classes may differ in how many.

    Raises UserError when `templates` are sentences per class and a label has none, or when a
    sentence is no valid text.
    """
    if not isinstance(templates, tuple) and not templates.keys() >= set(labels):
        raise _missing(labels, list(templates))
    own = {} if isinstance(templates, tuple) else templates
    shared = templates if isinstance(templates, tuple) else ()
    return [[_text(_fill(s, label)) for s in own.get(label, shared)] for label in labels]


def _text(sentence: str) -> str:
    """The sentence, if it can be written as UTF-8; bytes of an argument that were none cannot."""
    try:
        sentence.encode()
    except UnicodeEncodeError:
        raise UserError(f"{sentence!r} is no valid text: labels and templates are UTF-8") from None
    return sentence


def fingerprint(prompts: Sequence[Sequence[str]]) -> str:
    """sha256 of the prompts; any other letter, split or order gives another one."""
    text = json.dumps([list(sentences) for sentences in prompts])
    return hashlib.sha256(text.encode()).hexdigest()
