"""Outputs: what a person reads in them, what survives a crash at any byte, what is refused."""

import csv
import errno
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from zeroshot.errors import NotAvailableError, OutputError, UserError
from zeroshot.inputs import text_files
from zeroshot.output import formats
from zeroshot.output.holders import Holder
from zeroshot.output.resumable import ResumableFile, merge
from zeroshot.packaging.extras import how_to_install

HEART = Path(__file__).parent.parent / "examples" / "scenes" / "1-red-heart.png"
SCHEMA = "zeroshot.classify/1"
SETTINGS = {"method": "ensemble", "options": {"k": 3}, "models": {"encoder": "toy@1"}}
SUFFIXES = ["jsonl", "csv", "parquet"]


@pytest.fixture(params=SUFFIXES)
def out(request, tmp_path):
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    return tmp_path / f"rows.{request.param}"


def good(path, id, label="cat", score=0.75):
    labels = [{"label": label, "score": score, "cosine": 0.25}]
    labels.append({"label": "other", "score": 0.125, "cosine": -0.5})
    answer = {"labels": labels, "abstained": False, "scored": "softmax"}
    rest = {"models": {"encoder": "toy@1"}, "method": "ensemble"}
    return {"schema": SCHEMA, "path": path, "id": id, **answer, **rest}


def bad(path, id=None, message="truncated JPEG"):
    error = {"type": "UnreadableImage", "message": message}
    return {"schema": SCHEMA, "path": path, "id": id, "error": error}


def write(out, rows, **options):
    with ResumableFile(out, SCHEMA, SETTINGS, **options) as output:
        output.write(rows)


