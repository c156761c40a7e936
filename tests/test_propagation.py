"""ZLaP and InMaP: linear algebra and gradients written out, and the authors' numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_transduction import batch_of
from zeroshot.errors import FewClassesWarning
from zeroshot.methods.inmap import InMaP, balance
from zeroshot.methods.zlap import ZLaP
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays

DATA = Path(__file__).parent / "data" / "classify"


def golden(name, dtype=torch.float64):
    with np.load(DATA / f"{name}_a.npz", allow_pickle=False) as z:
        found = {k: torch.from_numpy(z[k]) for k in z.files if k != "meta"}
    found = {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}
    return found, found["in_X"], found["in_W"][:, None]


def close(ours, theirs, tolerance):
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scaled", [False, True])
def test_authors_zlap(scaled, dtype):
    """To the tolerance of their solver, 1e-6."""
    z, X, texts = golden("zlap", dtype)
    end = "_scaled" if scaled else ""
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4
    plain = ZLaP(scale_sim=scaled)
    close(plain.scores(X, texts), z[f"out_transductive{end}"], tolerance)
    close(plain.spread(z["in_X_unlabeled"], texts[:, 0]), z[f"out_Linv{end}"], tolerance)
    for sparse, name in ((False, "inductive"), (True, "sparse_inductive")):
        fitted = replace(plain, sparse=sparse).fit(z["in_X_unlabeled"])
        close(fitted.scores(X, texts), z[f"out_{name}{end}"], tolerance)


def test_authors_zlap_with_a_tight_solver():
    z, X, texts = golden("zlap")
    tight = ZLaP(cg_tol=1e-14)
    close(tight.scores(X, texts), z["out_transductive_tight"], 1e-9)
    for sparse, name in ((False, "inductive"), (True, "sparse_inductive")):
        fitted = replace(tight, sparse=sparse).fit(z["in_X_unlabeled"])
        close(fitted.scores(X, texts), z[f"out_{name}_tight"], 1e-9)


def test_zlap_equals_a_dense_solution():
    generator = torch.Generator().manual_seed(0)
    texts = normalize(torch.randn(4, 2, 6, generator=generator).double() + 0.3)
    images = normalize(torch.randn(17, 6, generator=generator).double() + 0.3)
    X, W = images.numpy(), normalize(texts.mean(1)).numpy()
    A = np.zeros((21, 21))
    for i in range(17):
        order = np.argsort(-X @ X[i])
        for j in [j for j in order[:3] if j != i]:
            A[4 + i, 4 + j] = max(0, X[i] @ X[j])
        for c in np.argsort(-W @ X[i])[:3]:
            A[4 + i, c] = max(0, W[c] @ X[i]) ** 2
    A = A + A.T
    degree = A.sum(1)
    degree[degree == 0] = 1
    A = A / np.sqrt(np.outer(degree, degree))
    expected = np.linalg.solve(np.eye(21) - 0.6 * A, np.eye(21)[:, :4])[4:]
    ours = ZLaP(k=3, gamma=2.0, alpha=0.6, cg_tol=1e-13).scores(images, texts)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_a_chain_of_pictures_by_hand():
    """One picture on one text: (I - a W) z = e with W one edge, so z = a / (1 - a^2)."""
    one = torch.eye(2)[:1].double()
    ours = ZLaP(alpha=0.5, cg_tol=1e-12).scores(one, one[:, None])
    torch.testing.assert_close(ours, torch.tensor([[0.5 / 0.75]]).double())


def test_with_a_bank_rows_stand_alone():
    z, X, texts = golden("zlap")
    for scaled in (False, True):
        fitted = ZLaP(scale_sim=scaled).fit(z["in_X_unlabeled"])
        assert not fitted.transductive
        parts = torch.cat([fitted.scores(rows, texts) for rows in X.split(7)])
        torch.testing.assert_close(parts, fitted.scores(X, texts))
    assert ZLaP().transductive


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_authors_inmap(dtype, tolerance):
    z, X, texts = golden("inmap", dtype)
    probability = (X @ texts[:, 0].T / 0.01).softmax(1)
    close(balance(probability, 0.0, 20), z["out_sinkhorn"], tolerance)
    close(balance(probability, 1.0, 20), z["out_sinkhorn_gamma1"], tolerance)
    close(InMaP(iters_proxy=20).proxy(X, texts).T, z["out_proxy_20iters"], tolerance)
    full = InMaP(iters_proxy=2000)
    proxy = full.proxy(X, texts)
    if dtype == torch.float64:
        close(proxy.T, z["out_proxy"], tolerance)
    else:  # when the step halves after step 850 hangs on the eighth digit of the gradient's norm
        assert torch.equal((X @ proxy.T).argmax(1), z["out_logits"].argmax(1))
        close(X @ proxy.T, z["out_logits"], 2e-2)
    plain = replace(full, iters_sinkhorn=0)
    close(plain.proxy(X, texts).T, z["out_proxy_no_sinkhorn"], tolerance)


def test_authors_through_the_public_api():
    z, X, texts = golden("inmap")
    arrays = {"images": X.numpy(), "texts": texts.numpy()}
    scores = score_arrays(arrays, "inmap", {"iters_proxy": 2000})["scores"]
    np.testing.assert_allclose(scores, z["out_logits"].numpy(), rtol=1e-8, atol=1e-8)
    z, X, texts = golden("zlap")
    arrays = {"images": X.numpy(), "texts": texts.numpy(), "bank": z["in_X_unlabeled"].numpy()}
    scores = score_arrays(arrays, "zlap", {})["scores"]
    np.testing.assert_allclose(scores, z["out_inductive"].numpy(), rtol=1e-5, atol=1e-6)


def test_a_step_of_inmap_follows_the_gradient():
    """One step from the texts, the gradient taken by autograd of the loss it descends."""
    _, X, texts = golden("inmap")
    method = InMaP(iters_proxy=1, lr=0.3, gamma=0.5)
    labels = method.labels(X @ texts[:, 0].T / 0.01)
    V = texts[:, 0].clone().requires_grad_()
    loss = -(labels * (X @ V.T / 0.04).log_softmax(1)).sum() / len(X)
    (gradient,) = torch.autograd.grad(loss, V)
    expected = normalize(V.detach() - 0.3 * gradient)
    torch.testing.assert_close(method.proxy(X, texts), expected)


def test_balance_by_hand():
    ours = balance(torch.tensor([[0.9, 0.1], [0.8, 0.2]]).double(), 0.0, 200)
    torch.testing.assert_close(ours.sum(0), torch.ones(2).double())
    ratio = ours[0, 0] * ours[1, 1] / (ours[0, 1] * ours[1, 0])
    torch.testing.assert_close(ratio, torch.tensor(9 / 4).double())  # odds ratios stay


def test_zlap_warns_where_few_classes_are_present():
    images, texts, _ = batch_of(3, 64, 0)
    with pytest.warns(FewClassesWarning, match="zlap takes all 40 classes"):
        ZLaP().scores(images, texts)
    ZLaP().fit(images).scores(images, texts)


def test_inmap_warns_where_few_classes_are_present():
    images, texts, _ = batch_of(3, 64, 0)
    with pytest.warns(FewClassesWarning, match="inmap takes all 40 classes"):
        InMaP(iters_proxy=1).scores(images, texts)
    InMaP(iters_proxy=1, gamma=1.0).scores(images, texts)
