"""Kill runs, fill disks, and see that nothing is lost: `python tools/crash.py PLACE [--kills 20]`.

A run over drawn scenes is killed (`kill -9`) at random moments and resumed each time; then its rows
must be those of a run that nobody disturbed, byte for byte once sorted: `classify` into one file,
into a folder, and by two processes into one folder; then `COMMANDS`, with all files that they
write, and nothing else left beside them. Then a disk that is full (a small tmpfs), and a cache that
may not be written: both need the right to mount. Last a writer that is suspended in a PID namespace
of its own for longer than its claim lasts, and wakes up: that needs the right to make one.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import transformers  # noqa: F401
from many_scenes import draw
from safetensors.numpy import load_file

from zeroshot import cli
from zeroshot.output.leases import STALE

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


Facts = list[tuple[str, bytes]]
"""What is in an output: a name, which is there once, and what is said of it."""


def files_in(folder: Path) -> Facts:
    """All files of an output folder but those with times in them; each row of a shard by itself."""
    facts = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(file.relative_to(folder))
        if file.suffix == ".jsonl" and name[0].isdecimal():
            facts += [(json.loads(row)["path"], row) for row in file.read_bytes().splitlines()]
        elif not (file.suffix == ".json" and name[:5].isdecimal()) and name != "run.json":
            facts.append((name, file.read_bytes()))
    return facts


def csv_rows(folder: Path) -> Facts:
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        return [(row[0], repr(row).encode()) for row in csv.reader(file)] + left_in(folder)


def anchors(folder: Path) -> Facts:
    """Each pair with its embeddings."""
    arrays = load_file(folder / "a.safetensors")
    lines = (folder / "a.jsonl").read_bytes().splitlines()
    assert len(lines) == len(arrays["images"])
    rows = zip(lines, arrays["images"], arrays["texts"], strict=True)
    pairs = [(json.loads(x)["id"], x + image.tobytes() + text.tobytes()) for x, image, text in rows]
    return [*pairs, *left_in(folder, "models.toml")]


def sidecars(folder: Path) -> Facts:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]
    texts = sorted((folder / "pictures").glob("*.txt"))
    said = [(Path(row["path"]).name, row["caption"].encode()) for row in rows]
    return [*said, *((p.name, p.read_bytes()) for p in texts), *left_in(folder / "pictures")]


def kept_pairs(folder: Path) -> Facts:
    members: Facts = []
    for file in sorted((folder / "kept").glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                opened = tar.extractfile(member)
                members.append((member.name, opened.read() if opened else b""))
    return [*members, *left_in(folder / "kept")]


def left_in(folder: Path, *more: str) -> Facts:
    """What a process left that was killed: all hidden files, and those in `more`."""
    left = (p for p in folder.rglob("*") if p.name.startswith(".") or p.name in more)
    return [(str(p.relative_to(folder)), p.read_bytes()) for p in sorted(left) if p.is_file()]


@dataclass(frozen=True)
class Command:
    """A command that is killed and begun again, and what is in its output then."""

    arguments: Callable[[Path, Path], Sequence[str]]
    """from the place of the pictures and the folder of the output"""
    facts: Callable[[Path], Facts]


def labels(pictures: Path, out: Path) -> list[str]:
    return ["classify", str(pictures), "--labels", LABELS, "--out", str(out / "rows.csv")]


def beside(pictures: Path, out: Path) -> list[str]:
    mine = out / "pictures"
    if not mine.exists():
        shutil.copytree(pictures, mine)
    return ["caption", str(mine), "--sidecar", "txt", "--out", str(out / "rows.jsonl")]


def keep(pictures: Path, out: Path) -> list[str]:
    table = str(pictures.parent / "pairs.jsonl")
    return ["filter", table, "--min-score", "-1", "--kept", str(out / "kept"), "--overwrite"]


COMMANDS = {
    "classify, CSV": Command(labels, csv_rows),
    "embed, folder": Command(
        lambda pictures, out: [
            *("embed", str(pictures), "--no-cache", "--shard-size", str(5 * BATCH)),
            *("--out", f"{out}/"),
        ],
        files_in,
    ),
    "anchors build": Command(
        lambda pictures, out: [
            *("anchors", "build", str(pictures.parent / "pairs.jsonl"), "--overwrite"),
            *("--out", str(out / "a.safetensors")),
        ],
        anchors,
    ),
    "caption --sidecar": Command(beside, sidecars),
    "filter --kept, folder": Command(keep, kept_pairs),
}


class Forked:
    """A command in a process that need not import anything first, so that kills come fast."""

    def __init__(self, arguments: Sequence[str], cache: Path) -> None:
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                os.environ |= {"ZEROSHOT_CACHE": str(cache)}
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
                code = cli.run([*arguments, "--models", "pocket", "--batch-size", str(BATCH)])
            except BaseException:
                code = 99
            os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def each_command(place: Path, count: int, kills: int, names: Sequence[str]) -> list[Found]:
    """`COMMANDS`: an undisturbed run of each, then one that is killed."""
    pictures, found = place / "pictures", []
    files = draw(pictures, count)
    caption = "a red heart and a blue star"
    pairs = (json.dumps({"path": str(p), "caption": f"{caption} {p.stem}"}) for p in files)
    (place / "pairs.jsonl").write_text("".join(line + "\n" for line in pairs))
    for number, name in enumerate(names):
        one, chance, hits = COMMANDS[name], random.Random(number), 0
        folders = [place / f"{number}-{kind}" for kind in ("whole", "killed", "cache", "cache-2")]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        whole, out, cache, own_cache = folders
        assert Forked(one.arguments(pictures, whole), cache).wait() == 0, name
        tries = 0
        while hits < kills and tries < 2 * kills:
            tries += 1
            running = Forked(one.arguments(pictures, out), own_cache)
            wait_for_changes(running, (out, own_cache), chance.randint(1, 25))
            time.sleep(chance.uniform(0, 0.2))
            running.kill()
            hits += running.wait() == -signal.SIGKILL
        assert Forked(one.arguments(pictures, out), own_cache).wait() == 0, name
        found.append(judged(name, one.facts(out), one.facts(whole), hits))
        print(found[-1], flush=True)
    return found


def wait_for_changes(running: Forked, folders: Sequence[Path], count: int) -> None:
    """Wait until files in the folders have changed so often, or the process ends."""
    before, seen = None, -1
    while seen < count and running.poll() is None:
        files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
        now = []
        for file in files:
            with contextlib.suppress(OSError):
                now.append((file, file.stat().st_size, file.stat().st_mtime_ns))
        seen, before = seen + (now != before), now
        time.sleep(0.01)


def judged(name: str, facts: Facts, whole: Facts, kills: int) -> Found:
    """An output against that of a run that nobody disturbed."""
    there, asked = (Counter(key for key, _ in each) for each in (facts, whole))
    same = sorted(facts) == sorted(whole)
    missing, twice = (asked - there).total(), (there - asked).total()
    return Found(name, len(facts), kills, same, twice, missing)


def suspended(place: Path) -> list[Found]:
    """A writer in a PID namespace sleeps for longer than its claim lasts; another takes over."""
    whole, found = lines(place / "whole"), []
    for name, wakes in (("wakes early", True), ("wakes late", False)):
        out, errors = place / "suspended.jsonl", place / "suspended.txt"
        for file in place.glob("*suspended.*"):
            file.unlink()
        arguments = command(place / "pictures", out, "--no-cache")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with errors.open("wb") as said:
            first = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount-proc", *arguments],
                env=environment,
                stderr=said,
                start_new_session=True,
            )
        while not (out.exists() and out.stat().st_size):
            assert first.poll() is None, errors.read_text()
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGSTOP)
        time.sleep(STALE + 5)
        second = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
        size = out.stat().st_size
        while wakes and out.stat().st_size <= size:
            assert second.poll() is None
            time.sleep(0.05)
        if not wakes:
            assert second.wait() == 0
        os.killpg(first.pid, signal.SIGCONT)
        codes = first.wait(), second.wait()
        print(codes, errors.read_text().strip().splitlines()[-1], flush=True)
        assert codes == (4, 0), codes
        found.append(compare(f"suspended, {name}", out, whole, 1))
        print(found[-1], flush=True)
    return found


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
    parser.add_argument("--suspend", action="store_true", help="also a suspended writer")
    parser.add_argument("--only", nargs="*", help="only these of COMMANDS")
    given = parser.parse_args()
    torch.set_num_threads(1)  # so that a fork has all of them
    given.place.mkdir(parents=True, exist_ok=True)
    if given.only is not None:
        found = each_command(given.place, given.pictures, given.kills, given.only or [*COMMANDS])
    else:
        found = trials(given.place, given.pictures, given.kills)
        found += each_command(given.place, given.pictures, given.kills, [*COMMANDS])
        if given.mount:
            found += full_disk(given.place) + read_only_cache(given.place)
        if given.suspend:
            found += suspended(given.place)
    bad = [f for f in found if not f.same or f.twice or f.missing]
    print(f"{len(found) - len(bad)} of {len(found)} trials equal the run that nobody disturbed")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
