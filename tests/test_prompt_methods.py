"""zpe, autoclip, chils against loops, cases by hand, and what the authors' code returned."""

import math

import numpy as np
import pytest
import torch

from tests.golden import close, recorded, tensors
from zeroshot.errors import UserError
from zeroshot.methods.autoclip import AutoCLIP, entropy, gradients
from zeroshot.methods.chils import CHiLS
from zeroshot.methods.zpe import ZPE
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64))


# zpe


def zpe_arrays():
    z = recorded("zpe_a")
    texts = z["in_E"].transpose(1, 0, 2)
    return z, {
        "images": z["in_X"],
        "texts": texts,
        "bank": z["in_X0"],
        "logit_scale": np.array(100.0),
    }


@pytest.mark.parametrize("debias", ["both", "test", "pretrain", "pretrain_star", "none"])
def test_authors_template_scores(debias):
    z = tensors("zpe_a")
    method = ZPE(debias=debias).fit(bank=z["in_X0"])
    ours = method.template_scores(z["in_X"], z["in_E"].transpose(0, 1), logit_scale=100.0)
    close(ours, z[f"out_scores_{debias}"])


def test_auto_is_both_with_a_bank_and_test_without():
    z = tensors("zpe_a")
    texts = z["in_E"].transpose(0, 1)
    with_bank = ZPE().fit(bank=z["in_X0"])
    close(with_bank.template_scores(z["in_X"], texts), z["out_scores_both"])
    close(with_bank.weights(z["in_X"], texts), z["out_weights"])
    close(ZPE().template_scores(z["in_X"], texts), z["out_scores_test"])


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({}, "logits"),
        ({"debias": "test"}, "logits_test_only"),
        ({"weighting": "scores"}, "logits_scores_weighting"),
        ({"weighting": "equal"}, "logits_equal"),
        ({"weighting": "equal", "threshold": 0.5}, "logits_equal_selected_0p5"),
        ({"threshold": 0.5}, "logits_selected_0p5"),
    ],
)
def test_authors_logits_from_arrays(options, output):
    z, arrays = zpe_arrays()
    scores = score_arrays(arrays, "zpe", options | {"compat": True})["scores"]
    close(100.0 * scores, z[f"out_{output}"])


