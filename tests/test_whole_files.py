"""Files that are written whole: a full disk, a kill or a wrong path leaves the old one, or none."""

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_magic import MaGiC, ToyEncoder, ToyLanguageModel
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import OutputError, UserError
from zeroshot.methods.tda import TDA
from zeroshot.model_set.anchor_file import Entry, read_anchors
from zeroshot.model_set.anchor_writer import AnchorWriter
from zeroshot.output import atomic, holders
from zeroshot.output.annotations import coco_annotations, label_studio, yolo_annotations
from zeroshot.output.annotations.annotated import Annotations
from zeroshot.report.search_page import search_page, write_page
from zeroshot.tasks.classification.arrays import write_arrays
from zeroshot.tasks.classification.calibration import Calibration
from zeroshot.tasks.localization.image_folder import ImageFolder
from zeroshot.tasks.matching.thresholds import Thresholds

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART = SCENES / "1-red-heart.png"
POCKET = ("--models", "pocket", "--no-cache", "--quiet")
ID = "0123456789ab" * 5 + "0123"

no_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a kill is tried in a forked process")


@pytest.fixture
def full(monkeypatch):
    """A disk that is full when a file is to be on it for good."""

    def sync(what):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def now(is_full=True):
        monkeypatch.setattr(atomic, "sync", sync if is_full else lambda what: None)

    now(False)
    return now


def killed(work, *, at, call="replace"):
    """Run `work` in a process that ends, as by `kill -9`, at a call of `os`: the first is 1."""
    child = os.fork()
    if not child:
        real, calls = getattr(os, call), []

        def dying(*args, **more):
            calls.append(args)
            if len(calls) == at:
                os._exit(9)
            return real(*args, **more)

        setattr(os, call, dying)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The one function


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_appears_when_its_block_is_done(tmp_path, overwrite):
    path = tmp_path / "new" / "deep" / "x.bin"
    with atomic.whole(path, overwrite=overwrite) as file:
        file.write(b"all")
        assert not path.exists()
    assert said(tmp_path) == {"new/deep/x.bin": b"all"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_block_that_fails_changes_nothing(tmp_path, error, old):
    path = tmp_path / "x"
    if old:
        path.write_bytes(old)
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected), atomic.whole(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert said(tmp_path) == ({"x": old} if old else {})


@pytest.mark.parametrize("links", [True, False])
def test_what_appears_meanwhile_is_not_replaced(tmp_path, links, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "x"
    with (  # noqa: PT012
        pytest.raises(UserError, match="exists; --overwrite"),
        atomic.whole(path, overwrite=False) as file,
    ):
        file.write(b"mine")
        path.write_bytes(b"another's")
    assert said(tmp_path) == {"x": b"another's"}


@pytest.mark.parametrize("place", ["file/x", "folder", "n" * 300])
def test_a_path_that_cannot_be(tmp_path, place):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises((UserError, OutputError), match="cannot write"),
        atomic.whole(tmp_path / place) as file,
    ):
        file.write(b"x")
    assert said(tmp_path) == {"file": b"a file"}


def test_the_longest_names_have_room_for_a_part(tmp_path):
    for name in ("n" * 255, "ä" * 127, os.fsdecode(b"\xff" * 255)):
        atomic.replace(tmp_path / name, b"x")
    assert len(said(tmp_path)) == 3


# Parts of dead processes


def part(folder, mark, name="x.csv", age=0.0):
    path = folder / f".{name}.{mark}-00112233.new"
    path.write_bytes(b"half")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


@no_fork
def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path):
    def work():
        with atomic.whole(tmp_path / "x.csv") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), 9)

    assert killed(work, at=99) == -9
    assert [p.name[:6] for p in tmp_path.iterdir()] == [".x.csv"]
    atomic._swept.discard(tmp_path)
    atomic.replace(tmp_path / "another", b"x")
    assert said(tmp_path) == {"another": b"x"}


