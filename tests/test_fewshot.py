"""GDA, TIMO, ProKeR, Tip-Adapter and APE: the authors' numbers, loops, and shots of every kind."""

from pathlib import Path

import numpy as np
import pytest
import torch

from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.methods import _shots
from zeroshot.methods.ape import APE, similarity
from zeroshot.methods.gda import GDA
from zeroshot.methods.proker import ProKeR
from zeroshot.methods.sinkhorn import Sinkhorn
from zeroshot.methods.timo import TIMO
from zeroshot.methods.tip_adapter import TipAdapter
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays

DATA = Path(__file__).parent / "data" / "classify"
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]
METHODS = [GDA, TIMO, ProKeR, TipAdapter, APE]


def golden(name, dtype=torch.float64):
    with np.load(DATA / f"{name}_a.npz", allow_pickle=False) as z:
        found = {k: torch.from_numpy(z[k]) for k in z.files if k != "meta"}
    found = {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}
    texts = found["in_E"] if "in_E" in found else found["in_W"][:, None]
    return found, found["in_X"], texts, found["in_S"], found["in_yS"]


def close(ours, theirs, tolerance):
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_gda(dtype, tolerance):
    z, X, texts, S, y = golden("gda", dtype)
    method = GDA(alpha=float(z["out_best_alpha"])).fit(S, y)
    weight, bias = method.classifier(texts)
    close(method.mean_, z["out_mus"], tolerance)
    close(method.precision_, z["out_precision"], tolerance)
    close(weight.T, z["out_W_gda"], tolerance)
    close(bias, z["out_b_gda"], tolerance)
    close(method.scores(X, texts), z["out_logits"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_timo(dtype, tolerance):
    z, X, texts, S, y = golden("timo", dtype)
    method = TIMO(alpha=float(z["out_best_alpha"]), beta=int(z["out_best_beta"]), compat=True).fit(
        S, y
    )
    weight, bias = method.classifier(texts)
    close(method.matching(texts), z["out_matching"], tolerance)
    close(method.refine(X, texts)[0][:, 0], z["out_igt_weights"], tolerance)
    close(weight.T, z["out_W_gda"], tolerance)
    close(bias, z["out_b_gda"], tolerance)
    close(method.scores(X, texts), z["out_logits"], tolerance)
    searched = TIMO(
        alpha=float(z["out_timo_s_best_alpha"]),
        beta=int(z["out_timo_s_best_beta"]),
        gamma=float(z["out_timo_s_best_gamma"]),
        compat=True,
    ).fit(S, y)
    close(searched.scores(X, texts), z["out_timo_s_logits"], tolerance)
    close(searched.refine(X, texts)[0][:, 0], z["out_timo_s_igt_weights"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_proker(dtype, tolerance):
    z, X, texts, S, y = golden("proker", dtype)
    method = ProKeR().fit(S, y)  # four shots: the published values are the golden's
    assert (method.beta, method.lmbda) == (float(z["hp_beta"]), 0.05)
    close(method.scores(X, texts), z["out_logits"], tolerance)
    alpha = method.solved_labels_ - method.solved_shots_ @ texts[:, 0].T
    close(alpha, z["out_alpha"], tolerance)
    searched = ProKeR(float(z["out_val_search_beta"]), float(z["out_val_search_lmbda"]))
    close(searched.fit(S, y).scores(X, texts), z["out_logits_val_search"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_tip_adapter(dtype, tolerance):
    z, X, texts, S, y = golden("tip_adapter", dtype)
    close(TipAdapter().fit(S, y).scores(X, texts), z["out_logits_init_params"], tolerance)
    searched = TipAdapter(float(z["out_best_alpha"]), float(z["out_best_beta"])).fit(S, y)
    close(searched.scores(X, texts), z["out_logits"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_ape(dtype, tolerance):
    z, X, texts, S, y = golden("ape", dtype)
    method = APE(feat_num=int(z["hp_feat_num"])).fit(S, y)
    close(method.scores(X, texts), z["out_logits_init_params"], tolerance)
    close(similarity(S, y, texts[:, 0]), z["out_similarity_criterion"], tolerance)
    cache = method.cache(S, y, texts[:, 0])
    assert torch.equal(cache.channels, z["out_indices"])
    close(cache.surprise, z["out_cache_div"], tolerance)
    best = {k: float(z[f"out_best_{k}"]) for k in ("alpha", "beta", "gamma")}
    close(APE(feat_num=14, **best).fit(S, y).scores(X, texts), z["out_logits"], tolerance)


@pytest.mark.parametrize(
    ("name", "options", "output"),
    [
        ("gda", {"alpha": 1}, "logits"),
        ("timo", {"alpha": 1e-4, "compat": "true"}, "logits"),
        ("proker", {}, "logits"),
        ("tip_adapter", {}, "logits_init_params"),
        ("ape", {"feat_num": 14}, "logits_init_params"),
    ],
)
def test_authors_through_the_public_api(name, options, output):
    z, X, texts, S, y = golden(name)
    arrays = {"images": X, "texts": texts, "shots": S, "shot_labels": y}
    scores = score_arrays({k: v.numpy() for k, v in arrays.items()}, name, options)["scores"]
    np.testing.assert_allclose(scores, z[f"out_{output}"].numpy(), rtol=1e-9, atol=1e-9)


def shots(count=(3, 1, 0, 5), d=8, seed=0):
    """A problem with these many shots per class, the sides a gap apart."""
    generator = torch.Generator().manual_seed(seed)
    texts = normalize(torch.randn(len(count), 3, d, generator=generator).double())
    labels = torch.repeat_interleave(torch.arange(len(count)), torch.tensor(count))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    gap = 0.8 * torch.randn(d, generator=generator)
    noise = torch.randn(len(labels), d, generator=generator)
    rows = normalize(texts.mean(1)[labels] + 0.3 * noise + gap)
    images = normalize(torch.randn(9, d, generator=generator).double() + gap)
    return images, texts, rows, labels


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_hand(images, texts, rows, labels):
    X, E, S, y = (a.numpy() for a in (images, texts, rows, labels))
    W = unit(E.mean(1))
    return X, E, W, S, y, len(W)


def test_gda_equals_loops():
    given = shots((3, 1, 2, 5))
    X, _, W, S, y, C = by_hand(*given)
    d, M = S.shape[1], len(S)
    mu = np.stack([S[y == c].mean(0) for c in range(C)])
    cov = sum(np.outer(s - mu[c], s - mu[c]) for s, c in zip(S, y, strict=True)) / (M - 1)
    P = d * np.linalg.inv((M - 1) * cov + np.trace(cov) * np.eye(d))
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    expected = np.array(
        [
            [
                30 * x @ W[c] + 0.7 * (x @ P @ mu[c] - mu[c] @ P @ mu[c] / 2 + np.log(prior[c]))
                for c in range(C)
            ]
            for x in X
        ]
    )
    images, texts, rows, labels = given
    fitted = GDA(alpha=0.7).fit(rows, labels, torch.from_numpy(prior))
    ours = fitted.scores(images, texts, logit_scale=30.0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9)


def test_proker_equals_the_equation_of_the_paper():
    given = shots((3, 1, 2, 5))
    X, _, W, S, y, C = by_hand(*given)

    def kernel(a, b):
        return np.exp(-2.0 * (1 - a @ b.T))

    system = kernel(S, S) / 0.3 + np.eye(len(S))
    expected = X @ W.T + kernel(X, S) @ np.linalg.inv(system) @ (np.eye(C)[y] - S @ W.T)
    images, texts, rows, labels = given
    ours = ProKeR(beta=2.0, lmbda=0.3).fit(rows, labels).scores(images, texts)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_proker_knows_nothing_of_a_class_without_shots():
    """Its target is the mean of the others', one third each."""
    X, _, W, S, y, _ = by_hand(*shots((3, 1, 0, 5)))

    def kernel(a, b):
        return np.exp(-2.0 * (1 - a @ b.T))

    target = np.eye(4)[y]
    target[:, 2] = 1 / 3
    system = kernel(S, S) / 0.3 + np.eye(len(S))
    expected = X @ W.T + kernel(X, S) @ np.linalg.inv(system) @ (target - S @ W.T)
    images, texts, rows, labels = shots((3, 1, 0, 5))
    ours = ProKeR(beta=2.0, lmbda=0.3).fit(rows, labels).scores(images, texts)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_proker_interpolates_as_lambda_vanishes():
    """With no trust in the texts the shots' own scores are their labels, shrunk by lambda."""
    _, texts, rows, labels = shots((3, 1, 2, 5))
    lmbda = 1e-7
    ours = ProKeR(beta=2.0, lmbda=lmbda).fit(rows, labels).scores(rows, texts)
    zero_shot = rows @ normalize(texts.mean(1)).T
    one_hot = torch.nn.functional.one_hot(labels, 4).double()
    learned = (ours - zero_shot) / lmbda
    torch.testing.assert_close(learned, one_hot - zero_shot, rtol=1e-3, atol=1e-3)


def test_tip_adapter_equals_loops_with_unequal_shots():
    given = shots((3, 1, 2, 5))
    X, _, W, S, y, C = by_hand(*given)
    expected = 30 * X @ W.T
    for n, x in enumerate(X):
        for c in range(C):
            near = [np.exp(-1.7 * (1 - x @ s)) for s, label in zip(S, y, strict=True) if label == c]
            expected[n, c] += 0.9 * np.mean(near) * len(S) / C
    images, texts, rows, labels = given
    ours = TipAdapter(alpha=0.9, beta=1.7).fit(rows, labels)
    ours = ours.scores(images, texts, logit_scale=30.0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9)


def test_ape_criterion_equals_its_loops():
    _, texts, rows, labels = shots((2, 2, 2))
    _, _, W, S, y, C = by_hand(rows, texts, rows, labels)
    members = [[W[c], *S[y == c]] for c in range(C)]
    total, pairs = np.zeros(S.shape[1]), 0
    for a in range(C):
        for b in range(C):
            for one in members[a]:
                for other in members[b]:
                    if a != b:
                        total, pairs = total + one * other, pairs + 1
    ours = similarity(rows, labels, torch.from_numpy(W))
    np.testing.assert_allclose(ours.numpy(), total / pairs, rtol=1e-9, atol=1e-12)


def test_timo_equals_loops_with_ragged_prompts():
    given = shots((3, 1, 2, 5))
    X, E, _, S, y, C = by_hand(*given)
    mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=bool)
    W, rows, owner = np.zeros((C, 8)), [], []
    for c in range(C):
        prompts = E[c][mask[c]]
        cosine = prompts @ unit(S[y == c].mean(0))
        weight = np.exp(20 * cosine / np.linalg.norm(cosine))
        W[c] = unit((weight / weight.sum()) @ prompts)
        for p in np.argsort(-cosine)[:2]:
            rows.append(cosine[p] * prompts[p])
            owner.append(c)
    gaussian = GDA(alpha=1.0).fit(
        torch.from_numpy(np.array(rows + list(S))), torch.tensor(owner + list(y))
    )
    weight, bias = gaussian.classifier(torch.from_numpy(W)[:, None])
    expected = 3 * X @ W.T + X @ weight.numpy().T + bias.numpy()
    images, texts, shown, labels = given
    ours = TIMO(gamma=20.0, beta=2, alpha=3.0).fit(shown, labels)
    ours = ours.scores(images, texts, torch.from_numpy(mask), logit_scale=60.0)
    np.testing.assert_allclose(ours.numpy(), 60 / 3 * expected, rtol=1e-8)


def test_one_shot_by_hand():
    """One shot per class has no covariance: P = d I, and A_c = d mu_c.

    The scatter around the mean (0.5, 0.5) is 1: the least ridge is a tenth of it, and P = 10 d I.
    """
    shot = torch.eye(2)
    for compat, factor in ((True, 1.0), (False, 10.0)):
        method = GDA(alpha=1.0, compat=compat).fit(shot, torch.tensor([0, 1]))
        weight, bias = method.classifier(shot[:, None])
        torch.testing.assert_close(weight, 2 * factor * shot)
        torch.testing.assert_close(bias, torch.full((2,), -factor - np.log(2.0)))
    assert torch.equal(method.scores(shot, shot[:, None]).argmax(1), torch.tensor([0, 1]))


@pytest.mark.parametrize("method", METHODS)
def test_order_and_grouping_of_shots_do_not_matter(method):
    images, texts, rows, labels = shots()
    order = labels.argsort(stable=True).flip(0)
    a = method().fit(rows, labels).scores(images, texts)
    b = method().fit(rows[order], labels[order]).scores(images, texts)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("missing", [1, 3])
def test_a_class_without_shots_is_still_found(method, missing):
    """Its pictures lie where its text says, a gap away."""
    generator = torch.Generator().manual_seed(5)
    texts = normalize(torch.randn(4, 1, 40, generator=generator))
    gap = 1.5 * normalize(torch.randn(40, generator=generator))
    labels = torch.tensor([c for c in range(4) for _ in range(6)])
    rows = normalize(texts[labels, 0] + gap + torch.randn(24, 40, generator=generator) / 12)
    shown = (labels != missing) & (torch.arange(24) % 6 < 4)
    fitted = method().fit(rows[shown], labels[shown])
    found = fitted.scores(rows[~shown], texts).argmax(1)
    assert float((found == labels[~shown]).double().mean()) > 0.9
    assert (found[labels[~shown] == missing] == missing).all()


def test_a_stand_in_by_hand():
    """The text (0, 1), moved the way (0.4, -0.8) that the other class's shots lie from its text."""
    means = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    texts = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    ours = _shots.complete_means(means, torch.tensor([2, 0]), texts)
    torch.testing.assert_close(ours[0], means[0])
    torch.testing.assert_close(ours[1], torch.tensor([0.4, 0.2]) / 0.2**0.5)
    rows, labels = _shots.complete_shots(means[:1], torch.tensor([0]), texts)
    torch.testing.assert_close(rows, ours)
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_are_no_classes(method):
    images, texts, rows, labels = shots()
    with pytest.raises(UserError, match="0 to 3, but there are 2 classes"):
        method().fit(rows, labels).scores(images, texts[:2])
    with pytest.raises(UserError, match="shot_labels: -1 to 3"):
        method().fit(rows, labels.where(labels > 0, -1))
    with pytest.raises(UserError, match="needs the arrays shots and shot_labels"):
        method().scores(images, texts)


@pytest.mark.parametrize("method", [GDA, TIMO, TipAdapter, APE])
def test_left_out_shots_choose_and_pictures_do_not(method):
    """Texts say nothing here: whoever judges by left-out shots weighs the shots more."""
    generator = torch.Generator().manual_seed(2)
    texts = normalize(torch.randn(3, 1, 16, generator=generator))
    centre = normalize(torch.randn(3, 16, generator=generator))
    labels = torch.arange(3).repeat(8)
    rows = normalize(centre[labels] + torch.randn(24, 16, generator=generator) / 6)
    tests = normalize(centre[labels] + torch.randn(24, 16, generator=generator) / 6)

    def right(fitted):
        return float((fitted.scores(tests, texts).argmax(1) == labels).double().mean())

    chosen = method(tune="loo").fit(rows, labels)
    assert right(chosen) >= right(method().fit(rows, labels))
    if method in (GDA, TIMO):
        assert right(chosen) > 0.9
    part = method(tune="loo").fit(rows, labels).scores(tests[:5], texts)
    torch.testing.assert_close(part, chosen.scores(tests, texts)[:5])


def test_each_shot_is_left_out_once_and_no_class_vanishes():
    labels = torch.tensor([0, 1, 0, 2, 2, 2, 0, 4])
    held = []
    for train, test in _shots.splits(labels):
        assert set(train.tolist()) | set(test.tolist()) == set(range(8))
        assert set(labels[train].tolist()) == {0, 1, 2, 4}
        assert len(set(labels[test].tolist())) == len(test)
        held += test.tolist()
    assert sorted(held) == [0, 2, 3, 4, 5, 6]
    assert list(_shots.splits(torch.arange(4))) == []
    many = [len(test) for _, test in _shots.splits(torch.arange(2).repeat(16))]
    assert many == [8, 6, 6, 6, 6]


def test_published_values_by_shots_per_class():
    table = {1: "one", 4: "four", 16: "sixteen"}
    assert _shots.published(table, torch.arange(3)) == "one"
    assert _shots.published(table, torch.tensor([0, 0, 0, 5, 5, 5])) == "four"
    assert _shots.published(table, torch.arange(2).repeat(100)) == "sixteen"


def test_learning_happens_once_for_the_same_texts():
    memo, calls = _shots.Memo(), []
    texts, mask = torch.ones(2, 3), None
    for _ in range(3):
        memo(lambda: calls.append(1) or len(calls), texts, mask, 100.0)
    assert calls == [1]
    texts += 1
    assert memo(lambda: "changed", texts, mask, 100.0) == "changed"
    assert memo(lambda: "other", texts.clone(), mask, 100.0) == "other"
    with torch.inference_mode():
        quiet = torch.ones(2)
    assert memo(lambda: "quiet", quiet) == "quiet"


def test_timo_hands_its_prompts_to_gda():
    images, texts, rows, labels = shots()
    both = methods.pipeline(TIMO(), GDA(alpha=0.5)).fit(shots=rows, shot_labels=labels)
    weighted, _ = TIMO().fit(rows, labels).refine(images, texts)
    expected = GDA(alpha=0.5).fit(rows, labels).scores(images, weighted)
    torch.testing.assert_close(both.scores(images, texts), expected)


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2])
def test_near_duplicates_do_not_swamp_the_texts(noise):
    """Ten copies of a shot, changed a little, say about as much as the shot alone."""
    _, texts, rows, labels = shots((1, 1, 1, 1))
    generator = torch.Generator().manual_seed(2)
    copies = rows.repeat(10, 1) + noise * torch.randn(40, 8, generator=generator).double()
    alone = GDA(alpha=1.0).fit(rows, labels).classifier(texts)[0]
    copied, swamped = (
        GDA(alpha=1.0, compat=compat).fit(copies, labels.repeat(10)).classifier(texts)[0]
        for compat in (False, True)
    )
    assert 0.5 < float(copied.norm() / alone.norm()) < 20
    assert float(swamped.norm() / alone.norm()) > 100 * min(1, (1e-3 / noise) ** 2)


@pytest.mark.parametrize("scale", [30.0, 100.0])
@pytest.mark.parametrize("alpha", [0.0, 50.0])
def test_timo_has_the_logits_of_the_model(scale, alpha):
    """The authors' over alpha, times the logit scale: the same classes, and gda's size."""
    images, texts, rows, labels = shots((4, 4, 4))
    images = images[:, : rows.shape[1]]
    ours, theirs = (
        TIMO(alpha=alpha, compat=compat).fit(rows, labels).scores(images, texts, logit_scale=scale)
        for compat in (False, True)
    )
    used = alpha or scale / 0.1  # four shots
    torch.testing.assert_close(ours, theirs * scale / used)


@pytest.mark.parametrize("prior", [(0.6, 0.3, 0.1), (0.2, 0.2, 0.6)])
def test_timo_meets_a_prior(prior):
    """A softmax that is always 1 cannot."""
    generator = torch.Generator().manual_seed(0)
    texts = normalize(torch.randn(3, 4, 30, generator=generator))
    labels = torch.arange(12) % 3
    rows = normalize(texts.mean(1)[labels] + torch.randn(12, 30, generator=generator) / 4)
    images = normalize(torch.randn(600, 30, generator=generator) / 4 + texts.mean(1)[0])
    method = methods.pipeline(TIMO(), Sinkhorn()).fit(
        shots=rows, shot_labels=labels, prior=torch.tensor(prior)
    )
    found = method.scores(images, texts, logit_scale=20.0).softmax(1).mean(0)
    torch.testing.assert_close(found, torch.tensor(prior), atol=0.02, rtol=0)
