"""Label sets: against recorded numbers and loops, by hand, and what they promise."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from tests.golden import close, tensors
from tests.test_classify_options import COMMON, SCENES, zeroshot
from zeroshot.errors import UserError
from zeroshot.methods.sinkhorn import Sinkhorn
from zeroshot.ops import normalize
from zeroshot.tasks.classification.label_sets import (
    RULES,
    LabelSets,
    draw,
    needed,
    nonconformity,
    quantile,
    report_sets,
)

__all__ = ["zeroshot"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["none", "confot"])
def test_scores_are_the_authors(rule, kind):
    """Their sets follow from their threshold, which is not the valid one."""
    z = tensors("confot_a")
    n, alpha = int(z["hp_n_calib"]), float(z["hp_alpha"])
    how = {"penalty": float(z["hp_lambda_raps"]), "free": int(z["hp_k_raps"])}
    probabilities, labels = z[f"out_z_{kind}"], z["in_y"]
    u_test = 1 - z[f"in_U_test_{rule}_{kind}"] if rule != "lac" else None
    u_fit = z[f"in_U_calib_{rule}_{kind}"][:, None] if rule != "lac" else None
    scores = nonconformity(probabilities[n:], rule, u_test, **how)
    close(scores, z[f"out_scores_{rule}_{kind}"])
    own = nonconformity(probabilities[:n], rule, u_fit, **how).gather(1, labels[:n, None])[:, 0]
    level = (n + 1) * (1 - alpha) / n
    close(np.quantile(own, level), z[f"out_q_{rule}_{kind}"])
    assert torch.equal(scores < float(z[f"out_q_{rule}_{kind}"]), z[f"out_sets_{rule}_{kind}"])
    assert quantile(own, 1 - alpha) >= float(z[f"out_q_{rule}_{kind}"])


def test_conf_ot_is_sinkhorn_with_the_classes_first():
    z = tensors("confot_a")
    n, classes = int(z["hp_n_calib"]), z["in_logits"].shape[1]
    shares = torch.bincount(z["in_y"][:n], minlength=classes).double() / n
    how = {"iterations": int(z["hp_ot_iters"]), "first": "classes"}
    close(Sinkhorn(**how).fit(prior=shares).adjust(z["in_logits"]).softmax(1), z["out_z_confot"])
    even = Sinkhorn(**how, assume="uniform").adjust(z["in_logits"]).softmax(1)
    close(even, z["out_z_uniform"])


def test_scores_by_hand():
    p = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    u = torch.tensor([[0.25]], dtype=torch.float64)
    close(nonconformity(p), [[0.5, 0.8, 0.7]])
    close(nonconformity(p, "aps"), [[0.5, 1.0, 0.8]])
    close(nonconformity(p, "aps", u), [[0.125, 0.85, 0.575]])
    close(nonconformity(p, "raps", u, 0.1, 1), [[0.125, 1.05, 0.675]])
    close(nonconformity(p, "raps", u, 0.1, 2), [[0.125, 0.95, 0.575]])


def test_the_threshold_is_an_order_statistic():
    scores = torch.tensor([0.4, 0.1, 0.3, 0.2])
    assert quantile(scores, 0.8) == pytest.approx(0.4)  # the 4th of 5 (4 + 1) parts
    assert quantile(scores, 0.6) == pytest.approx(0.3)
    assert quantile(scores, 0.81) == math.inf
    assert [needed(c) for c in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]


def test_a_sure_model_keeps_its_label():
    """Where most calibration images have probability 1, the authors' sets are all empty."""
    logits = 200 * torch.eye(3)[torch.zeros(20, dtype=torch.long)]
    scores = nonconformity(logits.double().softmax(1)).gather(1, torch.zeros(20, 1).long())[:, 0]
    sets = LabelSets.fit("lac", scores.tolist(), 0.9).of(logits, ["a"] * 20)
    assert torch.equal(sets, torch.tensor([[True, False, False]]).expand(20, 3))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("promise", [0.8, 0.9])
def test_the_promise_is_kept(rule, promise):
    """Over many draws of 19 calibration images, of a model that is wrong about its certainty."""
    generator = torch.Generator().manual_seed(3)
    covered = []
    for draw_number in range(200):
        logits = 3 * torch.randn(60, 5, generator=generator, dtype=torch.float64)
        labels = torch.multinomial((logits / 2).softmax(1), 1, generator=generator)
        scores = nonconformity(
            logits.softmax(1), rule, draw([f"{draw_number} {i}" for i in range(60)])
        ).gather(1, labels)[:, 0]
        covered.append(float((scores[19:] <= quantile(scores[:19], promise)).double().mean()))
    error = np.std(covered) / len(covered) ** 0.5
    expected = math.ceil(20 * promise) / 20
    assert abs(np.mean(covered) - expected) < 4 * error
    assert expected >= promise


