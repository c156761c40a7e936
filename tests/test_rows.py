"""Outputs from the command line: a folder of shards says what a file says, whoever fills it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from zeroshot.output import leases
from zeroshot.output.filesystem import Disk

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
COMMON = ["--models", "pocket", "--no-cache", "--batch-size", "2"]
LABELS = ["--labels", "red heart,blue star"]


@pytest.fixture
def pictures(tmp_path):
    """Eight scenes and one that is cut short."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for file in SCENES.glob("*.png"):
        (folder / file.name).write_bytes(file.read_bytes())
    whole = next(SCENES.glob("*.png")).read_bytes()
    (folder / "3-broken.png").write_bytes(whole[:200])
    return folder


@pytest.fixture
def zeroshot(printed):
    """Its commands, whose output is looked at as it is."""
    return printed


def rows(out):
    files = [out] if out.is_file() else sorted(out.glob("[0-9]*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    "command",
    [["caption"], ["classify", *LABELS], ["classify", *LABELS, "--method", "center"]],
    ids=["caption", "classify", "transductive"],
)
def test_a_folder_says_what_a_file_says(zeroshot, pictures, tmp_path, command):
    arguments = [command[0], pictures, *command[1:], *COMMON]
    assert zeroshot(*arguments, "--out", tmp_path / "rows.jsonl")[0] == 3
    code, _, err = zeroshot(*arguments, "--out", f"{tmp_path}/rows.d/", "--shard-size", "4")
    assert code == 3
    assert rows(tmp_path / "rows.d") == rows(tmp_path / "rows.jsonl")
    assert "3 of 3 shards are finished, 9 of 9 rows, 1 of them failed" in err
    code, _, err = zeroshot(*arguments, "--out", tmp_path / "rows.d")
    assert code == 0
    assert "resumed: 9 of 9" in err


def test_an_interrupted_folder_says_what_is_resumed(zeroshot, pictures, tmp_path):
    arguments = ["embed", pictures, *COMMON, "--out", tmp_path / "o", "--shard-size", "4"]
    zeroshot(*arguments, "--shards", "2/3")
    code, _, err = zeroshot(*arguments)
    assert code == 3
    assert "resumed: 4 of 9 were done already" in err
    matrix = load_file(tmp_path / "o" / "00000.safetensors")["embeddings"]
    broken = [r["path"].endswith("3-broken.png") for r in rows(tmp_path / "o")[:4]]
    assert np.isnan(matrix).all(1).tolist() == broken
    (pictures / "3-broken.png").write_bytes(next(SCENES.glob("1*.png")).read_bytes())
    code, _, err = zeroshot(*arguments, "--retry-failed")
    assert code == 0
    assert "1 image in" in err
    assert "error" not in str(rows(tmp_path / "o"))
    assert np.isfinite(load_file(tmp_path / "o" / "00000.safetensors")["embeddings"]).all()


def test_a_process_for_each_device(zeroshot, pictures, tmp_path):
    arguments = ["classify", pictures, *LABELS, *COMMON]
    zeroshot(*arguments, "--out", tmp_path / "one.jsonl")
    more = ["--out", tmp_path / "o", "--shard-size", "2", "--devices", "cpu,cpu"]
    code, _, err = zeroshot(*arguments, *more)
    assert code == 3
    assert rows(tmp_path / "o") == rows(tmp_path / "one.jsonl")
    assert "9 images, 1 failed" in err
    code, _, err = zeroshot(*arguments, "--out", tmp_path / "p", "--devices", "cpu,cuda:77")
    assert code == 2
    assert "cuda" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards", "1/2"], "--shards needs a folder"),
        (["--devices", "cpu"], "--devices needs a folder"),
        (["--engine", "ray"], "--engine ray needs a folder"),
        (["--format", "csv", "--out", "OUT.jsonl"], "--format needs a folder"),
        (["--shard-size", "5", "--out", "OUT.jsonl"], "--shard-size needs a folder"),
        (["--layout", "safetensors"], "--layout needs a folder"),
        (["--out", "OUT", "--shards", "3/2"], "from 1/N to N/N"),
        (["--out", "OUT", "--shards", "1/2", "--overwrite"], "--overwrite with --shards"),
        (["--out", "OUT", "--json", "--devices", "cpu"], "rows of this process"),
        (["--out", "OUT", "--layout", "rows", "--half"], "--half needs --layout safetensors"),
        (["--out", "OUT", "--devices", ","], "expected names such as"),
    ],
)
def test_options_that_need_a_folder_say_so(zeroshot, tmp_path, arguments, message):
    given = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    code, _, err = zeroshot("embed", SCENES, *COMMON, *given)
    assert code == 2
    assert message in err
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_traces_go_with_one_file(zeroshot, tmp_path):
    more = ["--out", tmp_path / "o", "--trace", tmp_path / "t.jsonl"]
    code, _, err = zeroshot("caption", SCENES, *COMMON, *more)
    assert code == 2
    assert "--trace needs one output file" in err


def test_a_file_that_another_process_writes_is_refused(zeroshot, tmp_path):
    held = leases.claim(Disk(tmp_path), "rows.jsonl")
    out = ["--out", tmp_path / "rows.jsonl"]
    code, _, err = zeroshot("embed", SCENES, *COMMON, *out)
    assert code == 2
    assert f"is being written by process {os.getpid()} on" in err
    assert "--out DIR/" in err
    held.release()
    assert zeroshot("embed", SCENES, *COMMON, *out)[0] == 0
    assert not list(tmp_path.glob(".*"))