def test_what_others_write_or_own_is_not_swept(tmp_path):
    ours = holders.ourselves()
    machine = ours.mark.partition("-")[0]
    stay = [
        part(tmp_path, ours.mark),  # alive
        part(tmp_path, "00000000-7-9", age=3600),  # perhaps alive on another machine
        tmp_path / ".x.csv.new",
        tmp_path / f".x.csv.{machine}-notes.new",
        tmp_path / f"x.csv.{machine}-1-1-00112233.new",
    ]
    for path in stay[2:]:
        path.write_text("a user's")
    folder = tmp_path / f".x.{machine}-notes.new"
    folder.mkdir()
    unfinished = tmp_path / f".x.{machine}-1-1-00112233.new"
    (unfinished / "labels").mkdir(parents=True)
    link = tmp_path / f".y.{machine}-1-1-00112233.new"
    link.symlink_to(folder)
    go = [part(tmp_path, "00000000-7-9", "old", age=2 * 86400)]
    if sys.platform.startswith("linux"):
        go.append(part(tmp_path, f"{machine}-{os.getpid()}-1"))  # the id is used again
    atomic.replace(tmp_path / "new", b"x")
    assert [p for p in stay if not p.exists()] == []
    assert folder.exists()
    assert link.is_symlink()
    assert not unfinished.exists()
    assert [p for p in go if p.exists()] == []


# All writers of the package


def traced():
    rows = torch.ones(1, 5) / 5**0.5
    method = MaGiC(k=3, max_tokens=2)
    [caption] = method.caption(rows, ToyEncoder(), language_model=ToyLanguageModel(), trace=True)
    return caption.trace


def anchors(path, number):
    with AnchorWriter(path, {}, force=True) as file:
        rows = torch.arange(1.0, 7).reshape(2, 3) + number
        file.write(rows, rows, [Entry(f"{number}-{i}", (f"caption {number}",)) for i in range(2)])


def export(path, number):
    with EmbeddingCache(path.parent.parent / f"cache-{number}") as cache:
        cache.put("e", "image", [ID], torch.full((1, 3), float(number)))
        cache.export(path, "e", "image")


def boxes(number):
    box = {"label": f"thing {number}", "score": 0.5, "box": [0, 0, number, 1]}
    row = {"path": "a.png", "id": ID, "width": 9, "height": 9, "boxes": [box]}
    return Annotations("zeroshot.detect/1", lambda: [row])


