"""Re-ranking against hubs: authors' numbers, loops, and what each promises."""

import math

import numpy as np
import pytest
import torch

from tests.golden import close, recorded, tensors
from zeroshot.errors import UserError
from zeroshot.methods.csls import CSLS, crowding, csls
from zeroshot.methods.dis import DIS, active, dis
from zeroshot.methods.inverted_softmax import inverted_softmax
from zeroshot.methods.nnn import NNN, append_ones, bias, nnn, with_bias
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays


def arrays(name, bank=True):
    z = recorded(name)
    given = {"images": z["in_Q"], "texts": z["in_G"][:, None]}
    return z, given | ({"bank": z["in_bank"]} if bank else {})


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({}, "sims_dis"),
        ({"k": 3, "beta": 7.5}, "sims_dis_variant"),
        ({"k": 40}, "sims_inverted_softmax_all_rows"),
    ],
)
def test_authors_dis(options, output):
    z, given = arrays("qbnorm_dis_a")
    close(score_arrays(given, "dis", options | {"compat": True})["scores"], z[f"out_{output}"])
    similarity, bank = (torch.from_numpy(z[k]) for k in ("in_sims", "in_bank_sims"))
    k, beta = options.get("k", 1), options.get("beta", 20.0)
    close(dis(similarity, bank, k, beta, compat=True), z[f"out_{output}"])


def test_authors_activation_sets():
    z = tensors("qbnorm_dis_a")
    found = active(z["in_bank_sims"], 1)
    assert torch.equal(found.nonzero().flatten(), z["out_activated_galleries"])
    rows = found[z["in_sims"].argmax(1)].nonzero().flatten()
    assert torch.equal(rows, z["out_normalised_rows"])


def test_the_logarithm_ranks_every_row_as_the_quotient_does():
    z = tensors("qbnorm_dis_a")
    ours, theirs = (dis(z["in_sims"], z["in_bank_sims"], compat=c) for c in (False, True))
    assert torch.equal(ours.argsort(1), theirs.argsort(1))


def test_rows_that_no_hub_catches_stay():
    z = tensors("qbnorm_dis_a")
    ours = dis(z["in_sims"], z["in_bank_sims"])
    stays = ~active(z["in_bank_sims"])[z["in_sims"].argmax(1)]
    assert 0 < int(stays.sum()) < len(stays)
    assert torch.equal(ours[stays], z["in_sims"][stays])


def test_authors_nnn():
    z, given = arrays("nnn_a")
    scores = score_arrays(given, "nnn", {"k": 16, "alpha": 0.75})["scores"]
    close(scores, z["out_sims_nnn"])
    assert np.array_equal((-scores).argsort(1, kind="stable"), z["out_ranking_nnn"])
    bank = torch.from_numpy(z["in_bank"] @ z["in_G"].T)
    close(bias(bank, 16, 1.0), z["out_alignment_means"])


def test_the_bias_fits_into_an_index_of_inner_products():
    z = tensors("nnn_a")
    lent = bias(z["in_bank"] @ z["in_G"].T, 16)
    found = append_ones(z["in_Q"]) @ with_bias(z["in_G"], lent).T
    torch.testing.assert_close(found, nnn(z["in_Q"] @ z["in_G"].T, z["in_bank"] @ z["in_G"].T, 16))


def test_authors_dn_ranking_is_a_mean_subtraction():
    """Their DN re-ranker does not bring rows to unit length again, unlike the method `dn`."""
    z = tensors("nnn_a")
    queries = z["in_Q"] - 0.5 * z["in_bank"].mean(0)
    gallery = z["in_G"] - 0.5 * z["in_G"].mean(0)
    close(queries @ gallery.T, z["out_sims_dn_rank"])


def test_authors_csls_and_inverted_softmax():
    z, given = arrays("csls_a", bank=False)
    close(score_arrays(given, "csls", {})["scores"], z["out_sims_csls"])
    ours = score_arrays(given, "inverted_softmax", {"compat": True})["scores"]
    close(ours, z["out_sims_inverted_softmax"])
    similarity = torch.from_numpy(z["out_sims_nn"])
    close(crowding(similarity, 10, 1)[:, 0], z["out_r_query"])
    close(crowding(similarity, 10, 0)[0], z["out_r_gallery"])


def test_all_equal_loops():
    generator = torch.Generator().manual_seed(0)
    sims = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    bank = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    soft, crowded, less = (
        inverted_softmax(sims, bank, 6.0),
        csls(sims, bank, 2),
        nnn(sims, bank, 2, 0.3),
    )
    for q in range(4):
        for g in range(3):
            column = sorted(bank[:, g].tolist())
            shared = sum(math.exp(6.0 * x) for x in column) / 5
            assert float(soft[q, g]) == pytest.approx(float(sims[q, g]) - math.log(shared) / 6)
            row = sorted(sims[q].tolist())
            expected = 2 * float(sims[q, g]) - sum(row[-2:]) / 2 - sum(column[-2:]) / 2
            assert float(crowded[q, g]) == pytest.approx(expected)
            assert float(less[q, g]) == pytest.approx(
                float(sims[q, g]) - 0.3 * sum(column[-2:]) / 2
            )


def test_a_hub_is_brought_down_by_all():
    """Column 0 is everyone's best; without it each query finds its own."""
    own = torch.eye(4, dtype=torch.float64)
    sims = torch.cat([torch.full((4, 1), 1.05, dtype=torch.float64), 0.5 + 0.5 * own], dim=1)
    wanted = torch.arange(1, 5)
    assert not (sims.argmax(1) == wanted).any()
    for ranked in (
        dis(sims, sims),
        nnn(sims, sims, 4),
        csls(sims, k=2),
        inverted_softmax(sims),
    ):
        assert torch.equal(ranked.argmax(1), wanted)


@pytest.mark.parametrize("method", [DIS(k=0), NNN(k=0)])
def test_no_neighbours_are_refused(method):
    with pytest.raises(UserError, match="k is at least 1"):
        method.fit(normalize(torch.ones(2, 3)))
    with pytest.raises(UserError, match="k is at least 1"):
        CSLS(k=0).scores(normalize(torch.ones(2, 3)), normalize(torch.ones(2, 1, 3)))
