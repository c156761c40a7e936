"""Filtering of image-text pairs: the rules against loops, the command, data sets in and out."""

import csv
import json
import math
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from zeroshot.errors import UserError
from zeroshot.images import find, read
from zeroshot.model_set.model_set import resolve
from zeroshot.output import filtered_pairs as kept
from zeroshot.tasks.filter import Filter, above, best_share, pair_cosines, threshold
from zeroshot.tasks.filter_options import FilterOptions
from zeroshot.tasks.task import Task, Transductive, is_transductive

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
SCENES = Path(__file__).parent.parent / "examples" / "scenes"
POCKET = ["--models", "pocket"]


# The rules

scores_of = st.lists(st.integers(-3, 3), max_size=30).map(lambda x: torch.tensor(x).float() / 8)


@settings(deadline=None)
@given(scores=scores_of, least=st.integers(-3, 3))
def test_a_threshold_keeps_what_reaches_it(scores, least):
    assert above(scores, least / 8).tolist() == [s >= least / 8 for s in scores.tolist()]


def test_a_threshold_is_compared_in_single_precision():
    assert above(torch.tensor([0.28]), 0.28).tolist() == [True]


@settings(deadline=None)
@given(scores=scores_of, percent=st.integers(0, 100))
def test_a_share_is_exact_and_takes_the_first_of_equal_ones(scores, percent):
    kept = best_share(scores, percent / 100).tolist()
    count = percent * len(scores) // 100
    order = sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))
    assert kept == [i in order[:count] for i in range(len(scores))]


@settings(deadline=None)
@given(scores=scores_of, share=st.sampled_from([0.1, 0.3, 0.5]))
def test_the_threshold_is_datacomps(scores, share):
    """`-np.sort(-scores)[int(len(scores) * p)]`, then all that reach it."""
    found = threshold(scores, share)
    if not len(scores):
        assert found is None
        return
    assert found == -np.sort(-scores.numpy())[int(len(scores) * share)]
    assert above(scores, found).sum() > best_share(scores, share).sum()


def test_rules_that_are_none():
    with pytest.raises(UserError, match=r"a share of 1\.5: expected a number between 0 and 1"):
        best_share(torch.zeros(2), 1.5)
    for rule in (above, best_share):
        with pytest.raises(UserError, match="the cosine of pair 1 is not finite"):
            rule(torch.tensor([0.0, math.nan]), 0.5)


def test_cosines_of_pairs():
    images, texts = torch.eye(3), torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, -1.0]])
    assert pair_cosines(images, texts).tolist() == pytest.approx([1, 0.8, -1])


# The command


@pytest.fixture
def pairs(tmp_path):
    """Right and wrong captions, a picture that is gone and a pair without a caption."""
    lines = (SCENES / "captions.jsonl").read_text().splitlines()
    true = [json.loads(line) for line in lines]
    captions = [row["caption"] if "caption" in row else row["captions"][0] for row in true]
    rows = [
        {"path": true[0]["path"], "caption": captions[0]},
        {"path": true[1]["path"], "caption": captions[4]},
        {"path": true[2]["path"], "caption": captions[2]},
        {"path": "gone.png", "caption": "a red heart"},
        {"path": true[3]["path"], "caption": " "},
        {"path": true[4]["path"], "caption": "word " * 200},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def expected(models, rows):
    encoder = models.encoder
    pictures = [Image.open(r["path"]).convert("RGB") for r in rows]
    images, texts = (
        encoder.encode_images(pictures),
        encoder.encode_texts([r["caption"] for r in rows]),
    )
    return [float(i @ t) for i, t in zip(images, texts, strict=True)]


@pytest.mark.parametrize("pair", [[], ["--encoder", "coupled"]])
def test_a_row_for_every_pair(zeroshot, pairs, pair):
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET, *pair]
    least = 0.2 if pair else 0.5
    code, rows, err = zeroshot(*arguments, "--min-score", least)
    assert code == 3
    assert [r.get("kept") for r in rows[:5]] == [True, False, True, None, None]
    assert rows[5]["kept"] == (rows[5]["score"] >= least)
    assert [r.get("error", {}).get("type") for r in rows[3:5]] == ["UnreadableImage", "NoCaption"]
    assert {r["schema"] for r in rows} == {"zeroshot.filter/1"}
    models = resolve("pocket", encoder="coupled") if pair else resolve("pocket")
    assert [r["score"] for r in rows[:3]] == pytest.approx(expected(models, rows[:3]), abs=1e-5)
    assert f"kept {sum(r.get('kept', False) for r in rows)} of 4 pairs" in err
    assert "6 images, 2 failed" in err


