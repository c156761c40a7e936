"""Several labels per picture: figures against scikit-learn, and `eval` as a person uses it."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

import zeroshot as zs
from zeroshot.datasets.ground_truth import load_multilabel
from zeroshot.errors import UserError
from zeroshot.metrics import multilabel

ROOT = Path(__file__).parent.parent
SCENES = ROOT / "examples" / "scenes"
OBJECTS = ROOT / "examples" / "objects.jsonl"


def drawn(seed, pictures=60, labels=7):
    """Scores with ties, and a truth in which every label holds of a picture."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, (pictures, labels)).astype(np.float32) / 8 - 0.5
    truth = rng.random((pictures, labels)) < 0.25
    truth[np.arange(labels), np.arange(labels)] = True
    return scores, truth


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scikit_learn_of_every_draw(seed):
    """Of all pictures, and of draws with repetition, from which labels may be missing."""
    scores, truth = drawn(seed, pictures=(60, 9)[seed % 2])
    measure = multilabel.measure_multilabel(scores, truth, 0.25)
    rng = np.random.default_rng(seed)
    count = len(scores)
    for rows in [np.arange(count), *(rng.integers(0, count, count) for _ in range(5))]:
        held = truth[rows].any(0)
        own, said, right = scores[rows], scores[rows] >= 0.25, truth[rows]
        found = measure.statistic(rows)
        expected = {
            "mean_average_precision": reference.average_precision_score(
                right[:, held], own[:, held], average="macro"
            ),
            "micro_average_precision": reference.average_precision_score(
                right, own, average="micro"
            ),
            "f1_macro": reference.f1_score(right[:, held], said[:, held], average="macro"),
            "f1_micro": reference.f1_score(right, said, average="micro"),
            "precision_micro": reference.precision_score(right, said, average="micro"),
            "recall_micro": reference.recall_score(right, said, average="micro"),
        }
        assert found == pytest.approx(expected, abs=1e-9)


def test_each_label_is_scikit_learns_and_one_that_never_holds_has_none():
    scores, truth = drawn(0)
    truth[:, 2] = False
    names = list("abcdefg")
    found = multilabel.measure_each_label(scores, truth, names).statistic(np.arange(len(scores)))
    assert found == pytest.approx(
        {
            name: reference.average_precision_score(truth[:, c], scores[:, c])
            for c, name in enumerate(names)
            if c != 2
        }
    )


def test_average_precision_by_hand():
    """Two hits at ranks 1 and 3: (1/1 + 2/3) / 2; of the second label the hit is last of three.

    All in one ranking: 0.9 hit, 0.8 no, 0.7 no, 0.6 no, 0.5 hit, 0.1 hit.
    """
    scores = np.array([[0.9, 0.8], [0.7, 0.6], [0.5, 0.1]])
    truth = np.array([[True, False], [False, False], [True, True]])
    found = multilabel.measure_multilabel(scores, truth, 0.5).statistic(np.arange(3))
    assert found["mean_average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
    assert found["micro_average_precision"] == pytest.approx((1 + 2 / 5 + 3 / 6) / 3)
    assert found["f1_micro"] == pytest.approx(2 * 2 / (5 + 3))
    assert found["f1_macro"] == pytest.approx((4 / 5 + 0) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_largest_f1_of_all(seed):
    scores, truth = drawn(seed)
    best = multilabel.best_threshold(scores, truth)
    every = np.unique(scores)
    f1 = [reference.f1_score(truth, scores >= t, average="micro") for t in every]
    assert best == every[::-1][int(np.argmax(f1[::-1]))]
    assert np.isnan(multilabel.best_threshold(scores, np.zeros_like(truth)))


def test_the_threshold_by_hand():
    """Hit, miss, hit: F1 is 2/3, 2/4 and 4/5 from the first, the second and the third score on."""
    scores, truth = np.array([[0.9], [0.8], [0.7]]), np.array([[True], [False], [True]])
    assert multilabel.best_threshold(scores, truth) == 0.7


def test_no_label_at_all_has_no_figure():
    scores, truth = drawn(0)
    found = multilabel.measure_multilabel(scores, np.zeros_like(truth), 0.25)
    assert not found.figures(np.random.default_rng(0), draws=3).keys() & {
        "mean_average_precision",
        "recall_micro",
    }


# Files of labels


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("truth.csv", "path,labels\na.png,cat; dog\nb.png,\nc.png,dog\n"),
        ("truth.csv", "path,label\na.png,cat\na.png,dog\nb.png,\nc.png,dog\n"),
        (
            "truth.jsonl",
            '{"path": "a.png", "labels": ["cat", "dog"]}\n{"path": "b.png", "labels": []}\n'
            '{"path": "c.png", "label": "dog"}\n',
        ),
    ],
)
def test_labels_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    held = load_multilabel(tmp_path)
    assert held.labels == ("cat", "dog")
    assert [Path(s.path).name for s in held.sources] == ["a.png", "b.png", "c.png"]
    assert held.truth == ((0, 1), (), (1,))
    assert held.table([0, 1]).tolist() == [[True, True], [False, False]]
    assert load_multilabel(tmp_path / name).sources == held.sources
    more = load_multilabel(tmp_path, labels="bird,dog,cat")
    assert more.truth == ((1, 2), (), (1,))
    with pytest.raises(UserError, match="'cat' is none of the labels: bird, dog"):
        load_multilabel(tmp_path, labels="bird,dog")


COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "categories": [{"id": 3, "name": "dog"}, {"id": 90, "name": "cat"}],
    "annotations": [
        {"image_id": 7, "category_id": 90},
        {"image_id": 7, "category_id": 3},
        {"image_id": 7, "category_id": 3, "iscrowd": 1},
    ],
}


def test_coco_instances(tmp_path):
    """Categories in their order; several things of a kind are one label."""
    (tmp_path / "instances.json").write_text(json.dumps(COCO))
    held = load_multilabel(tmp_path, truth=tmp_path / "instances.json")
    assert held.labels == ("dog", "cat")
    assert held.truth == ((0, 1), ())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", "[]", "not COCO's instances"),
        ("t.json", json.dumps(COCO | {"images": []}), "entry 1: image_id 7 is none of the images"),
        (
            "t.json",
            json.dumps(COCO | {"images": [{"id": 1, "file_name": 3}]}),
            "images, entry 1: .* file_name",
        ),
        ("t.csv", "file,labels\na.png,cat\n", "line 2, column 'path': .* no such column"),
        ("t.csv", "path,labels\n../a.png,cat\n", "outside the folder"),
        ("t.csv", "path,labels\na.png,\n", "has no image with a label"),
        ("t.jsonl", '{"path": "a.png", "labels": "cat"}', "a list of texts"),
        ("t.jsonl", '{"path": "a.png", "labels": [" "]}', "a list of texts"),
        ("t.txt", "a", "are read from"),
    ],
)
def test_another_file_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_multilabel(tmp_path, truth=tmp_path / name)


def test_no_file_of_labels_is_said(tmp_path):
    with pytest.raises(UserError, match="--truth FILE"):
        load_multilabel(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_multilabel(tmp_path / "none")


def npy(*values, dtype="float32"):
    file = io.BytesIO()
    np.save(file, np.array(values, dtype), allow_pickle=True)
    return file.getvalue()


def shard(folder, *members, names="cat\ndog\n"):
    """A CLIP_benchmark set of several labels, in one tar file."""
    (folder / "test").mkdir(exist_ok=True)
    (folder / "classnames.txt").write_text(names)
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    (folder / "dataset_type.txt").write_text("multilabel\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    with tarfile.open(folder / "test" / "0.tar", "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return folder


def test_a_webdataset_of_several_labels(tmp_path):
    whole = (SCENES / "1-red-heart.png").read_bytes()
    members = [("s.1.png", whole), ("s.1.npy", npy(1, 1)), ("s.2.npy", npy(0, 0, dtype="int64"))]
    held = load_multilabel(shard(tmp_path, *members, ("s.2.png", whole)))
    assert held.labels == ("cat", "dog")
    assert held.truth == ((0, 1), ())
    assert held.prompts == [["a photo of a cat."], ["a photo of a dog."]]
    assert [Path(s.path).name for s in held.sources] == ["s.1.png", "s.2.png"]
    assert load_multilabel(tmp_path, labels="a,b", templates="none").prompts == [
        ["a"],
        ["b"],
    ]
    for how, message in (
        ({"labels": "a"}, "1 label for the 2"),
        ({"split": "val"}, "only a webdataset"),
    ):
        with pytest.raises(UserError, match=message):
            load_multilabel(tmp_path, **how)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], "has no .npy"),
        ([("a.png", b"x"), ("a.npy", npy(1, 0)), ("a.npy", npy(0, 0))], "a.npy' comes twice"),
        ([("a.1.png", b"x"), ("a.2.npy", npy(1, 0))], "has no .npy"),
        ([("a.npy", npy(1, 0))], "has no image"),
        ([("a.png", b"x"), ("a.npy", npy(1, 0, 1))], "not 2 zeros and ones"),
        ([("a.png", b"x"), ("a.npy", npy(1, 2))], "other numbers"),
        ([("a.png", b"x"), ("a.npy", npy(1, float("nan")))], "other numbers"),
        ([("a.png", b"x"), ("a.npy", npy(1, None, dtype=object))], "not 2 zeros and ones"),
        ([("a.png", b"x"), ("a.npy", npy(1, 0)[:-1])], "buffer"),
        ([("a.png", b"x"), ("a.npy", b"")], "0.tar"),
        ([("a.png", b"x"), ("a.npy", b"1" * (2 << 20))], "larger than"),
    ],
)
def test_arrays_that_are_not_what_they_should_be(tmp_path, members, message):
    with pytest.raises(UserError, match=message):
        load_multilabel(shard(tmp_path, *members))


