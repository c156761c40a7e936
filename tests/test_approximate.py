"""Approximate search against the exact one, and what it says of itself."""

import re

import pytest
import torch

from zeroshot.errors import ApproximateWarning
from zeroshot.ops import normalize
from zeroshot.ranking import faiss_index
from zeroshot.ranking.exact import Gallery, search as exact


def clustered(n, d=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(20, d, generator=torch.Generator().manual_seed(9))
    near = centres[torch.randint(20, (n,), generator=generator)]
    return normalize(near + 0.4 * torch.randn(n, d, generator=generator))


@pytest.mark.parametrize("kind", faiss_index.KINDS)
def test_recall_is_what_it_says_and_scores_are_exact(kind):
    gallery, queries = clustered(3000), clustered(40, seed=1)
    with pytest.warns(ApproximateWarning, match="of the 10 best") as said:
        hits = faiss_index.search(queries, Gallery.of(gallery), 10, kind)
    true = exact(queries, Gallery.of(gallery), 10)
    pairs = zip(hits.index.tolist(), true.index.tolist(), strict=True)
    recall = sum(len(set(a) & set(b)) for a, b in pairs) / 400
    assert f"finds {recall:.3f} of the 10 best (measured on 40 of" in str(said[0].message)
    assert recall > 0.8
    assert len({tuple(row) for row in hits.index.tolist()}) > 1
    expected = (queries.double() @ gallery.double().T).gather(1, hits.index)
    assert torch.allclose(hits.scores.double(), expected, atol=1e-6)
    assert (hits.scores[:, :-1] >= hits.scores[:, 1:]).all()


@pytest.mark.parametrize("kind", faiss_index.KINDS)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_few_pictures(kind, n):
    with pytest.warns(ApproximateWarning):
        hits = faiss_index.search(clustered(3, seed=1), Gallery.of(clustered(n)), 10, kind)
    assert hits.index.shape == (3, min(n, 10))
    for row in hits.index.tolist():
        found = [place for place in row if place >= 0]
        assert found
        assert len(set(found)) == len(found)
        assert row == found + [-1] * (len(row) - len(found))


def test_nothing_to_search():
    hits = faiss_index.search(clustered(2), Gallery.of(torch.zeros(0, 32)), 3, "ivf")
    assert hits.index.shape == (2, 0)


def test_a_sample_of_many_queries(monkeypatch):
    monkeypatch.setattr(faiss_index, "SAMPLE", 7)
    with pytest.warns(ApproximateWarning) as said:
        faiss_index.search(clustered(50, seed=1), Gallery.of(clustered(500)), 5, "ivf")
    assert re.search(r"measured on 7 of", str(said[0].message))