def test_overwriting_a_folder_begins_anew(zeroshot, pictures, tmp_path):
    out = ["--out", tmp_path / "o"]
    zeroshot("embed", pictures, *COMMON, *out)
    code, _, err = zeroshot("classify", pictures, *LABELS, *COMMON, *out)
    assert code == 2
    assert "--overwrite" in err
    assert zeroshot("classify", pictures, *LABELS, *COMMON, *out, "--overwrite")[0] == 3
    assert rows(tmp_path / "o")[0]["schema"] == "zeroshot.classify/1"
    assert not (tmp_path / "o" / "00000.safetensors").exists()


@pytest.mark.parametrize("out", [None, "o", "o.jsonl"])
def test_captions_beside_their_pictures(zeroshot, pictures, tmp_path, out):
    mine = pictures / "1-red-heart.txt"
    mine.write_text("my own words")
    more = [] if out is None else ["--out", tmp_path / out]
    code, _, err = zeroshot("caption", pictures, *COMMON, "--sidecar", "txt", *more)
    assert code == 3
    assert mine.read_text() == "my own words"
    assert "kept 1 sidecar file that existed" in err
    assert (pictures / "2-blue-star.txt").read_text() == "a small blue star on a black background\n"
    assert not (pictures / "3-broken.txt").exists()
    assert len(list(pictures.glob("*.txt"))) == 8
    zeroshot("caption", pictures, *COMMON, "--sidecar", "txt", *more, "--overwrite")
    assert "red heart" in mine.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="files cannot be limited there")
@pytest.mark.parametrize("name", ["rows.jsonl", "o"])
def test_no_room_for_the_output(pictures, tmp_path, name):
    """The system refuses to let a file grow, as a full disk does; then it does no more."""
    import resource

    out = tmp_path / name
    command = ["classify", str(pictures), *LABELS, *COMMON, "--out", str(out)]

    def run(limit):
        return subprocess.run(
            [sys.executable, "-m", "zeroshot", *command],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )

    stopped = run(3000)  # four to six rows
    assert stopped.returncode == 4, stopped.stderr
    assert "File too large" in stopped.stderr
    assert "run the same command again" in stopped.stderr
    done = run(resource.RLIM_INFINITY)
    assert done.returncode in (0, 3), done.stderr  # whether the broken one was met before
    assert re.search("resumed: [246] of 9", done.stderr)
    assert sorted(r["path"] for r in rows(out)) == sorted(map(str, pictures.iterdir()))


@pytest.mark.parametrize("at", [3, 9])
@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.txt", "o.parquet", "o/", "v/"])
def test_an_output_that_is_removed_during_a_run(
    zeroshot, pictures, tmp_path, monkeypatch, name, at
):
    """In the middle, and after the last image."""
    from zeroshot.commands.console import Screen

    if name == "o.parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    out, add, seen = tmp_path / "out" / name, Screen.add, []

    def disturb(screen, result):
        seen.append(result)
        if len(seen) == at:
            part = out.with_name(f"{out.name}.part")
            shutil.rmtree(out) if out.is_dir() else (part if part.exists() else out).unlink()
        add(screen, result)

    monkeypatch.setattr(Screen, "add", disturb)
    command = ["embed"] if name == "v/" else ["classify", *LABELS]
    line = [*command, pictures, *COMMON, "--out", f"{tmp_path}/out/{name}"]
    code, _, err = zeroshot(*line)
    assert (code, "was removed during the run" in err) == (4, True), err
    monkeypatch.undo()
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))
    assert zeroshot(*line)[0] == 3
    if name in ("o.jsonl", "o/", "v/"):
        assert sorted(r["path"] for r in rows(out)) == sorted(map(str, pictures.iterdir()))


def test_a_finished_shard_that_is_cut_during_a_run(zeroshot, pictures, tmp_path, monkeypatch):
    from zeroshot.commands.console import Screen

    out, add = tmp_path / "o", Screen.add

    def disturb(screen, result):
        for file in out.glob("0*.jsonl"):
            os.truncate(file, 10)
        add(screen, result)

    monkeypatch.setattr(Screen, "add", disturb)
    line = ["classify", *LABELS, pictures, *COMMON, "--out", out, "--shard-size", "4"]
    code, _, err = zeroshot(*line)
    assert (code, "was removed or changed during the run; remove" in err) == (4, True), err


def test_files_of_the_user_in_a_folder_that_is_begun_anew(zeroshot, pictures, tmp_path):
    line = ["embed", pictures, *COMMON, "--out", tmp_path / "o", "--layout", "clip-retrieval"]
    pytest.importorskip("pyarrow", reason="its metadata is Parquet")
    assert zeroshot(*line)[0] == 3
    mine = ["20241129.csv", "metadata/notes.txt", ".work/x", "00007.jsonl", "img_emb/a.npy"]
    for name in mine:
        (tmp_path / "o" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "o" / name).write_text("mine")
    assert zeroshot(*line, "--overwrite")[0] == 3
    assert {(tmp_path / "o" / name).read_text() for name in mine} == {"mine"}
    assert zeroshot(*line)[0] == 0