# The command


@pytest.fixture
def zeroshot(zeroshot, monkeypatch):
    """Its commands with the pocket set."""
    monkeypatch.setenv("ZEROSHOT_MODELS", "pocket")
    return zeroshot


LINE = ("eval", SCENES, "--task", "multilabel", "--truth", OBJECTS, "--draws", 20)


def truth():
    rows = map(json.loads, OBJECTS.read_text().splitlines())
    return {row["path"]: set(row["labels"]) for row in rows}


def test_a_method_is_measured_and_its_rows_give_the_same(zeroshot, tmp_path):
    """The rows of `classify --multi` hold every score: figures by scikit-learn of them."""
    code, [found], said = zeroshot(*LINE, "--out", tmp_path / "out")
    assert (code, said) == (0, f"8 images; results in {tmp_path / 'out'}")
    names = sorted(found["prompts"]["classes"])
    rows = tmp_path / "rows.jsonl"
    command = ("classify", SCENES, "--labels", ",".join(names), "--multi", "--out", rows)
    assert zeroshot(*command)[0] == 0
    scores, held = [], []
    for row in map(json.loads, rows.read_text().splitlines()):
        own = {x["label"]: x["score"] for x in row["labels"]}
        scores.append([own[name] for name in names])
        held.append([name in truth()[Path(row["path"]).name] for name in names])
    expected = {
        f"{'mean' if how == 'macro' else how}_average_precision": reference.average_precision_score(
            np.array(held), np.array(scores), average=how
        )
        for how in ("macro", "micro")
    }
    assert found["metrics"] == pytest.approx(expected)
    assert found["metrics"]["mean_average_precision"] > 0.9
    assert found["labels"].keys() == set(names)
    assert found["labels"]["red heart"]["pictures"] == 1
    code, [again], _ = zeroshot(*LINE, "--predictions", rows)
    assert code == 0
    assert again["metrics"] == pytest.approx(found["metrics"], abs=1e-6)
    kept = tmp_path / "out" / "ensemble.rows.jsonl"
    assert zeroshot(*LINE, "--predictions", kept)[1][0]["metrics"] == again["metrics"]
    told = [json.loads(x) for x in (tmp_path / "out" / "truth.jsonl").read_text().splitlines()]
    assert {Path(row["path"]).name: set(row["labels"]) for row in told} == truth()


def test_rows_without_every_label_are_refused(zeroshot, tmp_path):
    names = ",".join(sorted({x for own in truth().values() for x in own}))
    rows = tmp_path / "rows.jsonl"
    zeroshot("classify", SCENES, "--labels", names, "--out", rows)
    code, _, said = zeroshot(*LINE, "--predictions", rows)
    assert code == 2
    assert "no score for" in said
    assert "--multi" in said


def test_f1_at_a_threshold_given_or_chosen(zeroshot):
    _, [given], _ = zeroshot(*LINE, "--threshold", -0.2)
    assert given["threshold"] == -0.2
    assert {"f1_macro", "f1_micro", "recall_micro"} <= given["metrics"].keys()
    assert given["metrics"]["f1_micro"] > 0.7
    _, [chosen], _ = zeroshot(*LINE, "--held-out", 0.5)
    assert chosen["pictures"] == {"scored": 4, "failed": 0, "held_out": 4}
    assert chosen["threshold"] is not None
    _, [again], _ = zeroshot(*LINE, "--held-out", 0.5)
    assert again["metrics"] == chosen["metrics"]
    _, [other], _ = zeroshot(*LINE, "--held-out", 0.5, "--seed", 5)
    assert other["labels"].keys() != chosen["labels"].keys()


