"""ZERO, MTA and TDA: votes by hand, loops, the authors' numbers, and a stream cut in two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zeroshot.errors import UserError
from zeroshot.methods.mta import MTA
from zeroshot.methods.tda import TDA, Stream
from zeroshot.methods.zero import Zero
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays

DATA = Path(__file__).parent / "data" / "classify"
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def golden(name, dtype=torch.float64):
    with np.load(DATA / f"{name}_a.npz", allow_pickle=False) as z:
        found = {k: torch.from_numpy(z[k]) for k in z.files if k != "meta"}
    found = {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}
    return found, found["in_V"], found["in_W"][:, None]


def close(ours, theirs, tolerance):
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


def views(n=6, v=9, d=7, c=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = normalize(torch.randn(c, 1, d, generator=generator).double())
    rows = texts[torch.arange(n) % c, 0][:, None] + 0.7 * torch.randn(n, v, d, generator=generator)
    return normalize(rows), texts


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_authors_zero(dtype):
    z, V, texts = golden("zero", dtype)
    assert torch.equal(Zero().votes(V, texts), z["out_votes"])
    scores = Zero().scores(V[:, 0], texts, views=V)
    close(scores, z["out_votes"] / z["out_votes"].sum(1, keepdim=True), 1e-6)
    assert torch.equal(scores.argmax(1), z["out_pred"])


def votes(classes, count):
    """Views that are one-hot on these classes, each less certain than the one before."""
    rows = torch.full((len(classes), count), 0.0)
    for i, c in enumerate(classes):
        rows[i, c] = 1 - 0.05 * i
    return rows[None]


def test_votes_by_hand():
    texts = torch.eye(3)[:, None]
    # of six views the three surest vote, 0 0 1: class 0 wins
    assert Zero(0.5).votes(votes([0, 0, 1, 1, 1, 1], 3), texts, logit_scale=5.0).tolist() == [
        [2, 1, 0]
    ]
    # one vote each; the first other view says 2, which is not tied; the next says 1
    assert Zero(0.4).votes(votes([0, 1, 2, 1, 0], 3), texts, logit_scale=5.0).tolist() == [
        [1, 2, 0]
    ]
    # nobody breaks the tie
    assert Zero(0.7).votes(votes([0, 1, 2], 3), texts, logit_scale=5.0).tolist() == [[1, 1, 0]]
    # at least one view votes
    assert Zero(0.1).votes(votes([2, 1], 3), texts, logit_scale=5.0).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.7])
def test_votes_equal_loops(gamma):
    V, texts = views(n=40, v=10)
    expected = np.zeros((40, 4))
    for n in range(40):
        logits = 3 * (V[n] @ texts[:, 0].T).numpy()
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        order = np.argsort(-(p * np.log(p)).sum(1), kind="stable")
        best = logits.argmax(1)[order]
        kept = int(10 * gamma)
        for c in best[:kept]:
            expected[n, c] += 1
        tied = set(np.flatnonzero(expected[n] == expected[n].max()))
        if len(tied) > 1:
            for c in best[kept:]:
                if c in tied:
                    expected[n, c] += 1
                    break
    ours = Zero(gamma).votes(V, texts, logit_scale=3.0)
    assert ours.tolist() == expected.tolist()
    assert (ours.sum(1) > kept).any()


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_mta(dtype, tolerance):
    z, V, texts = golden("mta", dtype)
    found = MTA().modes(V, 100 * texts[:, 0])
    close(found.mode, z["out_mode"], tolerance)
    close(found.inlierness, z["out_inlierness"], tolerance)
    close(found.bandwidth, z["out_bandwidth"], tolerance)
    close(MTA().scores(V[:, 0], texts, views=V), z["out_logits"], tolerance)


def test_modes_equal_loops():
    V, texts = views()
    W = texts[:, 0].numpy()
    for rows in V:
        f = rows.numpy()
        distance = np.array([[((a - b) ** 2).sum() for b in f] for a in f])
        h2 = np.sort(distance, 1)[:, 1:5].mean(1) / 2  # half of the other eight
        P = np.exp(20 * f @ W.T)
        P /= P.sum(1, keepdims=True)
        m, y = f[0], np.full(9, 1 / 9)
        for _ in range(3):
            near = np.exp(-((f - m) ** 2).sum(1) / (2 * h2))
            for _ in range(2):
                e = np.exp((near + 2.0 * P @ P.T @ y) / 0.3)
                y = e / e.sum()
            for _ in range(2):
                near = np.exp(-((f - m) ** 2).sum(1) / (2 * h2))
                m = (y * near) @ f
                m = m / np.linalg.norm(m)
        method = MTA(0.3, 2.0, 3, 2, 0.0, 0.5)
        ours = method.scores(rows[:1], texts, logit_scale=20.0, views=rows[None])
        np.testing.assert_allclose(ours[0].numpy(), 20 * W @ m, rtol=1e-9, atol=1e-11)


def test_views_that_agree_are_the_mode_and_one_view_is_itself():
    V, texts = views()
    same = V[:, :1].expand(-1, 9, -1)
    expected = 100 * V[:, 0] @ texts[:, 0].T
    torch.testing.assert_close(MTA().scores(V[:, 0], texts, views=same), expected)
    torch.testing.assert_close(MTA().scores(V[:, 0], texts, views=V[:, :1]), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_authors_tda(dtype, tolerance):
    z, V, texts = golden("tda", dtype)
    stream = TDA().stream(texts)
    close(stream(V), z["out_logits"], tolerance)
    used = stream.positive.entropy < torch.inf
    assert torch.equal(used.sum(1), z["out_final_pos_counts"])
    keys = stream.positive.keys[used]
    assert all((keys - k).norm(dim=1).min() < 1e-6 for k in z["out_final_pos_keys"])
    used = stream.negative.entropy < torch.inf
    assert torch.equal(used.sum(1), z["out_final_neg_counts"])
    close(TDA().scores(V[:, 0], texts), z["out_logits"], tolerance)


def test_tda_equals_loops_with_views():
    V, texts = views(n=30, v=20, seed=3)
    W = texts[:, 0].numpy()
    positive, negative = [[] for _ in W], [[] for _ in W]
    expected = []

    def remember(cache, capacity, entropy, item):
        if len(cache) < capacity:
            cache.append((entropy, item))
        elif entropy < max(e for e, _ in cache):
            cache.remove(max(cache, key=lambda pair: pair[0]))
            cache.append((entropy, item))

    for rows in V:
        f = rows.numpy()
        logits = 4 * f @ W.T
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        best = np.argsort(-(p * np.log(p)).sum(1))[:4]
        x, mean, p = f[best].mean(0), logits[best].mean(0), p[best].mean(0)
        entropy = -(p * np.log(p)).sum()
        owner = int(mean.argmax())
        remember(positive[owner], 2, entropy, x)
        if 0.1 < entropy / np.log2(4) < 0.6:
            remember(negative[owner], 1, entropy, (x, (p > 0.1) & (p < 0.9)))
        score = mean.copy()
        for c in range(4):
            for _, k in positive[c]:
                score[c] += 1.5 * np.exp(-2.5 * (1 - x @ k))
            for _, (k, mask) in negative[c]:
                score -= 0.3 * np.exp(-0.7 * (1 - x @ k)) * mask
        expected.append(score)
    method = TDA(2, 1.5, 2.5, 1, 0.3, 0.7, 0.1, 0.6, 0.1, 0.9, 0.2)
    ours = method.scores(V[:, 0], texts, logit_scale=4.0, views=V)
    np.testing.assert_allclose(ours.numpy(), np.array(expected), rtol=1e-9)
    assert sum(map(len, negative)) > 2


def test_a_stream_goes_on_where_it_was_saved(tmp_path):
    V, texts = views(n=20, v=1)
    whole = TDA(pos_alpha=1.5).stream(texts, logit_scale=9.0)
    first = TDA(pos_alpha=1.5).stream(texts, logit_scale=9.0)
    expected = whole(V)
    before = first(V[:11])
    first.save(tmp_path / "stream.safetensors")
    resumed = Stream.load(tmp_path / "stream.safetensors")
    assert resumed.method == TDA(pos_alpha=1.5)
    assert torch.equal(torch.cat([before, resumed(V[11:])]), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["stream.safetensors"]
    assert resumed(V[:0]).shape == (0, 4)


def test_files_that_are_no_streams(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Stream.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="no saved tda stream"):
        Stream.load(tmp_path / "text")
    save_file({"x": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(UserError, match="no saved tda stream"):
        Stream.load(tmp_path / "other")


def test_caches_of_no_room_are_zero_shot():
    V, texts = views(v=1)
    plain = TDA(pos_capacity=0, neg_capacity=0).scores(V[:, 0], texts)
    torch.testing.assert_close(plain, 100 * V[:, 0] @ texts[:, 0].T)


@pytest.mark.parametrize(
    ("name", "output"), [("zero", "votes"), ("mta", "logits"), ("tda", "logits")]
)
def test_authors_through_the_public_api(name, output):
    z, V, texts = golden(name)
    arrays = {"images": V[:, 0], "texts": texts, "views": V}
    scores = score_arrays({k: v.numpy() for k, v in arrays.items()}, name, {})["scores"]
    theirs = z[f"out_{output}"].numpy()
    if name == "zero":
        theirs = theirs / theirs.sum(1, keepdims=True)
    np.testing.assert_allclose(scores, theirs, rtol=1e-9, atol=1e-9)


def test_view_methods_need_views():
    V, texts = views()
    arrays = {"images": V[:, 0].numpy(), "texts": texts.numpy()}
    with pytest.raises(UserError, match=r"zero needs the array views \[n v d\]"):
        score_arrays(arrays, "zero", {})