@pytest.mark.parametrize("options", [{}, {"weighting": "scores"}, {"temperature": 3.0}])
def test_ours_are_weighted_means(options):
    """P times the authors' where nothing is selected: weights that sum to one."""
    z, arrays = zpe_arrays()
    ours = score_arrays(arrays, "zpe", options)["scores"]
    method = ZPE(**options).fit(bank=torch.from_numpy(z["in_X0"]))
    weights = method.weights(torch.from_numpy(z["in_X"]), torch.from_numpy(arrays["texts"]))
    assert float(weights.sum()) == pytest.approx(1)
    expected = np.zeros_like(ours)
    for p, weight in enumerate(weights.tolist()):
        expected += weight * z["in_X"] @ z["in_E"][p].T
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_template_scores_equal_loops():
    images, texts = unit(7, 5), unit(3, 4, 5, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    ours = ZPE(debias="test").template_scores(images, texts, mask, logit_scale=30.0)
    for t in range(4):
        total = 0.0
        rows = []
        for c in range(3):
            present = [texts[c, u] for u in range(4) if mask[c, u]]
            rows.append(texts[c, t] if mask[c, t] else sum(present) / len(present))
        means = [sum(float(x @ row) for x in images) / 7 for row in rows]
        for x in images:
            total += max(30.0 * (float(x @ row) - m) for row, m in zip(rows, means, strict=True))
        assert float(ours[t]) == pytest.approx(total / 7, rel=1e-12)


def test_selection_keeps_what_lies_above_the_threshold():
    z = tensors("zpe_a")
    texts = z["in_E"].transpose(0, 1)
    method = ZPE(threshold=0.5).fit(bank=z["in_X0"])
    assert method.weights(z["in_X"], texts).nonzero().flatten().tolist() == [0]
    with pytest.raises(UserError, match=r"no template passes threshold=2.0; the best one is 1.00"):
        ZPE(threshold=2.0).fit(bank=z["in_X0"]).weights(z["in_X"], texts)
    with pytest.raises(UserError, match="debias=both needs the array bank"):
        ZPE(debias="both").weights(z["in_X"], texts)


def test_a_template_of_noise_gets_no_weight():
    """Each class's prompts are its centre, but for the last template, which is random."""
    centres = unit(6, 16)
    images = normalize(centres.repeat(5, 1) + 0.2 * unit(30, 16, seed=2))
    texts = centres[:, None].repeat(1, 4, 1)
    texts[:, 3] = unit(6, 16, seed=3)
    weights = ZPE().weights(images, texts)
    assert weights[3] < 1e-6
    refined, mask = ZPE().refine(images, texts)
    assert mask is None
    torch.testing.assert_close(refined[:, 0], centres, rtol=1e-4, atol=1e-4)


# autoclip


@pytest.mark.parametrize("compat", [False, True])
def test_authors_autoclip(compat):
    z = recorded("autoclip_a")
    tight = "" if compat else "_tight"
    arrays = {"images": z["in_X"], "texts": z["in_E"]}
    close(score_arrays(arrays, "autoclip", {"compat": compat})["scores"], z[f"out_logits{tight}"])
    method = AutoCLIP(compat=compat)
    weights, steps = method.weights(*map(torch.from_numpy, (z["in_X"], z["in_E"])))
    close(weights, z[f"out_weights{tight}"])
    close(steps, z[f"out_step_sizes{tight}"], rtol=1e-9)
    close(gradients(torch.from_numpy(z["in_sims"])), z["out_grad"])


def test_the_effect_of_the_authors_tolerance_is_what_the_page_says():
    z = tensors("autoclip_a")
    exact = AutoCLIP().scores(z["in_X"], z["in_E"])
    loose = AutoCLIP(compat=True).scores(z["in_X"], z["in_E"])
    assert 0 < float((exact - loose).abs().max()) < 5.1e-4


def test_gradient_is_that_of_the_log_sum_exp():
    cosine = 0.3 * torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    logits = torch.zeros(5, 6, dtype=torch.float64, requires_grad=True)
    aggregate = torch.einsum("nct,nt->nc", cosine, logits.softmax(1)).logsumexp(1).sum()
    (expected,) = torch.autograd.grad(aggregate, logits)
    torch.testing.assert_close(gradients(cosine), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("beta", "multiplier"), [(0.85, 1.0), (0.5, 20.0), (0.99, 100.0)])
def test_entropy_of_the_weights_is_the_share_asked_for(dtype, beta, multiplier):
    images, texts = unit(40, 16).to(dtype), unit(5, 12, 16, seed=1).to(dtype)
    weights, _ = AutoCLIP(beta=beta, sim_multiplier=multiplier).weights(images, texts)
    wanted = torch.full((40,), beta * math.log2(12), dtype=dtype)
    torch.testing.assert_close(entropy(weights), wanted, rtol=1e-5, atol=1e-5)


def test_blocks_do_not_change_the_scores(monkeypatch):
    from zeroshot.methods import autoclip

    images, texts = unit(11, 16), unit(5, 12, 16, seed=1)
    whole = AutoCLIP().scores(images, texts)
    monkeypatch.setattr(autoclip, "CELLS", 130)
    torch.testing.assert_close(AutoCLIP().scores(images, texts), whole)


def test_one_template_or_equal_templates_leave_the_mean():
    images, texts = unit(6, 8), unit(3, 1, 8, seed=1)
    for prompts in (texts, texts.repeat(1, 4, 1)):
        torch.testing.assert_close(AutoCLIP().scores(images, prompts), images @ texts[:, 0].T)


# chils


def chils_arrays():
    z = recorded("chils_a")
    texts = np.concatenate([z["in_W_super"], z["in_W_sub"]])[:, None]
    parents = np.concatenate([np.arange(6), z["in_parent"]])
    arrays = {
        "images": z["in_X"],
        "texts": texts,
        "parents": parents,
        "logit_scale": np.array(100.0),
    }
    return z, arrays


@pytest.mark.parametrize(("mode", "joint"), [("normal", "joint_probs"), ("hat", "joint_probs_hat")])
def test_authors_joint_probabilities(mode, joint):
    z, arrays = chils_arrays()
    scores = score_arrays(arrays, "chils", {"mode": mode})["scores"]
    close(scores[:, 6:], z[f"out_{joint}"])
    assert np.array_equal(scores[:, :6].argmax(1), z[f"out_pred_{mode}"])


def test_authors_sums():
    z, arrays = chils_arrays()
    scores = score_arrays(arrays, "chils", {"mode": "supagg"})["scores"]
    close(scores[:, :6], z["out_class_probs_supagg"])
    assert np.array_equal(scores[:, :6].argmax(1), z["out_pred_supagg"])


@pytest.mark.parametrize("mode", ["normal", "hat", "supagg"])
def test_chils_equals_loops(mode):
    """Classes 1 and 4 are coarse, 1 has the kinds 0 and 3, 4 has none; kind 2 is of class 5."""
    images, texts = unit(4, 8), unit(6, 2, 8, seed=1)
    parents = torch.tensor([1, 1, 5, 1, 4, 5])
    ours = CHiLS(mode=mode).scores(images, texts, logit_scale=7.0, parents=parents)
    rows = [r / r.norm() for r in texts.mean(1)]
    coarse, kinds = [1, 4, 5], [0, 2, 3, 4]
    families = {1: [0, 3], 4: [4], 5: [2]}
    for n, x in enumerate(images):
        e = [math.exp(7.0 * float(x @ row)) for row in rows]
        kind = {j: e[j] / sum(e[k] for k in kinds) for j in kinds}
        top = {c: e[c] / sum(e[k] for k in coarse) for c in coarse}
        for c in coarse:
            own = sum(kind[j] for j in families[c])
            product = [kind[j] * (own if mode == "hat" else top[c]) for j in families[c]]
            expected = top[c] * own if mode == "supagg" else max(product)
            assert float(ours[n, c]) == pytest.approx(expected, rel=1e-10)
            for j, value in zip(families[c], product, strict=True):
                if j != c:
                    assert float(ours[n, j]) == pytest.approx(value, rel=1e-10)


def test_more_than_two_levels_are_refused():
    with pytest.raises(UserError, match="class 0 belongs to class 1, which belongs to another"):
        CHiLS().scores(unit(2, 4), unit(3, 1, 4), parents=torch.tensor([1, 2, 2]))
