"""Settings beside rows are those recorded, and an output begun with them is gone on with.

After a change that is meant, `python -m tests.recording` records anew; outputs that users have
begun are refused then, which is a line of the changelog.
"""

import json
import shlex
import shutil

import pytest

from tests.recording import (
    DATA,
    POCKET,
    SETTINGS,
    commands,
    differences,
    done,
    prepare,
    run,
    settings,
)

RECORDED = json.loads(SETTINGS.read_text("utf-8"))
LABELS = "--labels 'red heart,blue star,green ring'"
BEGUN = {
    "captions.jsonl": "caption scenes",
    "labels.jsonl": f"classify scenes {LABELS} --top-k 2",
    "labels.csv": f"classify scenes {LABELS} --encoder coupled --explain 1 --top-k 1",
    "boxes.jsonl": "detect scenes --labels 'red heart,blue star' --background background",
    "shards/": f"classify scenes {LABELS} --shard-size 5 --top-k 1",
}
"""The commands that made data/begun, in a folder as `prepare` makes it."""


def test_every_command_is_recorded():
    assert RECORDED.keys() == commands().keys()


@pytest.mark.parametrize("name", commands())
def test_settings_are_those_recorded(name):
    """Names and values: with others an output is refused."""
    assert settings(done(name)) == RECORDED[name]


@pytest.fixture
def begun(tmp_path):
    """A folder with the scenes and the outputs of an earlier day."""
    prepare(tmp_path / "work")
    return shutil.copytree(DATA / "begun", tmp_path / "work", dirs_exist_ok=True)


def go_on(place, out):
    """The command again; what it says, once it went well."""
    code, _, said = run(place, *shlex.split(BEGUN[out]), "--out", out, "-v", *POCKET)
    assert code == 0, said
    return " ".join(said.split())


def contents(place):
    """Every file by its name; of a run file only what decides rows, since times are noted anew."""
    found = {f: f.read_bytes() for f in place.rglob("*") if f.is_file()}
    return {f: json.loads(b)["settings"] if f.match("*run.json") else b for f, b in found.items()}


@pytest.mark.parametrize("out", BEGUN)
def test_an_output_of_an_earlier_day_is_complete(out, begun):
    before = contents(begun)
    said = go_on(begun, out)
    assert "resumed: 8 of 8 were done already" in said
    assert "0 images encoded" in said
    assert contents(begun) == before


@pytest.mark.parametrize("out", ["captions.jsonl", "labels.jsonl", "labels.csv", "boxes.jsonl"])
def test_an_output_of_an_earlier_day_is_gone_on_with(out, begun):
    whole = (begun / out).read_bytes()
    *first, _, _ = whole.splitlines(keepends=True)
    (begun / out).write_bytes(b"".join(first))
    said = go_on(begun, out)
    assert "resumed: 6 of 8 were done already" in said
    assert "2 images encoded" in said
    now = (begun / out).read_bytes()
    assert now.startswith(b"".join(first))
    # What is a probability was not told apart that day.
    assert not differences(whole.decode(), now.decode().replace(",uncalibrated,", ",softmax,"))


def test_shards_of_an_earlier_day_are_gone_on_with(begun):
    whole = (begun / "shards/00001.jsonl").read_text("utf-8")
    for left in begun.glob("shards/00001.*"):
        left.unlink()
    first = (begun / "shards/00000.jsonl").read_bytes()
    assert "resumed: 5 of 8 were done already" in go_on(begun, "shards/")
    assert (begun / "shards/00000.jsonl").read_bytes() == first
    assert not differences(whole, (begun / "shards/00001.jsonl").read_text("utf-8"))
