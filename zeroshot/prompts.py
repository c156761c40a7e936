"""Labels, templates, and the prompts that they make for a text encoder.

The template sets `openai` (80) and `simple` (7) and the 1000 ImageNet names are from open_clip,
which took them from OpenAI's notebook "Prompt Engineering for ImageNet"; `prompt_data.json` has the
version and the licence. Two ImageNet names stand for two classes each, so a class is identified by
its index, never by its name.
"""

import csv
import difflib
import functools
import hashlib
import json
import os
import random
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.columns import LABEL, known
from zeroshot.inputs.text_files import (
    read_json,
    read_lines,
    read_records,
    shown,
    suffix_of,
    text_in,
)

Templates = tuple[str, ...] | dict[str, tuple[str, ...]]
"""Templates for all classes, with a placeholder for the label; or the prompts of each class."""
LISTS = (".txt", ".names", "")
"""Suffixes of files with one entry per line; a file that exists may have none."""
TABLES = (".csv", ".tsv", ".jsonl")
WRAPPERS = (*LABEL, "names", "classes", "class_names", "classnames", "categories", "id2label")
"""Keys of the only entry of a JSON object that holds all labels."""

BACKGROUND = (
    *("background", "white background", "grey background", "black background"),
    *("wall", "floor", "ceiling", "sky", "grass", "ground", "road", "water", "trees", "buildings"),
)
"""What surrounds things, if the user does not say: plain surfaces, and such names as SCLIP's and
NACLIP's authors give for the background of PASCAL VOC."""
COLOURS = (
    *("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink"),
    "brown",
)
"""The basic colour terms of English (Berlin, Kay 1969, "Basic Color Terms")."""
PLACEHOLDER = re.compile(r"\{c?\}")
"""The placeholder of the label: `{}`, or `{c}` as in CLIP_benchmark."""


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files("zeroshot").joinpath("prompt_data.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


@functools.cache
def common_words(count: int = 2000) -> tuple[str, ...]:
    """The most common nouns of things in WordNet 3.0, at most 8000; the file has its licence."""
    text = resources.files("zeroshot").joinpath("words.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["nouns"].split()[:count])


def nouns_of(text: str) -> tuple[str, ...]:
    """The words of a text that are common nouns of things, or their plural, each once."""
    known, found = frozenset(common_words(8000)), []
    for word in dict.fromkeys(re.findall(r"[a-z]+", text.lower())):
        singular = {word, word.removesuffix("s"), word.removesuffix("es")}
        if word.endswith("ies"):
            singular.add(word.removesuffix("ies") + "y")
        if not known.isdisjoint(singular):
            found.append(word)
    return tuple(found)


def _strings(values: object, where: str) -> list[str]:
    if not isinstance(values, list | tuple):
        raise UserError(f"{where}: expected a list of strings, got {type(values).__name__}")
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"{where}: expected strings, got {shown(value)}")
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
                f"{where}: label '{label:.60}' has braces, which mark the label's place in a "
                "template"
            )
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise UserError(
            f"{where} has labels more than once: {', '.join(f'{x!r:.60}' for x in twice[:10])}"
        )
    return tuple(labels)


def _file_suffix(spec: str, what: str, suffixes: Sequence[str], kinds: str) -> str | None:
    """The suffix of the file that `spec` names; None if it names no file.

    Raises:
        UserError: the file exists and has another suffix, or it is a folder.
    """
    suffix, folder = suffix_of(spec), os.path.isdir(spec)
    if suffix and suffix in suffixes:
        return suffix
    file = not folder and os.path.exists(spec)
    if file and not suffix:
        return suffix
    if file or (folder and os.sep in spec) or re.match(r"(~|\.{1,2})?/", spec):
        is_what = "a file" if file else "a folder" if folder else "no file"
        raise UserError(f"'{spec:.200}' is {is_what}, and {what} are read from {kinds}")
    return None


def _lines(path: str) -> list[str]:
    return [line for _, line in read_lines(Path(path))]


def _labels_in_lines(path: str, numbered: bool) -> list[str]:
    return [_label_in_line(line, where) for where, line in read_lines(Path(path), numbered)]


def _label_in_line(line: str, where: str) -> str:
    """The line, or what is in its quotation marks."""
    cells = [line]
    if len(line) > 1 and line[0] == line[-1] == '"':
        cells = _cells(line, where)
    elif "," in line or "\t" in line:
        cells = re.split("[,\t]", line)
    if len(cells) > 1:
        mark = "comma" if "," in line else "tab"
        raise UserError(
            f"{where}: '{line:.60}' has a {mark}; a .txt file has one label a line (labels with "
            "commas are in quotation marks, or a .json list)"
        )
    return cells[0]


