"""Retrieval, Winoground and CLIPScore against loops and cases by hand."""

import numpy as np
import pytest

from zeroshot.metrics import retrieval as matching

RNG = np.random.default_rng(5)


def unit(*shape):
    rows = RNG.normal(size=shape)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_ranks_by_hand():
    image_of_text = np.array([0, 0, 1, 1, 1])
    scores = np.array([[0.1, 0.7, 0.9, 0.8, 0.2], [0.3, 0.6, 0.4, 0.2, 0.5]])
    # picture 0: 0.7, behind 0.9 and 0.8; picture 1: 0.5, behind 0.6
    assert matching.text_ranks(scores, image_of_text).tolist() == [3, 2]
    # captions: 0.1 < 0.3, 0.7 > 0.6; 0.4 < 0.9, 0.2 < 0.8, 0.5 > 0.2
    assert matching.image_ranks(scores, image_of_text).tolist() == [2, 1, 2, 2, 1]
    assert matching.recall_at(np.array([3, 2]), 2) == 0.5
    assert matching.median_rank(np.array([2, 1, 2, 2, 1])) == 2


def test_ranks_equal_sorting():
    image_of_text = RNG.permutation(np.repeat(np.arange(7), 3))
    scores = RNG.normal(size=(7, 21))
    for i in range(7):
        order = [image_of_text[j] for j in np.argsort(-scores[i])]
        assert matching.text_ranks(scores, image_of_text)[i] == order.index(i) + 1
    for j in range(21):
        order = np.argsort(-scores[:, j]).tolist()
        place = order.index(image_of_text[j]) + 1
        assert matching.image_ranks(scores, image_of_text)[j] == place


def test_an_encoder_that_says_the_same_of_everything_finds_nothing():
    image_of_text = np.repeat(np.arange(6), 2)
    scores = np.full((6, 12), 0.5)
    assert matching.recall_at(matching.text_ranks(scores, image_of_text), 5) == 0
    assert matching.recall_at(matching.image_ranks(scores, image_of_text), 5) == 0


def test_winoground_by_hand():
    right = [[0.9, 0.1], [0.2, 0.8]]
    text_only = [[0.5, 0.4], [0.7, 0.8]]  # picture 0 prefers caption 0, caption 0 picture 1
    image_only = [[0.5, 0.7], [0.4, 0.8]]
    tied = [[0.5, 0.5], [0.5, 0.5]]
    found = matching.winoground(np.array([right, text_only, image_only, tied]))
    assert found.text.tolist() == [True, True, False, False]
    assert found.image.tolist() == [True, False, True, False]
    assert found.group.tolist() == [True, False, False, False]


def test_clip_score_by_hand():
    images = np.array([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    captions = np.array([[0.6, 0.8], [-1.0, 0.0], [0.6, 0.8]])
    assert matching.clip_score(images, captions) == pytest.approx([1.5, 0.0, 2.5])
    references = [np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[-1.0, 0.0]]), captions[2:]]
    # 1.5 with 0.8; 0 with 1; 2.5 with 1
    expected = [2 * 1.5 * 0.8 / 2.3, 0.0, 2 * 2.5 / 3.5]
    assert matching.ref_clip_score(images, captions, references) == pytest.approx(expected)


def test_clip_score_of_nothing_alike_is_zero():
    images, captions = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert matching.ref_clip_score(images, captions, [np.array([[1.0, 0.0]])]).tolist() == [0.0]


def test_ref_clip_score_equals_loops():
    images, captions = unit(5, 4), unit(5, 4)
    references = [unit(n, 4) for n in (1, 3, 2, 5, 4)]
    for i, score in enumerate(matching.ref_clip_score(images, captions, references)):
        seen = 2.5 * max(float(images[i] @ captions[i]), 0)
        told = max(max(float(captions[i] @ r) for r in references[i]), 0)
        expected = 2 / (1 / seen + 1 / told) if seen and told else 0
        assert score == pytest.approx(expected)


def test_an_encoder_whose_scores_are_nan_finds_nothing():
    image_of_text = np.repeat(np.arange(6), 2)
    for scores in (np.full((6, 12), np.nan), np.full((6, 12), np.nan, np.float32)):
        assert matching.text_ranks(scores, image_of_text).tolist() == [11] * 6
        assert matching.image_ranks(scores, image_of_text).tolist() == [6] * 12


def test_single_scores_that_are_nan():
    image_of_text = np.array([0, 0, 1])
    # the other caption of image 0 is best; that of image 1 is behind two captions that are unknown
    scores = np.array([[np.nan, 0.7, 0.2], [np.nan, np.nan, 0.9]])
    assert matching.text_ranks(scores, image_of_text).tolist() == [1, 3]
    # caption 0: both unknown; caption 1: 0.7 behind what is unknown; caption 2: 0.9 before 0.2
    assert matching.image_ranks(scores, image_of_text).tolist() == [2, 2, 1]
