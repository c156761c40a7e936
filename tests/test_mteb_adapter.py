"""The encoder for mteb, by batches as mteb's loaders make them; mteb itself is not needed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zeroshot
from zeroshot.adapters import mteb as adapter
from zeroshot.adapters.mteb import MtebEncoder
from zeroshot.errors import NotAvailableError, UserError

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))
TEXTS = ["red heart", "blue star", "green ring"]
TASK = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "prompt_type": None}
"""What mteb passes besides the batches."""


class Batches(list):
    """Stands in for a DataLoader of mteb: dicts of lists, by modality."""


def images(count=3):
    return [Image.open(path) for path in SCENES[:count]]


@pytest.fixture(scope="module")
def pocket():
    return zeroshot.load("pocket")


def test_texts_and_images_are_in_one_space(pocket):
    encoder = MtebEncoder(pocket)
    texts = encoder.encode(Batches([{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]), **TASK)
    rows = encoder.encode(Batches([{"image": images(), "id": [1, 2, 3]}]), **TASK, batch_size=3)
    torch.testing.assert_close(texts, pocket.encoder.encode_texts(TEXTS))
    torch.testing.assert_close(rows, pocket.encoder.encode_images(images()))
    assert encoder.similarity(rows, texts).argmax(1).tolist() == [0, 1, 2]


def test_zero_shot_labels_are_those_of_classify(pocket):
    encoder = MtebEncoder(pocket)
    rows = encoder.encode(Batches([{"image": images(8)}]), **TASK)
    cosines = encoder.similarity(rows, encoder.encode(Batches([{"text": TEXTS}]), **TASK))
    results = zeroshot.classify(SCENES, TEXTS, pocket, "ensemble", templates="none", top_k=1)
    assert [TEXTS[i] for i in cosines.argmax(1)] == [r.labels[0].label for r in results]
    best = [r.labels[0].cosine for r in results]
    np.testing.assert_allclose(cosines.amax(1), best, atol=1e-5)


def test_a_coupled_pair_is_an_encoder_too():
    encoder = MtebEncoder(zeroshot.load("pocket", encoder="coupled"))
    rows = encoder.encode(Batches([{"image": images()}]), **TASK)
    texts = encoder.encode(Batches([{"text": TEXTS}]), **TASK)
    assert encoder.similarity(rows, texts).argmax(1).tolist() == [0, 1, 2]


def test_an_image_with_a_text_is_the_sum_of_both(pocket):
    encoder = MtebEncoder(pocket)
    both = encoder.encode(Batches([{"image": images(), "text": TEXTS}]), **TASK)
    expected = pocket.encoder.encode_texts(TEXTS) + pocket.encoder.encode_images(images())
    torch.testing.assert_close(both, torch.nn.functional.normalize(expected))


def test_long_texts_and_grey_images_pass(pocket):
    encoder = MtebEncoder(pocket)
    assert encoder.encode(Batches([{"text": ["red " * 500]}]), **TASK).isfinite().all()
    assert encoder.encode(Batches([{"image": [Image.new("L", (9, 9))]}]), **TASK).shape[0] == 1


def test_similarities_by_hand(pocket):
    encoder = MtebEncoder(pocket)
    first, second = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(encoder.similarity(first, second), [[0.6, 0.8], [0, 1]], atol=1e-7)
    np.testing.assert_allclose(encoder.similarity_pairwise(first, second), [0.6, 1], atol=1e-7)
    assert encoder.similarity(first[0], second).shape == (1, 2)


def test_another_modality_is_refused(pocket):
    with pytest.raises(UserError, match="the task has audio, and a model set reads text and image"):
        MtebEncoder(pocket).encode(Batches([{"audio": [0]}]), **TASK)


def test_mteb_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(NotAvailableError, match="needs mteb: pip install"):
        adapter.main(["pocket", "CIFAR10ZeroShot"])