def _cells(text: str, where: str) -> list[str]:
    """The cells of a line of a table."""
    try:
        (cells,) = csv.reader([text], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise UserError(
            f"{where}: commas separate labels, and a label with a comma or a quotation mark is in "
            f"quotation marks ({error})"
        ) from None
    return cells


def _labels_in_text(text: str) -> list[str]:
    """The labels between commas, none of which is a file."""
    where = f"{text!r:.200}"
    if "\n" in text.strip() or "\r" in text.strip():
        raise UserError(f"{where}: commas separate labels, and these have line breaks")
    labels = _cells(text.strip(), where) if '"' in text else text.split(",")
    for label in map(str.strip, labels):
        if (os.sep in label or suffix_of(label)) and os.path.isfile(label):
            raise UserError(f"{where}: '{label}' is a file; a file of labels is named alone")
    return labels


def _labels_in_table(path: str) -> list[str]:
    labels = []
    for where, row in read_records(Path(path)):
        columns = known(LABEL, row)
        if not columns:
            there = shown(list(row), 200)[1:-1]
            raise UserError(
                f"{where}: expected a column named {', '.join(LABEL[:-1])} or {LABEL[-1]}, there "
                f"are {there}; a list without column names is a .txt file"
            )
        labels.append(text_in(row, columns[0], where))
    return labels


def _labels_in_json(document: object, where: str) -> object:
    """The list in a JSON file, also if it is the only entry of an object.

    The keys of an object are labels if their values are prompts, kinds or nothing. Numbers as keys
    or as values give the labels an order, as in `id2label` and `label2id` of a model.
    """
    if not isinstance(document, dict):
        return document
    if (own := document.get("id2label")) is not None:  # of a model's config.json
        return _labels_in_json(own, f"{where}, id2label")
    keys, values = list(document), list(document.values())
    if len(keys) == 1 and known(WRAPPERS, keys) and isinstance(values[0], list | dict):
        return _labels_in_json(values[0], f"{where}, {keys[0]}")
    if keys and all(key.isdecimal() for key in keys):
        if all(isinstance(value, str) for value in values):
            return _by_number([(int(key[:9]), value) for key, value in document.items()], where)
    elif keys and all(type(value) is int for value in values):
        return _by_number([(value, key) for key, value in document.items()], where)
    elif not known(WRAPPERS, keys) and all(map(_is_of_label, values)):
        return keys
    raise UserError(
        f"{where}: which of its texts are labels? Labels are a list, the values of an object with "
        'numbers as keys ({"0": "cat"}), or its keys if the values are lists of texts'
    )


def _is_of_label(value: object) -> bool:
    """Whether a value is what a file has about a label: its prompts, its kinds, or nothing."""
    return value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))


def _by_number(numbered: list[tuple[int, str]], where: str) -> list[str]:
    numbers = sorted(number for number, _ in numbered)
    if numbers not in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        raise UserError(
            f"{where}: the numbers of {len(numbers)} labels are 0 to {len(numbers) - 1}, each once"
        )
    return [label for _, label in sorted(numbered)]


def _checked_templates(values: object, where: str) -> tuple[str, ...]:
    templates = _strings(values, where)
    if not templates:
        raise UserError(f"{where} has no templates")
    for template in templates:
        if not PLACEHOLDER.search(template):
            raise UserError(f"{where}: template '{template:.60}' has no {{}} where the label goes")
    return tuple(templates)


def _prompts_by_class(classes: Mapping[str, object], path: str) -> dict[str, tuple[str, ...]]:
    prompts: dict[str, tuple[str, ...]] = {}
    for key, values in classes.items():
        label, where = key.strip(), f"'{path}', class '{key:.60}'"
        if not label or label in prompts:
            raise UserError(f"{where}: " + ("the name is blank" if not label else "comes twice"))
        prompts[label] = tuple(_strings(values, where))
        if not prompts[label]:
            raise UserError(f"'{path}': class '{label:.60}' has no prompts")
    if not prompts:
        raise UserError(f"'{path}' has no prompts")
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


WAFFLE = re.compile(r"waffle(?::(\d+))?")
"""The name of random templates, and their seed."""


def is_template_set(spec: str) -> bool:
    """Whether `load_templates` knows a name, so that it looks for no file."""
    return spec in template_sets() or WAFFLE.fullmatch(spec) is not None


def template_sets() -> list[str]:
    """The names for `load_templates`."""
    return [*_data()["templates"], "none", "waffle"]


