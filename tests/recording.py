"""The commands of data/commands.txt: how they run, and what they gave when they were recorded.

    python -m tests.recording            # records all anew, after a change that is meant
    python -m tests.recording caption    # or the commands whose names begin so

Every command runs on the pocket set, or on a tiny model of a real class, in a folder with the
example scenes and the files of data/commands, so that paths are relative and the same anywhere.
Two things are recorded as placeholders: the hash in a tiny model's name (its config.json holds the
version of transformers that wrote it), and what a result of `eval` says of the run itself.
"""

import atexit
import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.numpy import load
from torch.nn import functional

from tests.models import tiny, tiny_pairs
from zeroshot import cli

DATA = Path(__file__).parent / "data"
SCENES = Path(__file__).parent.parent / "examples" / "scenes"
ROWS, SETTINGS, MACHINE = DATA / "rows", DATA / "settings.json", DATA / "machine.json"
POCKET = ("--models", "pocket", "--offline", "--device", "cpu", "--json")
BUILDERS = {
    "dinov2": tiny.dinov2,
    "gpt2": tiny.gpt2,
    "siglip": tiny.siglip,
    "xclip": tiny.xclip,
    **tiny.SEGMENTERS,
    **tiny.DETECTORS,
    **tiny_pairs.ALL,
}


# ------------------------------------------------------------------------------- running commands


@functools.cache
def commands():
    """Every command by its name."""
    lines = (DATA / "commands.txt").read_text("utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str
    files: dict[str, bytes]
    """Those it wrote, by their paths below the folder it ran in."""


@functools.cache
def done(name):
    """What the command of this name does, in a folder of its own and with an empty cache.

    Seeded, since transformers' ViLT draws the order of its patches, which moves last digits.
    """
    arguments = shlex.split(commands()[name])
    if not {"--out", "--learn-thresholds"} & {*arguments}:
        arguments += ["--out", "rows.jsonl"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "work"
        prepare(place, re.findall(r"hf:\./tiny/(\w+)", commands()[name]))
        before = set(place.rglob("*"))
        cache = mock.patch.dict(os.environ, ZEROSHOT_CACHE=f"{folder}/cache", HF_HUB_OFFLINE="1")
        with cache, torch.random.fork_rng():
            torch.manual_seed(0)
            code, out, err = run(place, *arguments, *POCKET)
        files = sorted(set(place.rglob("*")) - before)
        held = {str(f.relative_to(place)): f.read_bytes() for f in files if f.is_file()}
    return Done(code, out, err, held)


def run(place, *arguments):
    """Exit code, standard output and standard error of a command that runs in this folder."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli.run(arguments)
    return code, out.getvalue(), err.getvalue()


def prepare(place, models=()):
    """The scenes, also as a tar file, the files of data/commands, and tiny models in `tiny`."""
    shutil.copytree(DATA / "commands", place)
    shutil.copytree(SCENES, place / "scenes")
    with tarfile.open(place / "scenes.tar", "w") as file:
        file.add(SCENES, "scenes")
    (place / "tiny").mkdir()
    for model in models:
        (place / "tiny" / model).symlink_to(built(model))


@functools.cache
def built(model):
    """The directory of a tiny model, made when it is first asked for."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[model](root / model)


# ------------------------------------------------------------------------------- what is recorded

OF_A_RUN = {"about", "versions", "started", "ended", "rows_before", "pictures", "seconds"}
"""What a file of settings says of the run itself, which decides nothing."""
OF_A_RESULT = {"versions", "ended", "seconds", "hardware"}
"""The same in a result of `eval`."""
NO_ROWS = re.compile(r".*run\.json|.*/\d{5}\.json|.*/inputs-.*")
"""Settings, which are recorded by themselves, and marks of shards, which hold a host and times."""
TINY = re.compile(rf"(:(?:{'|'.join(BUILDERS)})@)[0-9a-f]{{12}}")


def settings(did):
    """What stands beside the rows and decides whether a later run goes on with them."""
    kept = {}
    for name, data in did.files.items():
        if name.endswith("run.json"):
            kept[name] = {k: v for k, v in _json(data).items() if k not in OF_A_RUN}
        elif name.endswith(".eval.json"):
            kept[name] = {"settings": _json(data)["settings"]}
    return kept


def rows(did):
    """The rows a command wrote: each file below a line with its name."""
    files = [(name, data) for name, data in did.files.items() if not NO_ROWS.fullmatch(name)]
    return f"exit {did.code}\n" + "".join(f"== {n}\n{_hashed(_text(n, d))}" for n, d in files)


def _text(name, data):
    """A text as it is; arrays and tables in numbers; nothing of pictures."""
    match Path(name).suffixes:
        case [*_, ".png" | ".tar"]:
            return ""
        case [*_, ".eval", ".json"]:
            result = {k: "<of the run>" if k in OF_A_RESULT else v for k, v in _json(data).items()}
            return json.dumps(result, ensure_ascii=False) + "\n"
        case [*_, ".safetensors"]:
            return "".join(f"{k} {x.dtype} {x.tolist()}\n" for k, x in load(data).items())
        case [*_, ".npy"]:
            held = np.load(io.BytesIO(data))
            return f"{held.dtype} {held.tolist()}\n"
        case [*_, ".parquet"]:
            from pyarrow import parquet

            return f"{parquet.read_table(io.BytesIO(data)).to_pylist()}\n"
    return data.decode()


def _json(data):
    return json.loads(_hashed(data.decode()))


def _hashed(text):
    return TINY.sub(r"\1<hash>", text)


# ------------------------------------------------------------------------------- comparing

FLOAT = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+(?:e-?\d+)?|e-?\d+))(?![\w.])")
RELATIVE, ABSOLUTE = 1e-3, 1e-5


