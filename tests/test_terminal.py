"""What a person sees on a terminal: rows, messages and one line of progress, apart."""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.terminal import Screen, run
from zeroshot import models
from zeroshot.commands import console
from zeroshot.commands.terminal import progress
from zeroshot.inference.meter import Meter
from zeroshot.models.hf.dual_encoder import TransformersDualEncoder

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
THREE = sorted(SCENES.glob("[123]-*.png"))
POCKET = ["--models", "pocket"]
LABELS = ["--labels", "red heart,blue star", *POCKET]
PROGRESS = re.compile(
    r"([a-z-]+ )*[a-z-]+( [━╸╺]+)?( \d+(/\d+)?)?( \d+\.\d/s)?( \d+:\d\d:\d\d( left)?)?"
)
SUMMARY = r"%s in \d+\.\d s, \d+\.\d s of it loading \(\d+\.\d\d images/s after that; %s\)"
KNOWN = (
    r"1 image in \d+\.\d s(, \d+\.\d s of it loading)? \(\d+\.\d\d images/s( after that)?; "
    r"1 from the cache; slowest step: (cache|scoring)\)"
)
"""Where nothing is encoded no model is loaded, so that there may be nothing to say of it."""


@pytest.fixture
def slow(monkeypatch):
    """Models, and every batch of texts and of images, take their time."""

    def late(function):
        def call(self, given):
            time.sleep(0.8)
            return function(self, given)

        return call

    for name in ("encode_texts", "encode_pixels"):
        function = late(getattr(TransformersDualEncoder, name))
        monkeypatch.setattr(TransformersDualEncoder, name, function)
    load = models.load_dual_encoder

    def late_load(*names, **options):
        time.sleep(0.8)
        return load(*names, **options)

    monkeypatch.setattr(models, "load_dual_encoder", late_load)


def strange(terminal):
    """Lines that were neither progress nor one, or the beginning of one, that stayed."""
    stayed = terminal.screen.shown
    return {
        line
        for line in terminal.seen
        if not PROGRESS.fullmatch(line) and not any(s.startswith(line) for s in stayed)
    }


def phases(terminal):
    """The words of every line of progress."""
    lines = (line for line in terminal.seen if re.search(r"\d:\d\d:\d\d( left)?$", line))
    return {re.match("[a-z -]*[a-z]", line)[0] for line in lines}


def test_the_screen_of_these_tests_is_one():
    screen = Screen(columns=4)
    screen.write("abc\r\x1b[2Kx\r\nlonger\r\n12\x1b[1A\r\x1b[Kend")
    assert screen.shown == ["x", "long", "end", "12"]


def test_rows_messages_and_progress_are_apart(monkeypatch, slow):
    code, terminal = run(monkeypatch, "classify", SCENES, *LABELS, "--batch-size", 3)
    assert code == 0
    first, *rows, last = terminal.screen.shown
    assert first == "skipped 2 files that hold no image: captions.jsonl, truth.csv"
    assert [row.split()[0] for row in rows] == [p.name for p in sorted(SCENES.glob("*.png"))]
    assert rows[0].endswith("  red heart 1.00, blue star 0.00")
    assert re.fullmatch(SUMMARY % ("8 images", "slowest step: encoder"), last)
    assert phases(terminal) >= {"loading models", "encoding texts", "images"}
    assert any(re.match(r"images [━╸╺]+ 3/8 \d\.\d/s 0:00:0\d left", s) for s in terminal.seen)
    assert not strange(terminal)


@pytest.mark.parametrize("command", ["embed", "classify", "caption"])
def test_rows_go_to_a_pipe_while_the_terminal_shows_progress(monkeypatch, tmp_path, command, slow):
    labels = LABELS if command == "classify" else POCKET
    with (tmp_path / "rows").open("w") as pipe:
        code, terminal = run(monkeypatch, command, *THREE, *labels, stdout=pipe)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["path"] for row in rows] == list(map(str, THREE))
    [summary] = terminal.screen.shown
    assert summary.startswith("3 images in ")
    assert not strange(terminal)


def test_json_rows_of_a_terminal_are_whole_lines(monkeypatch):
    code, terminal = run(monkeypatch, "embed", *THREE, *POCKET, "--json", columns=4000)
    assert code == 0
    *rows, _ = terminal.screen.shown
    assert [json.loads(row)["path"] for row in rows] == list(map(str, THREE))


def test_quiet_and_dumb_terminals_have_no_progress(monkeypatch):
    code, terminal = run(monkeypatch, "classify", THREE[0], *LABELS, "--quiet")
    assert code == 0
    assert terminal.seen == {"1-red-heart.png  red heart 1.00, blue star 0.00"}
    monkeypatch.setattr("tests.terminal.TERM", "dumb")
    code, terminal = run(monkeypatch, "classify", THREE[0], *LABELS)
    assert code == 0
    assert not phases(terminal)


