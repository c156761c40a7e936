"""The inputs of a run in their order, fixed once, and cut into shards."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from zeroshot.errors import UserError
from zeroshot.images import Blob, Source

SHARD_SIZE = 10_000
"""As img2dataset."""


@dataclass(frozen=True)
class Share:
    """The shards of one of several workers: `3/16` is the third of sixteen."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> "Share":
        """From `k/n`.

        Raises:
            UserError: not two numbers, or `k` is not from 1 to `n`.
        """
        k, _, n = text.partition("/")
        if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
            raise UserError(
                f"--shards {text}: expected K/N, the K-th of N workers, from 1/N to N/N; a "
                "launcher that counts from 0 adds 1"
            )
        return cls(int(k), int(n))

    def has(self, shard: int) -> bool:
        """Whether a shard is one of its own."""
        return shard % self.of == self.number - 1


@dataclass(frozen=True)
class Plan:
    """Inputs in order, in shards of `size`."""

    sources: Sequence[Source]
    size: int

    @property
    def count(self) -> int:
        """Of shards."""
        return -(-len(self.sources) // self.size)

    def shard(self, number: int) -> Sequence[Source]:
        """The inputs of one shard."""
        return self.sources[number * self.size : (number + 1) * self.size]

    @cached_property
    def lines(self) -> bytes:
        """What identifies each input, a JSON line each: path, stamp of its place, fields.

        Raises:
            UserError: a picture in memory, which other processes cannot reach.
        """
        return b"".join(json.dumps(_identity(s)).encode() + b"\n" for s in self.sources)

    @cached_property
    def sha256(self) -> str:
        """Changes with any input, their order or the size of shards."""
        return hashlib.sha256(f"{self.size}\n".encode() + self.lines).hexdigest()


def _identity(source: Source) -> list[object]:
    if source.content is not None and not isinstance(source.content, Blob):
        raise UserError(
            "a picture in memory cannot go to shards, which other processes work on: save it as a "
            "file first, or write a single file"
        )
    stamp = None if source.content is None else source.content.stamp
    return [source.path, stamp, *([dict(source.fields)] if source.fields else [])]


def difference(old: bytes | None, new: Plan) -> str:
    """In words, how the inputs of a run differ from those an earlier one wrote, if still known."""
    if old is None:
        return "what they were is not known any more"
    before = Counter(old.splitlines())
    after = Counter(new.lines.splitlines())
    parts = [
        f"{_named(lines)} {what}"
        for lines, what in ((after - before, "new"), (before - after, "gone"))
        if lines
    ]
    return ", ".join(parts) or "the same ones in another order"


def _named(lines: Counter[bytes]) -> str:
    first = json.loads(next(iter(lines)))[0]
    return f"{lines.total()} ('{first}'{', ...' if lines.total() > 1 else ''})"
