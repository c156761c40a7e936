"""The inputs of a run, in a fixed order and split into shards.

By number: all images are listed, and every `size` of them are a shard. By file: each tar file,
table or Parquet file is a shard. The list of files is fixed; the process that works on a file lists
its images.
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
"""The default of img2dataset."""

Size = int | Literal["file"]


@dataclass(frozen=True)
class Share:
    """The shards of one of several workers: `3/16` is the third worker of sixteen."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> "Share":
        """Parse `k/n`.

        Raises:
            UserError: not two numbers, or `k` is not between 1 and `n`.
        """
        k, _, n = text.partition("/")
        if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
            raise UserError(
                f"--shards {text}: expected K/N, the K-th of N workers, from 1/N to N/N; a "
                "launcher that counts from 0 adds 1"
            )
        return cls(int(k), int(n))

    def has(self, shard: int) -> bool:
        """Whether the shard belongs to this worker."""
        return shard % self.of == self.number - 1


class FileRefusedError(UserError):
    """Files that cannot become shards; `args` has a message for each."""

    def __str__(self) -> str:
        """The first message and the number of the others."""
        more = f"; and {len(self.args) - 1} more such files" if self.args[1:] else ""
        return f"{self.args[0]}{more} (all other shards are done)"


def changed_message(name: str) -> str:
    """The error message for a file that has changed."""
    return (
        f"'{name}' has changed since the output was started, so it is not processed: put the old "
        "file back, start again with --overwrite, or choose another --out"
    )


@dataclass(frozen=True)
class ByNumber:
    """Images in order, in shards of `size`."""

    sources: Sequence[Source]
    size: int

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.sources) // self.size)

    def shard(self, number: int, left_out: list[str] | None = None) -> Sequence[Source]:
        """The images of one shard."""
        return self.sources[number * self.size : (number + 1) * self.size]

    def release(self, number: int) -> None:
        """Does nothing: no file of the shard is open."""

    def rows(self, number: int) -> int:
        """Number of rows in a shard."""
        return min(self.size, len(self.sources) - number * self.size)

    @property
    def inputs(self) -> dict[str, Any]:
        """Identifies all inputs in `run.json`."""
        return {"count": len(self.sources), "shards": self.count, "sha256": self.sha256}

    @cached_property
    def lines(self) -> bytes:
        """A JSON line that identifies each input: path, stamp, fields.

        Raises:
            UserError: an image in memory, which other processes cannot read.
        """
        return b"".join(json.dumps(_identity(s)).encode() + b"\n" for s in self.sources)

    @cached_property
    def sha256(self) -> str:
        """A hash that changes with any input, their order or the shard size."""
        return hashlib.sha256(f"{self.size}\n".encode() + self.lines).hexdigest()

    def identities(self, lines: bytes) -> Sequence[bytes]:
        """The part of such lines that must not differ between runs: all of it."""
        return lines.splitlines()

    @property
    def changed(self) -> Sequence[str]:
        """None: a changed file makes other inputs."""
        return ()


