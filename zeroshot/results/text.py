"""Results about texts: how well they fit an image, answers, the text that an image shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from zeroshot.models.base import Answer
from zeroshot.results.notebook_table import Line
from zeroshot.results.result import Result, as_float32

__all__ = ["AskResult", "MatchResult", "QuestionAnswers", "ReadResult", "TextScore"]


@dataclass(frozen=True)
class TextScore:
    """How well one text fits an image."""

    text: str
    score: float
    label: str | None = None
    """The label of the score, if there are thresholds."""
    weakest: tuple[str, float] | None = None
    """The noun of the text that fits least, and its cosine, with `fclip`."""
    scores: Mapping[str, float] | None = None
    """The score of each label, if the head has more than two (entailment)."""

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        row: dict[str, Any] = {"text": self.text, "score": as_float32(self.score)}
        if self.label is not None:
            row["label"] = self.label
        if self.weakest is not None:
            noun, cosine = self.weakest
            row["weakest"] = {"noun": noun, "cosine": as_float32(cosine)}
        if self.scores is not None:
            row["scores"] = {label: as_float32(score) for label, score in self.scores.items()}
        return row


@dataclass(frozen=True)
class MatchResult(Result):
    """How well each text fits the image; `scored` says what a score is."""

    texts: tuple[TextScore, ...] = ()
    scored: str = "cosine"
    second: str | None = None
    """The other image, if the texts are about two."""

    schema: ClassVar[str] = "zeroshot.match/1"
    heading: ClassVar[str] = "score, text"

    def answer(self) -> dict[str, Any]:
        """`texts`, `scored`, and `second` if there is one."""
        second = {"second": self.second} if self.second is not None else {}
        return {"texts": [text.row() for text in self.texts], "scored": self.scored, **second}

    def summary(self) -> str:
        """`0.31  a red heart`, a line for each text."""
        return "\n".join(
            f"{x.score:.3f}  {x.text}"
            + (f"  ({x.label})" if x.label else "")
            + (f"  (least: {x.weakest[0]})" if x.weakest else "")
            for x in self.texts
        )

    def lines(self) -> list[Line]:
        """Each text with its score."""
        return [Line(x.text + (f" ({x.label})" if x.label else ""), x.score) for x in self.texts]


@dataclass(frozen=True)
class QuestionAnswers:
    """A question and its answers, best first."""

    question: str
    answers: tuple[Answer, ...]

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        answers = [
            {"answer": a.text, "score": None if a.score is None else as_float32(a.score)}
            for a in self.answers
        ]
        return {"question": self.question, "answers": answers}


@dataclass(frozen=True)
class AskResult(Result):
    """The answers to every question about an image; `scored` says what a score is."""

    questions: tuple[QuestionAnswers, ...] = ()
    scored: str = "probability"

    schema: ClassVar[str] = "zeroshot.ask/1"
    heading: ClassVar[str] = "score, answer"

    def answer(self) -> dict[str, Any]:
        """`questions`, `scored`."""
        return {"questions": [x.row() for x in self.questions], "scored": self.scored}

    def summary(self) -> str:
        """The answers; with their questions if there are several."""
        lines = [", ".join(map(_shown, x.answers)) for x in self.questions]
        if len(lines) == 1:
            return lines[0]
        return "\n".join(
            f"{x.question} {line}" for x, line in zip(self.questions, lines, strict=True)
        )

    def lines(self) -> list[Line]:
        """Each answer with its score; with its question if there are several."""
        several = len(self.questions) > 1
        return [
            Line(f"{x.question} {answer.text}" if several else answer.text, answer.score)
            for x in self.questions
            for answer in x.answers
        ]


@dataclass(frozen=True)
class ReadResult(Result):
    """The text that an image shows, and the mean probability of its tokens."""

    text: str | None = None
    score: float | None = None

    schema: ClassVar[str] = "zeroshot.read/1"
    heading: ClassVar[str] = "score, text"

    def answer(self) -> dict[str, Any]:
        """`text`, `score`."""
        return {"text": self.text, "score": None if self.score is None else as_float32(self.score)}

    def summary(self) -> str:
        """The text."""
        return self.text or ""

    def lines(self) -> list[Line]:
        """The text with its score."""
        return [Line(self.summary(), self.score)]


def _shown(answer: Answer) -> str:
    return answer.text if answer.score is None else f"{answer.text} {answer.score:.2f}"
