"""Shards: whoever makes them and however often it is killed, they are the rows of one process."""

import json
import os
import pickle
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from zeroshot.distributed.folder import OutputSpec
from zeroshot.distributed.local import RunSpec, state
from zeroshot.distributed.sharding import ByNumber, Share
from zeroshot.distributed.unfinished import Part
from zeroshot.distributed.worker import WorkerOptions, process_shard, work
from zeroshot.errors import OutputError, UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.output import leases
from zeroshot.output.holders import ourselves
from zeroshot.results.result import CaptionResult, EmbedResult, Failure, FilterResult
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions

POCKET = resolve("pocket")


class KilledError(BaseException):
    """As good as a kill: nothing of ours catches it."""


@dataclass(frozen=True)
class Toy:
    """A job and its worker: a row says the picture's name, `bad` ones fail."""

    models: ModelSet = POCKET
    mood: str = "glad"
    bad: tuple[str, ...] = ()
    killed_at: int = 10**9
    batch_size: int = 2
    vectors: bool = False

    schema: ClassVar[str] = "zeroshot.caption/1"

    def settings(self):
        return {"mood": self.mood}

    def __call__(self, sources, meter):
        for source in sources:
            meter.pictures += 1
            if meter.pictures > self.killed_at:
                raise KilledError
            failed = source.path in self.bad
            meter.failed += failed
            more = {"id": source.path, "error": Failure("Bad", "no") if failed else None}
            if self.vectors:
                row = () if failed else (float(len(source.path)), float(source.path[1:]))
                yield EmbedResult(source, **more, embedding=row)
            else:
                yield CaptionResult(source, **more, caption=f"{self.mood} {source.path}")


def sources(count, prefix="p"):
    return [Source(f"{prefix}{i}") for i in range(count)]


def join(path, toy, count=11, size=4, **more):
    schema = EmbedResult.schema if toy.vectors else toy.schema
    return OutputSpec(path, size, **more).open(sources(count), schema, toy.settings())


def rows(folder, suffix="jsonl"):
    return [
        json.loads(line)
        for shard in range(folder.plan.count)
        for line in (folder.path / f"{shard:05d}.{suffix}").read_text().splitlines()
    ]


def expected(toy, count=11):
    return [json.loads(json.dumps(r.row())) for r in toy(sources(count), Meter())]


def test_shards_hold_the_rows_of_one_process(tmp_path):
    toy = Toy(bad=("p3", "p9"))
    folder = join(tmp_path / "o", toy)
    work(toy, folder, Meter())
    assert rows(folder) == expected(toy)
    marks = folder.marks()
    assert [(m.rows, m.failed, dict(m.errors)) for m in marks.values()] == [
        (4, 1, {"Bad": 1}),
        (4, 0, {}),
        (3, 1, {"Bad": 1}),
    ]
    assert sum(m.meter["pictures"] for m in marks.values()) == 11
    assert list(folder.work.iterdir()) == []
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    meter = Meter()
    work(toy, join(tmp_path / "o", toy), meter)
    assert meter.pictures == 0
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("layout", ["rows", "safetensors", "clip-retrieval"])
@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_a_kill_costs_a_batch_at_most(tmp_path, layout, format):
    if layout == "clip-retrieval":
        if format != "jsonl":
            pytest.skip("its rows are jsonl")
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    toy = Toy(bad=("p1", "p6"), vectors=True)
    whole = join(tmp_path / "whole", toy, layout=layout, format=format)
    work(toy, whole, Meter())
    for place in range(1, 12):
        folder = join(tmp_path / str(place), toy, layout=layout, format=format)
        dead = Meter()
        with pytest.raises(KilledError):
            work(replace(toy, killed_at=place - 1), folder, dead)
        leftover = Meter()
        work(toy, join(tmp_path / str(place), toy, layout=layout, format=format), leftover)
        assert leftover.pictures <= 11 - (place - 1) + toy.batch_size - 1
        for file in (tmp_path / "whole").rglob("*"):
            same = folder.path / file.relative_to(whole.path)
            if file.is_file() and file.name != "run.json" and not _is_mark(file):
                assert same.read_bytes() == file.read_bytes(), file.name


def _is_mark(file):
    return file.suffix == ".json"


