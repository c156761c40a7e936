"""Kill runs, fill disks, and see that nothing is lost: `python tools/crash.py PLACE [--kills 20]`.

A run of `classify` over drawn scenes is killed (`kill -9`) at random moments and resumed each time;
then its rows must be those of a run that nobody disturbed, byte for byte once sorted: into one
file, into a folder, and by two processes into one folder. Then a disk that is full (a small tmpfs),
and a cache that may not be written: both need the right to mount.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from many_scenes import draw

LABELS = "red heart,blue star,green ring,yellow circle,purple cross"
BATCH = 16


@dataclass
class Found:
    """What one trial showed."""

    name: str
    rows: int
    kills: int
    same: bool
    twice: int
    missing: int


def command(pictures: Path, out: Path, *more: str) -> list[str]:
    shards = ["--shard-size", str(5 * BATCH)] if not out.suffix else []
    return [
        *(sys.executable, "-m", "zeroshot", "classify", str(pictures), "--models", "pocket"),
        *("--labels", LABELS, "--batch-size", str(BATCH), "--out", str(out), *shards, *more),
    ]


def lines(out: Path) -> list[bytes]:
    """All rows that are there, sorted."""
    files = [out] if out.suffix else sorted(out.glob("[0-9]*.jsonl"))
    return sorted(line for file in files for line in file.read_bytes().splitlines())


def compare(name: str, out: Path, whole: list[bytes], kills: int) -> Found:
    rows = lines(out)
    seen = Counter(json.loads(row)["path"] for row in rows)
    asked = {json.loads(row)["path"] for row in whole}
    twice = sum(count - 1 for count in seen.values())
    return Found(name, len(rows), kills, rows == whole, twice, len(asked - seen.keys()))


def run(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ZEROSHOT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True)


def killed(
    pictures: Path,
    out: Path,
    kills: int,
    seconds: float,
    cache: Path,
    processes: int = 1,
    more: tuple[str, ...] = (),
    seed: int = 0,
) -> int:
    """Begin `processes` runs, kill one at a random moment, begin it again, so many times.

    How often one was killed that was still at work; the runs that are left come to their end.
    """
    chance = random.Random(seed)
    arguments = command(pictures, out, *more)
    environment = os.environ | {"ZEROSHOT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)

    running, hits = [begin() for _ in range(processes)], 0
    for _ in range(kills):
        time.sleep(chance.uniform(0, seconds))
        place = chance.randrange(processes)
        running[place].send_signal(signal.SIGKILL)
        hits += running[place].wait() == -signal.SIGKILL
        running[place] = begin()
    codes = [process.wait() for process in running]
    assert codes == [0] * processes, codes
    return hits


def trials(place: Path, count: int, kills: int) -> list[Found]:
    """Into a file, a folder, a folder by two; without a cache, so that all is done anew."""
    pictures, cache = place / "pictures", place / "cache"
    draw(pictures, count)
    more = ("--no-cache",)
    for name in ("whole", "file.jsonl", "folder", "two"):
        shutil.rmtree(place / name, ignore_errors=True)
        (place / name).unlink(missing_ok=True)
    for file in place.glob("*.run.json"):
        file.unlink()
    begun = time.perf_counter()
    done = run(command(pictures, place / "whole", *more), cache)
    assert done.returncode == 0, done.stderr
    seconds = 1.6 * (time.perf_counter() - begun) / max(1, kills) + 3.0
    whole = lines(place / "whole")
    found = []
    for name, processes in (("file.jsonl", 1), ("folder", 1), ("two", 2)):
        hits = killed(pictures, place / name, kills, seconds, cache, processes, more, seed=kills)
        found.append(compare(name, place / name, whole, hits))
        print(found[-1], flush=True)
    return found


def mounted(at: Path, size: str) -> None:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], check=True)


def remounted(at: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(at)], check=True)


def full_disk(place: Path) -> list[Found]:
    """Runs that find no more room, and go on when there is some."""
    at, whole, found = place / "small", lines(place / "whole"), []
    half = sum(map(len, whole)) // 2
    for name in ("file.jsonl", "folder"):
        mounted(at, str(half))
        try:
            arguments = command(place / "pictures", at / name, "--no-cache")
            stopped = run(arguments, place / "cache")
            assert stopped.returncode == 4, stopped
            assert "No space left" in stopped.stderr, stopped.stderr
            print(stopped.stderr.strip().splitlines()[-1], flush=True)
            remounted(at, "size=64m")
            done = run(arguments, place / "cache")
            assert done.returncode == 0, done.stderr
            assert "resumed" in done.stderr, done.stderr
            found.append(compare(f"full disk, {name}", at / name, whole, 0))
            print(found[-1], flush=True)
        finally:
            subprocess.run(["umount", str(at)], check=True)
    return found


def read_only_cache(place: Path) -> list[Found]:
    """A cache that turned read-only, empty and filled."""
    at, whole, found = place / "frozen", lines(place / "whole"), []
    for name, warm in (("cold", False), ("warm", True)):
        mounted(at, "64m")
        out = place / f"{name}-cache.jsonl"
        for file in (out, out.with_name(out.name + ".run.json")):
            file.unlink(missing_ok=True)
        try:
            first = command(place / "pictures", place / "unused.jsonl", "--limit", str(BATCH))
            run([*first, "--overwrite", *(["--limit", "100000"] if warm else [])], at)
            remounted(at, "ro")
            done = run(command(place / "pictures", out), at)
            assert done.returncode == 0, done.stderr
            print(done.stderr.strip().splitlines()[-1], flush=True)
            found.append(compare(f"read-only cache, {name}", out, whole, 0))
            print(found[-1], flush=True)
        finally:
            subprocess.run(["umount", str(at)], check=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mount", action="store_true", help="also a full disk, a read-only cache")
    given = parser.parse_args()
    given.place.mkdir(parents=True, exist_ok=True)
    found = trials(given.place, given.pictures, given.kills)
    if given.mount:
        found += full_disk(given.place) + read_only_cache(given.place)
    bad = [f for f in found if not f.same or f.twice or f.missing]
    print(f"{len(found) - len(bad)} of {len(found)} trials equal the run that nobody disturbed")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
