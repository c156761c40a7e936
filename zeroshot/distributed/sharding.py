"""The inputs of a run in their spec, fixed once, and cut into shards.

By number: all pictures are listed, and every `size` of them are a shard. By file: a tar file, a
table or a Parquet file is a shard, which is listed by who works on it; what is fixed are the files.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from zeroshot.errors import UserError
from zeroshot.inputs import containers
from zeroshot.inputs.containers import Containers, ImageContainer
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import Blob, Source

SHARD_SIZE = 10_000
"""As img2dataset."""

Size = int | Literal["file"]


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


class FileRefusedError(UserError):
    """Files that cannot be made shards; made with a sentence for each."""

    def __str__(self) -> str:
        """The first sentence, how many more there are, and that the others are done."""
        more = f"; and {len(self.args) - 1} more such files" if self.args[1:] else ""
        return f"{self.args[0]}{more} (all other shards are done)"


def changed(name: str) -> str:
    """The sentence of a file that is not what it was."""
    return (
        f"'{name}' has changed since the output was begun, and nothing is made of it as it is now: "
        "put back what was there, begin the output anew with --overwrite, or choose another --out"
    )


@dataclass(frozen=True)
class ByNumber:
    """Pictures in spec, in shards of `size`."""

    sources: Sequence[Source]
    size: int

    @property
    def count(self) -> int:
        """Of shards."""
        return -(-len(self.sources) // self.size)

    def shard(self, number: int, left_out: list[str] | None = None) -> Sequence[Source]:
        """The inputs of one shard."""
        return self.sources[number * self.size : (number + 1) * self.size]

    def release(self, number: int) -> None:
        """Nothing of it is held."""

    def rows(self, number: int) -> int:
        """How many a shard has."""
        return min(self.size, len(self.sources) - number * self.size)

    @property
    def inputs(self) -> dict[str, Any]:
        """What identifies them all, for `run.json`."""
        return {"count": len(self.sources), "shards": self.count, "sha256": self.sha256}

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

    def names(self, lines: bytes) -> Sequence[bytes]:
        """What of such lines has to be equal: all."""
        return lines.splitlines()

    @property
    def changed(self) -> Sequence[str]:
        """None: with another file, these are other inputs."""
        return ()


@dataclass(frozen=True)
class ByFile:
    """Files of pictures in spec, a shard each: listed by who works on it, and then only.

    A file that has changed since the output was begun is refused by itself, the others are not.
    """

    files: Sequence[ImageContainer]
    known: Sequence[str | None] | None = None
    """Their versions when the output was begun; None of what was not there or not to be had."""

    size: Literal["file"] = "file"

    @property
    def count(self) -> int:
        """Of shards."""
        return len(self.files)

    @property
    def sources(self) -> Sequence[Source]:
        """All inputs: this lists every file."""
        return [source for file in self.files for source in file.pictures()]

    def shard(self, number: int, left_out: list[str] | None = None) -> Sequence[Source]:
        """The pictures of one file, to be read here until it is let go; others in `left_out`.

        Raises:
            FileRefusedError: it is not what it was when the output was begun, or a table without a
                column of pictures.
        """
        file = self.files[number]
        before = file.version if self.known is None else self.known[number]
        try:
            now: str | None = fsspec_files.hold(file.name)
        except FileNotFoundError:
            now = None
        except fsspec_files.failures(file.name):  # listing meets the same, and says so in a row
            now = before
        if before not in (None, now):
            raise FileRefusedError(changed(file.name))
        try:
            return list(file.pictures(left_out))
        except UserError as error:
            raise FileRefusedError(str(error)) from error

    def release(self, number: int) -> None:
        """The shard is not read any more."""
        fsspec_files.release(self.files[number].name)

    def rows(self, number: int) -> None:
        """Only listing would tell."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What identifies them all, for `run.json`."""
        return {"files": self.count, "shards": self.count, "sha256": self.sha256}

    @cached_property
    def lines(self) -> bytes:
        """What is known of each file, a JSON line each: name, how it is read, version."""
        told = zip(self._names, containers.versions(self.files), strict=True)
        return b"".join(json.dumps([*name, version]).encode() + b"\n" for name, version in told)

    @property
    def _names(self) -> list[list[Any]]:
        return [[file.name, file.reading] for file in self.files]

    @cached_property
    def sha256(self) -> str:
        """Changes with the name of any file, their spec, or the options that tables are read by.

        Not with a version: that of one in thousands concerns its own shard alone.
        """
        text = "".join(json.dumps(name) + "\n" for name in self._names)
        return hashlib.sha256(f"{self.size}\n{text}".encode()).hexdigest()

    def names(self, lines: bytes) -> Sequence[bytes]:
        """What of such lines has to be equal: all but the versions."""
        return [json.dumps(json.loads(line)[:2]).encode() for line in lines.splitlines()]

    def begun(self, lines: bytes, name: str) -> "ByFile":
        """The plan as an output was begun with it: with the versions of then, read from `name`.

        Raises:
            UserError: they are not known any more.
        """
        try:
            known = [json.loads(line)[2] for line in lines.splitlines()]
            if len(known) != self.count:
                raise ValueError(f"{len(known)} lines for {self.count} files")
        except (ValueError, IndexError) as error:
            raise UserError(
                f"'{name}' says what the output was begun with, and cannot be read ({error}); "
                "bring it back, begin the output anew with --overwrite, or choose another --out"
            ) from error
        return replace(self, known=known)

    @property
    def changed(self) -> Sequence[str]:
        """Files that are others than when the output was begun, as far as naming them told."""
        known = [None] * self.count if self.known is None else self.known
        return [
            file.name
            for file, before in zip(self.files, known, strict=True)
            if None not in (before, file.version) and before != file.version
        ]


Plan = ByNumber | ByFile
Inputs = Sequence[Source] | Containers
"""Pictures, or files of them that are not listed yet."""


def planned(inputs: Inputs, size: Size | None) -> Plan:
    """The inputs in shards of `size`; where nobody says, of `SHARD_SIZE` or a file each.

    Raises:
        UserError: a shard for each file, and pictures that are none.
    """
    if isinstance(inputs, Containers):
        if size is None or size == "file":
            return ByFile(inputs.files)
        inputs = [source for file in inputs.files for source in file.pictures()]
    if size == "file":
        raise UserError(
            "a shard for each file (--shard-size file) needs tar files, tables or Parquet files "
            "that nobody has to list beforehand: no other pictures beside them, no --limit, and no "
            "option that goes by all pictures"
        )
    return ByNumber(inputs, size or SHARD_SIZE)


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
    before = Counter(new.names(old))
    after = Counter(new.names(new.lines))
    parts = [
        f"{_named(lines)} {what}"
        for lines, what in ((after - before, "new"), (before - after, "gone"))
        if lines
    ]
    return ", ".join(parts) or "the same ones in another order"


def _named(lines: Counter[bytes]) -> str:
    first = json.loads(next(iter(lines)))[0]
    return f"{lines.total()} ('{first}'{', ...' if lines.total() > 1 else ''})"
