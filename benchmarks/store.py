"""The cache beside plain files: `python benchmarks/store.py [--rows 200000]`.

Writes the same rows with numpy (one file, synced) and with the cache, and reads them again, in
turn; the best of `--rounds` counts. Then looks up known files. `--open N` measures what a process
pays that asks a cache of N rows for one of them. All of it happens below `--folder`
and is removed.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from zeroshot.cache.embedding_cache import EmbeddingCache


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def names(count: int) -> list[str]:
    return [hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)]


def rows_in_and_out(folder: Path, count: int, dim: int, rounds: int) -> None:
    rows = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
    ids, plain = names(count), folder / "plain.f32"
    best = dict.fromkeys(["plain write", "put", "plain read", "get", "get shuffled"], float("inf"))

    def write() -> None:
        with open(plain, "wb") as file:
            file.write(rows.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    order = np.random.default_rng(0).permutation(count)
    shuffled = [ids[i] for i in order]
    for number in range(rounds):
        with EmbeddingCache(folder / f"cache{number}") as cache:
            works: dict[str, Callable[[], object]] = {
                "plain write": write,
                "put": lambda: cache.put("e", "image", ids, rows),
                "plain read": lambda: np.fromfile(plain, np.float32),
                "get": lambda: cache.get("e", "image", ids),
                "get shuffled": lambda: cache.get("e", "image", shuffled),
            }
            for name, work in works.items():
                best[name] = min(best[name], seconds(work))
            got, found = cache.get("e", "image", shuffled)
            assert found.all()
            assert torch.equal(got, rows[torch.from_numpy(order)])
        shutil.rmtree(folder / f"cache{number}")
    print(f"{count} x {dim} rows ({rows.numel() * 4 / 1e6:.0f} MB)")
    print("".join(f"{name:14} {value:.3f} s\n" for name, value in best.items()))


def known_files(folder: Path, count: int, rounds: int) -> None:
    paths = []
    for i in range(count):
        below = folder / "files" / f"{i // 1000:04}"
        below.mkdir(parents=True, exist_ok=True)
        paths.append(str(below / f"{i:07}.jpg"))
        Path(paths[-1]).write_bytes(b"%d" % i)
    time.sleep(2.1)  # a file just written is not trusted
    with EmbeddingCache(folder / "cache") as cache:
        first = seconds(lambda: cache.file_ids(paths))
    stats = min(seconds(lambda: [os.stat(path) for path in paths]) for _ in range(rounds))
    again = float("inf")
    for _ in range(rounds):
        with EmbeddingCache(folder / "cache") as cache:
            again = min(again, seconds(lambda: cache.file_ids(paths)))
    print(f"{count} files: hashed {first:.3f} s, known {again:.3f} s, os.stat alone {stats:.3f} s")


def opening(folder: Path, count: int, at_once: int) -> None:
    with EmbeddingCache(folder / "large") as cache:
        for start in range(0, count, at_once):
            ids = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(start, start + at_once)]
            cache.put("e", "image", ids, torch.ones(at_once, 1))
    with EmbeddingCache(folder / "large") as cache:
        first = seconds(lambda: cache.get("e", "image", [hashlib.sha256(b"7").hexdigest()]))
        again = seconds(lambda: cache.get("e", "image", [hashlib.sha256(b"8").hexdigest()]))
    print(f"one row of {count}: first {first:.3f} s, then {again:.4f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--open", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=100_000, help="rows put at once for --open")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        if given.rows:
            rows_in_and_out(Path(name), given.rows, given.dim, given.rounds)
        if given.files:
            known_files(Path(name), given.files, given.rounds)
        if given.open:
            opening(Path(name), given.open, given.at_once)


if __name__ == "__main__":
    main()
