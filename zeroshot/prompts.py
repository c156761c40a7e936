"""Labels, templates, and the prompts that they make for a text encoder.

The template sets `openai` (80) and `simple` (7) and the 1000 ImageNet names are from open_clip,
which took them from OpenAI's notebook "Prompt Engineering for ImageNet"; `prompt_data.json` has the
version and the licence. Two ImageNet names stand for two classes each, so a class is identified by
its index, never by its name.
"""

import difflib
import functools
import hashlib
import json
import os
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.columns import LABEL, known
from zeroshot.inputs.text_files import read_json, read_lines, read_records, suffix_of

Templates = tuple[str, ...] | dict[str, tuple[str, ...]]
"""Templates for all classes, with a placeholder for the label; or the prompts of each class."""
LISTS = (".txt", ".names")
"""Suffixes of files with one entry per line."""
TABLES = (".csv", ".tsv")

PLACEHOLDER = re.compile(r"\{c?\}")
"""The placeholder of the label: `{}`, or `{c}` as in CLIP_benchmark."""


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files("zeroshot").joinpath("prompt_data.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


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


def _file_suffix(spec: str, what: str, suffixes: Sequence[str], kinds: str) -> str:
    """The suffix of the file that `spec` names; empty if it names no file.

    Raises:
        UserError: the file exists and has another suffix.
    """
    suffix = suffix_of(spec)
    if suffix in suffixes:
        return suffix
    if suffix and os.path.isfile(spec):
        raise UserError(f"'{spec}' is a file, and {what} are read from {kinds}")
    return ""


def _lines(path: str) -> list[str]:
    return [line for _, line in read_lines(Path(path))]


def _labels_in_lines(path: str) -> list[str]:
    for where, label in read_lines(Path(path)):
        if "," in label:
            raise UserError(
                f"{where}: '{label}' has a comma; a .txt file has one label a line (labels with "
                "commas can be a .json list)"
            )
    return _lines(path)


def _labels_in_table(path: str) -> list[str]:
    labels = []
    for where, row in read_records(Path(path)):
        columns = known(LABEL, row)
        if not columns:
            raise UserError(
                f"{where}: expected a column named {', '.join(LABEL[:-1])} or {LABEL[-1]}, there "
                f"are {', '.join(map(repr, row))}; a list without column names is a .txt file"
            )
        labels.append(row[columns[0]])
    return labels


def _checked_templates(values: object, where: str) -> tuple[str, ...]:
    templates = _strings(values, where)
    if not templates:
        raise UserError(f"{where} has no templates")
    for template in templates:
        if not PLACEHOLDER.search(template):
            raise UserError(f"{where}: template '{template}' has no {{}} where the label goes")
    return tuple(templates)


def _prompts_by_class(classes: dict[str, object], path: str) -> dict[str, tuple[str, ...]]:
    prompts = {
        label.strip(): tuple(_strings(values, f"'{path}', class '{label}'"))
        for label, values in classes.items()
    }
    for label, values in prompts.items():
        if not values:
            raise UserError(f"'{path}': class '{label}' has no prompts")
    return prompts


def _missing(labels: Sequence[str], classes: Sequence[str]) -> UserError:
    """`no prompts for 2 of 5 classes: 'cta' (did you mean 'cat'?), 'dog'`."""
    absent = [label for label in dict.fromkeys(labels) if label not in classes]
    named = []
    for label in absent[:10]:
        close = difflib.get_close_matches(label, classes, n=1)
        named.append(f"'{label}'" + (f" (did you mean '{close[0]}'?)" if close else ""))
    more = [f"and {len(absent) - 10} more"] if len(absent) > 10 else []
    return UserError(
        f"no prompts for {len(absent)} of {len(labels)} classes: {', '.join(named + more)}"
    )


def waffle(labels: Sequence[str], pairs: int = 15, seed: int = 0) -> tuple[str, ...]:
    """Templates with meaningless descriptors, the same for every class.

    Roth et al. 2023, "Waffling around for Performance", ICCV, arXiv:2306.07282: random descriptions
    gain almost as much over one template as those of a language model. Each pair is a descriptor of
    random words and one of random characters, as long as the average label. The authors draw words
    from a list; here words are alternating consonants and vowels. The authors average the scores
    (`ensemble -o mode=score`).
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
    """The names for `load_templates`."""
    return [*_data()["templates"], "none", "waffle"]


def load_templates(spec: str, labels: Sequence[str] = ()) -> Templates:
    """Load templates by name, from a file, or as one template with `{}` or `{c}`.

    `none` is the bare label; `waffle` makes random templates for the labels, `waffle:7` those of
    seed 7. A `.json` file has a list of templates, or an object with the prompts of each class (the
    layout of CuPL and DCLIP); a `.txt` file has one template per line. UserError for anything else.
    """
    if spec == "none":
        return ("{}",)
    if match := re.fullmatch(r"waffle(?::(\d+))?", spec):
        return waffle(labels or ["label"], seed=int(match[1] or 0))
    suffix = _file_suffix(
        spec, "templates", (*LISTS, ".json"), ".txt (one a line) and .json (a list, or by class)"
    )
    if suffix in LISTS:
        return _checked_templates(_lines(spec), f"'{spec}'")
    if suffix == ".json":
        document = read_json(Path(spec))
        if isinstance(document, dict):
            return _prompts_by_class(document, spec)
        return _checked_templates(document, f"'{spec}'")
    if PLACEHOLDER.search(spec):
        return (spec,)
    if spec in _data()["templates"]:
        return tuple(_data()["templates"][spec])
    if " " in spec:
        raise UserError(f"template '{spec}' has no {{}} where the label goes")
    raise unknown("template set", spec, template_sets())


def load_labels(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Load labels from a list, a text such as `person,dog`, a file, or `imagenet`.

    A `.txt` or `.names` file has one label per line, a `.csv` or `.tsv` file a column of labels. A
    `.json` file has a list of labels, or an object with labels as keys. Surrounding space is
    removed. Labels must be distinct, except the two shared names of `imagenet`. UserError for
    invalid labels and for a file with another suffix.
    """
    if not isinstance(spec, str):
        return _checked_labels(list(spec), "the list of labels")
    if spec == "imagenet":
        return tuple(_data()["imagenet"])
    suffix = _file_suffix(
        spec,
        "labels",
        (*LISTS, ".json", *TABLES),
        ".txt and .names (one a line), .json (a list, or an object whose keys they are), .csv and "
        ".tsv (a column named label)",
    )
    if suffix in LISTS:
        return _checked_labels(_labels_in_lines(spec), f"'{spec}'")
    if suffix in TABLES:
        return _checked_labels(_labels_in_table(spec), f"'{spec}'")
    if suffix == ".json":
        document = read_json(Path(spec))
        labels = list(document) if isinstance(document, dict) else document
        return _checked_labels(labels, f"'{spec}'")
    return _checked_labels(spec.split(","), f"'{spec}'")


def expand(labels: Sequence[str], templates: Templates) -> list[list[str]]:
    """The prompts of each class, in the order of `labels`; classes may differ in their number.

    Raises UserError if `templates` has prompts by class but none for a label, or if a prompt is not
    valid text.
    """
    if not isinstance(templates, tuple) and not templates.keys() >= set(labels):
        raise _missing(labels, list(templates))
    by_class = {} if isinstance(templates, tuple) else templates
    shared = templates if isinstance(templates, tuple) else ()
    return [[_prompt(t, label) for t in by_class.get(label, shared)] for label in labels]


def _prompt(template: str, label: str) -> str:
    """The template with the label filled in; UserError if that is not valid UTF-8."""
    prompt = PLACEHOLDER.sub(lambda _: label, template)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"{prompt!r} is no valid text: labels and templates are UTF-8") from None
    return prompt


def fingerprint(prompts: Sequence[Sequence[str]]) -> str:
    """sha256 of the prompts of all classes, in this order."""
    text = json.dumps([list(prompts_of_class) for prompts_of_class in prompts])
    return hashlib.sha256(text.encode()).hexdigest()