def test_labels_are_weighed_against_a_text(zeroshot):
    code, [found], _ = zeroshot(*LINE, "--against", "an empty picture", "--threshold", 0.5)
    assert code == 0
    assert found["settings"]["score"] == "against"
    assert 0.3 < found["metrics"]["mean_average_precision"] < 1


def test_methods_are_compared_and_shown_on_a_page(zeroshot, tmp_path):
    line = (*LINE, "--compare", "ensemble,center", "--out", tmp_path / "out", "--threshold", 0)
    code, [_, _, comparison], _ = zeroshot(*line)
    assert code == 0
    assert "mean_average_precision" in comparison["methods"]["center"]
    page = tmp_path / "report.html"
    code, _, said = zeroshot("report", tmp_path / "out", "--out", page)
    assert code == 0, said
    text = page.read_text()
    for part in ("Several labels", "Average precision of each label", "red heart", "mAP"):
        assert part in text
    (file,) = (tmp_path / "out").glob("center.eval.json")
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"labels": {"a": {"average_precision": "x"}}}))
    code, _, said = zeroshot("report", tmp_path / "out", "--out", tmp_path / "b.html")
    assert code == 2
    assert "average precision of each label" in said


def test_a_picture_that_cannot_be_read_is_left_out(zeroshot, tmp_path):
    import shutil

    folder = tmp_path / "scenes"
    shutil.copytree(SCENES, folder)
    (folder / "1-red-heart.png").write_bytes(b"")
    line = ("eval", folder, "--task", "multilabel", "--truth", OBJECTS, "--draws", 5)
    code, [found], said = zeroshot(*line)
    assert code == 3
    assert found["pictures"] == {"scored": 7, "failed": 1}
    assert "red heart" not in found["labels"]
    assert "1 without an answer" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--threshold", 0.1, "--held-out", 0.5), "give one of them"),
        (("--split", "val"), "only a webdataset has splits"),
        (("--held-out", 0.01), "leaves none"),
        (("--score", "softmax"), "softmax sums to one"),
        (("--against", "a", "--score", "cosine"), "no --score"),
    ],
)
def test_what_does_not_fit_is_said(zeroshot, more, message):
    code, _, said = zeroshot(*LINE, *more)
    assert code == 2
    assert message in said


def test_a_webdataset_by_its_protocol(zeroshot, tmp_path):
    members = []
    names = sorted({label for own in truth().values() for label in own})
    for number, (path, own) in enumerate(truth().items()):
        members.append((f"{number}.png", (SCENES / path).read_bytes()))
        members.append((f"{number}.npy", npy(*(name in own for name in names))))
    folder = shard(tmp_path, *members, names="\n".join(names))
    line = ("eval", folder, "--protocol", "clip_benchmark/multilabel", "--draws", 5)
    code, [found], said = zeroshot(*line)
    assert code == 0, said
    assert found["protocol"] == "clip_benchmark/multilabel"
    assert found["metrics"]["mean_average_precision"] > 0.9


def test_other_tasks_have_no_threshold(zeroshot):
    code, _, said = zeroshot("eval", SCENES, "--task", "classify", "--threshold", 0.5)
    assert code == 2
    assert "--task multilabel" in said


def test_from_python():
    found = zs.evaluate(SCENES, "multilabel", "pocket", truth=OBJECTS, held_out=0.25, draws=5)
    assert found.figures["ensemble"]["mean_average_precision"].value > 0.9
    assert "f1_micro" in found.figures["ensemble"]
    results = zs.classify(SCENES, "red heart,blue star", "pocket", multi=True, threshold=-0.2)
    assert [x.label for x in results[0].labels] == ["red heart"]
    assert results[2].abstained


def test_scores_that_are_nan_count_against_their_image():
    truth = np.array([[True, False], [True, False], [False, True], [False, True]])
    nan = np.full((4, 2), np.nan, np.float32)
    found = multilabel.measure_multilabel(nan, truth, 0.5).statistic(np.arange(4))
    # both positives of a label behind both others; none holds
    assert found["mean_average_precision"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert found["f1_micro"] == found["recall_micro"] == 0
    each = multilabel.measure_each_label(nan, truth, ["a", "b"]).statistic(np.arange(4))
    assert each == {"a": 0.5, "b": 0.5}
    some = np.array([[0.9, 0.1], [np.nan, 0.2], [0.3, np.nan], [0.2, 0.8]], np.float32)
    assert multilabel.best_threshold(some, truth) == pytest.approx(0.8)
