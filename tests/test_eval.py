"""`zeroshot eval` as a person uses it, on the example scenes and the pocket set."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import zeroshot as zs
from zeroshot.datasets.protocols import PROTOCOLS
from zeroshot.errors import UserError
from zeroshot.metrics import statistics
from zeroshot.report import figures

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
BACKGROUND = "something on a {} background"


@pytest.fixture
def zeroshot(zeroshot, monkeypatch):
    """Its commands with the pocket set."""
    monkeypatch.setenv("ZEROSHOT_MODELS", "pocket")
    return zeroshot


def read(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_labels(zeroshot, tmp_path):
    line = ("eval", SCENES, "--task", "classify", "--templates", BACKGROUND)
    code, [found], said = zeroshot(*line, "--out", tmp_path / "out")
    assert (code, said) == (0, f"8 images; results in {tmp_path / 'out'}")
    assert found["metrics"]["acc1"] == 1
    assert found["intervals"]["acc1"] == [pytest.approx(0.025 ** (1 / 8)), 1]
    assert found["metrics"].keys() == found["intervals"].keys()
    # what CLIP_benchmark's own tools read
    assert found["task"] == "zeroshot_classification"
    assert {"dataset", "model", "pretrained", "metrics", "language"} <= found.keys()
    assert {"acc1", "acc5", "mean_per_class_recall"} <= found["metrics"].keys()
    # what decides the figures
    assert found["prompts"]["templates"] == [BACKGROUND]
    assert found["prompts"]["classes"] == sorted(found["prompts"]["classes"])
    assert {"truth", "settings", "versions", "hardware", "seconds", "sampling"} <= found.keys()
    [kept] = read(tmp_path / "out" / "ensemble.eval.json")
    assert kept["metrics"] == found["metrics"]
    rows = read(tmp_path / "out" / kept["rows"])
    assert [row["labels"][0]["label"] for row in rows] == [
        row["label"] for row in read(tmp_path / "out" / kept["truth_rows"])
    ]
    code, _, said = zeroshot(*line, "--out", tmp_path / "out")
    assert code == 2
    assert "--overwrite" in said
    assert zeroshot(*line, "--out", tmp_path / "out", "--overwrite")[0] == 0


def test_rows_that_were_made_before_give_the_same_figures(zeroshot, tmp_path):
    line = ("eval", SCENES, "--task", "classify", "--templates", "a {} thing")
    _, [live], _ = zeroshot(*line, "--out", tmp_path / "out")
    rows = tmp_path / "out" / "ensemble.rows.jsonl"
    code, [told], _ = zeroshot("eval", SCENES, "--task", "classify", "--predictions", rows)
    assert code == 0
    shared = told["metrics"].keys() & live["metrics"].keys()
    assert {"acc1", "acc5", "ece", "aurc", "mean_per_class_recall"} <= shared
    for name in shared:
        assert told["metrics"][name] == pytest.approx(live["metrics"][name], abs=1e-6)
    assert (told["model"], told["seconds"]) == ("ensemble", None)


def test_the_same_seed_gives_the_same_intervals(zeroshot):
    line = ("eval", SCENES, "--task", "classify", "--templates", "a {} thing", "--draws", 50)
    _, [first], _ = zeroshot(*line)
    _, [again], _ = zeroshot(*line)
    _, [other], _ = zeroshot(*line, "--seed", 1)
    assert first["intervals"] == again["intervals"]
    assert first["intervals"] != other["intervals"]
    assert first["metrics"] == other["metrics"]


def test_captions_of_several_methods(zeroshot, tmp_path):
    line = ("eval", SCENES, "--task", "caption", "--compare", "retrieve,magic")
    line = (*line, "-o", "magic.max_tokens=4", "--out", tmp_path / "out")
    code, [retrieve, magic, comparison], _ = zeroshot(*line)
    assert code == 0
    assert [retrieve["method"], magic["method"]] == ["retrieve", "magic"]
    assert magic["settings"]["options"]["max_tokens"] == 4
    own = comparison["methods"]["magic"]["Bleu_1"]
    expected = magic["metrics"]["Bleu_1"] - retrieve["metrics"]["Bleu_1"]
    assert own["difference"] == pytest.approx(expected)
    assert own["interval"][0] <= own["difference"] <= own["interval"][1]
    assert own["p"] <= own["p_holm"] <= 1
    assert comparison == read(tmp_path / "out" / "comparison.json")[0]
    rows = read(tmp_path / "out" / "magic.rows.jsonl")
    assert [Path(row["path"]).name for row in rows] == [
        p.name for p in sorted(SCENES.glob("*.png"))
    ]
    # a run that was cut short goes on, and other settings do not go on in the same file
    file = tmp_path / "out" / "magic.rows.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    run = file.with_name("magic.rows.jsonl.run.json")
    run.write_text(json.dumps(json.loads(run.read_text()) | {"ended": None}))  # as a kill leaves it
    assert zeroshot(*line)[0] == 0
    assert file.read_bytes() == whole
    code, _, said = zeroshot(*[str(x).replace("=4", "=5") for x in line])
    assert code == 2
    assert "max_tokens was 4, is 5" in said


def test_captions_made_before_with_references_of_their_own(zeroshot, tmp_path):
    rows = [
        {"id": "1", "prediction": "a dog runs", "references": ["the dog runs", "a dog"]},
        {"id": "2", "prediction": "two bikes", "references": ["two bikes"]},
    ]
    file = tmp_path / "old.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, [found], said = zeroshot("eval", "--task", "caption", "--predictions", file)
    assert (code, said) == (0, "2 images")
    assert (found["method"], found["pictures"]["scored"]) == ("old", 2)
    other = tmp_path / "other.jsonl"
    shutil.copy(file, other)
    line = ("eval", "--task", "caption", "--predictions", file, "--predictions", other)
    code, [_, _, comparison], _ = zeroshot(*line)
    assert code == 0
    assert comparison["methods"]["other"]["CIDEr"]["difference"] == 0


@pytest.mark.parametrize(
    ("task", "name", "text"),
    [
        ("classify", "t.csv", "path,label\nscenes/a.png,cat\nb.png,dog\n"),
        ("multilabel", "t.jsonl", '{"path": "a.png", "labels": ["cat"]}\n'),
        (
            "retrieve",
            "t.json",
            '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": '
            '[{"image_id": 1, "caption": "a cat"}]}',
        ),
        ("caption", "t.token", "scenes/a.png#0\ta cat\n"),
    ],
)
def test_a_truth_that_names_no_image_of_the_data(zeroshot, tmp_path, task, name, text):
    truth = tmp_path / name
    truth.write_text(text)
    code, rows, said = zeroshot("eval", SCENES, "--task", task, "--truth", truth)
    assert (code, rows) == (2, [])
    assert "that the ground truth names is there: the first is " in said
    assert f"names in a file are relative to DATA, '{SCENES}'" in said


def test_retrieval_in_both_directions(zeroshot, tmp_path):
    code, [found], _ = zeroshot("eval", SCENES, "--task", "retrieve", "--out", tmp_path / "out")
    assert code == 0
    assert found["task"] == "zeroshot_retrieval"
    assert found["metrics"]["text_retrieval_recall@1"] == 1
    assert found["metrics"]["image_retrieval_recall@5"] == 1
    code, [coupled], _ = zeroshot("eval", SCENES, "--task", "retrieve", "--method", "asif")
    assert code == 0
    assert "coupling" in coupled["settings"]["models"]


def test_clip_score_by_a_judge(zeroshot):
    line = ("eval", SCENES, "--task", "caption", "--method", "retrieve", "--judge", "pocket")
    code, [found], _ = zeroshot(*line)
    assert code == 0
    assert 0 < found["metrics"]["CLIPScore"] < 2.5
    assert found["intervals"]["RefCLIPScore"][0] < found["metrics"]["RefCLIPScore"]
    assert "encoder" in found["settings"]["judge"]


def test_pictures_that_cannot_be_read_are_left_out_and_counted(zeroshot, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(SCENES, folder)
    (folder / "2-blue-star.png").write_bytes(b"no picture")
    for task in ("classify", "caption", "retrieve"):
        more = ("--method", "retrieve") if task == "caption" else ()
        code, [found], said = zeroshot("eval", folder, "--task", task, *more)
        assert code == 3
        assert found["pictures"] == {"scored": 7, "failed": 1}
        assert "8 images, 1 without an answer" in said
    for file in folder.glob("*.png"):
        file.write_bytes(b"no picture")
    code, _, said = zeroshot("eval", folder, "--task", "classify")
    assert code == 2
    assert "none of the images has a result" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval SCENES", "say what to measure"),
        ("eval SCENES --task caption --protocol clip/imagenet", "is for --task classify"),
        ("eval SCENES --protocol clip/imagnet", "unknown protocol"),
        ("eval SCENES --protocol clip/imagenet --templates none", "fixes labels"),
        ("eval SCENES --protocol clip/imagenet", "no folder 'val'"),
        ("eval SCENES --protocol clip_benchmark/classification", "no test/nshards.txt"),
        ("eval --task caption", "needs DATA"),
        ("eval --task classify --predictions x.jsonl", "needs DATA"),
        ("eval SCENES --task caption --labels a,b", "no part of --task caption"),
        ("eval SCENES --task retrieve --judge pocket", "--judge is for captions"),
        ("eval SCENES --task caption --compare magic,magic", "given twice"),
        ("eval SCENES --task caption --compare magic --method magic", "leave --method"),
        ("eval SCENES --task caption --predictions x --method magic", "exist already"),
        ("eval SCENES --task caption --method asif", "does not caption"),
        ("eval SCENES --task retrieve --predictions SCENES/captions.jsonl", "needs scores"),
        ("eval SCENES --task caption --limit 1 --method retrieve", "one image"),
        ("eval SCENES --task caption --out SCENES/truth.csv", "is a file"),
    ],
)
def test_what_cannot_be_done_is_said(line, message, zeroshot):
    code, rows, said = zeroshot(*line.replace("SCENES", str(SCENES)).split())
    assert (code, rows) == (2, [])
    assert message in said


def test_python_gives_what_the_command_gives(zeroshot, tmp_path):
    _, [retrieve, shown, comparison], _ = zeroshot(
        *("eval", SCENES, "--task", "classify", "--templates", "a {} thing"),
        *("--compare", "ensemble,center"),
    )
    asked = (SCENES, "classify", "pocket", ["ensemble", "center"])
    found = zs.evaluate(*asked, templates="a {} thing")
    assert [r["metrics"] for r in found.results] == [retrieve["metrics"], shown["metrics"]]
    acc1 = found.figures["center"]["acc1"]
    assert [acc1.low, acc1.high] == shown["intervals"]["acc1"]
    assert found.comparison == comparison
    with pytest.raises(UserError, match="options are for one method"):
        zs.evaluate(*asked, lam=1)


def test_every_protocol_is_described():
    page = (SCENES.parent.parent / "docs" / "evaluation.md").read_text("utf-8")
    assert {name for name in PROTOCOLS if f"| `{name}` |" not in page} == set()


def test_every_figure_is_described_and_has_a_column():
    page = (SCENES.parent.parent / "docs" / "evaluation.md").read_text("utf-8")
    captions = statistics.measure_captions(["a b", "c"], [["a b"], ["d"]])
    names = {*captions.statistic(np.arange(2)), *captions.fixed}
    scores = np.full((2, 7), 1 / 7)
    names |= statistics.measure_scores(scores, np.array([0, 1])).statistic(np.arange(2)).keys()
    assert names <= figures.CALLED.keys()
    plain = {n for n in names if not n.startswith(("Bleu_", "rep_"))}
    assert {name for name in plain if f"`{name}`" not in page} == set()
    ranks = statistics.measure_retrieval(scores[:, :2], np.array([0, 1])).statistic(np.arange(2))
    assert ranks.keys() <= figures.CALLED.keys()