def load_templates(
    spec: str | Sequence[str] | None, labels: Sequence[str] = (), default: str = "simple"
) -> Templates:
    """Load templates by name, from a file, or as one or several templates with `{}` or `{c}`.

    `none` is the bare label; `waffle` makes random templates for the labels, `waffle:7` those of
    seed 7. A `.json` file has a list of templates, or an object with the prompts of each class (the
    layout of CuPL and DCLIP); a `.txt` file has one template per line. UserError for anything else.
    """
    if spec is None:
        spec = default
    if not isinstance(spec, str):
        return _checked_templates(spec, "the list of templates")
    if spec == "none":
        return ("{}",)
    if match := WAFFLE.fullmatch(spec):
        return waffle(labels or ["label"], seed=int(match[1] or 0))
    if spec in _data()["templates"]:
        return tuple(_data()["templates"][spec])
    suffix = _file_suffix(
        spec,
        "templates",
        (*LISTS, ".json"),
        ".txt (one a line) and .json (a list, or by class)",
    )
    if suffix is not None and suffix in LISTS:
        return _checked_templates(_lines(spec), f"'{spec}'")
    if suffix == ".json":
        document = read_json(Path(spec), distinct=True)
        if isinstance(document, dict) and list(document) == ["templates"]:
            document = document["templates"]
        if isinstance(document, dict):
            return _prompts_by_class(document, spec)
        return _checked_templates(document, f"'{spec}'")
    if PLACEHOLDER.search(spec):
        return (spec,)
    if " " in spec:
        raise UserError(f"template '{spec:.200}' has no {{}} where the label goes")
    raise unknown("template set", spec, template_sets())


def load_labels(spec: str | Sequence[str], numbered: bool = False) -> tuple[str, ...]:
    """Load labels from a list, a text such as `person,dog`, a file, or `imagenet`.

    A label that has a comma is in quotation marks. A `.txt` or `.names` file, and one without a
    suffix, has one label per line; a `.csv`, `.tsv` or `.jsonl` file a column of labels. A `.json`
    file has a list of labels, an object with labels as keys, or a model's `id2label`. Surrounding
    space is removed. Labels must be distinct, except the two shared names of `imagenet`. UserError
    for invalid labels, for a file with another suffix and for one among several labels; for
    `numbered` labels, as the classes of a data set are, also for a blank line in a list.
    """
    if not isinstance(spec, str):
        return _checked_labels(list(spec), "the list of labels")
    if spec == "imagenet":
        return tuple(_data()["imagenet"])
    suffix = _file_suffix(
        spec,
        "labels",
        (*LISTS, ".json", *TABLES),
        ".txt and .names (one a line), .json (a list, an object whose keys they are, or a model's "
        "id2label), .csv, .tsv and .jsonl (a column named label)",
    )
    where = f"{spec!r:.200}"
    if suffix is None:
        return _checked_labels(_labels_in_text(spec), where)
    if suffix in TABLES:
        return _checked_labels(_labels_in_table(spec), where)
    if suffix == ".json":
        document = read_json(Path(spec), distinct=True)
        return _checked_labels(_labels_in_json(document, where), where)
    return _checked_labels(_labels_in_lines(spec, numbered), where)


def load_background(spec: str | Sequence[str] | None, labels: Sequence[str]) -> tuple[str, ...]:
    """What is none of the labels, in words, as `load_labels`; `none` and no words for nothing.

    None gives `BACKGROUND` without those that share a word with a label: of `sky` and `brick wall`
    the user wants to hear.
    """
    if spec is None:
        taken = {word for label in labels for word in _words(label)}
        return tuple(name for name in BACKGROUND if not taken & _words(name))
    return () if spec in ("", "none") or not len(spec) else load_labels(spec)


def other_colours(labels: Sequence[str]) -> tuple[str, ...]:
    """Each label that names a colour with every other colour, except those that are labels too.

    A green car is not unlike `red car`, if nothing else competes for it.
    """
    found: dict[str, None] = {}
    for label in labels:
        words = label.split()
        for place, word in enumerate(words):
            if word.lower() in COLOURS:
                swapped = ([*words[:place], colour, *words[place + 1 :]] for colour in COLOURS)
                found |= dict.fromkeys(" ".join(each) for each in swapped)
    return tuple(name for name in found if name not in {" ".join(x.split()) for x in labels})


def _words(text: str) -> set[str]:
    """Words in lower case, without the s of a plural."""
    return {word.removesuffix("s") for word in re.findall(r"\w+", text.lower())}


def expand_background(background: Sequence[str], templates: Templates) -> list[list[str]]:
    """As `expand`; words of `BACKGROUND` that prompts by class lack get the default templates."""
    if isinstance(templates, tuple) or not set(background) <= set(BACKGROUND):
        return expand(background, templates)
    own = load_templates(None)
    return [expand([name], templates if name in templates else own)[0] for name in background]


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