def read(out):
    """Path, best label and error of each row, by readers that are not ours."""
    if out.suffix == ".jsonl":
        rows = [json.loads(line) for line in out.read_text().split("\n")[:-1]]
        return [
            (
                r["path"],
                r["labels"][0]["label"] if "labels" in r else None,
                r.get("error", {}).get("message"),
            )
            for r in rows
        ]
    if out.suffix == ".csv":
        with open(out, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    else:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(out).to_pylist()
    return [(r["path"], r["label"] or None, r["error_message"] or None) for r in rows]


def test_rows_come_out_in_order(out):
    write(out, [good("b.jpg", "1", "red fox"), bad("a.jpg"), good("c.jpg", "3")])
    assert read(out) == [
        ("b.jpg", "red fox", None),
        ("a.jpg", None, "truncated JPEG"),
        ("c.jpg", "cat", None),
    ]


def test_json_lines_are_the_rows_themselves(tmp_path):
    rows = [good("ä\u2028 b.jpg", "1"), bad('"c".jpg')]
    write(tmp_path / "x.jsonl", rows)
    lines = (tmp_path / "x.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == b""


def test_csv_by_hand(tmp_path):
    out = tmp_path / "x.csv"
    write(out, [good("a.jpg", "1f", "=1+1"), bad("-b.jpg")])
    header, row, failed = csv.reader(out.read_text().splitlines())
    assert header == [
        *("path", "id", "label", "score", "cosine", "abstained", "scored", "labels"),
        *("none", "label_set", "method", "error_type", "error_message"),
    ]
    assert row[:7] == ["a.jpg", "1f", "'=1+1", "0.75", "0.25", "false", "softmax"]
    assert json.loads(row[7])[1] == {"label": "other", "score": 0.125, "cosine": -0.5}
    assert row[8:] == ["", "", "ensemble", "", ""]
    assert failed == ["'-b.jpg", *[""] * 10, "UnreadableImage", "truncated JPEG"]
    record = json.loads((tmp_path / "x.csv.run.json").read_text())
    assert record["settings"]["models"] == {"encoder": "toy@1"}


def test_parquet_has_numbers_and_truth_values(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra [data]")
    write(tmp_path / "x.parquet", [good("a.jpg", "1", score=0.1), bad("b.jpg")])
    first, second = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert (first["score"], first["abstained"], second["score"]) == (0.1, False, None)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "x.parquet",
        "x.parquet.run.json",
    ]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NotAvailableError, match=re.escape(how_to_install("data"))):
        ResumableFile(tmp_path / "x.parquet", SCHEMA, SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_text_has_a_line_per_input_and_is_not_continued(tmp_path):
    out = tmp_path / "x.txt"
    write(out, [good("a", "1", "red\nfox"), bad("b"), good("c", "3", "cat")])
    assert out.read_text() == "red fox\n\ncat\n"
    with pytest.raises(UserError, match="plain text has no paths"):
        write(out, [])
    write(out, [good("a", "1", "dog")], overwrite=True)
    assert out.read_text() == "dog\n"


def test_a_second_run_finds_each_row_once(out):
    write(out, [good("a", "1"), good("a", "1"), bad("b"), bad("c", "3"), good(None, "4")])
    with ResumableFile(out, SCHEMA, SETTINGS) as output:
        assert output.resumed == 5
        asked = [("a", "1"), ("a", "1"), ("a", "1"), ("a", "2"), ("b", "9"), ("b", None)]
        assert [output.take_row(*key) for key in asked] == [True, True, False, False, True, False]
        asked = [("c", None), ("d", "4"), (None, "4"), (None, "4")]
        assert [output.take_row(*key) for key in asked] == [True, False, True, False]


def test_retried_failures_are_replaced_where_they_stand(out):
    write(out, [bad("a"), good("b", "2"), bad("c"), bad("a"), good("d", "4")])
    with ResumableFile(out, SCHEMA, SETTINGS, retry_failed=True) as output:
        assert output.resumed == 2
        assert [output.take_row(p, None) for p in "aca"] == [False] * 3
        output.write([good("a", "1", "dog"), bad("c", message="still"), good("a", "1", "ant")])
        output.write([good("e", "5", "new")])
    assert read(out) == [
        *[("a", "dog", None), ("b", "cat", None), ("c", None, "still")],
        *[("a", "ant", None), ("d", "cat", None), ("e", "new", None)],
    ]


def test_a_changed_picture_gets_a_new_row_in_the_old_ones_place(out):
    write(out, [good("a", "1"), good("b", "2")])
    write(out, [good("a", "3", "dog"), bad("b")])
    assert read(out) == [("a", "dog", None), ("b", None, "truncated JPEG")]


def test_pictures_without_a_path_do_not_replace_each_other(out):
    write(out, [good(None, "1", "cat")])
    write(out, [good(None, "2", "dog")])
    assert [label for _, label, _ in read(out)] == ["cat", "dog"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_cut_anywhere_loses_one_row_at_most(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a thousand runs
    whole = tmp_path / f"whole.{suffix}"
    rows = [good("a,ö.jpg", "1", 'say "a"'), bad("=b\u2028.jpg"), good("c.jpg", "3", "x, y")]
    write(whole, rows)
    data = whole.read_bytes()
    complete = []
    dense = len(data) - 150  # every byte of the end, and every seventh before
    for length in [*range(0, dense, 7), *range(dense, len(data) + 1)]:
        out = tmp_path / f"{length}.{suffix}"
        write(out, [])
        out.write_bytes(data[:length])  # as a crash before the first close leaves it
        with ResumableFile(out, SCHEMA, SETTINGS) as output:
            complete.append(output.resumed)
            output.write(r for r in rows if not output.take_row(r["path"], r["id"]))
        assert out.read_bytes() == data, length
    assert complete == sorted(complete)
    assert (complete[0], complete[-2], complete[-1]) == (0, 2, 3)


def test_a_crash_while_retrying_keeps_what_was_retried(out):
    write(out, [bad("a"), good("b", "2"), bad("c")])
    dead = ResumableFile(out, SCHEMA, SETTINGS, retry_failed=True)
    dead.write([good("a", "1", "dog")])
    dead._file.close()  # neither merged nor closed
    dead._lease.release()
    with ResumableFile(out, SCHEMA, SETTINGS, retry_failed=True) as output:
        assert (output.take_row("a", "1"), output.take_row("c", None)) == (True, False)
        output.write([good("c", "3", "ant")])
    assert read(out) == [("a", "dog", None), ("b", "cat", None), ("c", "ant", None)]


def test_killed_process_leaves_all_batches(out):
    script = f"""
import os, signal, sys
from pathlib import Path
from tests.test_records import ResumableFile, SCHEMA, SETTINGS, good
output = ResumableFile(Path({str(out)!r}), SCHEMA, SETTINGS)
output.write([good("a", "1"), good("b", "2")])
output.write([good("c", "3")])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == -signal.SIGKILL
    with ResumableFile(out, SCHEMA, SETTINGS) as output:
        assert output.resumed == 3
        output.write([good("d", "4")])
    assert [path for path, *_ in read(out)] == ["a", "b", "c", "d"]


def test_interruption_closes_the_file(out):
    def rows():
        yield good("b", "2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ResumableFile(out, SCHEMA, SETTINGS) as output:  # noqa: PT012
        output.write([good("a", "1")])
        output.write(rows())
    assert read(out) == [("a", "cat", None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "(method was ensemble, is magic)"),
        ({"options": {"k": 4}}, "options.k was 3, is 4"),
        ({"templates": "none"}, "templates was not given, is none"),
        ({"prompts": "0" * 64}, "prompts was not given, is 0000"),
    ],
)
def test_other_settings_are_refused_and_nothing_changes(out, settings, message):
    write(out, [good("a", "1")])
    before = {path: path.read_bytes() for path in out.parent.iterdir()}
    with pytest.raises(UserError) as caught:
        ResumableFile(out, SCHEMA, SETTINGS | settings)
    assert message in str(caught.value)
    assert str(caught.value).endswith("replace it with --overwrite, or choose another --out")
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before
    with ResumableFile(out, SCHEMA, SETTINGS | settings, overwrite=True) as output:
        assert output.resumed == 0


def labelled(settings, labels, templates=("a {}",), command=None):
    prompts = hashlib.sha256(repr((labels, templates)).encode()).hexdigest()
    about = {"command": command, "labels": labels, "templates": list(templates)}
    return {"settings": settings | {"prompts": prompts}, "about": about}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"labels": ["cat", "cow"]}, "(label 'cow' is new; label 'dog' is gone)"),
        ({"labels": ["dog", "cat"]}, "(the labels are in another order)"),
        ({"templates": ("a {}", "one {}")}, "(template 'one {}' is new)"),
        ({"labels": ["cat", "dog", *"abcde"]}, "label 'c' is new; 2 more labels are new)"),
        (
            {"settings": {"method": "magic"}, "labels": ["cat"]},
            "(label 'dog' is gone; method was ensemble, is magic)",
        ),
    ],
)
def test_differences_are_told_in_words(tmp_path, more, words):
    given = {"settings": SETTINGS, "labels": ["cat", "dog"]}
    first = labelled(**given)
    out = tmp_path / "x.csv"
    with ResumableFile(out, SCHEMA, **first) as output:
        output.write([good("a", "1")])
    now = labelled(**given | {k: v for k, v in more.items() if k != "settings"})
    now["settings"] |= more.get("settings", {})
    with pytest.raises(UserError, match=re.escape(words)):
        ResumableFile(out, SCHEMA, **now)
    record = json.loads((tmp_path / "x.csv.run.json").read_text())
    del record["about"]  # as of an earlier version
    (tmp_path / "x.csv.run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="prompts are others"):
        ResumableFile(out, SCHEMA, **now)
    ResumableFile(out, SCHEMA, **first).close()


def test_the_record_has_labels_templates_and_every_command(tmp_path):
    for command in ("zeroshot classify a", "zeroshot classify a b", "zeroshot classify a b"):
        given = labelled(SETTINGS, ["cat"], command=command)
        with ResumableFile(tmp_path / "x.csv", SCHEMA, **given) as output:
            output.write([good("a", "1")])
    record = json.loads((tmp_path / "x.csv.run.json").read_text())
    assert record["about"] == {
        "commands": ["zeroshot classify a", "zeroshot classify a b"],
        "labels": ["cat"],
        "templates": ["a {}"],
    }
    assert record["versions"]["zeroshot"]


def test_rows_of_another_kind_are_refused(out):
    write(out, [good("a", "1")])
    with pytest.raises(UserError, match=r"rows was zeroshot\.classify/1, is zeroshot"):
        ResumableFile(out, "zeroshot.caption/1", SETTINGS)
    with (
        pytest.raises(ValueError, match=r"a row of zeroshot.x/1 in a file of zeroshot.classify/1"),
        ResumableFile(out, SCHEMA, SETTINGS) as output,
    ):
        output.write([good("a", "1") | {"schema": "zeroshot.x/1"}])


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "txt", "parquet"])
def test_a_file_that_is_not_ours_stays(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    out = tmp_path / f"x.{suffix}"
    out.write_text("precious")
    with pytest.raises(UserError, match=rf"has no x\.{suffix}\.run\.json beside it"):
        write(out, [good("a", "1")])
    assert out.read_text() == "precious"
    write(out, [good("a", "1")], overwrite=True)


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        ("jsonl", b"[1]\n", "not a row: b'[1]"),
        ("jsonl", b"nonsense\n", "Expecting value"),
        ("csv", b"a,b\n", "not a row: b'a,b"),
        ("csv", b'"a\n\nb\n', "a quote is never closed after"),
    ],
)
def test_damage_within_is_not_passed_over(tmp_path, suffix, damage, message):
    out = tmp_path / f"x.{suffix}"
    write(out, [good("a", "1"), good("b", "2")])
    first, rest = formats.format_for(out, SCHEMA).records(out.read_bytes())
    header = formats.format_for(out, SCHEMA).header
    out.write_bytes(header + first.raw + damage + rest.raw)
    before = out.read_bytes()
    with pytest.raises(UserError) as caught:
        write(out, [])
    assert message in str(caught.value)
    assert out.read_bytes() == before


def test_a_table_with_other_columns_is_refused(tmp_path):
    write(tmp_path / "x.csv", [good("a", "1")])
    (tmp_path / "x.csv").write_text("path,label\r\na,cat\r\n")
    with pytest.raises(UserError, match="it has other columns"):
        write(tmp_path / "x.csv", [])


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        ResumableFile(tmp_path / "folder.csv", SCHEMA, SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write '.*x.csv': "):
        ResumableFile(tmp_path / "file" / "x.csv", SCHEMA, SETTINGS)
    with pytest.raises(UserError, match="unknown output format 'jsn'; did you mean 'jsonl'"):
        ResumableFile(tmp_path / "x.jsn", SCHEMA, SETTINGS)
    write(tmp_path / "new" / "folder" / "x.csv", [good("a", "1")])


def test_no_score_may_be_nan(out):
    with (
        pytest.raises(ValueError, match="not JSON compliant"),
        ResumableFile(out, SCHEMA, SETTINGS) as output,
    ):
        output.write([good("a", "1", score=float("nan"))])
    assert read(out) == []


def test_no_score_may_be_nan_in_chosen_columns(tmp_path):
    output = ResumableFile(tmp_path / "x.csv", SCHEMA, SETTINGS, columns=("path", "score"))
    with pytest.raises(ValueError, match="not JSON compliant"), output:
        output.write([good("a", "1", score=float("nan"))])


def test_run_file_says_how(tmp_path):
    first, second = tmp_path / "x.jsonl", tmp_path / "x.csv"
    with ResumableFile(first, SCHEMA, SETTINGS) as output:
        begun = json.loads((tmp_path / "x.jsonl.run.json").read_text())
        output.write([good("a", "1"), good("b", "2")])
        output.close({"device": "cpu", "images_per_second": 4.5})
    write(second, [])
    run = json.loads((tmp_path / "x.jsonl.run.json").read_text())
    assert begun["ended"] is None
    assert (run["schema"], run["rows"], run["settings"]) == ("zeroshot.run/1", SCHEMA, SETTINGS)
    assert (run["device"], run["images_per_second"]) == ("cpu", 4.5)
    assert run["ended"] >= run["started"] == begun["started"]
    assert run["versions"]["torch"]
    assert (tmp_path / "x.csv.run.json").exists()


def test_file_names_that_are_no_unicode_are_found_again(out):
    path = os.fsdecode(b"caf\xe9.jpg")
    write(out, [good(path, "1"), good("b.jpg", "2")])
    with ResumableFile(out, SCHEMA, SETTINGS) as output:
        assert output.take_row(path, "1")
    out.suffix == ".parquet" or out.read_bytes().decode()
    expected = path if out.suffix == ".jsonl" else r"caf\udce9.jpg"
    assert [name for name, *_ in read(out)] == [expected, "b.jpg"]


# A file that others take


@pytest.fixture
def stale(monkeypatch):
    """Claims look as those of another machine that has not answered for long."""

    def claims(folder):
        monkeypatch.setattr(Holder, "is_local", property(lambda self: False))
        for lease in folder.glob(".*.lease"):
            os.utime(lease, (0, 0))

    return claims


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("wakes", ["at once", "late", "much later", "to close"])
def test_a_writer_that_was_suspended_writes_nothing(out, stale, before, wakes):
    rows = [good(name, name) for name in "abcde"]
    asleep = ResumableFile(out, SCHEMA, SETTINGS)
    if before:
        asleep.write(rows[:before])
    stale(out.parent)
    awake = ResumableFile(out, SCHEMA, SETTINGS)
    assert awake.resumed == before
    awake.write(rows[before:3])
    if wakes in ("late", "much later"):
        awake.write(rows[3:])
        awake.close()
    if wakes == "much later":
        awake = ResumableFile(out, SCHEMA, SETTINGS)
        assert awake.resumed == 5
    with pytest.raises(OutputError, match="was taken over by another process") as caught:
        asleep.close() if wakes == "to close" else asleep.write(rows[before:])
    assert caught.value.exit_code == 4
    asleep.close()
    if wakes in ("at once", "to close"):
        awake.write(rows[3:])
    awake.close()
    assert [path for path, *_ in read(out)] == list("abcde")
    with ResumableFile(out, SCHEMA, SETTINGS) as output:
        assert output.resumed == 5


def test_what_is_written_in_the_gap_goes_nowhere(out, stale):
    """It asked for its claim, and was suspended before it wrote."""
    asleep = ResumableFile(out, SCHEMA, SETTINGS)
    asleep.write([good("a", "1")])
    stale(out.parent)
    with ResumableFile(out, SCHEMA, SETTINGS) as awake:
        os.write(asleep._file._handle, awake._format.encode(good("b", "2")))
        awake.write([good("b", "2")])
    assert [path for path, *_ in read(out)] == ["a", "b"]
    asleep._file.close()


def remove(path):
    path.unlink()


def replace(path):
    data = path.read_bytes()
    path.unlink()
    path.with_name("keep the inode").touch()
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def extend(path):
    with path.open("ab") as file:
        file.write(b"\n")


def remove_all(path):
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("at", ["write", "close"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove, "was removed"),
        (replace, "was replaced by another file"),
        (truncate, "was cut"),
        (extend, "was written to by another process"),
        (remove_all, "was removed"),
    ],
)
def test_an_output_that_others_change_is_an_error(tmp_path, suffix_of, change, said, at):
    out = tmp_path / "o" / f"rows.{suffix_of}"
    work = out.with_name("rows.parquet.part") if suffix_of == "parquet" else out
    output = ResumableFile(out, SCHEMA, SETTINGS)
    output.write([good("a", "1"), good("b", "2")])
    change(work)
    with pytest.raises(OutputError, match=f"{said} during the run") as caught:
        output.write([good("c", "3")]) if at == "write" else output.close()
    assert caught.value.exit_code == 4
    output.close()
    if suffix_of == "txt":
        return
    if change is extend:
        os.truncate(work, work.stat().st_size - 1)
    with ResumableFile(out, SCHEMA, SETTINGS) as again:
        rows = [good("a", "1"), good("b", "2"), good("c", "3")]
        again.write(r for r in rows if not again.take_row(r["path"], r["id"]))
    assert [path for path, *_ in read(out)] == ["a", "b", "c"]


@pytest.fixture(params=["jsonl", "csv", "parquet", "txt"])
def suffix_of(request):
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    return request.param


@pytest.mark.parametrize("change", [remove, replace, truncate])
@pytest.mark.parametrize("first", [True, False])
def test_a_table_that_others_change_is_not_written_over(tmp_path, change, first):
    pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    out = tmp_path / "x.parquet"
    if not first:
        write(out, [good("a", "1")])
    output = ResumableFile(out, SCHEMA, SETTINGS)
    output.write([good("b", "2")])
    if first:
        out.write_text("another's")
    else:
        change(out)
    left = out.read_bytes() if out.exists() else None
    with pytest.raises(OutputError, match=r"all rows are in x\.parquet\.part"):
        output.close()
    assert (out.read_bytes() if out.exists() else None) == left
    write(out, [])
    assert [path for path, *_ in read(out)] == ["b"] if first else ["a", "b"]


def test_a_disk_that_is_full_leaves_whole_batches(out, monkeypatch):
    output, real = ResumableFile(out, SCHEMA, SETTINGS), os.write
    output.write([good("a", "1"), good("b", "2")])

    def full(handle, data):
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[:100])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        output.write([good("c", "3")])
    monkeypatch.undo()
    output.close()
    with ResumableFile(out, SCHEMA, SETTINGS) as again:
        assert again.resumed == 2
    assert [path for path, *_ in read(out)] == ["a", "b"]


@pytest.mark.parametrize("double", [good("a", "1"), bad("b"), good("c", "3")])
def test_doubles_are_seen_where_a_run_goes_on(out, double):
    rows = [good("a", "1"), bad("b"), good("c", "3")]
    write(out, [*rows, double])  # as two writers of an earlier version may have left it
    before = out.read_bytes()
    ids = {"a": "1", "b": None, "c": "3"}
    for path in "abc":  # a copy of an image has its own row, and is no double
        with ResumableFile(out, SCHEMA, SETTINGS) as output:
            named = [path, path] if path == double["path"] else [path]
            assert all(output.take_row(p, ids[p]) for p in named)
            output.check_doubles(path, ids[path])
    with ResumableFile(out, SCHEMA, SETTINGS) as output:
        path = double["path"]
        assert output.take_row(path, ids[path])
        with pytest.raises(UserError, match=f"has 1 more rows for '{path}' than it is named"):
            output.check_doubles(path, ids[path])
    if out.suffix != ".parquet":
        assert out.read_bytes() == before


def test_rows_that_differ_are_no_doubles(out):
    """Captions of one image have a row each; a later run may name fewer of them."""
    write(out, [good("a", "1", "cat"), good("a", "1", "dog"), good("a", "1", "ant")])
    with ResumableFile(out, SCHEMA, SETTINGS) as output:
        assert output.take_row("a", "1")
        output.check_doubles("a", "1")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
anything = text | st.tuples(st.sampled_from(text_files.FORMULA), text).map("".join)


@given(path=anything.filter(bool), label=anything, message=anything)
def test_csv_keeps_any_text(path, label, message):
    form = formats.Csv(formats.columns(SCHEMA))
    rows = [good(path, "1", label), bad(path + "x", message=message)]
    data = form.header + b"".join(map(form.encode, rows))
    records = form.records(data)
    assert [(r.path, r.id, r.failed) for r in records] == [
        (path, "1", False),
        (path + "x", None, True),
    ]
    assert b"".join(r.raw for r in records) == data.removeprefix(form.header)
    cells = next(csv.reader([records[0].raw.decode()] if "\n" not in label + path else []), None)
    assert cells is None or not cells[2].startswith(("=", "+", "-", "@", "\t"))


names = st.sampled_from("abc")
some = st.lists(st.tuples(names, st.sampled_from(["1", "2", None])), max_size=6)


@given(old=some, new=some)
def test_merge_loses_no_good_row_but_to_a_newer_one(old, new):
    def record(number, path, id):
        return formats.Record(str(number).encode(), path, id, "Unreadable" if id is None else None)

    old = [record(number, *key) for number, key in enumerate(old)]
    new = [record(100 + number, *key) for number, key in enumerate(new)]
    merged = merge(old, new)
    assert set(new) <= set(merged)
    assert len(merged) <= len(old) + len(new)
    for gone in set(old) - set(merged):
        taker = merged[old.index(gone)]
        assert taker in new
        assert (taker.path, taker.id) != (gone.path, gone.id) or gone.failed
    for place, record_ in enumerate(merged[: len(old)]):
        assert record_ == old[place] or record_ in new


@pytest.mark.parametrize("out", ["rows.csv", "rows/"])
def test_a_run_that_is_refused_says_which_label_is_new(zeroshot, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    line = ("classify", HEART, "--models", "pocket", "--offline", "--out", out, "--labels")
    assert zeroshot(*line, "red heart,blue star", "--templates", "a {}")[0] == 0
    code, _, said = zeroshot(*line, "red heart,cat", "--templates", "one {}", "-k", "1")
    assert code == 2
    for words in (
        *("label 'cat' is new", "label 'blue star' is gone"),
        *("template 'one {}' is new", "top_k was 5, is 1"),
    ):
        assert words in said
    assert "prompts" not in said
    (record,) = tmp_path.rglob("*run.json")
    about = json.loads(record.read_text())["about"]
    assert (about["labels"], about["templates"]) == (["red heart", "blue star"], ["a {}"])
    assert about["commands"][0].endswith("--labels 'red heart,blue star' --templates 'a {}'")


# Columns


def table(path):
    """The cells of a table, by readers that are not ours."""
    if path.suffix == ".csv":
        return list(csv.reader(path.read_text("utf-8").splitlines()))
    import pyarrow.parquet

    read = pyarrow.parquet.read_table(path)
    return [read.column_names, *([str(x or "") for x in row.values()] for row in read.to_pylist())]


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_table_has_the_columns_that_were_chosen(name, tmp_path):
    if name == "x.parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    out = tmp_path / name
    chosen = formats.chosen_columns("score, path,label", out, SCHEMA)
    write(out, [good("a", "1")], columns=chosen)
    write(out, [good("b", "2", "dog")])  # goes on with the same
    assert table(out) == [["score", "path", "label"], ["0.75", "a", "cat"], ["0.75", "b", "dog"]]
    with ResumableFile(out, SCHEMA, SETTINGS) as output:
        assert output.take_row("a", "another id")  # which the table does not have
        assert not output.take_row("c", "3")
    before = out.read_bytes()
    for other in (("path", "label"), formats.columns(SCHEMA)):
        with pytest.raises(UserError, match="has the columns score,path,label, and --columns says"):
            ResumableFile(out, SCHEMA, SETTINGS, columns=other)
    with pytest.raises(UserError, match="no column error_type, which says what failed"):
        ResumableFile(out, SCHEMA, SETTINGS, retry_failed=True)
    assert out.read_bytes() == before
    write(out, [good("b", "2")], columns=("label",), overwrite=True)
    assert table(out) == [["label"], ["cat"]]
    if name == "x.csv":
        with pytest.raises(UserError, match="it has no column path"):
            ResumableFile(out, SCHEMA, SETTINGS)


def test_a_table_of_an_earlier_version_keeps_its_columns(tmp_path):
    out = tmp_path / "x.csv"
    write(out, [good("a", "1")], columns=formats.columns(SCHEMA))
    write(out, [good("b", "2")])
    header, *lines = table(out)
    assert header == list(formats.columns(SCHEMA))
    assert [line[header.index("models")] for line in lines] == ['{"encoder": "toy@1"}'] * 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("path,lable", "unknown column 'lable'; did you mean 'label'? available: abstained, "),
        ("path,path", "'path' is there twice"),
        ("", "unknown column ''"),
    ],
)
def test_columns_that_cannot_be(given, words, tmp_path):
    with pytest.raises(UserError, match=re.escape(words)):
        formats.chosen_columns(given, tmp_path / "x.csv", SCHEMA)
    with pytest.raises(UserError, match="--columns is for tables"):
        formats.chosen_columns("path", tmp_path / "x.jsonl", SCHEMA)


def test_a_folder_of_tables_has_columns(zeroshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ("classify", HEART, "--models", "pocket", "--offline", "--labels", "heart,star")
    folder = (*line, "--out", "rows/", "--format", "csv")
    code, _, said = zeroshot(*folder, "--columns", "path,label")
    assert (code, "a folder of shards needs more --columns: error_type,id" in said) == (2, True)
    assert zeroshot(*folder)[0] == 0
    header = table(tmp_path / "rows/00000.csv")[0]
    assert header == [name for name in formats.columns(SCHEMA) if name != "models"]
    assert zeroshot(*line, "--out", "rows/")[0] == 0
    code, _, said = zeroshot(*folder, "--columns", "path,id,label,error_type")
    assert (code, "column 'abstained' is gone" in said) == (2, True), said
    record = json.loads(Path("rows/run.json").read_text())
    old = {k: v for k, v in record.items() if k != "columns"}
    Path("rows/run.json").write_text(json.dumps(old))  # as of an earlier version: it has all
    assert "columns" in record
    assert zeroshot(*folder, "--overwrite", "--columns", "path,id,label,error_type")[0] == 0
    assert table(tmp_path / "rows/00000.csv")[0] == ["path", "id", "label", "error_type"]


ROWS_OF = {
    "caption": ("caption", HEART),
    "classify": ("classify", HEART, "--labels", "a,b"),
    "segment": ("segment", HEART, "--labels", "a,b"),
    "detect": ("detect", HEART, "--labels", "a,b"),
    "ask": ("ask", HEART, "what?"),
    "read": ("read", HEART),
    "search": ("search", "a heart", HEART),
    "dedupe": ("dedupe", HEART),
    "explain": ("explain", HEART, "--words", "a,b"),
    "match": ("match", HEART, "--text", "a heart"),
    "filter": ("filter", "pairs.csv", "--min-score", "0"),
    "embed": ("embed", HEART),
    "video classify": ("video", "classify", HEART, "--labels", "a,b"),
    "video caption": ("video", "caption", HEART),
    "video embed": ("video", "embed", HEART),
    "video search": ("video", "search", "a heart", HEART),
}


def test_every_command_with_rows_has_columns():
    from tests.test_help import COMMANDS

    able = {
        name.removeprefix("zeroshot ")
        for name, function in COMMANDS.items()
        if "columns" in inspect.signature(function).parameters
    }
    assert able == ROWS_OF.keys()


@pytest.mark.parametrize("command", ROWS_OF)
def test_every_command_names_the_columns_that_there_are(command, zeroshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.csv").write_text(f"path,caption\n{HEART},a heart\n")
    code, _, said = zeroshot(
        *ROWS_OF[command], "--models", "pocket", "--offline", "--out", "x.csv",
        "--columns", "path,skore",
    )  # fmt: skip
    assert code == 2
    assert "unknown column 'skore'; " in said
    assert "available: " in said
    assert not Path("x.csv").exists()


def test_what_reads_rows_back_needs_their_columns(zeroshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = ("--models", "pocket", "--offline", "--out", "x.csv", "--columns", "path,label,id")
    line = ("classify", HEART, "--labels", "a,b", *shown)
    for more, words in [
        (("--label-studio", "l.json"), "an annotation file needs more --columns: abstained,error"),
        (("--multi", "--threshold", 0, "--sidecar", "xmp"), "--sidecar needs more --columns: abst"),
        (("--embeddings", "a.npz"), "--columns is for rows"),
    ]:  # fmt: skip
        given = [line[0], *line[4:]] if more[0] == "--embeddings" else line
        if more[0] == "--embeddings":
            np.savez("a.npz", images=np.eye(3), texts=np.eye(3))
        code, _, said = zeroshot(*given, *more)
        assert code == 2, said
        assert words in said
