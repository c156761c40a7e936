"""Search in blocks against the whole matrix in numpy; corrections against their equations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from zeroshot.errors import UserError
from zeroshot.ops import Keys, normalize
from zeroshot.ranking import exact as ranking
from zeroshot.ranking.exact import CORRECTIONS, Gallery, correction, nearest, search


def unit(n, d=16, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return normalize(rows)


def brute(scores, k):
    """Per row the k best columns of a float64 matrix; of equal ones the first."""
    order = [sorted(range(len(row)), key=lambda g: (-row[g], g))[:k] for row in scores]
    return np.array(
        [[row[g] for g in best] for row, best in zip(scores, order, strict=True)]
    ), order


def cosines(a, b):
    return a.double().numpy() @ b.double().numpy().T


# Exact search


@pytest.mark.parametrize("n", [1, 7, 300, 5000])
@pytest.mark.parametrize("k", [1, 5, 400])
def test_equals_sorting_every_score(n, k):
    queries, gallery = unit(6, seed=1), unit(n)
    values, order = brute(cosines(queries, gallery), k)
    hits = search(queries, Gallery.of(gallery), k)
    assert hits.index.tolist() == [list(o) for o in order]
    assert np.allclose(hits.scores, values, atol=1e-6)
    assert hits.scores.shape == (6, min(k, n))


@pytest.mark.parametrize("block", [1, 3, 64, 999, 10_000])
def test_no_block_size_changes_anything(block):
    queries, gallery = unit(3, seed=1), unit(4500)
    once, again = (search(queries, Gallery.of(gallery), 9, block=b) for b in (8192, block))
    assert torch.equal(once.index, again.index)
    assert torch.equal(once.scores, again.scores)


@pytest.mark.parametrize("block", [7, 512, 8192])
@pytest.mark.parametrize("copies", [2, 12, 3000])
def test_of_equal_pictures_the_first_comes_first(block, copies):
    """Also where more are equal than there is room for, and wherever blocks end."""
    gallery = unit(5000)
    places = torch.from_numpy(np.random.default_rng(copies).permutation(5000)[:copies])
    gallery[places] = gallery[0].clone()
    query = normalize(gallery[:1] + 0.1 * unit(1, seed=3))
    equal = sorted({0, *places.tolist()})
    hits = search(query, Gallery.of(gallery), 10, block=block)
    assert hits.index[0, : len(equal)].tolist() == equal[:10]
    assert len(hits.scores[0, : len(equal)].unique()) == 1


def test_all_equal():
    gallery = unit(1).repeat(6000, 1)
    assert search(unit(2, seed=1), Gallery.of(gallery), 4).index.tolist() == [[0, 1, 2, 3]] * 2


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_small_whole_numbers_are_exact(data):
    """Integers have no rounding, so that every tie is one."""
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 10**6))
    rows = np.random.default_rng(seed).integers(-2, 3, (n + 2, 3)).astype(np.float32)
    queries, gallery = torch.from_numpy(rows[:2]), torch.from_numpy(rows[2:])
    values, index = nearest(queries, Gallery.of(gallery), k, block=data.draw(st.integers(1, 9)))
    expected, order = brute(cosines(queries, gallery), k)
    assert values.tolist() == expected.tolist()
    assert index.tolist() == order


def test_half_the_memory_and_scores_in_single_precision():
    queries, gallery = unit(4, seed=1), unit(3000)
    halves = search(queries, Gallery.of(gallery.half()), 5)
    values, order = brute(cosines(queries, gallery.half().float()), 5)
    assert halves.scores.dtype == torch.float32
    assert halves.index.tolist() == [list(o) for o in order]
    assert np.allclose(halves.scores, values, atol=1e-6)


def test_an_empty_gallery_and_no_queries():
    assert search(unit(2), Gallery.of(torch.zeros(0, 16)), 3).index.shape == (2, 0)
    assert search(torch.zeros(0, 16), Gallery.of(unit(5)), 3).index.shape == (0, 3)


def test_nothing_is_ranked_by_what_is_no_number():
    rows = unit(9000)
    rows[8500, 3] = torch.nan
    with pytest.raises(UserError, match="row 8500 of the gallery is not finite"):
        Gallery.of(rows)
    with pytest.raises(UserError, match="a query is not finite"):
        search(torch.full((1, 16), torch.inf), Gallery.of(unit(3)), 1)


def test_rows_change_block_by_block(monkeypatch):
    """What a change makes of the rows never exists as a whole."""
    seen = []

    def widen(rows, places):
        seen.append(len(rows))
        return torch.cat([rows, -rows], dim=1)

    gallery, queries = unit(20_000), unit(2, 32, seed=4)
    changed = Gallery.of(gallery, widen)
    assert isinstance(changed, Keys)
    hits = search(queries, changed, 5, block=1000)
    _, order = brute(cosines(queries, torch.cat([gallery, -gallery], dim=1)), 5)
    assert hits.index.tolist() == [list(o) for o in order]
    assert max(seen) <= 2048


# Corrections, each equation written on the whole matrix


def whole(name, q, g, b, k=3, beta=20.0, alpha=0.75, lam=0.25):
    """Scores by loops over float64 matrices."""
    s, bank = cosines(q, g), cosines(b, g)
    softened = s - np.log(np.exp(beta * bank).mean(0)) / beta
    if name == "nnn":
        return s - alpha * np.sort(bank, 0)[-min(k, len(bank)) :].mean(0)
    if name == "inverted_softmax":
        return softened
    if name == "csls":
        of_query = np.sort(s, 1)[:, -min(k, s.shape[1]) :].mean(1, keepdims=True)
        return 2 * s - of_query - np.sort(bank, 0)[-min(k, len(bank)) :].mean(0)
    if name == "dis":
        active = set(np.argsort(-bank, 1)[:, :k].flatten().tolist())
        rows = zip(s, softened, strict=True)
        return np.array([soft if int(row.argmax()) in active else row for row, soft in rows])
    q, g, b = (x.double().numpy() for x in (q, g, b))
    left, right = q - lam * b.mean(0), g - lam * g.mean(0)
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    return left @ right.T


OPTIONS = {"nnn": {"k": "3"}, "csls": {"k": "3"}, "dis": {"k": "3"}}


@pytest.mark.parametrize("n", [2, 50, 4500])
@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections_equal_their_equations(name, n, monkeypatch):
    monkeypatch.setattr(ranking, "CELLS", 1000)  # the bank in several parts
    queries, gallery, bank = unit(8, seed=1), unit(n), unit(11, seed=2)
    method = correction(name, OPTIONS.get(name, {}))
    values, order = brute(whole(name, queries, gallery, bank), 6)
    for block in (100, 8192):
        hits = search(queries, Gallery.of(gallery), 6, method, bank, block)
        assert hits.index.tolist() == [list(o) for o in order]
        assert np.allclose(hits.scores, values, atol=1e-5)
        raw = np.take_along_axis(cosines(queries, gallery), hits.index.numpy(), 1)
        assert np.allclose(hits.cosines, raw, atol=1e-6)


def test_dis_corrects_some_queries_and_leaves_others():
    """The case of the test above has both kinds."""
    queries, gallery, bank = unit(8, seed=1), unit(50), unit(11, seed=2)
    plain, corrected = cosines(queries, gallery), whole("dis", queries, gallery, bank)
    same = (plain == corrected).all(1)
    assert same.any()
    assert not same.all()


def test_a_hub_by_hand():
    """The hub is near every query of the bank, so that it gives way to the other picture."""
    gallery = normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    query = normalize(torch.tensor([[1.0, 0.6, 0.6]]))
    bank = normalize(torch.tensor([[0.1, 1.0, 1.0], [0.1, 1.0, 0.9]]))
    assert search(query, Gallery.of(gallery), 1).index.item() == 0
    for name in ("nnn", "csls", "inverted_softmax", "dis"):
        hits = search(query, Gallery.of(gallery), 1, correction(name, {}), bank)
        assert hits.index.item() == 1, name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "'magic' does not re-rank a search; these do: csls, dis, dn"),
        ("dis", {"compat": "true"}, "compat=true gives quotients"),
        ("nnn", {"k": "0"}, "nnn: k=0; k is at least 1"),
        ("nnn", {"q": "0"}, "unknown option of nnn 'q'"),
    ],
)
def test_what_is_no_correction(name, options, message):
    with pytest.raises(UserError, match=message):
        correction(name, options)


def test_a_correction_needs_a_bank():
    with pytest.raises(UserError, match="method 'nnn' needs a bank of other queries"):
        search(unit(1), Gallery.of(unit(5)), 1, correction("nnn", {}))
