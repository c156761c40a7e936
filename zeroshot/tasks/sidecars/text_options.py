"""What a text sidecar says: the caption or the tags of an image, as trainers want them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zeroshot.errors import UserError
from zeroshot.tasks.options import option

_NO_WORD = " \t,;:"
"""What is left at the ends of a text whose first or last word is gone."""


@dataclass(frozen=True)
class TextOptions:
    """How captions and tags become the text of a sidecar. Rows are not changed.

    The order: words are dropped, then what is left is cut, then both ends are added.
    """

    prefix: str = option(
        "",
        "With --sidecar txt: what each file begins with, such as the trigger word of a training "
        "set: 'mytoken, '. Rows keep the text without it.",
        env="SIDECAR_PREFIX",
        decides_rows=False,
    )
    suffix: str = option(
        "",
        "With --sidecar txt: what each file ends with.",
        env="SIDECAR_SUFFIX",
        decides_rows=False,
    )
    drop_words: str | Sequence[str] = option(
        (),
        "With --sidecar txt: words or phrases that are left out, as in 'a photo of,very'; of tags, "
        "whole tags.",
        env="SIDECAR_DROP_WORDS",
        typed=str,
        decides_rows=False,
    )
    max_words: int | None = option(
        None,
        "With --sidecar txt: the first so many words of a caption, or so many tags; --prefix and "
        "--suffix do not count.",
        env="SIDECAR_MAX_WORDS",
        min=1,
        decides_rows=False,
    )

    @property
    def dropped(self) -> tuple[str, ...]:
        """The words and phrases of `drop_words`."""
        given = self.drop_words.split(",") if isinstance(self.drop_words, str) else self.drop_words
        return tuple(word for one in given if (word := " ".join(one.split())))

    def check(self, sidecar: str | None) -> None:
        """UserError if something is given that the sidecars of a run do not have."""
        if self != TextOptions() and sidecar != "txt":
            raise UserError(
                "--prefix, --suffix, --drop-words and --max-words change the files of --sidecar "
                "txt: give it too, or leave them out"
            )

    def of_caption(self, caption: str) -> str:
        """The text for a caption: 'A photo of a cat.' without 'a photo of' is 'a cat.'."""
        words = caption.split()
        if self.dropped:
            phrases = sorted(self.dropped, key=len, reverse=True)
            any_phrase = "|".join(r"\s+".join(map(re.escape, one.split())) for one in phrases)
            left = re.sub(rf"(?i)(?<!\w)(?:{any_phrase})(?!\w)", "", " ".join(words))
            words = re.sub(r"\s+(?=[.,;:!?])", "", left).strip(_NO_WORD).split()
        return self._between(self._first(words), " ") if self != TextOptions() else caption

    def of_tags(self, tags: Sequence[str]) -> str:
        """The text for tags, the best first: 'cat, tree'."""
        without = {word.casefold() for word in self.dropped}
        return self._between(self._first([t for t in tags if t.casefold() not in without]), ", ")

    def _first(self, words: list[str]) -> list[str]:
        if self.max_words is None or len(words) <= self.max_words:
            return words
        *first, last = words[: self.max_words]
        return [*first, last.rstrip(_NO_WORD)]

    def _between(self, words: Sequence[str], separator: str) -> str:
        if words:
            return f"{self.prefix}{separator.join(words)}{self.suffix}"
        return " ".join(end for part in (self.prefix, self.suffix) if (end := part.strip(_NO_WORD)))
