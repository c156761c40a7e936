"""StatA and TransCLIP: the equations as loops, the authors' numbers, and batches of few classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from zeroshot.errors import UserError
from zeroshot.methods import pipeline
from zeroshot.methods._neighbour_graph import adjacency, neighbours
from zeroshot.methods._transduction import Gaussians, Sums
from zeroshot.methods.gda import GDA
from zeroshot.methods.stata import StatA
from zeroshot.methods.transclip import TransCLIP
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays

DATA = Path(__file__).parent / "data" / "classify"
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def golden(name, dtype=torch.float64):
    with np.load(DATA / f"{name}_a.npz", allow_pickle=False) as z:
        found = {k: torch.from_numpy(z[k]) for k in z.files if k != "meta"}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}


def close(ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.max()))


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_loops(X, W, *, stata, k=3, lam=1.0, scale=5.0, shots=None, labels=None, gamma=0.0):
    """The equations of both papers, one picture and one class at a time."""
    N, d = X.shape
    C = len(W)
    rows = X if shots is None else np.r_[X, shots]
    known = np.zeros((0, C)) if shots is None else np.eye(C)[labels]
    heavy = 0.0 if shots is None else gamma * 50 * N / len(shots)
    V = np.zeros((len(rows), len(rows)))
    for i in range(len(rows)):
        order = sorted((j for j in range(N) if j != i), key=lambda j: -rows[i] @ X[j])[:k]
        for j in order:
            V[i, j] = rows[i] @ X[j]
    A = V + V.T
    y = softmax(scale * X @ W.T)
    z = y.copy()
    first = sum(y[i, c] * (X[i] - W[c]) ** 2 for i in range(N) for c in range(C)) / N
    if stata:
        mu, var = W.copy(), np.tile(first, (C, 1))
    else:
        mu, var = np.zeros((C, d)), np.full((C, d), 1 / d)
        for c in range(C):
            best = np.argsort(-y[:, c])[:8]
            mu[c] = unit(sum(y[i, c] * X[i] for i in best))
            if shots is not None and known[:, c].any():
                mu[c] = unit(sum(s for s, own in zip(shots, known[:, c], strict=True) if own))
    for step in range(11):
        log = np.zeros((N, C))
        for i in range(N):
            for c in range(C):
                log[i, c] = -0.5 * ((X[i] - mu[c]) ** 2 / var[c]).sum()
                if stata:
                    log[i, c] -= 0.5 * np.log(var[c]).sum()
        for _ in range(5):
            everything = np.r_[z, known]
            z = softmax(lam * np.log(y) + log / 50 + (A @ everything)[:N] / (2 * k))
        if step == 10:
            return z, mu, var
        total = 0
        for c in range(C):
            weights = np.r_[z[:, c], heavy * known[:, c]]
            mean = unit((weights[:, None] * rows).sum(0))
            hard = (z.argmax(1) == c).sum() + known[:, c].sum()
            b = hard / (1 + hard) if stata else 1.0
            mu[c] = unit(b * mean + (1 - b) * W[c])
            square = (weights[:, None] * (rows - mu[c]) ** 2).sum(0)
            if stata:
                var[c] = b * square / weights.sum() + (1 - b) * (first + (W[c] - mu[c]) ** 2)
            total = total + square
        if not stata:
            var[:] = total / (N + heavy * len(known))


def problem(seed=0, N=23, C=4, d=7):
    rng = np.random.default_rng(seed)
    W = unit(rng.normal(size=(C, d)))
    y = rng.integers(C, size=N)
    X = unit(W[y] + 0.5 * rng.normal(size=(N, d)) + 0.5)
    labels = np.array([0, 1, 1, 3, 0, 1])
    shots = unit(W[labels] + 0.5 * rng.normal(size=(6, d)) + 0.5)
    return X, W, shots, labels


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("method", [StatA, TransCLIP])
def test_equals_loops(method, shown):
    X, W, shots, labels = problem()
    more = {"shots": shots, "labels": labels, "gamma": 0.013} if shown else {}
    lam = 0.5 if shown and method is TransCLIP else 1.0
    z, mu, var = by_loops(X, W, stata=method is StatA, lam=lam, **more)
    ours = method(gamma=0.013)
    if shown:
        ours = ours.fit(torch.from_numpy(shots), torch.from_numpy(labels))
    found = ours.solve(torch.from_numpy(X), torch.from_numpy(W)[:, None], logit_scale=5.0)
    np.testing.assert_allclose(found.z.numpy(), z, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.mean.numpy(), mu, rtol=1e-9, atol=1e-12)
    variance = found.variance.expand(4, 7).numpy()
    np.testing.assert_allclose(variance, var, rtol=1e-9, atol=1e-12)
    assert abs(z - softmax(5 * X @ W.T)).max() > 0.1


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_stata(dtype, tolerance):
    z = golden("stata", dtype)
    found = StatA().solve(z["in_X"], z["in_W"][:, None])
    close(found.z, z["out_z"], tolerance)
    close(found.mean, z["out_mu"], tolerance)
    close(found.variance, z["out_cov"], tolerance)
    close(found.beta, z["out_beta"], tolerance)
    soft = StatA(alpha=2.0, soft_beta=True, lambda_laplacian=1.5)
    found = soft.solve(z["in_X"], z["in_W"][:, None])
    for ours, name in zip(
        (found.z, found.mean, found.variance, found.beta), ("z", "mu", "cov", "beta"), strict=True
    ):
        close(ours, z[f"out_{name}_soft_alpha2_lap15"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_transclip(dtype, tolerance):
    z = golden("transclip", dtype)
    X, texts = z["in_X"], z["in_W"][:, None]
    found = TransCLIP().solve(X, texts)
    close(found.z, z["out_z_zeroshot"], tolerance)
    close(found.mean, z["out_mu_zeroshot"], tolerance)
    close(found.variance, z["out_var_zeroshot"], tolerance)
    prototypes = TransCLIP().scores(X, z["in_initial_prototypes"][:, None])
    close(prototypes, z["out_z_zeroshot_from_prototypes"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_transclip_with_their_faults(dtype, tolerance):
    z = golden("transclip", dtype)
    X, texts = z["in_X"], z["in_W"][:, None]
    predictions = z["in_initial_predictions"].log()
    forgotten = TransCLIP(compat=True).scores(X, texts, initial=predictions)
    close(forgotten, z["out_z_zeroshot_from_predictions"], tolerance)
    kept = TransCLIP().scores(X, texts, initial=predictions)
    assert (kept - forgotten).abs().max() > 0.5
    before = None
    for gamma, theirs in zip(z["hp_gamma_list"].tolist(), z["out_z_fewshot"], strict=True):
        method = TransCLIP(gamma=gamma, compat=True).fit(z["in_S"], z["in_yS"])
        before = method.solve(X, texts, start=before)
        close(before.z, theirs, tolerance)
    close(before.mean, z["out_mu_fewshot_last"], tolerance)
    close(before.variance, z["out_var_fewshot_last"], tolerance)


@pytest.mark.parametrize("name", ["stata", "transclip"])
def test_authors_through_the_public_api(name):
    z = golden(name)
    arrays = {"images": z["in_X"].numpy(), "texts": z["in_W"][:, None].numpy()}
    scores = score_arrays(arrays, name, {})["scores"]
    theirs = z["out_z" if name == "stata" else "out_z_zeroshot"].numpy()
    np.testing.assert_allclose(scores, theirs, rtol=1e-9, atol=1e-11)


def test_two_pictures_and_two_classes_by_hand():
    """Orthogonal classes, a picture on each: the texts are the means, and nothing moves."""
    eye = torch.eye(2)
    found = StatA().solve(eye, eye[:, None])
    torch.testing.assert_close(found.z, eye)
    torch.testing.assert_close(found.mean, eye)
    torch.testing.assert_close(found.beta, torch.tensor([0.5, 0.5]))


def test_where_transclip_starts():
    """At the shots of a class, where it has any, else at its most confident pictures."""
    X, W, shots, labels = (torch.from_numpy(a) for a in problem())
    start = TransCLIP(max_iter=0, n_most_confident=2)
    plain = start.solve(X, W[:, None]).mean
    shown = start.fit(shots, labels).solve(X, W[:, None]).mean
    torch.testing.assert_close(shown[2], plain[2])
    torch.testing.assert_close(shown[1], normalize(shots[labels == 1].sum(0)))
    z = (100 * X @ W.T).softmax(1)[:, 2]
    best = z.topk(2).indices
    torch.testing.assert_close(plain[2], normalize((z[best, None] * X[best]).sum(0)))


def test_the_initial_variance_of_many_pictures():
    """compat keeps the last 2500-block alone: 100 of 5100 pictures here."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(5100, 6, generator=generator))
    texts = normalize(torch.randn(3, 1, 6, generator=generator))
    start = StatA(max_iter=0, inner_iter=0)
    right, theirs = (m.solve(images, texts) for m in (start, StatA(0, compat=True, max_iter=0)))
    z = (100 * images @ texts[:, 0].T).softmax(1)
    mean = (z[..., None] * (images[:, None] - texts[:, 0]) ** 2).sum((0, 1)) / 5100
    torch.testing.assert_close(right.variance[0], mean, rtol=1e-4, atol=1e-6)
    assert 0.01 < float((theirs.variance / right.variance).mean()) < 0.03