def test_a_caption_that_is_too_long_is_cut_and_said_so_or_fails(zeroshot, pairs):
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET, "--min-score", 0]
    assert [r.get("truncated") for r in zeroshot(*arguments)[1]] == [None] * 5 + [True]
    _, rows, _ = zeroshot(*arguments, "--long-text", "error")
    assert rows[5]["error"]["type"] == "LongCaption"


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.25, 1), (0.5, 2), (0.74, 2), (1, 4)])
def test_a_share_counts_pairs_that_have_a_score(zeroshot, pairs, share, count):
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET, "--batch-size", 2]
    _, rows, _ = zeroshot(*arguments, "--keep", share)
    good = [r for r in rows if "error" not in r]
    best = sorted(good, key=lambda r: -r["score"])[:count]
    assert [r["kept"] for r in good] == [r in best for r in good]
    assert len([r for r in good if r["kept"]]) == count


def test_the_task_is_one_and_travels(pairs):
    models = resolve("pocket")
    by_score = Filter.from_options(models, FilterOptions(0.3))
    assert isinstance(by_score, Task)
    task = pickle.loads(pickle.dumps(Filter.from_options(models, FilterOptions(keep=0.3))))
    assert task.options.keep == 0.3
    from zeroshot.cache.embedding_cache import NullCache
    from zeroshot.inference.meter import Meter

    runner = task.open(NullCache(), Meter(), 2)
    assert isinstance(runner, Transductive)
    assert is_transductive(runner)
    assert not is_transductive(by_score.open(NullCache(), Meter(), 2))
    assert runner.settings()["keep"] == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --min-score, the lowest cosine, or --keep"),
        (["--min-score", 0.3, "--keep", 0.3], "give --min-score, the lowest cosine, or --keep"),
        (["--keep", 30], "--keep 30.0: a fraction between 0 and 1"),
        (["--keep", 0.3, "--long-text", "cut"], "is not one of"),
        (["--keep", 0.3, "--kept", "x.txt"], "unknown table of kept pairs '.txt'"),
        (["--keep", 0.3, "--kept", SCENES], "exists; it needs all pairs"),
    ],
)
def test_wrong_usage_is_one_clear_message(zeroshot, pairs, arguments, message):
    code, rows, err = zeroshot("filter", pairs, "--image-root", SCENES, *POCKET, *arguments)
    assert (code, rows) == (2, [])
    assert message in err


