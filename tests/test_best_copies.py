"""`search --hide-duplicates` and `filter --dedupe`: the best of each group of copies."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import zeroshot as product
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source
from zeroshot.tasks.duplicates.best_copies import first_copies

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Five scenes; of the first two a mirrored and a smaller copy, and the same file again."""
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    for number, scene in enumerate(SCENES[:5]):
        image = Image.open(scene).convert("RGB")
        image.save(f"p/{number}.png")
        if number < 2:
            ImageOps.mirror(image).save(f"p/{number}-mirrored.png")
            image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(
                f"p/{number}-small.jpg"
            )
            Path(f"p/{number}-same.png").write_bytes(Path(f"p/{number}.png").read_bytes())
    return tmp_path


def group_of(path):
    return Path(path).name[0]


# Which is a copy of which


def test_the_first_of_each_group_comes_first():
    """By hand: 0 and 2 are copies, and so are 1, 3 and 4, of which 4 is the same file as 1."""

    def noise(seed):
        grey = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        return Image.fromarray(grey).resize((120, 90), Image.Resampling.BICUBIC)

    images = [noise(0), noise(1), ImageOps.mirror(noise(0)), ImageOps.flip(noise(1)), noise(1)]
    ids = ["a", "b", "c", "d", "b"]
    rows = torch.eye(3)[[0, 1, 0, 1, 1]]
    found = first_copies([Source(None, image) for image in images], ids, rows)
    assert found == [0, 1, 0, 1, 1]
    other = [4, 2, 3, 0, 1]
    found = first_copies(
        [Source(None, images[i]) for i in other], [ids[i] for i in other], rows[other]
    )
    assert found == [0, 1, 0, 1, 0]
    # near embeddings are not enough, and what cannot be read has only the same content
    assert first_copies([Source(None, x) for x in images[:2]], ["a", "b"], torch.ones(2, 3)) == [
        0,
        1,
    ]
    gone = [Source("gone.png")] * 3
    assert first_copies(gone, ["a", "b", "a"], torch.ones(3, 3)) == [0, 1, 0]
    assert first_copies([], [], torch.zeros(0, 3)) == []


# Search


def search(zeroshot, *more):
    code, rows, err = zeroshot("search", "red", "p", "--models", "pocket", *more)
    assert code == 0, err
    return rows