def test_names_that_differ_by_folder_are_told_apart(monkeypatch, tmp_path):
    names = ["a/1.png", "b/1.png", "b/c/1.png", f"b/{'long' * 20}-1.png", f"b/{'long' * 20}-2.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    (tmp_path / "a" / "notes.csv").write_text("")
    (tmp_path / "b" / "notes.csv").write_text("")
    code, terminal = run(monkeypatch, "classify", tmp_path, *LABELS)
    assert code == 0
    first, *rows, _ = terminal.screen.shown
    assert first == "skipped 2 files that hold no image: a/notes.csv, b/notes.csv"
    named = "".join(row[:80].strip() for row in rows)
    assert named == "".join(names)
    assert sum("red heart" in row for row in rows) == len(names)


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["a/b/1.png", "a/b/2.png"], "a/b/"),
        (["a/b1/1.png", "a/b2/1.png"], "a/"),
        (["a/1.png", "a/b/1.png", None], "a/"),
        (["1.png", "a/1.png"], ""),
        (["x/1.png"], "x/"),
        (["https://h/a/1.png", "https://h/b/1.png"], "https://h/"),
        ([None], ""),
        ([], ""),
    ],
)
def test_the_folder_that_paths_have_in_common(paths, folder):
    assert console.common_folder(paths) == folder


def test_a_summary_says_what_took_the_time(zeroshot):
    _, _, first = zeroshot("classify", THREE[0], *LABELS)
    assert re.fullmatch(
        SUMMARY % ("1 image", "slowest step: (encoder|cache|reading images)"), first
    )
    _, _, second = zeroshot("classify", *THREE[:1], *LABELS)
    assert re.fullmatch(KNOWN, second)


def test_the_time_of_a_summary_is_that_of_the_command(zeroshot, slow):
    began = time.perf_counter()
    _, _, said = zeroshot("embed", *THREE, *POCKET, "--no-cache")
    waited = time.perf_counter() - began
    seconds = float(re.search(r"in (\d+\.\d) s", said)[1])
    assert 0.8 < seconds <= waited + 0.06
    assert seconds > waited - 1


def test_stages_inside_others_count_once():
    meter = Meter()
    with meter.stage("cache"):
        time.sleep(0.02)
        with meter.stage("encoder"):
            time.sleep(0.1)
        with meter.stage("encoder"):
            time.sleep(0.1)
    with meter.stage("scoring"):
        time.sleep(0.02)
    assert 0.2 <= meter.seconds["encoder"] < 0.3
    assert 0.02 <= meter.seconds["cache"] < 0.1
    assert meter.working == pytest.approx(sum(meter.seconds.values()))
    meter.opened()
    assert meter.seconds["loading"] < 0.1
    assert meter.bottleneck() == "encoder"


@pytest.mark.parametrize(
    ("number", "what", "text"),
    [(0, "image", "0 images"), (1, "image", "1 image"), (2, "row", "2 rows")],
)
def test_one_of_a_thing_is_one(number, what, text):
    from zeroshot.errors import counted

    assert counted(number, what) == text


def test_commands_without_images_say_what_they_do(monkeypatch, tmp_path):
    def late(*given, **more):
        time.sleep(0.8)
        return load(*given, **more)

    load = models.load_image_encoder
    monkeypatch.setattr(models, "load_image_encoder", late)
    pairs = SCENES / "captions.jsonl"
    arguments = ["anchors", "build", pairs, *POCKET, "--out", tmp_path / "a.safetensors"]
    code, terminal = run(monkeypatch, *arguments, "--limit", 3, "--batch-size", 1)
    assert code == 0
    assert "loading models" in phases(terminal)
    assert terminal.screen.shown[0].startswith(f"wrote {tmp_path}"[:60])
    assert not strange(terminal)


def test_a_searchs_tables_come_above_the_progress(monkeypatch, slow):
    code, terminal = run(monkeypatch, "search", "red heart", *THREE, *POCKET, "-k", 1)
    assert code == 0
    shown = terminal.screen.shown
    assert shown[0] == "red heart"
    assert "1-red-heart.png" in shown[4]
    assert shown[-1].startswith("3 images in ")
    assert not strange(terminal)


def test_an_error_leaves_no_progress_behind(monkeypatch, slow):
    long = ",".join(f"a {'very ' * 90}{i}" for i in range(2))
    code, terminal = run(monkeypatch, "classify", *THREE, "--labels", long, *POCKET, columns=2000)
    assert code == 2
    [message] = terminal.screen.shown
    assert message.startswith("error: a prompt of ")


@contextlib.contextmanager
def notes():
    """Standard error as it is while a bar is shown."""
    bar = progress.Bar(Meter())
    bar._notes.begin()
    try:
        yield bar._notes
    finally:
        bar._notes.end()


def test_a_line_that_a_library_draws_again_is_kept_apart(capsys):
    with notes() as kept:
        for part in range(4):
            sys.stderr.write(f"\r{part} of 3\x1b[K")
        assert kept.last == "3 of 3"
        assert capsys.readouterr().err == ""
        sys.stderr.write("\rdone\n\n\x1b[A")
        assert (kept.last, capsys.readouterr().err) == ("", "done\n")


def test_whole_lines_of_a_library_are_messages(capsys):
    with notes():
        print("a [b]warning[/b]\nof two lines, and", end="", file=sys.stderr)
        assert capsys.readouterr().err == "a [b]warning[/b]\n"
        print(" more", file=sys.stderr)
        assert capsys.readouterr().err == "of two lines, and more\n"


def test_a_line_without_an_end_is_not_lost(capsys):
    with notes():
        sys.stderr.write("no line end")
    assert capsys.readouterr().err == "no line end\n"
