"""Pairs that a filter keeps, as a table that is read again, and as tar files in a folder."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from zeroshot.datasets.pairs import read_pairs
from zeroshot.errors import OutputError, UserError
from zeroshot.images import find
from zeroshot.inputs.source import Fields, Source
from zeroshot.output import filtered_pairs as kept
from zeroshot.results.result import FilterResult

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
POCKET = ["--models", "pocket"]

# Tables

ODD_TEXTS = [
    "=SUM(A1)",
    "+1 -1",
    "@home",
    "-x",
    "'tis '=1",
    "'=1",
    "'",
    "\ttab",
    "a\rb",
    "a\r\nb\nc",
    'a "b", c; d',
    "\r",
    "＝1",
    "x",
]
ODD_NAMES = ["=1.png", "-1.png", "'a.png", " a.png", "..b.png", "+a,b;c.png", 'q"\n.png', "a.png"]


def found_again(folder, suffix, pairs):
    """What is read from a table of kept pairs, each a file and a caption."""
    names = dict.fromkeys(name for name, _ in pairs)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"of " + os.fsencode(name))
    table = folder / f"kept{suffix}"
    kept.write_kept(
        table,
        [
            FilterResult(
                Source(str(folder / name), None, Fields(text, text)), "i", caption=text, kept=True
            )
            for name, text in pairs
        ],
    )
    sources = find(str(table)).sources
    assert [Path(s.path).read_bytes() for s in sources] == [
        b"of " + os.fsencode(name) for name, _ in pairs
    ]
    assert [(s.captions, s.text_of("label")) for s in sources] == [((t,), t) for _, t in pairs]
    return table


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".CSV"])
def test_a_kept_table_says_what_was_kept(tmp_path, suffix):
    pairs = [(ODD_NAMES[i % len(ODD_NAMES)], text) for i, text in enumerate(ODD_TEXTS)]
    table = found_again(tmp_path, suffix, pairs)
    if suffix == ".csv":
        with table.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r＝"))]
        told = {pair.id: pair.captions for pair in read_pairs(str(table))}
        assert told["./+a,b;c.png"] == ("'=1", "x")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_names_that_are_not_utf8_name_their_files_again(zeroshot, tmp_path, suffix):
    names = [os.fsdecode(raw) for raw in (b"caf\xe9.png", b"in\xff/\xfe.png", b"caf\xc3\xa9.png")]
    found_again(tmp_path, suffix, [(name, "ä text") for name in names])
    odd = tmp_path / names[0]
    odd.write_bytes((SCENES / "1-red-heart.png").read_bytes())
    rows = json.dumps({"path": names[0], "caption": "a red heart"})
    (tmp_path / "in.jsonl").write_text(rows)
    target = tmp_path / f"again{suffix}"
    arguments = [*POCKET, "--min-score", -1]
    assert zeroshot("filter", tmp_path / "in.jsonl", *arguments, "--kept", target)[0] == 0
    code, [row], _ = zeroshot("filter", target, *arguments)
    assert (code, row["caption"]) == (0, "a red heart")


def test_apostrophes_of_other_tables_stay(tmp_path):
    (tmp_path / "x.csv").write_text("path,caption\na.png,'=1\n")
    assert [s.captions for s in find(str(tmp_path / "x.csv")).sources] == [("'=1",)]


# Folders


def results_of(*captions):
    picture = (SCENES / "1-red-heart.png").read_bytes()
    return [FilterResult(Source("x.png", picture), "i", caption=c, kept=True) for c in captions]


def captions_in(folder):
    tars = sorted(folder.glob("0*.tar"))
    return [s.captions[0] for tar in tars for s in find(str(tar)).sources]


def test_a_later_run_replaces_the_shards_of_the_earlier_one_and_no_other_file(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(kept, "PAIRS_IN_A_SHARD", 2)
    out = tmp_path / "out"
    kept.write_kept(out, results_of("a", "b", "c", "d", "e"))
    mine = {"notes.txt": b"mine", "20241129.csv": b"mine", "x.tar": b"mine", "sub/00009.tar": b"x"}
    for name, data in mine.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    assert captions_in(out) == ["a", "b", "c", "d", "e"]
    for count in (3, 5, 0, 1):
        texts = [f"{count}\n{i}" for i in range(count)]
        kept.write_kept(out, results_of(*texts))
        assert captions_in(out) == texts
        assert {name: (out / name).read_bytes() for name in mine} == mine
    assert sorted(p.name for p in out.iterdir() if p.name not in mine) == [
        ".kept.json",
        "00000.tar",
        "sub",
    ]


@pytest.mark.parametrize(
    "record",
    [
        None,
        "{",
        '{"shards": 3}',
        '{"schema": "zeroshot.kept/1", "shards": ["../x.tar"], "stage": null}',
        '{"schema": "zeroshot.kept/1", "shards": ["00000.tar"], "stage": ".."}',
    ],
)
def test_shards_that_are_not_of_the_record_are_refused(tmp_path, record):
    out = tmp_path / "out"
    out.mkdir()
    (out / "00007.tar").write_bytes(b"mine")
    (tmp_path / "x.tar").write_bytes(b"mine")
    if record is not None:
        (out / ".kept.json").write_text(record)
    with pytest.raises(UserError, match="another folder"):
        kept.check_target(out)
    with pytest.raises(UserError, match="another folder"):
        kept.write_kept(out, results_of("a"))
    assert (out / "00007.tar").read_bytes() == (tmp_path / "x.tar").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["file", "x.csv", "x.jsonl"])
def test_what_cannot_be_a_target(tmp_path, name):
    target = tmp_path / name
    target.write_text("") if name == "file" else target.mkdir()
    with pytest.raises(UserError, match="is a"):
        kept.check_target(target)


@pytest.mark.parametrize("step", ["write", "replace", "unlink"])
def test_a_run_that_fails_keeps_the_earlier_shards(tmp_path, monkeypatch, step):
    """Wherever it fails, no file of it stays that the next run does not find."""
    monkeypatch.setattr(kept, "PAIRS_IN_A_SHARD", 1)
    out = tmp_path / "out"
    kept.write_kept(out, results_of("a", "b", "c"))
    real = {"write": kept.write_tar, "replace": os.replace, "unlink": Path.unlink}[step]
    shards = []

    def fails(*given, **more):
        """Of the calls that are about a shard in the folder, the second one; of `unlink` any."""
        if step == "write" or (Path(given[-1]).parent == out and given[-1].suffix == ".tar"):
            shards.append(given)
            if len(shards) == 2 or step == "unlink":
                raise OSError(28, "No space left on device")
        return real(*given, **more)

    with monkeypatch.context() as patch:
        owner = {"write": kept, "replace": os, "unlink": Path}[step]
        patch.setattr(owner, "write_tar" if step == "write" else step, fails)
        with pytest.raises(OutputError, match="No space left"):
            kept.write_kept(out, results_of("A", "B"))
    if step == "write":
        assert captions_in(out) == ["a", "b", "c"]
    kept.write_kept(out, results_of("x"))
    assert captions_in(out) == ["x"]
    assert {p.name for p in out.iterdir()} - {".kept.json", "00000.tar"} == set()


def test_a_run_that_was_killed_leaves_the_earlier_shards(tmp_path):
    out = tmp_path / "out"
    kept.write_kept(out, results_of("a"))
    script = """