def test_a_torn_part_is_cut_to_whole_batches(tmp_path):
    toy = Toy(vectors=True)
    folder = join(tmp_path / "o", toy, count=9, size=9, layout="safetensors")
    part = Part(folder.work, "00000", folder.layout)
    assert part.resume(folder.plan.shard(0), 2) == 0
    results = list(toy(sources(7), Meter()))
    part.append(results)
    [file] = folder.work.glob("*.rows")
    data = file.read_bytes()
    kept = []
    for length in range(0, len(data) + 1, 5):
        file.write_bytes(data[:length])
        new = Part(folder.work, "00000", folder.layout)
        kept.append(new.resume(folder.plan.shard(0), 2))
        assert len(new.content().records) == kept[-1]
        new_files = folder.work.glob(f"00000.{new.token}.*")
        for other in new_files:
            other.unlink()
    assert set(kept) == {0, 2, 4, 6}
    assert kept == sorted(kept)
    file.write_bytes(data)
    [matrix] = folder.work.glob("*.0.2")
    matrix.write_bytes(matrix.read_bytes()[: 5 * 8 + 3])  # five vectors and a torn one
    assert Part(folder.work, "00000", folder.layout).resume(folder.plan.shard(0), 2) == 4


def test_a_part_of_other_inputs_is_not_taken(tmp_path):
    toy = Toy()
    folder = join(tmp_path / "o", toy)
    other = Part(folder.work, "00001", folder.layout)
    other.resume((), 1)
    other.append(list(toy(sources(4), Meter())))  # those of shard 0
    assert Part(folder.work, "00001", folder.layout).resume(folder.plan.shard(1), 2) == 0


