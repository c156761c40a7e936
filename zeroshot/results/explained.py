"""The result of an explanation by words."""

from dataclasses import dataclass
from typing import Any, ClassVar

from zeroshot.results.notebook_table import Line
from zeroshot.results.result import Result, as_float32


@dataclass(frozen=True)
class WordWeight:
    """A word and its weight in a sum of words."""

    word: str
    weight: float


@dataclass(frozen=True)
class ExplainResult(Result):
    """An image, the mean of a folder, or a text, as a sum of words."""

    words: tuple[WordWeight, ...] = ()
    """The largest weight first."""
    nonzero: int = 0
    """Words with a weight, named or not."""
    cosine: float = 0.0
    """Of the centred embedding and the sum of all words; of a folder, the mean of its images'."""
    mean_of: str = ""
    """What was subtracted: the mean of `252 images`, `90 images of the bank`, `2000 words` (texts),
    or of `nothing`."""
    text: str | None = None
    """The text that is explained; then there is no image."""
    images: int | None = None
    """The images of a folder; its path is that of the folder."""

    schema: ClassVar[str] = "zeroshot.explain/1"
    heading: ClassVar[str] = "weight, word"

    def answer(self) -> dict[str, Any]:
        """`words`, `nonzero`, `cosine`, `mean_of`, and `text` or `images` of what is no image."""
        words = [{"word": x.word, "weight": as_float32(x.weight)} for x in self.words]
        more: dict[str, Any] = {} if self.text is None else {"text": self.text}
        more |= {} if self.images is None else {"images": self.images}
        cosine = as_float32(self.cosine)
        fields = {"words": words, "nonzero": self.nonzero, "cosine": cosine}
        return more | fields | {"mean_of": self.mean_of}

    def summary(self) -> str:
        """`dog 0.31, ball 0.12`."""
        return ", ".join(f"{x.word} {x.weight:.2f}" for x in self.words) or "no words"

    def lines(self) -> list[Line]:
        """Each word with its weight."""
        return [Line(x.word, x.weight) for x in self.words] or [Line("no words")]
