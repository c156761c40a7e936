"""What `classify` may learn from and say no by, as a user meets it: on the pocket set."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from zeroshot import cli, methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import read_labeled_images, read_prior
from zeroshot.errors import UserError
from zeroshot.images.pixels import view
from zeroshot.inference.embedding import embed_images, with_views
from zeroshot.inference.meter import Meter
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks.classification import classifier as task
from zeroshot.tasks.classification.calibration import Calibration

ROOT = Path(__file__).parent.parent
SCENES = sorted((ROOT / "examples" / "scenes").glob("*.png"))
LABELS = "red heart,blue star,green ring"
COMMON = ["--labels", LABELS, "--models", "pocket"]

METHOD = '''"""Nearest shot, by views.

Made for a test: the best cosine of a view and a shot of the class, on top of the texts'.

    score = max_vm cos(view_v, shot_m of c) + cos(x, text_c)
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Shotview:
    """Nearest shot."""

    shots_: object = field(default=None, repr=False, compare=False)
    labels_: object = field(default=None, repr=False, compare=False)
    transductive: ClassVar[bool] = False
    output: ClassVar[str] = "similarity"

    def fit(self, shots, shot_labels):
        return replace(self, shots_=shots, labels_=shot_labels)

    def scores(self, images, texts, text_mask=None, logit_scale=100.0, *, views):
        best = torch.einsum("nvd,md->nvm", views, self.shots_).amax(1)
        own = torch.nn.functional.one_hot(self.labels_, len(texts)).bool()
        near = torch.where(own, best[..., None], -1.0).amax(1)
        return near + images @ texts.mean(1).T