def test_processes_share_the_shards(tmp_path):
    toy, meters = Toy(), [Meter() for _ in range(4)]
    folders = [join(tmp_path / "o", toy, count=200, size=3) for _ in meters]
    threads = [
        threading.Thread(target=work, args=(toy, folder, meter))
        for folder, meter in zip(folders, meters, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(folders[0]) == expected(toy, 200)
    assert sum(meter.pictures for meter in meters) == 200  # nothing was done twice


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_failed_rows_are_made_anew_in_any_format(tmp_path, format):
    toy = Toy(bad=("p1",))
    for name, first in (("o", toy), ("whole", replace(toy, bad=()))):
        work(first, join(tmp_path / name, toy, format=format), Meter())
    again = Meter()
    work(
        replace(toy, bad=()),
        join(tmp_path / "o", toy, format=format),
        again,
        WorkerOptions(None, True),
    )
    assert again.pictures == 1
    for shard in range(3):
        made, whole = (tmp_path / name / f"{shard:05d}.{format}" for name in ("o", "whole"))
        assert made.read_bytes() == whole.read_bytes()


def test_a_shard_that_another_has_is_left_and_then_waited_for(tmp_path):
    toy = Toy()
    folder = join(tmp_path / "o", toy)
    other = leases.claim(folder.claims, "00001")
    assert process_shard(toy, folder, 1, Meter()) is None
    threading.Timer(0.5, other.release).start()
    meter = Meter()
    work(toy, folder, meter)
    assert meter.pictures == 11


def test_who_is_outbid_commits_nothing(tmp_path):
    toy = Toy()
    folder = join(tmp_path / "o", toy)

    def outbid(_):
        path = folder.work / ".00000.1.lease"
        path.write_text(json.dumps(vars(ourselves())))

    assert process_shard(toy, folder, 0, Meter(), WorkerOptions(on_result=outbid)) is None
    assert folder.mark(0) is None
    assert not (folder.path / "00000.jsonl").exists()


def test_shares_of_any_launcher_make_the_whole(tmp_path):
    toy = Toy()
    done = []
    for k in range(1, 4):
        meter = Meter()
        work(toy, join(tmp_path / "o", toy), meter, WorkerOptions(Share.read(f"{k}/3")))
        done.append(meter.pictures)
    assert done == [4, 4, 3]
    assert rows(join(tmp_path / "o", toy)) == expected(toy)
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3", ""):
        with pytest.raises(UserError, match="expected K/N"):
            Share.read(wrong)


@pytest.mark.parametrize("layout", ["rows", "safetensors"])
def test_retrying_makes_failed_rows_only(tmp_path, layout):
    toy = Toy(bad=("p0", "p3", "p9"), vectors=True)
    work(toy, join(tmp_path / "o", toy, layout=layout), Meter())
    better, meter = replace(toy, bad=("p3",)), Meter()
    folder = join(tmp_path / "o", better, layout=layout)
    work(better, folder, meter, WorkerOptions(retry_failed=True))
    assert (meter.pictures, meter.failed) == (3, 1)
    fresh = join(tmp_path / "fresh", better, layout=layout)
    work(better, fresh, Meter())
    for file in fresh.path.glob("0*.*[!n]"):
        assert (folder.path / file.name).read_bytes() == file.read_bytes()
    assert {n: m.failed for n, m in folder.marks().items()} == {0: 1, 1: 0, 2: 0}


def test_what_does_not_belong_in_a_folder_is_refused(tmp_path):
    toy = Toy()
    folder = join(tmp_path / "o", toy)
    work(toy, folder, Meter())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    place = OutputSpec(tmp_path / "o")
    for given, message in [
        ((sources(12), toy.schema, toy.settings()), r"1 \('p11'\) new"),
        ((sources(9), toy.schema, toy.settings()), r"2 \('p9', ...\) gone"),
        ((sources(11)[::-1], toy.schema, toy.settings()), "in another order"),
        ((sources(11), toy.schema, {"mood": "sad"}), "mood was glad, is sad"),
        ((sources(11), "zeroshot.classify/1", toy.settings()), "rows was"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            place.open(*given)
        assert "--overwrite" in str(caught.value)
    with pytest.raises(UserError, match="shard_size was 4, is 5"):
        OutputSpec(tmp_path / "o", 5).open(sources(11), toy.schema, toy.settings())
    with pytest.raises(UserError, match="format was jsonl, is csv"):
        OutputSpec(tmp_path / "o", format="csv").open(sources(11), toy.schema, toy.settings())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    place.open(sources(11), toy.schema, toy.settings())


def test_a_folder_that_is_not_ours_stays(tmp_path):
    toy, theirs = Toy(), tmp_path / "o" / "00000.parquet"
    theirs.parent.mkdir()
    theirs.write_text("precious")
    with pytest.raises(UserError, match="zeroshot did not make it"):
        join(tmp_path / "o", toy)
    OutputSpec(tmp_path / "o").clear()
    (tmp_path / "o" / "run.json").write_text('{"schema": "theirs"}')
    with pytest.raises(UserError, match="not written by zeroshot"):
        OutputSpec(tmp_path / "o").clear()
    assert theirs.read_text() == "precious"


def test_beginning_anew_takes_what_is_ours_alone(tmp_path):
    toy = Toy()
    folder = join(tmp_path / "o", toy)
    work(toy, folder, Meter())
    (tmp_path / "o" / "notes.md").write_text("mine")
    held = leases.claim(folder.claims, "00000")
    with pytest.raises(UserError, match="is being written by process"):
        OutputSpec(tmp_path / "o").clear()
    held.release()
    OutputSpec(tmp_path / "o").clear()
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["notes.md"]


def test_beginning_anew_leaves_what_its_record_does_not_name(tmp_path):
    """Names like those of our files: of other shards, formats and layouts, and in our folders."""
    pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    for number, (layout, format) in enumerate(
        [("rows", "csv"), ("safetensors", "jsonl"), ("clip-retrieval", "jsonl")]
    ):
        toy, top = Toy(vectors=True), tmp_path / str(number)
        folder = join(top, toy, layout=layout, format=format)
        work(toy, folder, Meter())
        with pytest.raises(KilledError):  # a folder that is not finished
            work(replace(toy, killed_at=1), join(tmp_path / f"{number}b", toy), Meter())
        for place in (top, tmp_path / f"{number}b"):
            theirs = [
                *("20241129.csv", "20241129.json", "00003.jsonl", "00003.csv", "000001.jsonl"),
                *("00000.parquet", "00000.json.bak", "notes.txt", "inputs-0123.jsonl"),
                *("metadata/notes.txt", "metadata/metadata_9.parquet", "metadata/00000.parquet"),
                *("img_emb/mine.npy", "text_emb/deep/00000.npy", "kept/00000.txt"),
                *("kept/00000.tar", "embedded/00000.jsonl", "embedded/00000.json"),
                *(".work/notes.txt", ".work/00000.rows", ".work/.99999.0.lease"),
            ]
            for name in theirs:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_text(name)
            OutputSpec(place).clear()
            left = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
            assert left == set(theirs)
        next_one = OutputSpec(top, 4, layout="safetensors")
        with pytest.raises(UserError, match=r"has 00000\.parquet but no run\.json"):
            next_one.open(sources(11), EmbedResult.schema, toy.settings())
        (top / "00000.parquet").unlink()
        again = join(top, toy, count=9, size=9, layout="safetensors")  # two shards less
        work(toy, again, Meter())
        assert rows(again) == [
            {k: v for k, v in row.items() if k != "embedding"} for row in expected(toy, 9)
        ]
        assert (top / "20241129.csv").read_text() == "20241129.csv"


def test_a_folder_with_a_file_that_a_run_would_replace_is_refused(tmp_path):
    toy = Toy(vectors=True)
    for name in ("00002.csv", "img_emb/img_emb_0.npy", "metadata/metadata_2.parquet"):
        theirs = tmp_path / name.replace("/", "-") / name
        theirs.parent.mkdir(parents=True)
        theirs.write_text("precious")
        with pytest.raises(UserError, match="zeroshot did not make it"):
            join(tmp_path / name.replace("/", "-"), toy, layout="clip-retrieval")
        assert theirs.read_text() == "precious"


def test_beginning_anew_is_refused_before_anything_is_removed(tmp_path):
    toy = Toy(vectors=True)
    work(toy, join(tmp_path, toy, layout="safetensors"), Meter())
    for name, fits in (("00000.parquet", 0), ("00004.csv", 4), ("kept/00000.tar", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        tar = name.endswith("tar")
        spec = OutputSpec(tmp_path, 1, layout="webdataset" if tar else "safetensors")
        schema = FilterResult.schema if tar else EmbedResult.schema
        with pytest.raises(UserError, match="zeroshot did not make it"):
            spec.clear(sources(fits + 1), schema)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        spec.clear(sources(fits), schema)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
        work(toy, join(tmp_path, toy, layout="safetensors"), Meter())


def test_a_link_in_the_place_of_our_folder_is_not_followed_to_its_end(tmp_path):
    toy = Toy(vectors=True)
    work(toy, join(tmp_path / "o", toy, layout="clip-retrieval"), Meter())
    theirs = tmp_path / "theirs"
    (tmp_path / "o" / "metadata").rename(theirs)
    (theirs / "notes.txt").write_text("mine")
    (tmp_path / "o" / "metadata").symlink_to(theirs)
    OutputSpec(tmp_path / "o").clear()
    assert [p.name for p in theirs.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("damage", "said"), [({"inputs": {}}, "shards"), ({"inputs": 3}, "int"), ({"layout": "x"}, "x")]
)
def test_a_record_that_is_damaged_removes_nothing(tmp_path, damage, said):
    toy = Toy()
    work(toy, join(tmp_path / "o", toy), Meter())
    run = tmp_path / "o" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | damage))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=said):
        OutputSpec(tmp_path / "o").clear()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def another_run(folder):
    """Another process begins the folder anew, while this one sleeps."""
    for file in folder.work.iterdir():
        file.unlink()
    OutputSpec(folder.path).clear()
    other = Toy(mood="sad")
    work(other, join(folder.path, other), Meter())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder.path), "was removed during the run"),
        (lambda folder: (folder.path / "run.json").unlink(), "was removed during the run"),
        (another_run, "was started again by another process"),
        (lambda folder: next(folder.work.glob("*.rows")).unlink(), "was removed during the run"),
        (lambda folder: os.truncate(next(folder.work.glob("*.rows")), 5), "was cut"),
    ],
)
@pytest.mark.parametrize("at", [1, 4])
def test_a_folder_that_others_change_is_an_error(tmp_path, change, said, at):
    """In the middle of a shard, and after its last row."""
    toy, seen = Toy(), []
    folder = join(tmp_path / "o", toy)

    def disturb(result):
        seen.append(result)
        if len(seen) == at:
            change(folder)

    with pytest.raises(OutputError, match=said) as caught:
        process_shard(toy, folder, 0, Meter(), WorkerOptions(on_result=disturb))
    assert caught.value.exit_code == 4
    if change is another_run:
        assert all(row["caption"].startswith("sad") for row in rows(folder))
        return
    if not (tmp_path / "o" / "run.json").exists():
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
    again = join(tmp_path / "o", toy)
    work(toy, again, Meter())
    assert rows(again) == expected(toy)
    assert list(again.work.iterdir()) == []


