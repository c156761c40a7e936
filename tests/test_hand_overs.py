"""Options arrive where they act: by the command and in Python, each seen in what comes out."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import zeroshot as package
from tests.models import tiny
from zeroshot import video

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART = SCENES / "1-red-heart.png"
COMMANDS = Path(__file__).parent / "data" / "commands"
CLIPS = COMMANDS / "clips"
NAMES = ["red heart", "blue star", "green ring"]
POCKET = ("--models", "pocket", "--offline", "--json")
BEST = re.compile(r'<span class="best">(.*?)</span>')


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory):
    return f"hf:{tiny.clipseg(tmp_path_factory.mktemp('tiny') / 'clipseg')}"


@pytest.fixture(scope="module")
def xclip(tmp_path_factory):
    return f"hf:{tiny.xclip(tmp_path_factory.mktemp('tiny') / 'xclip')}"


def test_segment_mixes_examples_as_told(zeroshot, clipseg, tmp_path):
    """No share is no example, all of it no words, and what Python is told counts as much."""
    (tmp_path / "sky").mkdir()
    shutil.copy(SCENES / "2-blue-star.png", tmp_path / "sky")
    asked = {"model": clipseg, "threshold": 0.0}
    line = ("segment", HEART, "--labels", "a cat,sky", "--model", clipseg, "--threshold", 0)

    def regions(*more):
        code, [row], said = zeroshot(*line, *more, *POCKET)
        assert code == 0, said
        return row["regions"]

    found = [regions("--examples", tmp_path, "--mix", mix) for mix in (0, 0.25, 0.5, 1)]
    assert found[0] == regions()
    assert all(found.count(one) == 1 for one in found)
    for mix, own in zip((0.0, 0.25, 0.5, 1.0), found, strict=True):
        [same] = package.segment(HEART, "a cat,sky", examples=tmp_path, mix=mix, **asked)
        assert same.row()["regions"] == own


@pytest.mark.parametrize("how", ["model", "attention", "mean"])
def test_video_classify_shows_as_many_labels_as_asked(zeroshot, xclip, how):
    line = ("video", "classify", CLIPS, "--labels", ",".join(NAMES))
    options = {"model": ("--model", xclip), "mean": ()}.get(how, ("--pooling", how))
    asked = {"model": {"model": xclip}}.get(how, {"pooling": how})
    for count in (1, 2):
        code, rows, said = zeroshot(*line, *options, "-k", count, *POCKET)
        assert code == 0, said
        assert [len(row["labels"]) for row in rows] == [count, count]
        told = video.classify(CLIPS, NAMES, "pocket", top_k=count, **asked)
        assert told.rows() == rows


def test_search_in_half_precision_has_the_scores_of_rounded_rows(zeroshot):
    """Rounded to float16, the score is that of no other rows; both ways of asking agree."""
    embedded = package.embed(SCENES, "pocket")
    rows = np.array([result.embedding for result in embedded], np.float32)
    query = package.load("pocket").encoder.encode_texts(["a red heart"])[0].numpy()
    whole, half = (kept.astype(np.float32) @ query for kept in (rows, rows.astype(np.float16)))
    assert np.abs(whole - half).max() > 1e-5
    for expected, options, more in ((whole, (), {}), (half, ("--half",), {"half": True})):
        found = package.search("a red heart", SCENES, "pocket", **more)
        scores = {result.path: result.score for result in found}
        ours = [scores[result.path] for result in embedded]
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        _, hits, _ = zeroshot("search", "a red heart", SCENES, *options, *POCKET)
        assert {hit["path"]: hit["score"] for hit in hits} == {
            result.path: result.row()["score"] for result in found
        }


def test_eval_cuts_long_prompts_only_when_told(zeroshot):
    templates = f"a {'very ' * 60}{{}} thing"
    line = ("eval", SCENES, "--task", "classify", "--templates", templates, "--draws", 2, *POCKET)
    code, _, said = zeroshot(*line)
    assert code == 2
    assert "--long-text truncate" in said
    assert zeroshot(*line, "--long-text", "truncate")[0] == 0


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_video_classify_leaves_out_labels_below_the_threshold(zeroshot, pooling):
    asked = {"multi": True, "against": ["a shape", "background"], "pooling": pooling}
    line = ("video", "classify", CLIPS, "--labels", ",".join(NAMES), "--pooling", pooling)
    line += ("--multi", "--against", "a shape", "--against", "background")
    every = video.classify(CLIPS, NAMES, "pocket", **asked)
    scores = sorted(label.score for result in every for label in result.labels)
    assert len(scores) == 6
    least = (scores[2] + scores[3]) / 2
    found = video.classify(CLIPS, NAMES, "pocket", threshold=least, **asked)
    expected = [[x for x in result.labels if x.score >= least] for result in every]
    assert [list(result.labels) for result in found] == expected
    assert zeroshot(*line, "--threshold", least, *POCKET)[1] == found.rows()


def test_another_share_to_abstain_from_is_another_run(zeroshot, tmp_path):
    """Which rows abstain depends on it, so that rows of both do not belong in one file."""
    line = ("classify", SCENES, "--labels", ",".join(NAMES), *POCKET)
    line += ("--calibration", COMMANDS / "calibration.json", "--out", tmp_path / "rows.jsonl")
    _, few, _ = zeroshot(*line, "--abstain", 0.2)
    code, _, said = zeroshot(*line, "--abstain", 0.9)
    assert code == 2
    assert "abstain was 0.2, is 0.9" in said
    assert "resumed: 8 of 8" in zeroshot(*line, "--abstain", 0.2)[2]
    _, many, _ = zeroshot(*line, "--abstain", 0.9, "--overwrite")
    assert sum(row["abstained"] for row in few) < sum(row["abstained"] for row in many)


@pytest.mark.parametrize(("names", "kind"), [("unsure sure", "best"), ("sure unsure", "worse")])
def test_a_report_marks_the_lowest_where_lower_is_better(zeroshot, tmp_path, names, kind):
    """`sure` is always right and nearly certain, `unsure` once wrong and always in doubt."""
    pictures = sorted(SCENES.glob("*.png"))
    truth = [("white", "black")[i % 2] for i in range(len(pictures))]
    named = [{"path": p.name, "label": t} for p, t in zip(pictures, truth, strict=True)]
    write(tmp_path / "truth.jsonl", named)
    once = [truth[1], *truth[1:]]
    for name, said, score in (("unsure", once, 0.55), ("sure", truth, 0.99)):
        rows = [labelled(p, label, score) for p, label in zip(pictures, said, strict=True)]
        write(tmp_path / f"{name}.jsonl", rows)
    line = ("eval", SCENES, "--task", "classify", "--truth", tmp_path / "truth.jsonl", "--json")
    for name in names.split():
        line += ("--predictions", tmp_path / f"{name}.jsonl")
    assert zeroshot(*line, "--out", tmp_path / "results")[0] == 0
    assert zeroshot("report", tmp_path / "results", "--out", tmp_path / "page.html")[0] == 0
    page = " ".join((tmp_path / "page.html").read_text("utf-8").split())
    figures, compared = re.findall(r"<tbody>(.*?)</tbody>", page)[:2]
    marked = {row[: row.index("<")]: BEST.findall(row) for row in figures.split("<tr><td>")[1:]}
    #                              accuracy  recall   ECE     AP      AURC
    assert marked == {"unsure": [], "sure": ["100.00", "100.00", "1.00", "100.00", "0.00"]}
    assert f'<td class="left">ECE</td><td class="{kind}">' in compared


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def labelled(path, label, score):
    """A row of `classify` whose best label is this one."""
    other = {"white": "black", "black": "white"}[label]
    labels = [{"label": label, "score": score}, {"label": other, "score": 1 - score}]
    return {"path": str(path), "labels": labels, "scored": "softmax"}