import os, signal
from pathlib import Path
from tests.test_kept_pairs import kept, results_of
real = kept.write_tar
kept.PAIRS_IN_A_SHARD = 1
def killed(file, pairs):
    real(file, pairs)
    if list(Path(os.environ["OUT"]).glob(".*.new/00001.tar")):
        os.kill(os.getpid(), signal.SIGKILL)
kept.write_tar = killed
kept.write_kept(Path(os.environ["OUT"]), results_of("x", "y", "z"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "OUT": str(out)}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert captions_in(out) == ["a"]
    assert len(list(out.glob(".*.new/*.tar"))) == 2
    kept.write_kept(out, results_of("b"))
    assert captions_in(out) == ["b"]
    assert sorted(p.name for p in out.iterdir()) == [".kept.json", "00000.tar"]


def test_a_failed_write_leaves_nothing(tmp_path):
    good = FilterResult(Source("x.png", b"\xff\xd8"), "i", caption="a", kept=True)
    gone = FilterResult(Source(str(tmp_path / "gone.png")), "i", caption="a", kept=True)
    with pytest.raises(UserError, match="cannot be read any more"):
        kept.write_kept(tmp_path / "shards", [good, gone])
    assert list((tmp_path / "shards").iterdir()) == []
    with pytest.raises(UserError, match=r"'x\.png' is not a file of its own"):
        kept.write_kept(tmp_path / "x.jsonl", [gone, good])
    assert not (tmp_path / "x.jsonl").exists()
    hostile = FilterResult(Source("../../etc/x", b"\xff\xd8"), "i", caption="a", kept=True)
    kept.write_kept(tmp_path / "shards", [hostile])
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        assert tar.getnames()[0] == "000000000.jpg"