@dataclass(frozen=True)
class ByFile:
    """Files of images in order, one shard each; a file is listed when a process works on it.

    A file that has changed since the output was started is refused; the others are processed.
    """

    files: Sequence[ImageContainer]
    known: Sequence[str | None] | None = None
    """Their versions when the output was started; None if a file was missing or unreachable."""

    size: Literal["file"] = "file"

    @property
    def count(self) -> int:
        """Number of shards."""
        return len(self.files)

    @property
    def sources(self) -> Sequence[Source]:
        """All images; opens every file."""
        return [source for file in self.files for source in file.pictures()]

    def shard(self, number: int, left_out: list[str] | None = None) -> Sequence[Source]:
        """The images of one file, readable until `release`; names of other files go to `left_out`.

        Raises:
            FileRefusedError: the file has changed since the output was started, or is a table
                without a column of images.
        """
        file = self.files[number]
        before = file.version if self.known is None else self.known[number]
        try:
            now: str | None = fsspec_files.hold(file.name)
        except FileNotFoundError:
            now = None
        except fsspec_files.failures(file.name):  # listing fails as well and writes a row about it
            now = before
        if before not in (None, now):
            raise FileRefusedError(changed_message(file.name))
        try:
            return list(file.pictures(left_out))
        except UserError as error:
            raise FileRefusedError(str(error)) from error

    def release(self, number: int) -> None:
        """Drop the local copy of the shard's file."""
        fsspec_files.release(self.files[number].name)

    def rows(self, number: int) -> None:
        """None: unknown until the file is listed."""

    @property
    def inputs(self) -> dict[str, Any]:
        """Identifies all inputs in `run.json`."""
        return {"files": self.count, "shards": self.count, "sha256": self.sha256}

    @cached_property
    def lines(self) -> bytes:
        """A JSON line for each file: name, reading options, version."""
        files = zip(self._names, containers.versions(self.files), strict=True)
        return b"".join(json.dumps([*name, version]).encode() + b"\n" for name, version in files)

    @property
    def _names(self) -> list[list[Any]]:
        return [[file.name, file.reading] for file in self.files]

    @cached_property
    def sha256(self) -> str:
        """A hash that changes with any name, the order of the files, or the reading options.

        Versions are not part of it: a changed file concerns its own shard only.
        """
        text = "".join(json.dumps(name) + "\n" for name in self._names)
        return hashlib.sha256(f"{self.size}\n{text}".encode()).hexdigest()

    def identities(self, lines: bytes) -> Sequence[bytes]:
        """The part of such lines that must not differ between runs: all but the versions."""
        return [json.dumps(json.loads(line)[:2]).encode() for line in lines.splitlines()]

    def with_versions(self, lines: bytes, name: str) -> "ByFile":
        """The plan with the file versions in `lines`, which the file `name` recorded.

        Raises:
            UserError: they cannot be read.
        """
        try:
            known = [json.loads(line)[2] for line in lines.splitlines()]
            if len(known) != self.count:
                raise ValueError(f"{len(known)} lines for {self.count} files")
        except (ValueError, IndexError) as error:
            raise UserError(
                f"'{name}' lists the inputs of the output and cannot be read ({error}); restore "
                "it, start again with --overwrite, or choose another --out"
            ) from error
        return replace(self, known=known)

    @property
    def changed(self) -> Sequence[str]:
        """Files that have changed since the output was started, as far as their listing says."""
        known = [None] * self.count if self.known is None else self.known
        return [
            file.name
            for file, before in zip(self.files, known, strict=True)
            if None not in (before, file.version) and before != file.version
        ]


Plan = ByNumber | ByFile
Inputs = Sequence[Source] | Containers
"""Images, or files of images that are not listed yet."""


def make_plan(inputs: Inputs, size: Size | None) -> Plan:
    """The inputs in shards of `size`; by default one shard per file, else `SHARD_SIZE` images.

    Raises:
        UserError: `size` is "file" and the inputs are not files of images.
    """
    if isinstance(inputs, Containers):
        if size is None or size == "file":
            return ByFile(inputs.files)
        inputs = [source for file in inputs.files for source in file.pictures()]
    if size == "file":
        raise UserError(
            "one shard per file (--shard-size file) needs tar files, tables or Parquet files that "
            "need not be listed first: no other images among the inputs, no --limit, and no option "
            "that depends on all images"
        )
    return ByNumber(inputs, size or SHARD_SIZE)


def _identity(source: Source) -> list[object]:
    if source.content is not None and not isinstance(source.content, Blob):
        raise UserError(
            "an image in memory cannot be part of a shard, because other processes work on shards: "
            "save it as a file first, or write a single output file"
        )
    stamp = None if source.content is None else source.content.stamp
    return [source.path, stamp, *([dict(source.fields)] if source.fields else [])]


def difference(old: bytes | None, new: Plan) -> str:
    """How the inputs of a run differ from those of an earlier run, for a message."""
    if old is None:
        return "the earlier ones are not known any more"
    before = Counter(new.identities(old))
    after = Counter(new.identities(new.lines))
    parts = [
        f"{_named(lines)} {what}"
        for lines, what in ((after - before, "new"), (before - after, "gone"))
        if lines
    ]
    return ", ".join(parts) or "the same ones in another order"


def _named(lines: Counter[bytes]) -> str:
    first = json.loads(next(iter(lines)))[0]
    return f"{lines.total()} ('{first}'{', ...' if lines.total() > 1 else ''})"