def test_a_worker_of_a_folder_that_was_begun_anew_makes_nothing_there(tmp_path):
    """It slept between two shards."""
    toy, other = Toy(), Toy(mood="sad")
    for done in (False, True):
        folder = join(tmp_path / "o", toy)
        process_shard(toy, folder, 0, Meter())
        OutputSpec(folder.path).clear()
        anew = join(folder.path, other)
        work(other, anew, Meter()) if done else process_shard(other, anew, 1, Meter())
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        for once in (work, lambda *all: process_shard(all[0], all[1], 0, all[2])):
            with pytest.raises(OutputError, match="was started again by another process"):
                once(toy, folder, Meter())
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        OutputSpec(folder.path).clear()


@pytest.mark.parametrize("finished", [True, False])
def test_a_worker_that_wakes_up_leaves_the_shard_to_its_successor(tmp_path, finished):
    toy = Toy(vectors=True)
    folder = join(tmp_path / "o", toy, layout="safetensors")
    others = []

    def taken_over(result):
        if others:
            return
        lease = folder.work / ".00000.1.lease"
        lease.write_text(json.dumps(vars(ourselves())))
        others.append(Part(folder.work, "00000", folder.layout))
        others[0].resume(folder.plan.shard(0), 2)
        if finished:  # and removed the rows of both
            others[0].remove()

    assert process_shard(toy, folder, 0, Meter(), WorkerOptions(on_result=taken_over)) is None
    assert folder.mark(0) is None
    left = {p.name.split(".")[1] for p in folder.work.glob("00000.*")}
    assert left == (set() if finished else {others[0].token})