'''


@pytest.fixture
def shotview(monkeypatch, tmp_path):
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "shotview.py").write_text(METHOD)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    yield
    import sys

    sys.modules.pop("zeroshot.methods.shotview", None)
    vars(methods).pop("shotview", None)


@pytest.fixture
def zeroshot(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = cli.run([*map(str, arguments)])
        said = capsys.readouterr()
        return code, [json.loads(x) for x in said.out.splitlines()], said.err

    return run


@pytest.fixture
def shots(tmp_path):
    """Two shots of two classes: a folder per class."""
    for name, files in (("red heart", SCENES[:2]), ("green ring", SCENES[2:4])):
        (tmp_path / "shots" / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, tmp_path / "shots" / name)
    return tmp_path / "shots"


def encoded(paths, views=0):
    models = resolve("pocket")
    with EmbeddingCache() as cache:
        batches = embed_images([task.Source(str(p)) for p in paths], models.encoder, cache, Meter())
        if views:
            batches = with_views(batches, views, models.encoder, cache, Meter())
        [batch] = batches
    return batch.views if views else batch.embeddings


def test_shots_and_views_reach_the_method(zeroshot, shotview, shots, tmp_path):
    command = ["classify", *SCENES, *COMMON, "--method", "shotview"]
    code, rows, said = zeroshot(*command, "--shots", shots, "--views", 4, "--score", "cosine")
    assert code == 0, said
    views, near = encoded(SCENES, 4), encoded(SCENES[:4])
    texts = {x["label"]: x for x in rows[0]["labels"]}
    assert set(texts) == set(LABELS.split(","))
    for n, row in enumerate(rows):
        score = {x["label"]: x["score"] - x["cosine"] for x in row["labels"]}
        best = (views[n] @ near.T).amax(0)
        # the texts' part differs by the length of a mean of prompts, so only roughly the cosine
        assert score["red heart"] == pytest.approx(float(best[:2].max()), abs=0.05)
        assert score["green ring"] == pytest.approx(float(best[2:].max()), abs=0.05)
        assert score["blue star"] < -0.9
    listed = tmp_path / "shots.csv"
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for folder in sorted(shots.iterdir()):
            writer.writerows(
                [(p.relative_to(tmp_path), folder.name) for p in sorted(folder.iterdir())]
            )
    _, again, _ = zeroshot(*command, "--shots", listed, "--views", 4, "--score", "cosine")
    assert again == rows


def test_views_are_the_picture_and_parts_of_it_and_come_from_the_cache(monkeypatch):
    models = resolve("pocket")
    views = encoded(SCENES[:3], 5)
    torch.testing.assert_close(views[:, 0], encoded(SCENES[:3]))
    assert float((views[:, 1:] - views[:, :1]).abs().amax(-1).min()) > 1e-3
    monkeypatch.setattr(
        type(models.encoder), "encode_images", lambda *_: pytest.fail("an encoder call")
    )
    torch.testing.assert_close(encoded(SCENES[:3], 5), views)
    torch.testing.assert_close(encoded(SCENES[:3], 3), views[:, :3])


def test_parts_are_the_same_for_the_same_seed_and_lie_inside():
    wide = PIL.Image.fromarray(np.arange(3 * 40 * 90, dtype=np.uint8).reshape(40, 90, 3))
    parts = [view(wide, str(seed)) for seed in range(30)]
    assert all(part.size[0] == part.size[1] for part in parts)
    assert len({part.tobytes() for part in parts}) == 30
    assert view(wide, "7").tobytes() == parts[7].tobytes()
    sides = [part.size[0] for part in parts]
    assert min(sides) > 10
    assert max(sides) <= 60  # 40 high, at most 4:3
    assert view(PIL.Image.new("RGB", (400, 3)), "0").size == (4, 4)


def test_a_bank_and_a_prior_from_the_command_line(zeroshot):
    command = ["classify", *SCENES, *COMMON, "--score", "cosine"]
    code, rows, _ = zeroshot(*command, "--method", "nnn", "--bank", SCENES[0], "--bank", SCENES[1])
    assert code == 0
    cosine, bank = (encoded(paths) for paths in (SCENES, SCENES[:2]))
    shift = {x["label"]: x["cosine"] - x["score"] for x in rows[0]["labels"]}
    for row in rows:
        for x in row["labels"]:
            assert x["cosine"] - x["score"] == pytest.approx(shift[x["label"]], abs=1e-5)
    assert len(cosine) == len(rows)
    assert len(bank) == 2
    code, rows, _ = zeroshot(*command, "--method", "sinkhorn", "--prior", "1,1,2")
    assert code == 0
    best = [row["labels"][0]["label"] for row in rows]
    assert best.count("green ring") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "center", "--views", "3"], "'center' has no use for --views"),
        (["--method", "center", "--shots", "SHOTS"], "'center' has no use for --shots"),
        (["--method", "ncm", "--shots", "SHOTS"], "class 1 of 0 to 2 has none"),
        (["--coupling", "csa"], "needs no coupling; --encoder coupled"),
        (
            ["--encoder", "coupled", "--coupling", "csa", "--method", "asif"],
            "--method asif is a coupling, and so is --coupling csa",
        ),
        (["--method", "nnn"], "'nnn' needs 'zeroshot classify' with --bank"),
        (["--method", "shotview"], "'shotview' needs 'zeroshot classify' with --shots and --views"),
        (["--method", "shotview", "--shots", "SHOTS", "--views", "1"], "give 2 or more"),
        (["--method", "chils"], "'chils' needs 'zeroshot classify' with --hierarchy"),
        (["--hierarchy", "x.json"], "one of --labels"),
        (["--method", "sinkhorn", "--prior", "1,2"], "expected 3 numbers"),
        (["--method", "sinkhorn", "--prior", "1,2,x"], "expected numbers"),
        (["--method", "sinkhorn", "--prior", "0,0,0"], "not all zero"),
        (["--abstain", "0.1"], "--abstain needs --calibration"),
        (["--calibration", "none.json"], "no such file"),
        (["--compare", "center,zpe", "--method", "dn"], "--compare takes no --method"),
        (["--compare", "center,zpe", "-o", "lam=1"], "an option names its method"),
    ],
)
def test_what_has_no_use_or_is_missing_is_said(zeroshot, shotview, shots, arguments, message):
    given = [str(shots) if a == "SHOTS" else a for a in arguments]
    code, _, said = zeroshot("classify", *SCENES[:2], *COMMON, *given)
    assert code == 2
    assert message in " ".join(said.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "is the only label"),
        (["--score", "softmax"], "is the only label"),
        (["--method", "center"], "is the only label"),
        (["--score", "cosine"], None),
        (["--score", "sigmoid"], None),
        (["--multi"], None),
        (["--multi", "--against", "a star"], None),
    ],
)
def test_one_label_alone(zeroshot, more, said):
    code, rows, err = zeroshot(
        "classify", SCENES[0], "--models", "pocket", "--labels", "red heart", *more
    )
    assert code == (0 if said is None else 2)
    assert (said or "") in " ".join(err.split())
    assert said or rows[0]["labels"][0]["label"] == "red heart"


def test_one_label_alone_is_not_calibrated(zeroshot, tmp_path):
    command = ("--models", "pocket", "--labels", "red heart", "--out", tmp_path / "x.json")
    code, _, said = zeroshot("calibrate", SCENES[0], *command)
    assert code == 2
    assert "is the only label" in " ".join(said.split())


@pytest.mark.parametrize(
    ("more", "scored"),
    [
        ([], "softmax"),  # of the model's own scale
        (["--method", "center", "--bank", *SCENES[:4]], "uncalibrated"),
        (["--method", "stata"], "uncalibrated"),
        (["--encoder", "coupled"], "uncalibrated"),
        (["--score", "cosine"], "cosine"),
        (["--multi"], "cosine"),
        (["--shots", "SHOTS"], "softmax"),  # fitted to left-out shots
        (["--shots", "SHOTS", "--encoder", "coupled"], "softmax"),
        (["--shots", "SHOTS", "--method", "gda"], "uncalibrated"),
        (["--calibration", "LABELLED"], "softmax"),
        (["--calibration", "LABELLED", "--method", "center", "--bank", *SCENES[:4]], "softmax"),
        (
            ["--calibration", "UNLABELLED", "--method", "center", "--bank", *SCENES[:4]],
            "uncalibrated",
        ),
    ],
)
def test_what_a_score_is_called(zeroshot, shots, tmp_path, more, scored):
    """A softmax is one only where somebody compared its scale with what was right."""
    given = [str(shots) if x == "SHOTS" else x for x in more]
    for kind in ("LABELLED", "UNLABELLED"):
        if kind in given:
            method = "center" if "center" in given else "ensemble"
            fitted = Calibration(
                models={"encoder": resolve("pocket").encoder.name},
                method=method,
                options=methods.values(methods.get(method)()),
                score="softmax",
                prompts="",
                temperature=1.5,
                report={"ece": 0.1} if kind == "LABELLED" else {},
            )
            fitted.write(tmp_path / "calibration.json")
            given[given.index(kind)] = str(tmp_path / "calibration.json")
    code, rows, said = zeroshot("classify", *SCENES[:2], *COMMON, *given)
    assert code == 0, said
    assert {row["scored"] for row in rows} == {scored}


@pytest.mark.parametrize(
    ("method", "more", "warned"),
    [
        ("stata", (), True),
        ("otter", ("--prior", "1,1,2"), True),
        ("zpe+stata", (), True),
        ("sinkhorn", ("--prior", "1,1,2"), True),
        ("zpe", (), False),
        ("ensemble", (), False),
    ],
)
def test_several_labels_are_not_shared_out(zeroshot, method, more, warned):
    for multi in (["--multi"], []):
        _, _, said = zeroshot("classify", *SCENES[:4], *COMMON, "--method", method, *more, *multi)
        assert ("shares each image out" in " ".join(said.split())) is (warned and bool(multi))


def test_labelled_pictures_that_are_not(tmp_path):
    labels = ("a", "b")
    (tmp_path / "x" / "c").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("file,class\n1.png,a\n")
    (tmp_path / "wrong.csv").write_text("path,label\n1.png,z\n")
    for name, message in [
        ("x", r"folder 'c' is none of the labels: a, b"),
        ("empty", "has no labeled images"),
        ("bad.csv", "line 2, column 'path': expected a text, got no such column"),
        ("wrong.csv", "line 2, column 'label': 'z' is none of the labels"),
        ("none.csv", "no such file"),
        ("none", "no such folder"),
    ]:
        with pytest.raises(UserError, match=message):
            read_labeled_images(tmp_path / name, labels)
    (tmp_path / "p.json").write_text('{"b": 1, "a": 3}')
    assert read_prior(str(tmp_path / "p.json"), labels) == (3, 1)
    with pytest.raises(UserError, match="a number for each label"):
        read_prior(str(tmp_path / "p.json"), ("a", "b", "c"))
    for bad in ("9" * 400, "NaN", "[1]", "1e400", '"x"', "null", "-1"):
        (tmp_path / "p.json").write_text(f'{{"a": 1, "b": {bad}}}')
        with pytest.raises(UserError, match=r"--prior .*p\.json: expected (2 )?numbers"):
            read_prior(str(tmp_path / "p.json"), labels)
    with pytest.raises(UserError, match="--prior 1e308,1e308: expected 2 numbers"):
        read_prior("1e308,1e308", labels)


def test_a_shot_that_cannot_be_read_is_refused(zeroshot, shotview, shots):
    (shots / "red heart" / "broken.png").write_bytes(b"no picture")
    code, _, said = zeroshot(
        "classify", SCENES[0], *COMMON, "--method", "shotview", "--shots", shots, "--views", 2
    )
    assert code == 2
    assert "broken.png" in said


def test_one_table_of_methods(zeroshot):
    names = "ensemble,center,zpe+center"
    command = ["classify", *SCENES, *COMMON, "--compare", names, "-o", "center.lam=0.3"]
    code, rows, _ = zeroshot(*command)
    assert code == 0
    assert [row["method"] for row in rows] == names.split(",")
    assert rows[0]["agreement with the first"] == 1
    assert all(0 < row["mean best score"] <= 1 and row["CPU ms per row"] >= 0 for row in rows)


def test_one_table_from_arrays(zeroshot, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        images=rng.normal(size=(30, 8)),
        texts=rng.normal(size=(4, 2, 8)),
        prior=np.ones(4),
    )
    code, rows, said = zeroshot(
        "classify", "--embeddings", tmp_path / "x.npz", "--compare", "ensemble,sinkhorn,otter"
    )
    assert code == 0, said
    assert [row["method"] for row in rows] == ["ensemble", "sinkhorn", "otter"]
    assert 0 < rows[1]["agreement with the first"] < 1


def test_a_hierarchy_from_the_command_line(zeroshot, tmp_path):
    """The same as the method on rows; kinds are no labels of the answer."""
    file = tmp_path / "kinds.json"
    held = {"heart": ["red heart", "pink heart"], "star": ["blue star"], "ring": []}
    file.write_text(json.dumps(held))
    command = ["classify", *SCENES, "--models", "pocket", "--method", "chils"]
    code, rows, said = zeroshot(*command, "--hierarchy", file, "--templates", "a {}")
    assert code == 0, said
    encoder = resolve("pocket").encoder
    names = ["heart", "star", "ring", "red heart", "pink heart", "blue star"]
    texts = encoder.encode_texts([f"a {name}" for name in names])[:, None]
    scores = methods.get("chils")().scores(
        encoded(SCENES), texts, None, encoder.logit_scale, parents=torch.tensor([0, 1, 2, 0, 0, 1])
    )
    for row, own in zip(rows, scores[:, :3].tolist(), strict=True):
        ours = {x["label"]: x["score"] for x in row["labels"]}
        assert ours == {n: pytest.approx(s, rel=1e-4) for n, s in zip(names, own, strict=False)}
    assert rows[0]["labels"][0]["label"] == "heart"
    file.write_text('{"heart": "red heart", "star": []}')
    code, _, said = zeroshot(*command, "--hierarchy", file)
    assert (code, "label 'heart': expected a list of names" in said) == (2, True)


# calibrate


@pytest.fixture
def truth(tmp_path):
    """Labels of which some are wrong, so that a temperature exists."""
    names = ["red heart", "blue star", "green ring", *["red heart"] * 5]
    for name, file in zip(names, SCENES, strict=True):
        (tmp_path / "truth" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "truth" / name)
    return tmp_path / "truth"


def test_a_temperature_from_labels_changes_the_scores(zeroshot, truth, tmp_path):
    made = tmp_path / "made.json"
    code, rows, said = zeroshot(
        "calibrate", "--truth", truth, *COMMON, "--out", made, "--min-precision", "0.9"
    )
    assert code == 0, said
    held = json.loads(made.read_text())
    assert rows[1]["temperature"] == pytest.approx(held["temperature"], abs=1e-3)
    assert rows[1]["nll"] < rows[0]["nll"]
    assert rows[1]["accuracy"] == rows[0]["accuracy"]
    _, plain, _ = zeroshot("classify", *SCENES, *COMMON)
    _, tempered, _ = zeroshot("classify", *SCENES, *COMMON, "--calibration", made)
    for a, b in zip(plain, tempered, strict=True):
        top = {x["label"]: x["score"] for x in a["labels"]}
        logits = np.log([max(top[name], 1e-30) for name in LABELS.split(",")])
        expected = np.exp(logits / held["temperature"])
        expected /= expected.sum()
        ours = {x["label"]: x["score"] for x in b["labels"]}
        for name, value in zip(LABELS.split(","), expected, strict=True):
            assert ours[name] == pytest.approx(value, rel=1e-2, abs=1e-6)
        threshold = held["thresholds"][b["labels"][0]["label"]]
        score = b["labels"][0]["score"]
        assert b["abstained"] == (threshold is None or score < threshold - 1e-6)


def test_abstaining_leaves_out_what_is_less_likely_than_the_reference(zeroshot, tmp_path):
    made = tmp_path / "made.json"
    code, _, said = zeroshot("calibrate", *SCENES, *COMMON, "--out", made)
    assert code == 0, said
    assert "temperature 1," in said
    command = ["classify", *SCENES, *COMMON, "--calibration", made]
    _, rows, _ = zeroshot(*command, "--abstain", "0.35")
    scores = np.array([row["labels"][0]["score"] for row in rows])
    rank = [(1 + (scores <= s).sum()) / 9 for s in scores]
    assert [row["abstained"] for row in rows] == [r <= 0.35 for r in rank]
    assert sum(row["abstained"] for row in rows) == 2
    _, rows, _ = zeroshot(*command)
    assert not any(row["abstained"] for row in rows)


def test_label_free_brings_another_method_to_the_models_own_confidence(zeroshot, tmp_path):
    made = tmp_path / "made.json"
    method = ["--method", "center", "-o", "lam=1"]
    assert zeroshot("calibrate", *SCENES, *COMMON, *method, "--out", made)[0] == 0
    _, plain, _ = zeroshot("classify", *SCENES, *COMMON)
    _, rows, _ = zeroshot("classify", *SCENES, *COMMON, *method, "--calibration", made)

    def mean(found):
        return np.mean([row["labels"][0]["score"] for row in found])

    assert mean(rows) == pytest.approx(mean(plain), abs=1e-4)


@pytest.mark.filterwarnings("default::zeroshot.errors.UnsuitableWarning")
@pytest.mark.parametrize("method", [[], ["--method", "center", "-o", "lam=1"]])
def test_labelled_images_that_are_all_right_give_label_sets_and_no_temperature(
    method, zeroshot, tmp_path
):
    """The temperature is that without labels, and scores keep their name."""
    made, bare, right = (tmp_path / name for name in ("made.json", "bare.json", "right"))
    common = [*COMMON, *method]
    _, plain, _ = zeroshot("classify", *SCENES, *common)
    for row, image in zip(plain, SCENES, strict=True):
        (right / row["labels"][0]["label"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, right / row["labels"][0]["label"])
    code, reports, said = zeroshot("calibrate", "--truth", right, *common, "--out", made)
    assert code == 0, said
    assert "all 8 labelled images are classified right" in " ".join(said.split())
    assert reports[0]["accuracy"] == 1
    assert zeroshot("calibrate", *SCENES, *common, "--out", bare)[0] == 0
    found, unlabelled = json.loads(made.read_text()), json.loads(bare.read_text())
    assert found["temperature"] == pytest.approx(unlabelled["temperature"])
    assert (found["temperature"] == pytest.approx(1)) == (not method)
    assert found["report"] == {}
    sets = [] if method else ["--sets", "0.8"]  # center scores all images together
    _, rows, _ = zeroshot("classify", *SCENES, *common, "--calibration", made, *sets)
    assert [row["scored"] for row in rows] == [row["scored"] for row in plain]
    if sets:
        assert {len(own) for own in found["sets"].values()} == {8}
        best = [row["labels"][0]["label"] for row in rows]
        assert sum(b in row["label_set"] for b, row in zip(best, rows, strict=True)) >= 7


def test_thresholds_of_independent_labels(zeroshot, truth, tmp_path):
    made = tmp_path / "made.json"
    sigmoid = [*COMMON, "--score", "sigmoid"]
    code, _, said = zeroshot(
        "calibrate", "--truth", truth, *sigmoid, "--out", made, "--min-precision", "0.8"
    )
    assert code == 0, said
    assert json.loads(made.read_text())["temperature"] == 1
    _, rows, _ = zeroshot("classify", *SCENES, *sigmoid, "--calibration", made)
    assert {row["abstained"] for row in rows} == {True, False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "IMAGE", *COMMON], "needs --out FILE.json"),
        (["calibrate", *COMMON, "--out", "OUT"], "needs --labels, and either images or --truth"),
        (["calibrate", "IMAGE", *COMMON, "--out", "MADE"], "--overwrite"),
        (["calibrate", "IMAGE", *COMMON, "--out", "OUT", "--min-precision", "1"], "needs --truth"),
        (["calibrate", "IMAGE", *COMMON, "--out", "OUT", "--score", "cosine"], "no probabilities"),
        (
            ["classify", "IMAGE", *COMMON, "--calibration", "MADE", "--method", "center"],
            "was made with method ensemble, not center",
        ),
        (
            ["classify", "IMAGE", *COMMON, "--calibration", "MADE", "--abstain", "0.1",
             "--templates", "none"],
            "belong to other prompts",
        ),
        (
            ["classify", "IMAGE", *COMMON, "--calibration", "MADE", "--abstain", "0.1",
             "--score", "sigmoid"],
            "belong to other scores: softmax, not sigmoid",
        ),
    ],
)  # fmt: skip
def test_what_calibration_refuses(zeroshot, tmp_path, arguments, message):
    made = tmp_path / "made.json"
    assert zeroshot("calibrate", *SCENES[:3], *COMMON, "--out", made)[0] == 0
    places = {"IMAGE": SCENES[0], "MADE": made, "OUT": tmp_path / "new.json"}
    code, _, said = zeroshot(*(places.get(a, a) for a in arguments))
    assert code == 2
    assert message in " ".join(said.split())