WRITERS = {
    "calibration.json": lambda path, n: Calibration({}, "m", {}, "softmax", "p", n).write(path),
    "thresholds.json": lambda path, n: Thresholds(("a", "b"), (float(n),), "m", 1.0, 2).save(path),
    "coco.json": lambda path, n: coco_annotations.write(path, boxes(n), overwrite=True),
    "tasks.json": lambda path, n: label_studio.write(path, boxes(n), overwrite=True),
    "yolo": lambda path, n: yolo_annotations.write(path, boxes(n), overwrite=True),
    "page.html": lambda path, n: write_page(path, search_page([], [f"query {n}"])),
    "scores.npz": lambda path, n: write_arrays(path, {"scores": np.full(3, n)}),
    "stream": lambda path, n: TDA(pos_alpha=n).stream(torch.eye(3)[:, None]).save(path),
    "trace.svg": lambda path, n: traced().save(path, shown=n),
    "trace": lambda path, n: traced().save(path, shown=n),
    "anchors.safetensors": anchors,
    "export.safetensors": export,
    "export.npy": export,
    "mask": lambda path, n: ImageFolder(path.parent, overwrite=True).write(
        path.name, ID, Image.new("L", (2, 2), n)
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file(tmp_path, name, full):
    folder, write = tmp_path / "out", WRITERS[name]
    if name.startswith("trace"):
        pytest.importorskip("matplotlib", reason="a figure needs the extra [plot]")
    full()
    with pytest.raises(OutputError, match="No space left") as caught:
        write(folder / name, 1)
    assert caught.value.exit_code == 4
    assert said(folder) == {}
    full(False)
    write(folder / name, 1)
    before = said(folder)
    assert before
    full()
    with pytest.raises(OutputError, match="No space left"):
        write(folder / name, 2)
    assert said(folder) == before
    full(False)
    write(folder / name, 2)
    assert said(folder).keys() == before.keys()
    assert said(folder) != before


@pytest.mark.skipif(sys.platform == "win32", reason="files cannot be limited there")
@pytest.mark.parametrize("name", [n for n in WRITERS if n not in ("trace", "mask")])
def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path, name):
    """The system refuses every byte, so that writes fail and not only the last step."""
    import resource

    folder, write = tmp_path / "out", WRITERS[name]
    if name.startswith("trace"):
        pytest.importorskip("matplotlib", reason="a figure needs the extra [plot]")
    write(folder / name, 1)
    if name.startswith("export"):
        export(tmp_path / "elsewhere" / name, 2)  # what is exported next
    before, (_, hard) = said(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            write(folder / name, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert said(folder) == before


# Two files that belong together


@no_fork
@pytest.mark.parametrize("old", [None, 1])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_kill_between_renames_leaves_one_set_of_anchors(tmp_path, old, at):
    """Before each of the three renames of a build: the old set, or the new one."""
    path = tmp_path / "a.safetensors"
    if old:
        anchors(path, 1)
    assert killed(lambda: anchors(path, 2), at=at) == 9
    if at < 3 and not old:
        assert not path.exists()
    else:
        expected = 2 if at == 3 else 1
        found = read_anchors(path)
        assert [e.id for e in found.entries] == [f"{expected}-0", f"{expected}-1"]
        rows = torch.arange(1.0, 7).reshape(2, 3) + expected
        torch.testing.assert_close(found.images, torch.nn.functional.normalize(rows))
    atomic._swept.discard(tmp_path)
    anchors(path, 3)
    assert [e.id for e in read_anchors(path).entries] == ["3-0", "3-1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.safetensors"]


def test_lines_of_another_set_are_found_out(tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    anchors(a, 1)
    anchors(b, 2)
    lines = a.with_suffix(".jsonl")
    lines.write_bytes(b.with_suffix(".jsonl").read_bytes())
    with pytest.raises(UserError, match="is not the file that was written with"):
        read_anchors(a)
    lines.unlink()
    assert read_anchors(a).captions == ()
    anchors(a, 1)
    lines.write_bytes(lines.read_bytes().replace(b"caption 1", b"another 1"))
    with pytest.raises(UserError, match="is not the file that was written with"):
        read_anchors(a)


def test_captions_that_are_no_part_of_a_set_are_not_replaced(tmp_path, monkeypatch, zeroshot):
    monkeypatch.chdir(tmp_path)
    table = json.dumps({"path": str(HEART), "caption": "a red heart"})
    Path("pairs.jsonl").write_text(table)
    line = ["anchors", "build", "pairs.jsonl", "--models", "pocket", "--no-cache"]
    for more in ([], ["--overwrite"]):
        code, _, err = zeroshot(*line, "--out", "pairs.safetensors", *more)
        assert (code, "'pairs.jsonl' exists" in err) == (2, True)
    assert Path("pairs.jsonl").read_text() == table
    anchors(Path("a.safetensors"), 1)
    anchors(Path("b.safetensors"), 2)
    code, _, err = zeroshot(
        "anchors", "remove", "a.safetensors", "--id", "1-0", "--out", "b.safetensors"
    )
    assert (code, "'b.safetensors' exists" in err) == (2, True)
    assert [e.id for e in read_anchors(Path("b.safetensors")).entries] == ["2-0", "2-1"]


@no_fork
@pytest.mark.parametrize("name", ["e.safetensors", "e.npy"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_leaves_no_old_ids_beside_new_embeddings(tmp_path, name, at):
    folder = tmp_path / "out"
    with EmbeddingCache(tmp_path / "cache") as cache:
        cache.put("e", "image", [ID], torch.ones(1, 3))
        cache.export(folder / name, "e", "image")
        old = said(folder)
        cache.put("e", "image", [ID[::-1]], torch.ones(1, 3))
        new = tmp_path / "new"
        cache.export(new / name, "e", "image")

        def again():
            with EmbeddingCache(tmp_path / "cache") as own:
                own.export(folder / name, "e", "image")

        assert killed(again, at=at) == 9
    left = {n: data for n, data in said(folder).items() if not n.startswith(".")}
    vectors = old if at == 1 else said(new)
    assert left == {name: vectors[name]}


# The command line


LABELS = ("--labels", "red heart,blue star")
COMMANDS = {
    "c.json": ("calibrate", HEART, *LABELS, *POCKET, "--out"),
    "t.json": ("match", "pairs.jsonl", *POCKET, "--order", "no,yes", "--learn-thresholds"),
    "p.html": ("search", "a heart", HEART, *POCKET, "--html"),
    "s.csv": ("search", "a heart", HEART, *POCKET, "--out"),
    "s.parquet": ("search", "a heart", HEART, *POCKET, "--out"),
    "b.json": ("detect", HEART, *LABELS, *POCKET, "--coco"),
    "l.json": ("classify", HEART, *LABELS, *POCKET, "--label-studio"),
    "y": ("segment", HEART, *LABELS, *POCKET, "--yolo"),
    "m": ("segment", HEART, *LABELS, *POCKET, "--masks"),
    "d": ("segment", HEART, *LABELS, *POCKET, "--draw"),
    "s.npz": ("classify", "--embeddings", "a.npz", "--quiet", "--out"),
    "t.jsonl": ("caption", HEART, *POCKET, "-o", "max_tokens=2", "--trace"),
    "e": ("eval", "truth.csv", "--task", "classify", *LABELS, *POCKET, "--out"),
    "r.html": ("report", "rows.jsonl", "--out"),
    "a.safetensors": ("anchors", "build", "pairs.jsonl", *POCKET[:3], "--out"),
    "k.jsonl": ("filter", "pairs.jsonl", "--min-score", -1, *POCKET, "--kept"),
}
"""A command for each kind of file that is written whole; the name of the file is its last word."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_each_command_alike(tmp_path, monkeypatch, zeroshot, full, name):
    monkeypatch.chdir(tmp_path)
    for picture in ("1-red-heart.png", "2-blue-star.png"):
        shutil.copy(SCENES / picture, picture)
    rows = [
        {"path": "1-red-heart.png", "caption": "a red heart", "label": "yes"},
        {"path": "2-blue-star.png", "caption": "a green ring", "label": "no"},
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rows.jsonl").write_text(json.dumps({"schema": "zeroshot.caption/1"} | rows[0]))
    Path("truth.csv").write_text("path,label\n1-red-heart.png,red heart\n")
    np.savez("a.npz", images=np.eye(3)[:2], texts=np.eye(3)[:, None])
    line = [*COMMANDS[name], f"out/{name}"]
    for more in ([], ["--overwrite"]):
        before = said(Path("out"))
        full()
        code, _, err = zeroshot(*line, *more)
        assert (code, err.count("No space left")) == (4, 1), err
        assert said(Path("out")) == before
        full(False)
        assert zeroshot(*line, *more)[0] == 0
        assert Path("out", name).exists()


def test_pairs_that_all_fail_are_no_fault_of_the_program(tmp_path, monkeypatch, zeroshot):
    monkeypatch.chdir(tmp_path)
    rows = [{"path": f"{i}.png", "caption": "a", "label": "no"} for i in range(2)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["match", "pairs.jsonl", *POCKET]
    code, rows, _ = zeroshot(*line)
    assert (code, ["error" in row for row in rows]) == (3, [True, True])
    code, _, err = zeroshot(*line, "--learn-thresholds", "t.json", "--order", "no,yes")
    assert (code, "no pair has the label 'no'" in err) == (2, True)


def test_a_models_toml_is_not_replaced(tmp_path, zeroshot):
    table = tmp_path / "pairs.jsonl"
    table.write_text(json.dumps({"path": HEART.name, "caption": "a red heart"}))
    out = tmp_path / "set" / "a.safetensors"
    line = ["anchors", "build", table, "--models", "pocket", "--no-cache", "--root", SCENES]
    line += ["--out", out]
    assert zeroshot(*line)[0] == 0
    manifest = out.with_name("models.toml")
    manifest.write_text("# mine")
    assert zeroshot(*line, "--overwrite")[0] == 0
    assert manifest.read_text() == "# mine"


def test_an_eval_folder_with_files_of_the_user(tmp_path, zeroshot):
    (tmp_path / "heart.png").write_bytes(HEART.read_bytes())
    (tmp_path / "truth.csv").write_text("path,label\nheart.png,red heart\n")
    line = [
        *("eval", tmp_path / "truth.csv", "--task", "classify", "--labels", "red heart,blue star"),
        *(*POCKET, "--out", tmp_path / "o"),
    ]
    for name in ("truth.jsonl", "comparison.json"):
        mine = tmp_path / "o" / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        code, _, err = zeroshot(*line)
        assert (code, "exists; --overwrite" in err, mine.read_text()) == (2, True, "mine")
        mine.unlink()
    assert zeroshot(*line)[0] == 0
    assert zeroshot(*line, "--overwrite")[0] == 0


def test_a_trace_keeps_step_with_its_rows(tmp_path, zeroshot):
    """Rows that were killed before they were written have left a trace, and a half one."""
    images = sorted(SCENES.glob("*.png"))[:4]
    options = ["-o", "max_tokens=2", "--batch-size", "2", *POCKET]

    def run(name, sources, *more):
        out, trace = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-t.jsonl"
        assert (
            zeroshot("caption", *sources, *options, "--out", out, "--trace", trace, *more)[0] == 0
        )
        return trace

    whole = run("whole", images).read_bytes()
    cut = run("cut", images[:2])
    lines = whole.splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    assert run("cut", images).read_bytes() == whole
    assert run("cut", images[:2], "--overwrite").read_bytes() == b"".join(lines[:2])