@pytest.mark.parametrize("change", ["remove", "cut", "mark"])
@pytest.mark.parametrize("layout", ["safetensors", "clip-retrieval", "rows"])
def test_a_finished_shard_that_others_change_is_an_error(tmp_path, change, layout):
    if layout == "clip-retrieval":
        pytest.importorskip("pyarrow", reason="its metadata is Parquet")
    toy = Toy(vectors=True)
    task = Embed.from_options(POCKET, EmbedOptions())
    spec = RunSpec(task, sources(11), OutputSpec(tmp_path / "o", 4, layout=layout))
    before = state(spec)
    folder = join(tmp_path / "o", toy, layout=layout)
    work(toy, folder, Meter())
    state(spec).check(before)
    for name in folder.marks()[1].files:
        path = tmp_path / "o" / ("00001.json" if change == "mark" else name)
        data = path.read_bytes()
        if change == "cut":
            path.write_bytes(data[:-1])
        else:
            path.unlink()
        with pytest.raises(OutputError, match="during the run"):
            state(spec).check(before)
        done = state(spec)
        if change != "mark":
            done.check(done)  # a later run does not look at it
        path.write_bytes(data)
    state(spec).check(before)


def test_a_kill_while_failed_rows_are_replaced_leaves_no_mark(tmp_path, monkeypatch):
    toy = Toy(vectors=True, bad=("p1",))
    folder = join(tmp_path / "o", toy, layout="safetensors")
    work(toy, folder, Meter())

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(type(folder.layout.rows), "write", killed)  # the matrix is there already
        with pytest.raises(KilledError):
            work(replace(toy, bad=()), folder, Meter(), WorkerOptions(retry_failed=True))
    assert folder.mark(0) is None
    work(replace(toy, bad=()), folder, Meter())
    whole = join(tmp_path / "whole", toy, layout="safetensors")
    work(replace(toy, bad=()), whole, Meter())
    for name in ("00000.jsonl", "00000.safetensors"):
        assert (folder.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_mark_of_another_run_is_seen(tmp_path):
    toy = Toy()
    one, two = join(tmp_path / "1", toy), join(tmp_path / "2", replace(toy, mood="sad"))
    work(toy, one, Meter())
    (two.path / "00001.json").write_bytes((one.path / "00001.json").read_bytes())
    with pytest.raises(UserError, match="belongs to another run"):
        work(toy, two, Meter())


def test_pictures_in_memory_cannot_go_to_shards():
    for content in (b"bytes", Image.new("RGB", (2, 2))):
        with pytest.raises(UserError, match="in memory cannot be part of a shard"):
            _ = ByNumber([Source("a", content)], 4).sha256


def test_inputs_are_known_by_path_place_and_fields():
    class At:
        def __init__(self, stamp):
            self.stamp = stamp

        def read(self):
            raise AssertionError("a plan reads no picture")

    plans = [
        ByNumber([Source("a")], 4),
        ByNumber([Source("b")], 4),
        ByNumber([Source("a", fields={"caption": "x"})], 4),
        ByNumber([Source("a", At("1"))], 4),
        ByNumber([Source("a", At("2"))], 4),
        ByNumber([Source("a")], 5),
        ByNumber([Source("\udcff")], 4),
    ]
    assert len({plan.sha256 for plan in plans}) == len(plans)


def test_empty_inputs_are_an_empty_folder(tmp_path):
    toy = Toy()
    folder = OutputSpec(tmp_path / "o").open([], toy.schema, toy.settings())
    work(toy, folder, Meter())
    assert folder.marks() == {}


def test_a_model_set_travels_without_its_models():
    models = resolve("pocket")
    assert models.encoder is models.encoder
    sent = pickle.dumps(models)
    assert len(sent) < 10_000
    arrived = pickle.loads(sent)
    assert arrived == models
    assert "encoder" not in vars(arrived)


def test_clip_retrievals_layout(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra [data]")
    toy = Toy(bad=("p1", "p5"), vectors=True)
    folder = join(tmp_path / "o", toy, layout="clip-retrieval", size=1, count=11)
    work(toy, folder, Meter())
    names = sorted(p.name for p in (tmp_path / "o" / "img_emb").iterdir())
    assert names == [f"img_emb_{n:02d}.npy" for n in range(11) if n not in (1, 5)]
    matrix = np.load(tmp_path / "o" / "img_emb" / "img_emb_10.npy")
    assert (matrix.dtype, matrix.tolist()) == (np.float16, [[3.0, 10.0]])
    table = parquet.read_table(tmp_path / "o" / "metadata" / "metadata_10.parquet")
    assert table.to_pydict() == {"image_path": ["p10"]}
    assert not (tmp_path / "o" / "text_emb").exists()
    assert [r.get("error", {}).get("type") for r in rows(folder)].count("Bad") == 2


def test_safetensors_rows_line_up(tmp_path):
    from safetensors.numpy import load_file

    toy = Toy(bad=("p0", "p2"), vectors=True)
    folder = join(tmp_path / "o", toy, layout="safetensors", half=True)
    work(toy, folder, Meter())
    matrix = load_file(tmp_path / "o" / "00000.safetensors")["embeddings"]
    assert matrix.dtype == np.float16
    np.testing.assert_array_equal(matrix, [[np.nan, np.nan], [2, 1], [np.nan, np.nan], [2, 3]])
    assert ["error" in r for r in rows(folder)[:4]] == [True, False, True, False]
    assert "embedding" not in rows(folder)[1]


def test_layouts_that_do_not_fit(tmp_path):
    toy = Toy()
    for more, message in [
        ({"layout": "safetensors"}, "is for embeddings"),
        ({"layout": "rows", "half": True}, "--half needs"),
        ({"layout": "raw"}, "unknown layout 'raw'"),
        ({"format": "txt"}, "unknown format of shards 'txt'"),
    ]:
        with pytest.raises(UserError, match=message):
            join(tmp_path / "o", toy, **more)
    with pytest.raises(UserError, match="writes its rows as jsonl"):
        join(tmp_path / "o", Toy(vectors=True), layout="clip-retrieval", format="csv")
    assert not Path(tmp_path / "o" / "run.json").exists()