@pytest.mark.parametrize("k", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("half", [(), ("--half",)])
def test_search_shows_the_best_of_each_group(zeroshot, copies, k, half):
    """Against the whole ranking, and groups that are known."""
    every = search(zeroshot, "-k", "50", *half)
    assert len(every) == 11
    shown = search(zeroshot, "-k", str(k), "--hide-duplicates", *half)
    expected, hidden = [], {}
    for row in every:
        if group_of(row["path"]) in hidden:
            hidden[group_of(row["path"])] += 1
        elif len(expected) < k:
            expected.append(row["path"])
            hidden[group_of(row["path"])] = 0
        if len(expected) == k < 5:
            break
    assert [row["path"] for row in shown] == expected
    assert [row["rank"] for row in shown] == list(range(1, len(shown) + 1))
    assert [row["hidden"] for row in shown] == list(hidden.values())
    scores = {row["path"]: row["score"] for row in every}
    assert [row["score"] for row in shown] == [scores[path] for path in expected]
    assert "hidden" not in every[0]


def test_search_with_a_least_score(zeroshot, copies):
    every = search(zeroshot, "-k", "50")
    least = every[5]["score"]
    shown = search(zeroshot, "-k", "50", "--hide-duplicates", "--min-score", str(least))
    assert sum(1 + row["hidden"] for row in shown) == sum(r["score"] >= least for r in every)


def test_search_says_what_is_hidden(zeroshot, copies):
    more = ("--hide-duplicates", "--out", "found.csv", "--html", "found.html")
    search(zeroshot, *more)
    with open("found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["hidden"] for row in rows) == ["0", "0", "0", "3", "3"]
    assert Path("found.html").read_text().count("3 copies hidden") == 2
    settings = json.loads(Path("found.csv.run.json").read_text())["settings"]
    assert settings["hide_duplicates"] is True
    results = product.search("red", "p", models="pocket", hide_duplicates=True)
    assert [r.hidden for r in results] == [int(row["hidden"]) for row in rows]


def test_search_among_videos_looks_for_no_copies(printed, copies):
    code, out, _ = printed("video", "search", "--help")
    assert code == 0
    assert "--hide-duplicates" not in out
    with pytest.raises(UserError, match="copies of videos"):
        product.video.search("red", "p/0.png", models="pocket", hide_duplicates=True)


# Filter


@pytest.fixture
def pairs(copies):
    """A table of all images; each copy has another caption."""
    texts = ["a red circle", "a blue star", "a green ring", "nothing at all"]
    paths = sorted(Path("p").iterdir())
    lines = [{"path": str(path), "caption": texts[number % 4]} for number, path in enumerate(paths)]
    lines.append({"path": lines[0]["path"], "caption": "another caption"})
    lines.append({"path": "p/gone.png", "caption": "gone"})
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return copies


@pytest.mark.parametrize("rule", [("--min-score", "-1"), ("--min-score", "0.1"), ("--keep", "0.6")])
def test_filter_keeps_the_best_pair_of_each_group(zeroshot, pairs, rule):
    common = ("filter", "pairs.jsonl", "--models", "pocket", *rule)
    _, every, _ = zeroshot(*common)
    code, rows, err = zeroshot(*common, "--dedupe")
    assert code == 3  # an image is gone
    assert [row.get("score") for row in rows] == [row.get("score") for row in every]
    passed = [(-row["score"], i) for i, row in enumerate(every) if row.get("kept")]
    best = {}
    for _, i in sorted(passed):
        best.setdefault(group_of(every[i]["path"]), i)
    assert [i for i, row in enumerate(rows) if row.get("kept")] == sorted(best.values())
    for i, row in enumerate(rows):
        left_out = bool(every[i].get("kept")) and i not in best.values()
        assert ("copy_of" in row) == left_out
        if left_out:
            assert row["copy_of"] == rows[best[group_of(row["path"])]]["path"]
    assert f"kept {len(best)} of 12 pairs, without {len(passed) - len(best)} of copies" in err


def test_filter_in_shards_gives_the_same(zeroshot, pairs):
    common = ("filter", "pairs.jsonl", "--models", "pocket", "--min-score", "-1", "--dedupe")
    _, rows, _ = zeroshot(*common)
    code, _, _ = zeroshot(*common, "--out", "rows/", "--shard-size", "5")
    assert code == 3
    lines = [x for f in sorted(Path("rows").glob("0*.jsonl")) for x in f.read_text().splitlines()]
    assert list(map(json.loads, lines)) == rows
    assert not any(row.get("kept") and row.get("copy_of") for row in rows)


def test_filter_where_nothing_can_be_read(zeroshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text('{"path": "gone.png", "caption": "x"}\n')
    code, rows, _ = zeroshot(
        "filter", "pairs.jsonl", "--models", "pocket", "--min-score", "0", "--dedupe"
    )
    assert code == 3
    assert "error" in rows[0]


def test_filter_writes_no_copies(zeroshot, pairs):
    common = ("filter", "pairs.jsonl", "--models", "pocket", "--min-score", "-1", "--dedupe")
    assert zeroshot(*common, "--kept", "kept.jsonl", "--out", "scores.csv")[0] == 3
    kept = [json.loads(line) for line in Path("kept.jsonl").read_text().splitlines()]
    assert sorted(group_of(row["path"]) for row in kept) == list("01234")
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["copy_of"]) for row in rows) == 7
    code, _, err = zeroshot(*common, "--out", "scores.csv")
    assert code == 2
    assert "it needs all pairs" in err
