"""The locations of the embeddings of one encoder and kind: sorted arrays, to look up many at once.

A key is 64 bits of an id. If two ids have the same key, one finds the wrong embedding. Its
checksum, which includes other bits of the id, detects that. Memory is 20 bytes per embedding.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

LookupKeys = np.ndarray[tuple[int], np.dtype[np.uint64]]
Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
Checksums = np.ndarray[tuple[int], np.dtype[np.uint32]]

MANY = 4096
"""At least this many new embeddings are sorted in at once; fewer wait in a dictionary."""


@dataclass(frozen=True)
class Digests:
    """The first 96 bits of many ids: the lookup key, and the initial value of the checksum.

    An id that is no sha256 is hashed first.
    """

    keys: LookupKeys
    seeds: Checksums

    @classmethod
    def from_ids(cls, ids: Sequence[str]) -> "Digests":
        """The digests of ids; fast if all are sha256 in hexadecimal."""
        if are_sha256(ids):
            raw = bytes.fromhex("".join([id[:24] for id in ids]))
        else:
            raw = b"".join(map(_digest, ids))
        words = np.frombuffer(raw, dtype=">u4").astype(np.uint64).reshape(-1, 3)
        return cls((words[:, 0] << np.uint64(32)) | words[:, 1], words[:, 2].astype(np.uint32))


def are_sha256(ids: Sequence[str]) -> bool:
    """Whether all ids are sha256 in hexadecimal."""
    return set(map(len, ids)) == {64} and bool(re.fullmatch("[0-9a-f]*", "".join(ids)))


def packed(ids: Sequence[str]) -> bytes | str:
    """Ids as one value of a table: 32 bytes each, or lines if one is no sha256."""
    return bytes.fromhex("".join(ids)) if are_sha256(ids) else "\n".join(ids)


def unpacked(value: object) -> list[str]:
    """The ids in a value of `packed`; arbitrary ids if the value is damaged."""
    if isinstance(value, bytes):
        return [value[i : i + 32].hex() for i in range(0, len(value), 32)]
    return str(value).split("\n")


def _digest(id: str) -> bytes:
    if re.fullmatch("[0-9a-f]{64}", id):
        return bytes.fromhex(id[:24])
    return hashlib.blake2b(id.encode(), digest_size=12).digest()


@dataclass(frozen=True)
class Run:
    """Embeddings that follow one another in a segment, the first at index `first`."""

    segment: int
    first: int
    keys: LookupKeys
    checksums: Checksums

    @property
    def indices(self) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        """Their indices in the segment."""
        return np.arange(self.first, self.first + len(self.keys), dtype=np.uint32)


@dataclass(frozen=True)
class Locations:
    """The location of the embedding of each key; `-1` in `segments` if there is none."""

    segments: Numbers
    indices: Numbers
    checksums: Checksums


@dataclass
class Lookup:
    """Locations by key; the newest embedding of a key counts."""

    keys: LookupKeys = field(default_factory=lambda: np.empty(0, np.uint64))
    segments: np.ndarray[tuple[int], np.dtype[np.int32]] = field(
        default_factory=lambda: np.empty(0, np.int32)
    )
    indices: np.ndarray[tuple[int], np.dtype[np.uint32]] = field(
        default_factory=lambda: np.empty(0, np.uint32)
    )
    checksums: Checksums = field(default_factory=lambda: np.empty(0, np.uint32))
    newest: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    last: int = 0
    """Id of the last batch that was added."""

    def __len__(self) -> int:
        self._settle()
        return len(self.keys)

    def add(self, runs: Sequence[Run]) -> None:
        """Add embeddings, the oldest first."""
        if sum(len(run.keys) for run in runs) >= MANY:
            self._settle()
            self._merge(
                np.concatenate([run.keys for run in runs]),
                np.repeat(
                    np.array([run.segment for run in runs], np.int32),
                    [len(run.keys) for run in runs],
                ),
                np.concatenate([run.indices for run in runs]),
                np.concatenate([run.checksums for run in runs]),
            )
            return
        for run in runs:
            keys, indices = run.keys.tolist(), run.indices.tolist()
            rows = zip(keys, indices, run.checksums.tolist(), strict=True)
            self.newest |= {key: (run.segment, index, checksum) for key, index, checksum in rows}
        if len(self.newest) > max(MANY, len(self.keys) // 8):
            self._settle()

    def find(self, keys: LookupKeys) -> Locations:
        """The locations of these keys."""
        segments = np.full(len(keys), -1, np.int64)
        indices = np.zeros(len(keys), np.int64)
        checksums = np.zeros(len(keys), np.uint32)
        if len(self.keys):
            at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            hit = self.keys[at] == keys
            at = at[hit]
            segments[hit] = self.segments[at]
            indices[hit], checksums[hit] = self.indices[at], self.checksums[at]
        if self.newest:
            for i, key in enumerate(keys.tolist()):
                if key in self.newest:
                    segments[i], indices[i], checksums[i] = self.newest[key]
        return Locations(segments, indices, checksums)

    def _settle(self) -> None:
        """Move the entries of the dictionary into the sorted arrays."""
        if self.newest:
            segments, indices, checksums = zip(*self.newest.values(), strict=True)
            self._merge(
                np.fromiter(self.newest, np.uint64, len(self.newest)),
                np.array(segments, np.int32),
                np.array(indices, np.uint32),
                np.array(checksums, np.uint32),
            )
            self.newest = {}

    def _merge(
        self,
        keys: LookupKeys,
        segments: np.ndarray[tuple[int], np.dtype[np.int32]],
        indices: np.ndarray[tuple[int], np.dtype[np.uint32]],
        checksums: Checksums,
    ) -> None:
        joined = np.concatenate([self.keys, keys])
        order = np.argsort(joined, kind="stable")  # of equal keys the newest is the last
        joined = joined[order]
        order = order[np.append(joined[1:] != joined[:-1], True)[: len(joined)]]
        self.keys = np.concatenate([self.keys, keys])[order]
        self.segments = np.concatenate([self.segments, segments])[order]
        self.indices = np.concatenate([self.indices, indices])[order]
        self.checksums = np.concatenate([self.checksums, checksums])[order]
