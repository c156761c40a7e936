"""Diagnostics against their definitions and the recorded numbers of four repositories."""

import itertools
import math

import numpy as np
import pytest
import torch

from tests.test_asif import arrays
from zeroshot.errors import UserError
from zeroshot.metrics import alignment
from zeroshot.ops import normalize

CKA = {k: v.double() for k, v in arrays("cka_a").items()}
KNN = {k: v.double() for k, v in arrays("mutual_knn_a").items()}
MATCHING = {k: v.double() for k, v in arrays("matching_a").items()}
RELATIONS = [("cka", "cka"), ("mutual_knn", "mknn"), ("distance", "gw")]


def sides(z, tag):
    x, y = z["X"], z["Y"]
    if tag != "raw":
        x, y = normalize(x), normalize(y)
    return (x, y[z["shuffle"].long()]) if tag == "l2_shuffled" else (x, y)


@pytest.mark.parametrize("tag", ["raw", "l2", "l2_shuffled"])
def test_cka(tag):
    x, y = sides(CKA, tag)
    assert alignment.linear_cka(x, y) == pytest.approx(float(CKA[f"linear_cka_{tag}"]), rel=1e-9)
    assert alignment.linear_cka(x.repeat(1, 3), y.repeat(1, 3)) == pytest.approx(
        float(CKA[f"linear_cka_{tag}"]), rel=1e-9
    )
    assert alignment.rbf_cka(x, y) == pytest.approx(float(CKA[f"rbf_cka_{tag}"]), rel=1e-9)
    # theirs adds 1e-6 to the denominator
    k, m = x @ x.T, y @ y.T
    scale = (alignment.hsic(k, k) * alignment.hsic(m, m)).sqrt()
    theirs = float(CKA[f"prh_unbiased_cka_{tag}"] * (scale + 1e-6) / scale)
    assert alignment.unbiased_cka(x, y) == pytest.approx(theirs, rel=1e-9)
    kernels = alignment.relations(x, y, "cka")
    blind = -(kernels[0] * kernels[1]).sum()
    assert float(blind) == pytest.approx(float(CKA[f"blind_cka_{tag}"]), rel=1e-9)


@pytest.mark.parametrize("tag", ["raw", "l2", "l2_shuffled"])
def test_neighbours(tag):
    x, y = sides(KNN, tag)
    for k, mutual, local in zip(
        KNN["ks"].int().tolist(), KNN[f"mutual_knn_{tag}"], KNN[f"cknna_{tag}"], strict=True
    ):
        assert alignment.mutual_knn(x, y, k) == pytest.approx(float(mutual), rel=1e-9)
        assert alignment.cknna(x, y, k) == pytest.approx(float(local), rel=1e-4, abs=1e-6)


def test_mutual_neighbours_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert alignment.mutual_knn(x, x, 1) == 1.0
    assert alignment.mutual_knn(x, x[[0, 2, 1, 3]], 1) == 0.0


def test_independent_sides_have_an_unbiased_cka_near_zero():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, 40, generator=generator).double() for _ in range(2))
    assert abs(alignment.unbiased_cka(x, y)) < 0.05
    assert alignment.linear_cka(x, y) > 0.3


def test_local_cka():
    z = MATCHING
    args = z["set_img"], z["set_txt_shuffled"], z["base_img"], z["base_txt"]
    linear = alignment.local_cka(*args, cka=alignment.linear_cka)
    torch.testing.assert_close(linear, z["linear_local_cka"], rtol=1e-9, atol=0)
    kernel = alignment.local_cka(*args)
    torch.testing.assert_close(kernel, z["kernel_local_cka"], rtol=1e-9, atol=0)
    assert torch.equal(alignment.assign(kernel), z["kernel_local_cka_assignment"].long())
    assert torch.equal(alignment.assign(linear), z["linear_local_cka_assignment"].long())


def test_matching_with_base_pairs():
    z = MATCHING
    found = alignment.match_set(z["set_img"], z["qap_set_txt"], z["base_img"], z["base_txt"])
    assert -found.cost >= float(z["qap_best_known_objective"]) - 1e-9


@pytest.mark.parametrize(
    ("by", "golden"), [("cka", "cka"), ("mutual_knn", "mknn"), ("distance", "gw")]
)
def test_matching_without_pairs(by, golden):
    z = MATCHING
    c1, c2, constant = alignment.relations(z["blind_img"], z["blind_txt_shuffled"], by)
    torch.testing.assert_close(c1, z[f"{golden}_c1"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(c2, z[f"{golden}_c2"], rtol=1e-7, atol=1e-9)
    assert constant == pytest.approx(float(z[f"{golden}_constant"]), rel=1e-9)
    p = z["true_assignment"].long()
    cost = float((c1 * c2[p][:, p]).sum()) + constant
    assert cost == pytest.approx(float(z[f"{golden}_true_cost"]), abs=1e-9)
    found = alignment.match_unpaired(z["blind_img"], z["blind_txt_shuffled"], by)
    assert found.cost <= float(z[f"{golden}_best_known_cost"]) + 1e-9
    p = found.assignment
    assert float((c1 * c2[p][:, p]).sum()) + constant == pytest.approx(found.cost)


@pytest.mark.parametrize(
    ("by", "golden"), [("cka", "cka"), ("mutual_knn", "mknn"), ("distance", "gw")]
)
def test_a_small_matching_is_the_best_of_all(by, golden):
    z = MATCHING
    images, texts = z["blind_img"][:7], z["blind_txt_shuffled"][:7]
    c1, c2, constant = (
        x.numpy() if isinstance(x, torch.Tensor) else x
        for x in alignment.relations(images, texts, by)
    )
    every = (np.array(p) for p in itertools.permutations(range(7)))
    best = min((c1 * c2[np.ix_(p, p)]).sum() for p in every) + constant
    found = alignment.match_unpaired(images, texts, by)
    assert found.cost == pytest.approx(best, abs=1e-9)
    theirs = float(z[f"{golden}_brute7_cost"])
    if by == "distance":  # there without the constant, and the second kernel not doubled
        theirs *= 2
    assert math.isclose(best - constant, theirs, abs_tol=1e-7)


def test_misuse():
    x = torch.randn(5, 3)
    with pytest.raises(UserError, match="k=5: expected 1 to 4"):
        alignment.mutual_knn(x, x, 5)
    with pytest.raises(UserError, match="5 images and 4 texts"):
        alignment.match_unpaired(x, x[:4])
    with pytest.raises(UserError, match="at least 4"):
        alignment.unbiased_cka(x[:3], x[:3])
