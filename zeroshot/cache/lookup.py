"""Where the rows of one encoder and kind lie: sorted arrays in memory, to find many at once.

A key is 64 bits of an id. Two ids may share one, and then a key finds the wrong row; the row's
checksum, which knows more of the id, tells. Twenty bytes of memory a row.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Keys = np.ndarray[tuple[int], np.dtype[np.uint64]]
Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
Checksums = np.ndarray[tuple[int], np.dtype[np.uint32]]

MANY = 4096
"""So many new rows are sorted in at once; fewer wait in a dictionary."""


@dataclass(frozen=True)
class Digests:
    """96 bits of each of many ids: to find its row, and for the row's checksum to begin with.

    They are the first of a sha256, and of other ids the first of a hash.
    """

    keys: Keys
    seeds: Checksums

    @classmethod
    def of(cls, ids: Sequence[str]) -> "Digests":
        """Quick for ids that are sha256 in hexadecimal."""
        if are_sha256(ids):
            raw = bytes.fromhex("".join([id[:24] for id in ids]))
        else:
            raw = b"".join(map(_digest, ids))
        words = np.frombuffer(raw, dtype=">u4").astype(np.uint64).reshape(-1, 3)
        return cls((words[:, 0] << np.uint64(32)) | words[:, 1], words[:, 2].astype(np.uint32))


def are_sha256(ids: Sequence[str]) -> bool:
    """Whether all are, in hexadecimal."""
    return set(map(len, ids)) == {64} and bool(re.fullmatch("[0-9a-f]*", "".join(ids)))


def packed(ids: Sequence[str]) -> bytes | str:
    """Ids for a table: 32 bytes each, or as lines where one is no sha256."""
    return bytes.fromhex("".join(ids)) if are_sha256(ids) else "\n".join(ids)


def unpacked(held: object) -> list[str]:
    """What `packed` made; of what damage made of it, whatever that is."""
    if isinstance(held, bytes):
        return [held[i : i + 32].hex() for i in range(0, len(held), 32)]
    return str(held).split("\n")


def _digest(id: str) -> bytes:
    if re.fullmatch("[0-9a-f]{64}", id):
        return bytes.fromhex(id[:24])
    return hashlib.blake2b(id.encode(), digest_size=12).digest()


@dataclass(frozen=True)
class Run:
    """Rows that lie one after another in a segment, from `first` on."""

    segment: int
    first: int
    keys: Keys
    checksums: Checksums

    @property
    def places(self) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        """Where in the segment."""
        return np.arange(self.first, self.first + len(self.keys), dtype=np.uint32)


@dataclass(frozen=True)
class RowLocations:
    """For each key that was asked for, where its row lies; `-1` in `segments` for none."""

    segments: Numbers
    places: Numbers
    checksums: Checksums


@dataclass
class Places:
    """Rows by key; the newest of equal ones counts."""

    keys: Keys = field(default_factory=lambda: np.empty(0, np.uint64))
    segments: np.ndarray[tuple[int], np.dtype[np.int32]] = field(
        default_factory=lambda: np.empty(0, np.int32)
    )
    places: np.ndarray[tuple[int], np.dtype[np.uint32]] = field(
        default_factory=lambda: np.empty(0, np.uint32)
    )
    checksums: Checksums = field(default_factory=lambda: np.empty(0, np.uint32))
    newest: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    last: int = 0
    """Id of the last batch that is in here."""

    def __len__(self) -> int:
        self._settle()
        return len(self.keys)

    def add(self, runs: Sequence[Run]) -> None:
        """More rows, the oldest first."""
        if sum(len(run.keys) for run in runs) >= MANY:
            self._settle()
            self._merge(
                np.concatenate([run.keys for run in runs]),
                np.repeat(
                    np.array([run.segment for run in runs], np.int32),
                    [len(run.keys) for run in runs],
                ),
                np.concatenate([run.places for run in runs]),
                np.concatenate([run.checksums for run in runs]),
            )
            return
        for run in runs:
            told = zip(run.keys.tolist(), run.places.tolist(), run.checksums.tolist(), strict=True)
            self.newest |= {key: (run.segment, at, checksum) for key, at, checksum in told}
        if len(self.newest) > max(MANY, len(self.keys) // 8):
            self._settle()

    def find(self, keys: Keys) -> RowLocations:
        """Where the rows of these keys lie."""
        segments = np.full(len(keys), -1, np.int64)
        places = np.zeros(len(keys), np.int64)
        checksums = np.zeros(len(keys), np.uint32)
        if len(self.keys):
            at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
            hit = self.keys[at] == keys
            at = at[hit]
            segments[hit] = self.segments[at]
            places[hit], checksums[hit] = self.places[at], self.checksums[at]
        if self.newest:
            for i, key in enumerate(keys.tolist()):
                if key in self.newest:
                    segments[i], places[i], checksums[i] = self.newest[key]
        return RowLocations(segments, places, checksums)

    def _settle(self) -> None:
        """Sort what waits in the dictionary in."""
        if self.newest:
            held = list(self.newest.values())
            self._merge(
                np.fromiter(self.newest, np.uint64, len(held)),
                np.array([segment for segment, _, _ in held], np.int32),
                np.array([place for _, place, _ in held], np.uint32),
                np.array([checksum for _, _, checksum in held], np.uint32),
            )
            self.newest = {}

    def _merge(
        self,
        keys: Keys,
        segments: np.ndarray[tuple[int], np.dtype[np.int32]],
        places: np.ndarray[tuple[int], np.dtype[np.uint32]],
        checksums: Checksums,
    ) -> None:
        joined = np.concatenate([self.keys, keys])
        order = np.argsort(joined, kind="stable")  # of equal keys the newest is the last
        joined = joined[order]
        order = order[np.append(joined[1:] != joined[:-1], True)[: len(joined)]]
        self.keys = np.concatenate([self.keys, keys])[order]
        self.segments = np.concatenate([self.segments, segments])[order]
        self.places = np.concatenate([self.places, places])[order]
        self.checksums = np.concatenate([self.checksums, checksums])[order]
