"""Results of the tasks that give texts about an image: fits, answers, lines that it shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from zeroshot.models.base import Answer
from zeroshot.results.result import Result, as_float32

__all__ = ["AskResult", "MatchResult", "QuestionAnswers", "ReadResult", "TextScore"]


@dataclass(frozen=True)
class TextScore:
    """How well one text fits an image."""

    text: str
    score: float
    label: str | None = None
    """What the score means, where thresholds say so."""
    scores: Mapping[str, float] | None = None
    """Of each label of a head that has more than two (entailment)."""

    def row(self) -> dict[str, Any]:
        """JSON-ready fields."""
        row: dict[str, Any] = {"text": self.text, "score": as_float32(self.score)}
        if self.label is not None:
            row["label"] = self.label
        if self.scores is not None:
            row["scores"] = {label: as_float32(score) for label, score in self.scores.items()}
        return row


@dataclass(frozen=True)
class MatchResult(Result):
    """How well each text fits the image; `scored` says what a score is."""

    texts: tuple[TextScore, ...] = ()
    scored: str = "cosine"
    second: str | None = None
    """The other image that the texts speak of, where they speak of two."""

    schema: ClassVar[str] = "zeroshot.match/1"

    def answer(self) -> dict[str, Any]:
        """`texts`, `scored`, and `second` if there is one."""
        second = {"second": self.second} if self.second is not None else {}
        return {"texts": [fit.row() for fit in self.texts], "scored": self.scored, **second}

    def summary(self) -> str:
        """`0.31  a red heart`, a line for each text."""
        return "\n".join(
            f"{fit.score:.3f}  {fit.text}" + (f"  ({fit.label})" if fit.label else "")
            for fit in self.texts
        )


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

    def answer(self) -> dict[str, Any]:
        """`questions`, `scored`."""
        return {"questions": [asked.row() for asked in self.questions], "scored": self.scored}

    def summary(self) -> str:
        """The best answers; with their questions where there are several."""
        if len(self.questions) == 1:
            return ", ".join(_said(a) for a in self.questions[0].answers)
        return "\n".join(
            f"{asked.question} {', '.join(_said(a) for a in asked.answers)}"
            for asked in self.questions
        )


@dataclass(frozen=True)
class ReadResult(Result):
    """The text that an image shows, and how sure the model is of a token of it on average."""

    text: str | None = None
    score: float | None = None

    schema: ClassVar[str] = "zeroshot.read/1"

    def answer(self) -> dict[str, Any]:
        """`text`, `score`."""
        return {"text": self.text, "score": None if self.score is None else as_float32(self.score)}

    def summary(self) -> str:
        """The text."""
        return self.text or ""


def _said(answer: Answer) -> str:
    return answer.text if answer.score is None else f"{answer.text} {answer.score:.2f}"
