"""How long until the first row, and how much memory: many tar files, listed first or in their turn.

    python benchmarks/first_row.py PLACE [--tars 2000] [--pictures 50] [--rounds 3]

Makes tar files of small pictures with captions, and begins `embed` over them as it is run by a
person, in a process of its own: with a shard for each file, and with shards by number of pictures.
A run over one of the tar files is what starting Python and loading the model take.
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Begun(NamedTuple):
    """A run until its first row."""

    seconds: float
    megabytes: float
    """High-water mark of the process."""
    inputs: int
    """Bytes that say what the inputs are."""


def draw(folder: Path, tars: int, pictures: int) -> None:
    """`00000.tar` and so on: a picture of 32 x 32 and a caption of sixty letters in each sample."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(tars):
        with tarfile.open(folder / f"{number:05}.tar", "w") as file:
            for sample in range(pictures):
                data = io.BytesIO()
                Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(data, "JPEG")
                said = f"picture {sample} of tar file {number}".ljust(60, ".").encode()
                for suffix, content in ((".jpg", data.getvalue()), (".txt", said)):
                    info = tarfile.TarInfo(f"{number:05}{sample:05}{suffix}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))


def begin(inputs: Path, out: Path, size: str) -> Begun:
    """Run until the first row is printed."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "zeroshot", "embed", str(inputs), "--models", "pocket"]
    command += ["--out", f"{out}/", "--shard-size", size, "--json", "--quiet", "--no-cache"]
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "no row came"
        seconds = time.perf_counter() - started
        told = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()
    peak = next(line for line in told.splitlines() if line.startswith("VmHWM")).split()[1]
    [listed] = out.glob("inputs-*.jsonl")
    return Begun(seconds, int(peak) / 1024, listed.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("--tars", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = given.place / f"{given.tars}x{given.pictures}"
    if not folder.exists():
        draw(folder, given.tars, given.pictures)
    runs = {
        "one tar file": (folder / "00000.tar", "file"),
        "a shard for each file": (folder, "file"),
        "shards of 10000 pictures": (folder, "10000"),
    }
    found: dict[str, list[Begun]] = {name: [] for name in runs}
    for _ in range(given.rounds + 1):  # the first round warms the disk's cache
        for name, (inputs, size) in runs.items():
            found[name].append(begin(inputs, given.place / "out", size))
    print(f"{given.tars} tar files of {given.pictures} pictures, medians of {given.rounds} runs\n")
    print("| inputs | s to the first row | peak MB | inputs-SHA.jsonl, KB |\n|---|---|---|---|")
    for name, rounds in found.items():
        seconds, peak, size = (
            statistics.median(column) for column in zip(*rounds[1:], strict=True)
        )
        print(f"| {name} | {seconds:.2f} | {peak:.0f} | {size / 1000:.1f} |")


if __name__ == "__main__":
    main()