def captioned(folder, kind):
    """Two captions of a heart, one of them in two lines, one of a star, and none of a ring."""
    names = ["1-red-heart.png", "2-blue-star.png", "3-green-ring.png"]
    captions = [["a red heart", "a big\nred heart"], "a blue\nstar", [math.nan, " "]]
    for name in names:
        (folder / name).write_bytes((SCENES / name).read_bytes())
    file = folder / f"x.{kind}"
    if kind == "jsonl":
        rows = [{"path": n, "caption": c} for n, c in zip(names, captions, strict=True)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        table = {"path": names, "caption": [captions[0], [captions[1]], [None]]}
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    else:
        with tarfile.open(file, "w") as tar:
            for name, caption in zip(names, captions, strict=True):
                (folder / "a.json").write_text(json.dumps({"caption": caption}))
                tar.add(folder / name, name)
                tar.add(folder / "a.json", f"{Path(name).stem}.json")
        (folder / "a.json").unlink()
    return file


TEXTS = ["a red heart", "a big\nred heart", "a blue\nstar"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_several_captions_are_several_texts_everywhere(zeroshot, tmp_path, kind):
    file, out = captioned(tmp_path, kind), tmp_path / "o.csv"
    _, rows, _ = zeroshot("filter", file, *POCKET, "--min-score", -1)
    assert [row.get("caption") for row in rows] == [*TEXTS, None]
    assert rows[3]["error"]["type"] == "NoCaption"
    assert rows[0]["score"] != rows[1]["score"]
    _, found, _ = zeroshot("match", file, *POCKET)
    assert [[fit["text"] for fit in row.get("texts", ())] for row in found] == [
        TEXTS[:2],
        TEXTS[2:],
        [],
    ]
    flat = [fit["score"] for row in found[:2] for fit in row["texts"]]
    assert flat == pytest.approx([row["score"] for row in rows[:3]], abs=1e-6)
    embed = ["embed", file, *POCKET, "--layout", "clip-retrieval", "--out", tmp_path / "c"]
    assert zeroshot(*embed)[0] == 3
    told = pyarrow.parquet.read_table(tmp_path / "c" / "metadata" / "metadata_0.parquet")
    assert told["caption"].to_pylist() == TEXTS
    images, texts = (np.load(tmp_path / "c" / f"{k}_emb/{k}_emb_0.npy") for k in ("img", "text"))
    assert len(images) == len(texts) == 3
    assert (images[0] == images[1]).all()
    assert not np.array_equal(texts[0], texts[1])
    assert zeroshot("filter", file, *POCKET, "--min-score", -1, "--out", out)[0] == 3
    code, _, err = zeroshot("filter", file, *POCKET, "--min-score", -1, "--out", out)
    assert "resumed: 4 of 4" in err
    code, _, err = zeroshot(
        "filter", file, *POCKET, "--min-score", -1, "--out", out, "--retry-failed"
    )
    assert (code, "come more than once" in err) == (2, True)


@pytest.mark.parametrize("size", ["file", "2"])
def test_several_captions_in_shards(zeroshot, tmp_path, size):
    """A file as a shard has the rows of any other cut, and each shard its own pairs."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    files = [captioned(tmp_path / name, "tar") for name in ("one", "two")]
    more = ["--min-score", -1, "--out", tmp_path / "o", "--layout", "webdataset"]
    assert zeroshot("filter", *files, *POCKET, *more, "--shard-size", size)[0] == 3
    rows = [
        json.loads(line)
        for shard in sorted((tmp_path / "o").glob("0*.jsonl"))
        for line in shard.read_text().splitlines()
    ]
    assert [row.get("caption") for row in rows] == [*TEXTS, None] * 2
    kept = [s for f in sorted((tmp_path / "o/kept").iterdir()) for s in find(str(f)).sources]
    assert [source.captions for source in kept] == [(text,) for text in TEXTS] * 2


def test_rows_to_files_and_going_on(zeroshot, pairs, tmp_path):
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET]
    out = tmp_path / "rows.csv"
    assert zeroshot(*arguments, "--min-score", 0.5, "--out", out, "--limit", 2)[0] == 0
    _, _, err = zeroshot(*arguments, "--min-score", 0.5, "--out", out)
    assert "resumed: 2 of 6" in err
    assert [r["kept"] for r in csv.DictReader(out.read_text().splitlines())][:3] == [
        "true",
        "false",
        "true",
    ]
    code, _, err = zeroshot(*arguments, "--keep", 0.5, "--out", out)
    assert code == 2
    assert "it needs all pairs" in err
    table = tmp_path / "rows.parquet"
    zeroshot(*arguments, "--keep", 0.5, "--out", table)
    assert [r["kept"] for r in pyarrow.parquet.read_table(table).to_pylist()][:2] == [True, False]


# Data sets out


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_table_of_kept_pairs_is_input_again(zeroshot, pairs, tmp_path, suffix):
    target = tmp_path / "out" / f"kept{suffix}"
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET, "--keep", 0.5]
    _, rows, _ = zeroshot(*arguments, "--kept", target)
    best = [r for r in rows if r.get("kept")]
    assert len(best) == 2
    code, again, _ = zeroshot("filter", target, "--image-root", "/", *POCKET, "--keep", 1)
    assert code == 0
    assert [(r["path"], r["caption"], r["score"]) for r in again] == [
        (r["path"], r["caption"], r["score"]) for r in best
    ]


def test_paths_below_a_table_are_relative_to_it(zeroshot, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes((SCENES / "1-red-heart.png").read_bytes())
    source = tmp_path / "data" / "pairs.csv"
    source.write_text("path,caption,label\na.png,a red heart,=x\nb.png,a blue star,\n")
    target = tmp_path / "kept.csv"
    zeroshot("filter", source, *POCKET, "--keep", 0.5, "--kept", target)
    (row,) = csv.DictReader(target.read_text().splitlines())
    assert (row["path"], row["caption"], row["label"]) == ("data/a.png", "a red heart", "'=x")
    assert zeroshot("filter", target, *POCKET, "--keep", 1)[0] == 0


def test_shards_in_shards_out(zeroshot, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "PAIRS_IN_A_SHARD", 2)
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET, "--keep", 0.75]
    _, rows, _ = zeroshot(*arguments, "--kept", first)
    best = [r for r in rows if r.get("kept")]
    assert sorted(p.name for p in first.iterdir()) == [".kept.json", "00000.tar", "00001.tar"]
    code, again, _ = zeroshot("filter", first, *POCKET, "--min-score", -1, "--kept", second)
    assert code == 0
    assert [(r["id"], r["caption"].strip()) for r in again] == [
        (r["id"], r["caption"].strip()) for r in best
    ]
    assert [r["score"] for r in again] == pytest.approx([r["score"] for r in best], abs=1e-6)
    with tarfile.open(first / "00000.tar") as tar:
        assert tar.getnames()[:3] == ["000000000.png", "000000000.txt", "000000000.json"]
        told = json.load(tar.extractfile("000000000.json"))
        assert told["path"] == best[0]["path"]
    code, _, err = zeroshot("filter", first, *POCKET, "--keep", 1, "--kept", tmp_path / "x.csv")
    assert code == 2
    assert "is not a file of its own" in err
    assert not (tmp_path / "x.csv").exists()


def test_shards_may_be_filtered_into_their_own_folder(zeroshot, pairs, tmp_path, monkeypatch):
    """Its pictures are read from the tar files that are replaced."""
    monkeypatch.setattr(kept, "PAIRS_IN_A_SHARD", 1)
    out = tmp_path / "out"
    zeroshot("filter", pairs, "--image-root", SCENES, *POCKET, "--keep", 1, "--kept", out)
    assert len(list(out.glob("*.tar"))) == 4
    again = ["filter", out, *POCKET, "--keep", 0.5, "--kept", out, "--overwrite"]
    code, rows, _ = zeroshot(*again)
    assert code == 0
    best = [row["id"] for row in rows if row["kept"]]
    assert len(best) == 2
    assert [read(source).id for source in find(str(out)).sources] == best


def members(tar):
    with tarfile.open(tar) as file:
        return {m.name: file.extractfile(m).read() for m in file.getmembers()}


@pytest.mark.parametrize("rule", [("--min-score", 0.2), ("--keep", 0.5)], ids=["score", "share"])
@pytest.mark.parametrize("place", ["here", "store"])
def test_each_shard_keeps_its_own_pairs(zeroshot, pairs, tmp_path, rule, place):
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET, *rule]
    _, rows, _ = zeroshot(*arguments, "--kept", tmp_path / "whole")
    out = tmp_path / "out"
    if place == "store":
        system = pytest.importorskip("fsspec").filesystem("memory")
        out = f"memory://kept/{tmp_path.name}"
    more = ["--out", f"{out}/", "--shard-size", 2, "--layout", "webdataset"]
    assert [zeroshot(*arguments, *more)[0] for _ in range(2)] == [3, 0]
    if place == "store":
        system.get(out, str(tmp_path / "out"), recursive=True)
    made = sorted((tmp_path / "out" / "kept").iterdir())
    found = {name: data for tar in made for name, data in members(tar).items()}
    names = [f"{n // 2:05}{n % 2:05}" for n, row in enumerate(rows) if row.get("kept")]
    assert sorted({name.partition(".")[0] for name in found}) == names
    assert {int(tar.stem) for tar in made} == {int(name[:5]) for name in names}
    whole = members(tmp_path / "whole" / "00000.tar")
    renamed = {int(name): new for name, new in enumerate(names)}
    assert found == {f"{renamed[int(name[:9])]}{name[9:]}": data for name, data in whole.items()}


def test_pairs_kept_by_shard_are_begun_anew_and_refused_elsewhere(zeroshot, pairs, tmp_path):
    arguments = ["filter", pairs, "--image-root", SCENES, *POCKET, "--layout", "webdataset"]
    out = tmp_path / "out"
    zeroshot(*arguments, "--min-score", -1, "--out", out)
    assert (out / "kept" / "00000.tar").exists()
    zeroshot(*arguments, "--min-score", 2, "--out", out, "--overwrite")
    assert not (out / "kept").exists() or not list((out / "kept").iterdir())
    code, _, err = zeroshot(*arguments, "--min-score", 0, "--out", tmp_path / "rows.jsonl")
    assert (code, "--layout needs a folder" in err) == (2, True)
    code, _, err = zeroshot(
        *arguments, "--min-score", 0, "--out", tmp_path / "o", "--format", "csv"
    )
    assert (code, "writes its rows as jsonl" in err) == (2, True)
