"""OGA: the authors' numbers, loops, streams cut in two, classes that no image showed."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.golden import close, recorded
from zeroshot.errors import UserError
from zeroshot.methods._streams import save_stream
from zeroshot.methods.oga import OGA, GaussianStream
from zeroshot.methods.tda import TDA
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays


def problem(n=60, c=4, d=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    texts = normalize(torch.randn(c, 1, d, generator=generator).double())
    rows = texts[torch.arange(n) % c, 0] + 0.3 * torch.randn(n, d, generator=generator)
    return normalize(rows), texts


@pytest.mark.parametrize(
    ("part", "options"), [("", {}), ("norm_", {"unit_means": True}), ("one_", {"batch": 1})]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_authors(part, options, dtype, tolerance):
    z = recorded("oga_a")
    given = {"batch": int(z["hp_batch_size"]), "compat": True, **options}
    images, texts = (torch.from_numpy(z[name].astype(dtype)) for name in ("in_X", "in_W"))
    stream = OGA(**given).stream(texts[:, None])
    close(stream(images), z[f"out_{part}posterior"], tolerance)
    means, inverse, _ = stream.gaussians()
    close(means, z[f"out_{part}final_mu"], tolerance)
    if dtype == np.float64:
        close(inverse, z[f"out_{part}final_inv_sigma"], tolerance)
    if not part:
        assert np.array_equal(stream.used, z["out_final_memory_state"])
        close(stream.entropy, z["out_final_memory_entropy"], tolerance)


def test_authors_through_the_public_api():
    z = recorded("oga_a")
    arrays = {"images": z["in_X"], "texts": z["in_W"][:, None]}
    scores = score_arrays(arrays, "oga", {"batch": "16", "compat": "true"})["scores"]
    close(scores, z["out_posterior"])


def in_loops(images, texts, scale, capacity, tau, batch):
    """Ours, from the equations, image by image and class by class."""
    d, out = images.shape[1], []
    cache = [[] for _ in texts]
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        chances = []
        for x in rows:
            logits = scale * texts @ x
            p = np.exp(logits - logits.max())
            p /= p.sum()
            chances.append(p)
            entropy, own = -(p * np.log(p)).sum(), cache[int(p.argmax())]
            if len(own) < capacity:
                own.append((entropy, x))
            elif entropy < max(e for e, _ in own):
                own.remove(max(own, key=lambda pair: pair[0]))
                own.append((entropy, x))
        seen = [c for c, own in enumerate(cache) if len(own) >= 2]
        means = {c: np.mean([x for _, x in cache[c]], 0) for c in seen}
        rest = np.array([x - means[c] for c in seen for _, x in cache[c]])
        inverse = d * np.eye(d)
        if any(len(own) > 2 for own in cache):
            rest = rest - rest.mean(0)
            scatter = rest.T @ rest
            spread = np.trace(scatter) / (len(rest) - 1)
            inverse = d * np.linalg.inv(scatter + spread * np.eye(d))
        for x, p in zip(rows, chances, strict=True):
            z = p.copy()
            if seen:
                likely = [-0.5 * (x - means[c]) @ inverse @ (x - means[c]) for c in seen]
                joint = p[seen] * np.exp(tau * (np.array(likely) - max(likely)))
                z[seen] = joint / joint.sum() * p[seen].sum()
            out.append(z)
    return np.array(out)


def test_ours_equals_loops():
    images, texts = problem()
    images[1::4] = images[::4]  # a class that no image shows
    ours = OGA(capacity=3, tau=0.4, batch=9).scores(images, texts, logit_scale=8.0)
    expected = in_loops(images.numpy(), texts[:, 0].numpy(), 8.0, 3, 0.4, 9)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(ours.sum(1), 1)


def test_a_class_without_images_keeps_its_probability():
    images, texts = problem()
    plain = (20 * images @ texts[:, 0].T).softmax(1)
    stream = OGA(batch=60).stream(texts, logit_scale=20.0)
    shown = images[plain.argmax(1) != 2]
    scores = stream(shown)
    expected = (20 * shown @ texts[:, 0].T).softmax(1)
    torch.testing.assert_close(scores[:, 2], expected[:, 2])
    assert float((scores - expected).abs().max()) > 0.01


def test_a_stream_goes_on_where_it_was_saved(tmp_path):
    images, texts = problem()
    method = OGA(batch=10, tau=0.3)
    expected = method.scores(images, texts, logit_scale=9.0)
    first = method.stream(texts, logit_scale=9.0)
    before = first(images[:30])
    first.save(str(tmp_path / "stream.safetensors"))
    resumed = GaussianStream.load(tmp_path / "stream.safetensors")
    assert resumed.method == method
    assert torch.equal(torch.cat([before, resumed(images[30:])]), expected)
    assert resumed(images[:0]).shape == (0, 4)


def test_files_that_are_no_streams(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        GaussianStream.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="no saved oga stream"):
        GaussianStream.load(tmp_path / "text")


@pytest.mark.parametrize("options", [{"capacity": 0}, {"batch": 0}, {"tau": -0.1}])
def test_options_out_of_range(options):
    with pytest.raises(UserError, match="at least"):
        OGA(**options)


def test_gaussians_without_weight_are_zero_shot():
    images, texts = problem()
    plain = (20 * images @ texts[:, 0].T).softmax(1)
    ours = OGA(tau=0.0).scores(images, texts, logit_scale=20.0)
    torch.testing.assert_close(ours, plain)
    assert math.isclose(float(ours.sum()), len(images), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(4, 2, 7).double()}, "keys is [4, 2, 7]"),
        ({"keys": torch.zeros(4, 8, 7)}, "keys is [4, 8, 7] of torch.float32"),
        ({"entropy": torch.full((4, 8), torch.nan).double()}, "entropy has NaN"),
        ({"logit_scale": -1.0}, "logit_scale is -1.0"),
        ({"options": {"capacity": 0}}, "capacity and batch are at least 1"),
    ],
)
def test_damaged_streams(tmp_path, change, message):
    stream = OGA(batch=10, capacity=8).stream(problem()[1])
    settings = {"logit_scale": 100.0, "options": {"capacity": 8}}
    tensors = {k: change.get(k, v) for k, v in stream.tensors().items()}
    save_stream(tmp_path / "s", "oga", tensors, {k: change.get(k, v) for k, v in settings.items()})
    with pytest.raises(UserError, match=re.escape(message)):
        GaussianStream.load(tmp_path / "s")


@pytest.mark.parametrize("method", [OGA(capacity=10**9), TDA(pos_capacity=10**9)])
def test_slots_that_no_image_can_fill_take_no_memory(method):
    images, texts = problem()
    few = replace(method, **{k: 60 for k in vars(method) if "capacity" in k and "neg" not in k})
    assert torch.equal(method.scores(images, texts), few.scores(images, texts))
