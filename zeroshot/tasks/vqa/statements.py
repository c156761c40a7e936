"""Questions to statements, one for each answer, that a dual encoder can score.

A dual encoder cannot answer a question, but it can tell which of several statements fits an image
best. Song et al. 2022 (arXiv:2203.07190) write statements from questions by templates. For the
three forms here that takes no language model:

| form | example | statements |
|---|---|---|
| is it there | Is there a red heart? Are there cats in the image? | with, without |
| how many | How many cats are there? | no cats, one cat, two cats, ... |
| which of these | What is he holding? with answers named | question and answer (Shen et al. 2021) |

Encoders do not understand "no" and count badly (`docs/questions.md` has figures). With the names
of all things that images may show (`among`), the first two forms need neither. A name is present
if its share of the softmax over all names is at least `PRESENT`; a count is the number of present
names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zeroshot.errors import UserError

__all__ = ["COUNTS", "Question", "covered", "parse", "statements"]

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Form = Literal["there", "count", "open"]

WHERE = r"(?: (?:in|on) (?:the|this) (?:picture|image|photo|photograph|scene))?"
HOW_MANY = re.compile(
    rf"how many (?P<what>.+?)(?: (?:are|is)(?: there| visible)?| (?:do|can) you see)?{WHERE} ?\?*",
    re.IGNORECASE,
)
THERE = re.compile(
    rf"(?:(?:is|are) there|(?:do|can) you see|does (?:the|this) (?:picture|image|photo) "
    rf"(?:show|contain)) (?P<what>.+?){WHERE} ?\?*",
    re.IGNORECASE,
)
ARTICLES = ("a", "an", "any", "some", "the", "one")
ANYTHING = ("thing", "object", "shape", "item")
"""Words that cover every name: `red things` are all names with `red`."""
PLURALS = {"men": "man", "women": "woman", "people": "person", "children": "child", "mice": "mouse"}


@dataclass(frozen=True)
class Question:
    """A question and what it asks for."""

    text: str
    form: Form
    what: str = ""
    """The thing that the question is about, without article."""


def parse(text: str) -> Question:
    """The form of a question; `open` if it is neither of the others."""
    question = " ".join(text.split())
    if match := HOW_MANY.fullmatch(question):
        return Question(text, "count", _without_article(match["what"]))
    if match := THERE.fullmatch(question):
        return Question(text, "there", _without_article(match["what"]))
    return Question(text, "open")


def statements(question: Question, answers: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """The prompts of each answer. If there are `answers`, each is put after the question.

    UserError for an open question without answers to choose from.
    """
    what = question.what
    if answers:
        return {
            answer: (f"question: {question.text} answer: {answer}", f"{question.text} {answer}")
            for answer in answers
        }
    if question.form == "there":
        return {
            "yes": (f"a photo of {what}", what),
            "no": (f"a photo without {what}", f"no {what}"),
        }
    if question.form == "count":
        one = singular(what)
        return {
            str(n): (
                f"a photo of {word} {one if n == 1 else what}",
                f"{word} {one if n == 1 else what}",
            )
            for n, word in enumerate(COUNTS)
        }
    raise UserError(
        f"'{question.text}' asks neither whether something is there nor how many there are; name "
        "the answers to choose from (--answers red,green,blue), or a model that answers (--model)"
    )


def covered(what: str, among: Sequence[str]) -> list[int]:
    """The indices of the names that have all words of `what`, in the singular or the plural.

    UserError if none does.
    """
    words = {singular(word) for word in what.lower().split()} - {*ANYTHING}
    indices = [
        index
        for index, name in enumerate(among)
        if words <= {singular(word) for word in name.lower().split()}
    ]
    if not indices:
        raise UserError(
            f"nothing among the {len(among)} names is '{what}': {', '.join(among[:5])}, ...; name "
            "what may be in the images with --among"
        )
    return indices


def singular(text: str) -> str:
    """The text with its last word in the singular, by the regular rules of English."""
    head, _, word = text.rpartition(" ")
    lower = word.lower()
    if lower in PLURALS:
        word = PLURALS[lower]
    elif lower.endswith("ies") and len(lower) > 4:
        word = word[:-3] + "y"
    elif lower.endswith(("ses", "xes", "zes", "ches", "shes")):
        word = word[:-2]
    elif lower.endswith("s") and not lower.endswith(("ss", "us", "is")):
        word = word[:-1]
    return f"{head} {word}".strip()


def _without_article(what: str) -> str:
    words = what.split()
    while len(words) > 1 and words[0].lower() in ARTICLES:
        words = words[1:]
    return " ".join(words)