def machine():
    """What the last digits of numbers depend on: the processor's kind, torch, and its digits.

    Processors of one kind need not agree, so that some sums and products stand for all: matrices,
    exponentials, a convolution, random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(96, 96, generator=generator) for _ in range(2))
    kernels = b[:8, :64].reshape(8, 1, 8, 8)
    found = [a @ b, a.softmax(1), functional.gelu(a), a.norm(dim=1), torch.linalg.svdvals(a)]
    found += [functional.conv2d(a.view(1, 1, 96, 96), kernels, stride=8)]
    digits = hashlib.sha256(b"".join(x.numpy().tobytes() for x in found)).hexdigest()[:12]
    cpu = torch.backends.cpu.get_cpu_capability()
    return {"cpu": cpu, "torch": torch.__version__, "digits": digits}


def same_machine():
    """Whether numbers here have the digits of those recorded."""
    return machine() == json.loads(MACHINE.read_text("utf-8"))


def differences(recorded, now):
    """Lines that are others than recorded, floats apart that are equal but for rounding.

    Another processor adds up in another order, so that the last digits of its float32 are others:
    a thousandth of a number, or 1e-5 of one near zero, is far above that and far below what any
    change of a method, of a hand-over or of preprocessing does. All but the floats is equal.
    """
    pairs = itertools.zip_longest(recorded.splitlines(), now.splitlines(), fillvalue="")
    return [(old, new) for old, new in pairs if not _alike(old, new)]


def _alike(old, new):
    before, after = FLOAT.split(old), FLOAT.split(new)
    if before[::2] != after[::2]:
        return False
    pairs = zip(map(float, before[1::2]), map(float, after[1::2]), strict=True)
    return all(math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in pairs)


# ------------------------------------------------------------------------------- recording


def record(beginnings):
    """Write rows and settings of the commands whose names begin so, of all without any."""
    torch.set_num_threads(1)
    if beginnings and not same_machine():
        sys.exit("this machine has other digits than the recorded rows: record all of them")
    chosen = [name for name in commands() if name.startswith(beginnings or ("",))]
    held = json.loads(SETTINGS.read_text("utf-8")) if beginnings else {}
    ROWS.mkdir(exist_ok=True)
    for old in ROWS.glob("*") if not beginnings else ():
        old.unlink()
    for name in chosen:
        (ROWS / f"{name}.txt").write_bytes(rows(done(name)).encode())
        held[name] = settings(done(name))
    ordered = {name: held[name] for name in commands() if name in held}
    lines = [f"{json.dumps(name)}: {json.dumps(held)}" for name, held in ordered.items()]
    SETTINGS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    MACHINE.write_text(json.dumps(machine(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record(tuple(sys.argv[1:]))
