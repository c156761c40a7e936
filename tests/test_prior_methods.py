"""center, dn, sinkhorn, otter, frolic: against loops, linear programs and the authors' numbers."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from tests.golden import close, recorded, tensors
from zeroshot import methods
from zeroshot.errors import FewClassesWarning, UnsuitableWarning, UserError
from zeroshot.methods import _prior, otter
from zeroshot.methods.center import Center
from zeroshot.methods.dn import DN
from zeroshot.methods.frolic import Frolic, class_bias, stationary
from zeroshot.methods.otter import OTTER
from zeroshot.methods.sinkhorn import Sinkhorn, biases
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64))


def logits(rows, classes, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


# center


@pytest.mark.parametrize("guard", [False, True])
def test_center_equals_loops(guard):
    given, bank = logits(5, 3), logits(4, 3, seed=1)
    for rows in (given, bank):
        ours = Center(lam=0.7, guard=guard).adjust(given, rows)
        share = [1 / 3] * 3
        for _ in range(4):
            sums = [0.0] * 3
            for j in range(len(rows)):
                e = [share[c] * math.exp(float(rows[j, c])) for c in range(3)]
                sums = [total + x / sum(e) / len(rows) for total, x in zip(sums, e, strict=True)]
            share = sums
        means = [sum(float(rows[j, c]) for j in range(len(rows))) / len(rows) for c in range(3)]
        for i in range(5):
            for c in range(3):
                excess = 0.7 * (means[c] - sum(means) / 3) * (1 - share[c] * guard)
                assert float(ours[i, c]) == pytest.approx(float(given[i, c]) - excess)


def test_centred_scores_with_a_bank_are_adjusted_logits():
    images, texts, bank = unit(6, 8), unit(4, 3, 8, seed=1), unit(5, 8, seed=2)
    classes = normalize(texts.mean(1))
    expected = Center().adjust(50.0 * images @ classes.T, 50.0 * bank @ classes.T)
    ours = Center().fit(bank=bank).scores(images, texts, logit_scale=50.0)
    torch.testing.assert_close(ours, expected)


# dn


def test_authors_dn_from_raw_arrays():
    z = recorded("dn_a")
    arrays = {"images": z["in_X_raw"], "texts": z["in_W_raw"][:, None], "bank": z["in_X0_raw"]}
    close(score_arrays(arrays, "dn", {})["scores"], z["out_sims"])
    close(score_arrays(arrays, "dn", {"lam": 0.0})["scores"], z["out_sims_plain"])


def test_dn_equals_loops():
    images, texts = 3 * unit(4, 6), 2 * unit(3, 2, 6, seed=1)
    ours = DN(lam=0.4).scores(images, texts)
    rows, classes = images.numpy(), []
    for c in range(3):
        mean = sum(p / np.linalg.norm(p) for p in texts[c].numpy())
        classes.append(2 * mean / np.linalg.norm(mean))
    for i in range(4):
        for c in range(3):
            x = rows[i] - 0.4 * rows.mean(0)
            w = classes[c] - 0.4 * np.mean(classes, axis=0)
            expected = x @ w / np.linalg.norm(x) / np.linalg.norm(w)
            assert float(ours[i, c]) == pytest.approx(expected, rel=1e-10)


# priors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sinkhorn_meets_the_prior(dtype):
    given, prior = logits(50, 4).to(dtype), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=dtype)
    balanced = Sinkhorn(iterations=500).fit(prior=prior).adjust(given)
    torch.testing.assert_close(balanced.softmax(1).mean(0), prior, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        (balanced - given).std(0), torch.zeros(4, dtype=dtype), atol=1e-5, rtol=0
    )


def test_sinkhorn_equals_loops():
    given, prior = logits(6, 3, scale=2.0), [0.2, 0.3, 0.5]
    matrix = np.exp(given.numpy())
    for _ in range(7):
        matrix = matrix / matrix.sum(1, keepdims=True) / 6
        matrix = matrix / matrix.sum(0) * np.array(prior)
    ours = given + biases(given, torch.tensor(prior, dtype=torch.float64), 7)
    expected = np.log(matrix)
    # equal up to a constant per row, which the last row scaling leaves open
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdim=True), expected - expected.mean(1, keepdims=True), rtol=1e-9
    )


def test_a_class_with_no_share_gets_nothing():
    prior = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    balanced = Sinkhorn().fit(prior=prior).adjust(logits(20, 3))
    assert balanced.isfinite().all()
    assert not (balanced.argmax(1) == 2).any()


def test_the_estimated_prior_is_the_most_likely_one():
    """Against a fine grid over two classes."""
    given = logits(40, 2) + torch.tensor([1.0, 0.0])
    ours = _prior.estimate(given, most=5000, tolerance=1e-12)
    share = np.linspace(1e-4, 1 - 1e-4, 9999)
    p = given.softmax(1).numpy()
    likelihood = np.log(p[:, :1] * share + p[:, 1:] * (1 - share)).sum(0)
    assert float(ours[0]) == pytest.approx(share[likelihood.argmax()], abs=2e-4)


@pytest.mark.parametrize("method", [Sinkhorn, OTTER])
def test_without_a_prior_one_has_to_say_what_to_assume(method):
    with pytest.raises(UserError, match=r"needs the array prior \[c\].*assume=estimated"):
        method().adjust(logits(5, 3))
    given = logits(30, 4)
    prior = _prior.estimate(given)
    estimated = method(assume="estimated").adjust(given)
    torch.testing.assert_close(estimated, method().fit(prior=prior).adjust(given))
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(
        method(assume="uniform").adjust(given), method().fit(prior=uniform).adjust(given)
    )


def few_classes(rows=64, classes=40, present=3):
    """Logits of rows that all belong to the first classes."""
    given = logits(rows, classes, scale=1.5)
    given[torch.arange(rows), torch.arange(rows) % present] += 8
    return given


@pytest.mark.parametrize("method", [Sinkhorn(assume="uniform"), OTTER(assume="uniform"), Frolic()])
def test_uniform_methods_warn_where_few_classes_seem_present(method):
    with pytest.warns(FewClassesWarning, match="about 3 seem present among 64 rows"):
        method.adjust(few_classes())
    method.adjust(few_classes(400, 40, 40))  # a warning would be an error


# otter


def otter_arrays():
    z = recorded("otter_a")
    arrays = {"images": z["in_X"], "texts": z["in_W"][:, None], "prior": z["in_class_balance"]}
    return z, arrays


@pytest.mark.parametrize(
    ("options", "scale", "output"),
    [
        ({"epsilon": 1e-9}, 1.0, ""),
        ({}, 1.0, ""),
        ({"epsilon": 1e-6}, 100.0, "_posthoc"),
        ({}, 100.0, "_posthoc_logits"),
    ],
)
def test_authors_plans_from_arrays(options, scale, output):
    z, arrays = otter_arrays()
    shares = score_arrays(arrays | {"logit_scale": np.array(scale)}, "otter", options)["scores"]
    plan = z[f"out_plan{output}"]
    close(shares / len(shares), plan)
    assert np.array_equal(shares.argmax(1), z[f"out_pred{output}"])


def test_authors_uniform_predictions():
    z, arrays = otter_arrays()
    del arrays["prior"]
    shares = score_arrays(arrays, "otter", {"assume": "uniform"})["scores"]
    assert np.array_equal(shares.argmax(1), z["out_pred_uniform"])


@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_the_optimum_of_the_whole_program(seed, monkeypatch):
    """Few cells at first, so that the prices have to bring in the others."""
    rng = np.random.default_rng(seed)
    cost, prior = rng.exponential(size=(23, 7)), rng.dirichlet(np.ones(7))
    monkeypatch.setattr(otter, "WIDE", 1)
    plan = otter.transport(cost, prior)
    np.testing.assert_allclose(plan.sum(1), 1 / 23)
    np.testing.assert_allclose(plan.sum(0), prior, atol=1e-9)
    sums = np.zeros((30, 23, 7))
    for i in range(23):
        sums[i, i] = 1
    for c in range(7):
        sums[23 + c, :, c] = 1
    right = np.concatenate([np.full(23, 1 / 23), prior])
    whole = linprog(cost.ravel(), A_eq=sums.reshape(30, -1), b_eq=right)
    assert (plan * cost).sum() == pytest.approx(whole.fun, rel=1e-8)


def test_too_large_a_program_is_refused(monkeypatch):
    monkeypatch.setattr(otter, "LARGEST", 10)
    with pytest.raises(UserError, match="sinkhorn balances"):
        otter.transport(np.ones((6, 2)), np.full(2, 0.5))


# frolic


def test_authors_label_bias():
    z = tensors("frolic_a")
    compat = Frolic(compat=True)
    close(compat.adjust(z["in_debias_input_zeroshot"]), z["out_debiased_zeroshot"])
    close(compat.adjust(z["in_debias_input_logits"]), z["out_debiased_logits"])
    one_step = Frolic(rounds=1, gate=False, compat=True)
    close(one_step.adjust(z["in_debias_input_zeroshot"]), z["out_logits_one_step"])
    prior = stationary(z["in_debias_input_zeroshot"], gate=False, compat=True)
    close(prior, z["out_prior_one_step"])


def test_in_the_end_the_authors_early_stop_returns_its_uniform_start():
    """What the page says of it; ours still finds a leaning there."""
    z = tensors("frolic_a")
    close(stationary(z["out_debiased_logits"], compat=True), z["out_last_prior"])
    assert z["out_last_prior"].unique().numel() == 1
    assert float(class_bias(z["out_debiased_logits"]).abs().max()) > 0.1


def test_authors_debiased_zero_shot_from_arrays():
    z = recorded("frolic_a")
    arrays = {"images": z["in_X"], "texts": z["in_W"][:, None], "logit_scale": np.array(100.0)}
    scores = score_arrays(arrays, "frolic", {"compat": True})["scores"]
    close(scores, z["out_debiased_zeroshot"])


def test_authors_gaussian_scores_from_arrays():
    """Their Gaussians stand at W; the covariance pools the prompts E."""
    z = tensors("frolic_a")
    from zeroshot.methods.frolic import gaussian_scores, inverse_variance

    precision = inverse_variance(torch.cat([z["in_X"], z["in_E"].flatten(0, 1)]), 0.9)
    close(gaussian_scores(z["in_X"], z["in_W"], precision), z["out_lda_logits"])
    classes = normalize(z["in_E"].mean(1))
    ours = Frolic(lda=True, rounds=0).scores(z["in_X"], z["in_E"], logit_scale=1.0)
    torch.testing.assert_close(ours, gaussian_scores(z["in_X"], classes, precision))


def test_mean_probability_of_prompts_is_the_authors():
    z = recorded("frolic_a")
    arrays = {"images": z["in_X"], "texts": z["in_E"], "logit_scale": np.array(100.0)}
    close(score_arrays(arrays, "ensemble", {"mode": "prob"})["scores"], z["out_llm_prob_mean"])


def test_stationary_distribution_is_where_a_walk_ends():
    given = logits(60, 4, scale=1.0)
    probability = given.softmax(1).numpy()
    walk = np.zeros((4, 4))
    for k in range(4):
        rows = [
            p for p in probability if p.argmax() == k and np.sort(p)[-1] - np.sort(p)[-2] > 0.25
        ]
        walk[k] = np.mean(rows, axis=0)
    walk = 0.999 * walk + 0.001 * 0.25
    expected = np.linalg.matrix_power(walk, 10_000)[0]
    np.testing.assert_allclose(stationary(given), expected, rtol=1e-8)


@pytest.mark.parametrize("compat", [False, True])
def test_one_class_has_no_leaning(compat):
    assert class_bias(logits(5, 1), compat=compat).abs() < 1e-9


def test_a_leaning_is_found_and_removed():
    """Logits of balanced rows, with a constant added to one class."""
    generator = torch.Generator().manual_seed(5)
    label = torch.arange(3).repeat(200)
    given = torch.randn(600, 3, generator=generator, dtype=torch.float64)
    given[torch.arange(600), label] += 2.0
    biased = given + torch.tensor([1.5, 0.0, 0.0])
    before = (biased.argmax(1) == label).double().mean()
    after = (Frolic().adjust(biased).argmax(1) == label).double().mean()
    assert after > before + 0.05
    found = class_bias(biased)
    assert float(found.mean()) == pytest.approx(0, abs=1e-12)
    assert float(found[0] - found[1:].mean()) == pytest.approx(1.5, abs=0.6)


@pytest.mark.parametrize("method", ["sinkhorn", "otter"])
@pytest.mark.parametrize(("scale", "warned"), [(1.0, True), (5.0, True), (200.0, False)])
def test_a_prior_estimated_from_unsure_scores_is_warned_of(method, scale, warned):
    generator = torch.Generator().manual_seed(0)
    images, texts = (normalize(torch.randn(n, 16, generator=generator)) for n in (40, 6))
    scorer = methods.configure(method, {"assume": "estimated"})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scorer.scores(images, texts[:, None], logit_scale=scale)
    messages = [str(w.message) for w in said if issubclass(w.category, UnsuitableWarning)]
    assert bool(messages) is warned
    assert all("mostly strengthens what the model favours" in text for text in messages)