def test_expanded_squares_equal_loops():
    generator = torch.Generator().manual_seed(1)
    rows, z, mean = (torch.randn(*s, generator=generator) for s in ((9, 5), (9, 3), (3, 5)))
    weights = z.softmax(1)
    expected = (weights[..., None] * (rows[:, None] - mean) ** 2).sum(0)
    torch.testing.assert_close(Sums.from_assignments(weights, rows, True).scatter(mean), expected)
    torch.testing.assert_close(
        Sums.from_assignments(weights, rows, False).scatter(mean), expected.sum(0)
    )
    variance = torch.rand(3, 5, generator=generator) + 0.5
    log = torch.stack(
        [
            torch.distributions.Normal(m, v.sqrt()).log_prob(rows).sum(1)
            for m, v in zip(mean, variance, strict=True)
        ],
        1,
    )
    ours = Gaussians(mean, variance).log_density(rows)
    torch.testing.assert_close(ours.log_softmax(1), log.log_softmax(1))


def test_neighbours_are_others_even_among_twins():
    rows = normalize(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0.1, 1]]))
    values, index = neighbours(rows, 2)
    assert all(i not in others for i, others in enumerate(index.tolist()))
    assert index[3].tolist()[0] == 4
    torch.testing.assert_close(values[:3], torch.ones(3, 2))
    assert neighbours(rows[:1], 3)[1].shape == (1, 0)
    dense = adjacency(values, index, 5).to_dense()
    assert dense[3, 4] == values[3, 0]


