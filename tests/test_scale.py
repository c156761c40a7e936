"""Shards: whoever makes them and however often it is killed, they are the rows of one process."""

import json
import pickle
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from zeroshot.distributed.folder import OutputSpec
from zeroshot.distributed.sharding import ByNumber, Share
from zeroshot.distributed.unfinished import Part
from zeroshot.distributed.worker import WorkerOptions, process_shard, work
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.output import leases
from zeroshot.output.holders import ourselves
from zeroshot.results.result import CaptionResult, EmbedResult, Failure

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
        ((sources(11), toy.schema, {"mood": "sad"}), 'settings.mood was "glad", is "sad"'),
        ((sources(11), "zeroshot.classify/1", toy.settings()), "rows was"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            place.open(*given)
        assert "--overwrite" in str(caught.value)
    with pytest.raises(UserError, match="shard_size was 4, is 5"):
        OutputSpec(tmp_path / "o", 5).open(sources(11), toy.schema, toy.settings())
    with pytest.raises(UserError, match='format was "jsonl", is "csv"'):
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
