"""Tokens of plain texts, looked up word by word: guided decoding asks for 45 of each next word.

A tokenizer that splits a text at white space before all else gives a text the tokens of its words,
one after the other. Its own way through a text takes some 40 us; here a word is tokenized once.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

__all__ = ["WORDS", "WordTokens", "token_rows"]

WORDS = True
"""Whether words are looked up; else each text goes through the tokenizer."""
REMEMBERED = 1 << 16
"""Different words."""


class WordTokens:
    """Token ids of texts, or None for a text that is not plain.

    Plain is printable ASCII without `&` and `<`: nothing there is repaired, unescaped or a special
    token.
    """

    def __init__(
        self, of_word: Callable[[str], Sequence[int]], start: int, end: int, limit: int | None
    ) -> None:
        """`of_word` gives a word's ids without start and end; a text has at most `limit` ids."""
        self._of_word = lru_cache(REMEMBERED)(lambda word: tuple(of_word(word)))
        self._start, self._end, self._limit = start, end, limit

    def __call__(self, text: str) -> tuple[int, ...] | None:
        """With start and end; what is too long is cut before the end."""
        plain = text.isascii() and text.isprintable() and "&" not in text and "<" not in text
        if not plain:
            return None
        ids = [self._start]
        for word in text.split():
            ids += self._of_word(word)
        if self._limit is not None:
            del ids[self._limit - 1 :]
        return (*ids, self._end)


def token_rows(
    words: WordTokens | None,
    texts: Sequence[str],
    tokenize: Callable[[list[str]], Sequence[Sequence[int]]],
) -> list[Sequence[int]]:
    """Token ids of each text: of plain ones looked up, of the others by `tokenize`."""
    rows = [words(text) if words is not None and WORDS else None for text in texts]
    others = [text for text, row in zip(texts, rows, strict=True) if row is None]
    rest = iter(tokenize(others) if others else ())
    return [next(rest) if row is None else row for row in rows]