def batch_of(present, count, seed):
    """`count` pictures of `present` of 40 classes, in a space with a gap between the sides."""
    generator = torch.Generator().manual_seed(seed)
    texts = normalize(torch.randn(40, 64, generator=generator))
    gap = normalize(torch.randn(64, generator=generator))
    labels = torch.randperm(40, generator=generator)[:present]
    labels = labels[torch.randint(present, (count,), generator=generator)]
    noise = torch.randn(count, 64, generator=generator) / 8
    images = normalize(0.45 * texts[labels] + noise + gap)
    shifted = normalize(texts + 0.6 * torch.randn(40, 64, generator=generator) / 8 - 0.2 * gap)
    return images, shifted[:, None], labels


@pytest.mark.parametrize(("present", "count"), [(1, 64), (3, 64), (40, 400)])
def test_stata_is_safe_when_few_classes_are_present(present, count):
    """It never falls below zero-shot by more than a point, and gains on the whole."""
    gains = []
    for seed in range(6):
        images, texts, labels = batch_of(present, count, seed)
        zero_shot = float(((images @ texts[:, 0].T).argmax(1) == labels).float().mean())
        ours = float((StatA().scores(images, texts).argmax(1) == labels).float().mean())
        assert ours >= zero_shot - 0.01
        gains.append(ours - zero_shot)
    assert sum(gains) > 0


def test_gda_then_stata_starts_from_its_logits():
    X, W, shots, labels = (torch.from_numpy(a) for a in problem(seed=3))
    both = pipeline(GDA(), StatA()).fit(shots=shots, shot_labels=labels)
    first = GDA().fit(shots, labels).scores(X, W[:, None])
    second = StatA().fit(shots, labels).scores(X, W[:, None], initial=first)
    torch.testing.assert_close(both.scores(X, W[:, None]), second)


def test_a_class_nobody_chose_stays_at_its_text():
    images, texts, _ = batch_of(3, 64, 0)
    found = StatA().solve(images, texts)
    empty = found.beta == 0
    assert 30 < int(empty.sum()) < 40
    torch.testing.assert_close(found.mean[empty], texts[empty, 0])


def test_labels_beyond_the_classes_are_refused():
    X, W, shots, labels = (torch.from_numpy(a) for a in problem())
    for method in (StatA(), TransCLIP()):
        with pytest.raises(UserError, match="shot_labels: 0 to 3, but there are 2 classes"):
            method.fit(shots, labels).scores(X, W[:2, None])