def test_an_image_has_one_number_from_its_content():
    numbers = draw([f"{i}" for i in range(4000)])[:, 0]
    assert torch.equal(numbers[:2], draw(["0", "1"])[:, 0])
    shares = torch.histc(numbers, 10, 0, 1) / 4000
    assert (shares - 0.1).abs().max() < 0.02


def test_a_report_measures_on_the_other_half():
    probabilities = normalize(torch.rand(400, 4, generator=torch.Generator().manual_seed(0)))
    labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    found = report_sets(nonconformity(probabilities.double()), labels, 0.9)
    assert found.coverage == pytest.approx(0.9, abs=0.02)
    assert found.lowest < 0.9 < found.lowest + 0.04
    assert found.worst_class <= found.coverage
    assert 2 < found.size < 4
    everything = report_sets(torch.zeros(20, 3), torch.zeros(20, dtype=torch.long), 0.5)
    assert (everything.coverage, everything.empty) == (1, 0)
    assert everything.size == pytest.approx(3)


# As a user meets them


@pytest.fixture
def made(zeroshot, tmp_path):
    """A calibration from labelled scenes, some of them labelled wrongly."""
    names = ["red heart", "blue star", "green ring", *["red heart"] * 5]
    for name, file in zip(names, SCENES, strict=True):
        (tmp_path / "truth" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "truth" / name)
    out = tmp_path / "made.json"
    code, rows, said = zeroshot("calibrate", "--truth", tmp_path / "truth", *COMMON, "--out", out)
    assert code == 0, said
    assert [row["promise"] for row in rows[2:]] == [0.8] * 3
    assert "8 labelled images are too few" in said
    assert "0.9 needs 18, 0.95 needs 38" in said
    return out


def test_rows_have_sets(zeroshot, made):
    held = json.loads(made.read_text())
    assert {rule: len(own) for rule, own in held["sets"].items()} == dict.fromkeys(RULES, 8)
    command = ["classify", *SCENES, *COMMON, "--calibration", made]
    _, plain, _ = zeroshot(*command)
    assert "label_set" not in plain[0]
    sizes = {}
    for promise in (0.2, 0.8):
        for rule in RULES:
            _, rows, said = zeroshot(*command, "--sets", promise, "--set-rule", rule)
            assert rows, said
            for row in rows:
                ranked = [x["label"] for x in row["labels"]]
                assert row["label_set"] == ranked[: len(row["label_set"])]  # no gaps
            sizes[promise, rule] = sum(len(row["label_set"]) for row in rows)
    assert all(sizes[0.2, rule] < sizes[0.8, rule] for rule in RULES)


def test_a_calibration_image_is_covered_as_promised(zeroshot, made, tmp_path):
    command = ["classify", tmp_path / "truth", *COMMON, "--calibration", made, "--sets", "0.8"]
    _, rows, _ = zeroshot(*command)
    right = [row["path"].split("/")[-2] in row["label_set"] for row in rows]
    assert sum(right) >= math.ceil(9 * 0.8)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sets", "0.95"], "--sets 0.95 needs 19 labelled calibration images, and the"),
        (["--sets", "1"], "0.9999"),
        (["--sets", "0.8", "--templates", "none"], "belong to other prompts"),
        (["--sets", "0.8", "--multi"], "--calibration is for one label per image"),
        (["--sets", "0.8", "--method", "center"], "was made with method ensemble"),
    ],
)
def test_what_sets_refuse(zeroshot, made, more, message):
    code, _, said = zeroshot("classify", SCENES[0], *COMMON, "--calibration", made, *more)
    assert code == 2
    assert message in " ".join(said.split())


def test_sets_need_labels_and_the_same_bank(zeroshot, tmp_path, made):
    plain, banked = tmp_path / "plain.json", tmp_path / "banked.json"
    assert zeroshot("calibrate", *SCENES[:3], *COMMON, "--out", plain)[0] == 0
    wanted = ["classify", SCENES[0], *COMMON, "--sets", "0.8"]
    for more in ([], ["--calibration", plain]):
        code, _, said = zeroshot(*wanted, *more)
        assert code == 2
        assert "--sets needs --calibration FILE.json of labelled images" in " ".join(said.split())
    center = ["--method", "center", "--bank", SCENES[0], "--bank", SCENES[1]]
    truth = ["--truth", tmp_path / "truth", "--out", banked]
    assert zeroshot("calibrate", *truth, *COMMON, *center)[0] == 0
    assert zeroshot(*wanted, *center, "--calibration", banked)[0] == 0
    code, _, said = zeroshot(*wanted, *center[:4], "--calibration", banked)
    assert code == 2
    assert "made with other --bank images" in said


def test_too_few_are_said():
    with pytest.raises(UserError, match="needs 9 labelled calibration images, and the calibration"):
        LabelSets.fit("lac", [0.1] * 8, 0.9)
