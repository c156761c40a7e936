"""Prompt ensembles against loops and against the authors' classifiers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize

DATA = Path(__file__).parent / "data" / "classify"


def arrays(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as z:
        return {key: torch.from_numpy(z[key]) for key in z.files if key != "meta"}


def test_authors_classifier():
    z = arrays("prompt_ensemble_a")
    ours = Ensemble("embed")
    torch.testing.assert_close(
        ours.classifier(z["in_E"]), z["out_classifier"].T, rtol=1e-12, atol=1e-15
    )
    logits = float(z["hp_logit_scale"]) * ours.scores(z["in_X"], z["in_E"])
    torch.testing.assert_close(logits, z["out_logits"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "output"),
    [
        ("score", "scores_dclip"),
        ("score", "scores_waffle_mean"),
        ("embed", "scores_waffle_merged"),
        ("max", "scores_waffle_max"),
    ],
)
def test_authors_ragged_scores(mode, output):
    z = arrays("dclip_waffle_a")
    ours = Ensemble(mode).scores(z["in_X"], z["in_E"], z["in_mask"])
    torch.testing.assert_close(ours, z[f"out_{output}"], rtol=1e-12, atol=1e-14)


def test_mean_probability_equals_loops():
    z = arrays("prompt_ensemble_a")
    images, texts = z["in_X"][:7].numpy(), z["in_E"].numpy()
    expected = np.zeros((7, 6))
    for n in range(7):
        for t in range(5):
            scores = np.exp(30.0 * np.array([texts[c, t] @ images[n] for c in range(6)]))
            expected[n] += scores / scores.sum() / 5
    ours = Ensemble("prob").scores(z["in_X"][:7], z["in_E"], logit_scale=30.0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    assert Ensemble("prob").output == "probability"
    assert Ensemble("max").output == "similarity"


@pytest.mark.parametrize("mode", ["embed", "score", "prob", "max"])
def test_padding_of_ragged_prompts_never_counts(mode):
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(4, 6, generator=generator))
    texts = normalize(torch.randn(3, 5, 6, generator=generator))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    junk = torch.where(mask[..., None], texts, 1e3 * torch.ones(()))
    ours = Ensemble(mode).scores(images, junk, mask)
    zeros = Ensemble(mode).scores(images, texts * mask[..., None], mask)
    torch.testing.assert_close(ours, zeros)
    if mode == "prob":
        assert ((ours >= 0) & (ours <= 1)).all()


@pytest.mark.parametrize("mode", ["embed", "score", "prob", "max"])
def test_one_prompt_makes_all_modes_rank_alike(mode):
    generator = torch.Generator().manual_seed(1)
    images = normalize(torch.randn(9, 6, generator=generator))
    texts = normalize(torch.randn(4, 1, 6, generator=generator))
    ours = Ensemble(mode).scores(images, texts)
    assert torch.equal(ours.argsort(1), (images @ texts[:, 0].T).argsort(1))
