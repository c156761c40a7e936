"""A shard for each tar, table or Parquet file: rows as of any other cut, listed when worked on."""

import io
import json
import os
import pickle
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_scale import POCKET, Toy
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.distributed.folder import OutputSpec
from zeroshot.distributed.local import RunSpec, run, state
from zeroshot.distributed.sharding import ByFile, ByNumber, FileRefusedError, make_plan
from zeroshot.distributed.worker import Share, WorkerOptions, work
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.columns import Columns
from zeroshot.inputs.containers import Containers
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.resolve import resolve_inputs, webdataset
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import InputOptions
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.task import Task

COUNTS = (2, 4, 0, 2, 3)
"""Pictures in each tar file: batches of two begin where files do."""


def scene(number):
    data = io.BytesIO()
    values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(values).resize((32, 32)).save(data, "PNG")
    return data.getvalue()


def archive(path, numbers, captions=False):
    with tarfile.open(path, "w") as file:
        for number in numbers:
            members = {".png": scene(number)} | ({".txt": b"a red heart"} if captions else {})
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{number:03}{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """`in/0.tar` and so on, with `COUNTS` pictures."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    numbers = iter(range(sum(COUNTS)))
    for file, count in enumerate(COUNTS):
        archive(f"in/{file}.tar", [next(numbers) for _ in range(count)])
    return tmp_path


@pytest.fixture
def listed(monkeypatch):
    """Names of the tar files that were listed, each time."""
    names, pictures = [], webdataset.pictures

    def counted(name, *more):
        names.append(Path(name).name)
        return pictures(name, *more)

    monkeypatch.setattr(webdataset, "pictures", counted)
    return names


@pytest.fixture
def zeroshot(zeroshot, monkeypatch):
    """Its commands with the pocket set."""
    monkeypatch.setenv("ZEROSHOT_MODELS", "pocket")
    return zeroshot


class ToyTask(Task):
    """The toy as a task."""

    schema = Toy.schema

    def __init__(self):
        super().__init__(models=POCKET, options=None)

    def open(self, cache, meter, batch_size):
        return Toy()


def files(*names, **options):
    return Containers(resolve_inputs(names, options=InputOptions(**options)).files)


def join(out, toy=None, inputs=None):
    toy = toy or Toy()
    return OutputSpec(Path(out)).open(inputs or files("in"), toy.schema, toy.settings())


def text(out, pattern="0*.jsonl"):
    return b"".join(file.read_bytes() for file in sorted(Path(out).glob(pattern)))


# The rows


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_rows_are_those_of_any_other_cut(tars, zeroshot, format):
    """To the byte where batches begin alike; files that are missing or broken are a row as well."""
    Path("in/5.tar").write_bytes(b"none")
    Path("in/nshards.txt").write_text("7")
    more = ["--batch-size", 2, "--no-cache", "--layout", "rows", "--format", format]
    by_file = zeroshot("embed", "in", "--out", "a/", *more)
    by_number = zeroshot("embed", "in", "--out", "b/", "--shard-size", 100, *more)
    assert by_file[0] == by_number[0] == 3
    assert "a shard for each of 7 files" in by_file[2]
    assert "a: 7 of 7 shards are finished, 13 of 13 rows, 2 of them failed" in by_file[2]
    if format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra [data]")
        tables = [parquet.read_table(f"a/0000{n}.parquet").to_pylist() for n in range(7)]
        assert [row for table in tables for row in table] == parquet.read_table(
            "b/00000.parquet"
        ).to_pylist()
        return
    lines = [file.read_bytes().splitlines() for file in sorted(Path("a").glob(f"0*.{format}"))]
    [whole] = [Path(f"b/00000.{format}").read_bytes().splitlines()]
    header = format == "csv"
    assert [line for file in lines for line in file[header:]] == whole[header:]
    assert list(map(len, lines)) == [count + header for count in (*COUNTS, 1, 1)]


def test_rows_of_other_batches_differ_in_the_last_digit_only(tars, zeroshot):
    zeroshot("embed", "in", "--out", "a/", "--no-cache", "--layout", "rows", "--batch-size", 3)
    zeroshot("embed", *Path("in").glob("*.tar"), "--out", "b.jsonl", "--no-cache")
    ours = [json.loads(line) for line in text("a").splitlines()]
    theirs = {row["path"]: row for row in map(json.loads, Path("b.jsonl").read_text().splitlines())}
    assert len(ours) == len(theirs) == sum(COUNTS)
    for row in ours:
        other = theirs[row["path"]]
        assert {**row, "embedding": 0} == {**other, "embedding": 0}
        np.testing.assert_allclose(row["embedding"], other["embedding"], atol=1e-6)


def test_tables_and_parquet_files(tars, zeroshot):
    pa = pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra [data]")
    for number in range(3):
        Path(f"{number}.png").write_bytes(scene(number))
    pq.write_table(pa.table({"bytes": [scene(4), scene(5)], "text": ["x", "y"]}), "a.parquet")
    pq.write_table(pa.table({"path": ["0.png", "../out.png"]}), "b.parquet")
    Path("c.csv").write_text("path\n1.png\n2.png\ngone.png\n")
    names = ["a.parquet", "b.parquet", "c.csv"]
    code, _, err = zeroshot("embed", *names, "--out", "o/", "--shard-size", "file")
    assert (code, "3 of 3 shards are finished, 7 of 7 rows, 2 of them failed" in err) == (3, True)
    texts = [Path(f"o/0000{n}.jsonl").read_text() for n in range(3)]
    paths = [[json.loads(line)["path"] for line in text.splitlines()] for text in texts]
    assert paths == [
        ["a.parquet#0", "a.parquet#1"],
        ["0.png", "b.parquet#1"],
        ["1.png", "2.png", "gone.png"],
    ]
    again = zeroshot("embed", *names, "--out", "o/", "--caption-column", "text")
    assert (again[0], "was started with other inputs: 3 ('a.parquet', ...) new" in again[2]) == (
        2,
        True,
    )


def test_a_table_that_names_no_pictures_costs_its_own_shard(tars, zeroshot):
    for number in range(3):
        Path(f"{number}.png").write_bytes(scene(number))
        Path(f"{number}.csv").write_text(f"path\n{number}.png\n")
    Path("1.csv").write_text("what\n1.png\n")
    run = ["embed", *(f"{n}.csv" for n in range(3)), "--out", "o/", "--shard-size", "file"]
    code, _, err = zeroshot(*run)
    assert (code, sorted(p.name for p in Path("o").glob("0*.jsonl"))) == (
        2,
        ["00000.jsonl", "00002.jsonl"],
    )
    assert "'1.csv' has the columns 'what'; none of these names is known for images" in err
    assert "(all other shards are done)" in err


def test_nothing_in_a_file_is_an_empty_shard(tars, zeroshot):
    pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    archive("in/0.tar", [])
    archive("in/1.tar", [])
    for more in (["--format", "parquet"], ["--format", "csv"], ["--layout", "clip-retrieval"]):
        out = f"{more[-1]}/"
        code, _, err = zeroshot("embed", "in/0.tar", "in/1.tar", "--out", out, *more)
        assert (code, "2 of 2 shards are finished, 0 of 0 rows" in err) == (0, True)


# What is listed


def test_who_works_on_a_file_lists_it_and_nobody_else(tars, zeroshot, listed):
    for share, own in (("1/2", ["0.tar", "2.tar", "4.tar"]), ("2/2", ["1.tar", "3.tar"])):
        listed.clear()
        code, _, err = zeroshot("embed", "in", "--out", "o/", "--shards", share)
        assert (code, sorted(listed)) == (0, own)
    assert "2 of 2 shards are finished, 6 of 6 rows" in err
    listed.clear()
    code, _, err = zeroshot("embed", "in", "--out", "o/")
    assert (code, listed) == (0, [])
    assert "resumed: 11 of 11 were done already" in err
    os.remove("o/00001.json")
    code, _, err = zeroshot("embed", "in", "--out", "o/")
    assert (code, listed) == (0, ["1.tar"])
    assert "resumed: 7 were done already, 4 of 5 shards were finished" in err
    assert "5 of 5 shards are finished, 11 of 11 rows" in err
    zeroshot("embed", "in", "--out", "o/", "--overwrite")
    assert sorted(listed) == ["0.tar", "1.tar", "1.tar", "2.tar", "3.tar", "4.tar"]


def test_how_far_a_folder_is(tars):
    toy, place = Toy(), OutputSpec(Path("o"))
    order = RunSpec(ToyTask(), files("in"), place)
    before = state(order)
    assert (before.total, before.to_do, before.shards, before.finished) == (None, None, 5, 0)
    work(toy, join("o"), Meter(), WorkerOptions(Share(2, 5)))
    now = state(order)
    assert (now.total, now.rows, now.shards, now.finished) == (None, 4, 5, 1)
    own = state(order, WorkerOptions(Share(2, 5)))
    assert (own.total, own.to_do, own.rows, own.shards) == (4, 0, 4, 1)
    meter = Meter()
    work(toy, join("o"), meter)
    assert (meter.shards, meter.pictures) == (4, 7)
    assert state(order).total == 11


def test_members_that_hold_no_picture_are_counted(tars, zeroshot):
    with tarfile.open("in/1.tar", "a") as file:
        file.addfile(tarfile.TarInfo("notes.md"))
    code, _, err = zeroshot("embed", "in", "--out", "o/")
    assert (code, "skipped 1 member of tar files that holds no image" in err) == (0, True)


def test_plans_travel_small(tars):
    plan = make_plan(files(*(f"in/{n:05}.tar" for n in range(1000))), None)
    assert plan.count == 1000
    assert len(pickle.dumps(plan)) < 100_000


# When it is so, and when it is refused


def test_where_all_are_tar_or_parquet_files_it_is_so(tars, zeroshot, monkeypatch):
    Path("a.png").write_bytes(scene(0))
    Path("t.csv").write_text("path\na.png\n")

    def size(out, *names, code=0):
        assert zeroshot("embed", *names, "--out", f"{out}/")[0] == code
        return json.loads(Path(out, "run.json").read_text())["shard_size"]

    assert size("several", "in") == "file"
    assert size("one", "in/0.tar") == 10_000
    assert size("tables", "t.csv", "t.csv") == 10_000
    assert size("mixed", "in", "t.csv") == 10_000
    err = zeroshot("embed", "in", "a.png", "--out", "loose/")[2]
    assert "listing 5 tar or Parquet files before the first row, since 'a.png' is none" in err
    zeroshot("embed", "in", "--out", "limited/", "--limit", 3)
    assert json.loads(Path("limited/run.json").read_text())["inputs"]["count"] == 3
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + (10 << 30))  # files that are trusted
    zeroshot("embed", "in", "--out", "older/", "--shard-size", 4)
    os.remove("older/00001.json")
    code, _, err = zeroshot("embed", "in", "--out", "older/")
    assert (code, "resumed: 7 of 11 were done already" in err) == (0, True)


def test_limits_open_no_more_files_than_they_need(tars, zeroshot, listed):
    zeroshot("embed", "in", "--limit", 3)
    assert listed == ["0.tar", "1.tar"]


def test_what_does_not_go_with_it_is_said(tars, zeroshot):
    Path("a.png").write_bytes(scene(0))
    prompts = [{"path": f"in/0.tar/00{n}.png", "prompt": "a"} for n in range(2)]
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    begun = ["embed", "in", "--out", "begun/"]
    assert zeroshot(*begun)[0] == 0
    for arguments, message in [
        (["embed", "in", "a.png", "--out", "o/", "--shard-size", "file"], "'a.png' is none: leave"),
        ([*begun[:2], "a.png", *begun[2:]], "'a.png' is none: leave it out, or give all"),
        (
            ["embed", "hf-dataset:x", "--out", "o/", "--shard-size", "file"],
            "'hf-dataset:x' is none",
        ),
        ([*begun, "--limit", 3], "--limit counts pictures, and shards that are a file each"),
        ([*begun, "--shard-size", 4], "shard_size was file, is 4"),
        ([*begun[:2], "in/0.tar", *begun[2:]], "started with other inputs: 1 ('in/0.tar') new"),
        (["embed", "in/0.tar", "--out", "begun/"], "4 ('in/1.tar', ...) gone"),
        (["embed", "in", "--shard-size", "file"], "--shard-size needs a folder"),
        (["embed", "in", "--out", "o/", "--shard-size", "all"], "--shard-size all: file, or a"),
        (["embed", "in", "--out", "o/", "--shard-size", "0"], "--shard-size 0: file, or a number"),
        (
            ["caption", "in/0.tar", "--prompts", "p.jsonl", "--out", "o/", "--shard-size", "file"],
            "no option that depends on all images",
        ),
    ]:
        code, _, err = zeroshot(*arguments)
        assert (code, message in err) == (2, True), (arguments, err)
    assert "inputs." not in zeroshot(*begun, "--shard-size", 4)[2]
    with pytest.raises(UserError, match="that need not be listed first"):
        make_plan([Source("a.png")], "file")


def test_options_decide_what_tables_are(tars):
    Path("t.csv").write_text("path,url\n")
    plans = [
        make_plan(files("t.csv", columns=Columns("path")), "file"),
        make_plan(files("t.csv", columns=Columns("url")), "file"),
        make_plan(files("t.csv", columns=Columns("url"), root="/"), "file"),
        make_plan(files("in/0.tar"), "file"),
        make_plan(files("in/1.tar"), "file"),
        make_plan(files("in/1.tar", "in/0.tar"), "file"),
        make_plan(files("in/0.tar", "in/1.tar"), "file"),
    ]
    assert len({plan.sha256 for plan in plans}) == len(plans)
    other = make_plan(files("in/0.tar", columns=Columns("url")), "file")
    assert other.sha256 == plans[3].sha256  # no table
    assert isinstance(other, ByFile)
    assert isinstance(make_plan(files("in/0.tar"), 4), ByNumber)


# Files that change


def test_a_file_that_changed_is_refused_and_the_others_are_not(tars):
    toy = Toy()
    before = Path("in/3.tar").read_bytes(), os.stat("in/3.tar").st_mtime_ns
    join("o")
    archive("in/3.tar", [7])
    meter = Meter()
    with pytest.raises(FileRefusedError, match=r"'in/3.tar' has changed since .*: put") as caught:
        work(toy, join("o"), meter)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert (meter.shards, sorted(join("o").marks())) == (4, [0, 1, 2, 4])
    Path("in/3.tar").write_bytes(before[0])
    os.utime("in/3.tar", ns=(before[1], before[1]))
    work(toy, join("o"), meter)
    assert (meter.shards, meter.pictures) == (5, 11)


def test_a_file_that_changes_while_the_others_are_worked_on(tars):
    toy, folder, meter = Toy(), join("o"), Meter()

    def change(_):
        archive("in/4.tar", [1, 2])
        archive("in/0.tar", [1])

    with pytest.raises(FileRefusedError, match=r"tar' has changed .*"):
        work(toy, folder, meter, WorkerOptions(Share(1, 1), on_result=change))
    assert not {0, 4} <= set(folder.marks())
    assert {1, 2, 3} <= set(folder.marks())


def test_a_file_that_changed_behind_its_shard_is_said(tars, zeroshot):
    run = ["embed", "in", "--out", "o/"]
    assert zeroshot(*run)[0] == 0
    before = text("o")
    archive("in/0.tar", [9])
    archive("in/1.tar", [9])
    code, _, err = zeroshot(*run)
    assert (code, text("o")) == (2, before)
    assert "'in/0.tar' has changed since the output was started" in err
    assert "; and 1 more such files (all other shards are done)" in err
    assert zeroshot(*run, "--overwrite")[0] == 0
    assert [len(Path(f"o/0000{n}.jsonl").read_text().splitlines()) for n in range(2)] == [1, 1]


def test_what_files_were_is_not_forgotten(tars):
    [lines] = [join("o").path.glob("inputs-*.jsonl")]
    [lines] = lines
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row[:2] for row in rows] == [[f"in/{n}.tar", {}] for n in range(5)]
    assert rows[0][2] == fsspec_files.version_of("in/0.tar")
    lines.write_text("")
    with pytest.raises(UserError, match="0 lines for 5 files"):
        join("o")
    lines.unlink()
    with pytest.raises(UserError, match="lists the inputs of the output"):
        join("o")


def test_a_missing_file_is_a_row_until_it_is_retried(tars, zeroshot):
    Path("in/nshards.txt").write_text("6")
    run = ["embed", "in", "--out", "o/", "--batch-size", 2]
    code, _, err = zeroshot(*run)
    assert (code, "6 of 6 shards are finished, 12 of 12 rows, 1 of them failed" in err) == (3, True)
    assert json.loads(Path("o/00005.jsonl").read_text())["error"]["message"] == "no such file"
    archive("in/5.tar", [3, 4])
    assert zeroshot(*run)[0] == 0
    assert json.loads(Path("o/00005.json").read_text())["failed"] == 1
    code, _, err = zeroshot(*run, "--retry-failed")
    assert (code, "6 of 6 shards are finished, 13 of 13 rows, " in f"{err}, ") == (0, True)
    rows = [json.loads(line) for line in Path("o/00005.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["in/5.tar/003.png", "in/5.tar/004.png"]


def test_failed_pictures_are_retried_alone(tars, listed):
    toy = Toy(bad=("in/1.tar/003.png",))
    work(toy, join("o", toy), Meter())
    listed.clear()
    meter, better = Meter(), Toy()
    work(better, join("o", better), meter, WorkerOptions(retry_failed=True))
    assert (meter.pictures, listed) == (1, ["1.tar"])
    work(better, join("fresh", better), Meter())
    assert text("o") == text("fresh")


# Everything else that uses plans


LABELS = ("red heart", "blue star")


def task(method):
    given = ClassifyOptions(labels=LABELS, templates="a {}", method=method)
    return Classify.from_options(resolve("pocket"), given)


def test_methods_that_look_at_all_pictures(tars, listed):
    for name, inputs in (("a", files("in")), ("b", resolve_inputs("in").pictures([]))):
        inputs = inputs if isinstance(inputs, Containers) else list(inputs)
        listed.clear()
        order = RunSpec(task("center"), inputs, OutputSpec(Path(name)), batch_size=2)
        run(order, NullCache(), Meter())
        if name == "a":
            assert Counter(listed) == {f"{n}.tar": 2 for n in range(5)}  # embedded, then scored
    assert text("a") == text("b")
    assert len(text("a").splitlines()) == sum(COUNTS)
    run(RunSpec(task("center"), files("in"), OutputSpec(Path("a"))), NullCache(), Meter())


def test_pictures_that_are_gone_when_all_are_scored(tars, monkeypatch):
    order = RunSpec(task("center"), files("in"), OutputSpec(Path("a")))
    pictures = webdataset.pictures
    seen = Counter()

    def fails_later(name, *more):
        seen[name] += 1
        if name == "in/1.tar" and seen[name] == 2:
            return iter([Source(name, webdataset.UnreadableBlob("cannot be read: busy"))])
        return pictures(name, *more)

    monkeypatch.setattr(webdataset, "pictures", fails_later)
    with pytest.raises(UserError, match="some images that were embedded are missing"):
        run(order, NullCache(), Meter())
    run(order, NullCache(), Meter())
    assert len(text("a").splitlines()) == sum(COUNTS)


def test_clip_retrievals_layout(tars, zeroshot, listed):
    pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    for number in range(12):
        archive(f"in/{number}.tar", [number], captions=True)
    listed.clear()
    code, *_ = zeroshot("embed", "in", "--out", "o/", "--layout", "clip-retrieval")
    assert (code, Counter(listed)) == (0, Counter([*(f"{n}.tar" for n in range(12)), "0.tar"]))
    names = [f"{n:02}" for n in range(12)]
    for kind in ("img", "text"):
        found = sorted(p.name for p in Path(f"o/{kind}_emb").iterdir())
        assert found == [f"{kind}_emb_{n}.npy" for n in names]


@pytest.mark.parametrize("rule", [["--min-score", 0], ["--keep", 0.5]])
def test_filter_and_match(tars, zeroshot, rule):
    for number in range(4):
        archive(f"in/{number}.tar", [number, number + 10], captions=True)
    os.remove("in/4.tar")
    assert zeroshot("filter", "in", "--out", "a/", *rule)[0] == 0
    assert zeroshot("filter", "in", "--out", "b/", *rule, "--shard-size", 100)[0] == 0
    assert [json.loads(x)["kept"] for x in text("a").splitlines()] == [
        json.loads(x)["kept"] for x in text("b").splitlines()
    ]
    assert len(sorted(Path("a").glob("0*.jsonl"))) == 4
    code, rows, _ = zeroshot("match", "in", "--out", "m/", "--retry-failed", "--json")
    assert (code, len(rows)) == (0, 8)


def test_devices(tars, zeroshot):
    more = ["--batch-size", 2, "--no-cache"]
    code, _, err = zeroshot("embed", "in", "--out", "a/", "--devices", "cpu,cpu", *more)
    assert (code, "a: 5 of 5 shards are finished, 11 of 11 rows" in err) == (0, True), err
    zeroshot("embed", "in", "--out", "b/", *more)
    assert text("a") == text("b")
    assert text("a", "0*.safetensors") == text("b", "0*.safetensors")
