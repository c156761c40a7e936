"""Figures of draws of pictures, against the metrics on the pictures drawn."""

import math

import numpy as np
import pytest

from zeroshot import metrics
from zeroshot.errors import UserError
from zeroshot.metrics import captioning, retrieval as matching, statistics

RNG = np.random.default_rng(8)
WORDS = ["a", "dog", "runs", "on", "grass", "the", "cat", "sits", "red", "mat", "."]


def seeded():
    return np.random.default_rng(1)


def texts(count, words=6):
    return [" ".join(RNG.choice(WORDS, words)) for _ in range(count)]


def problem(rows=60, classes=7):
    logits = RNG.normal(size=(rows, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, RNG.integers(0, classes, rows)


def test_figures_of_labels_are_the_metrics_of_the_pictures_drawn():
    probabilities, labels = problem()
    rows = RNG.integers(0, 60, 60)
    found = statistics.measure_scores(probabilities, labels).statistic(rows)
    p, y = probabilities[rows], labels[rows]
    confidence, correct = p.max(1), p.argmax(1) == y
    assert found == pytest.approx(
        {
            "acc1": metrics.accuracy(p, y),
            "acc5": metrics.accuracy(p, y, 5),
            "mean_per_class_recall": metrics.mean_per_class_recall(p.argmax(1), y),
            "nll": metrics.nll(p, y),
            "ece": metrics.ece(p, y),
            "adaptive_ece": metrics.adaptive_ece(p, y),
            "auroc": metrics.auroc(confidence, correct),
            "average_precision": metrics.average_precision(confidence, correct),
            "aurc": metrics.aurc(confidence, correct),
        }
    )


def test_cosines_are_not_calibrated():
    probabilities, labels = problem()
    found = statistics.measure_scores(probabilities, labels, probabilities=False).statistic(
        np.arange(60)
    )
    assert not {"nll", "ece", "adaptive_ece"} & found.keys()


def test_figures_of_captions_are_the_metrics_of_the_pictures_drawn():
    captions = texts(20)
    references = [texts(n) for n in RNG.integers(1, 4, 20)]
    score = RNG.random(20)
    rows = RNG.integers(0, 20, 20)
    found = statistics.measure_captions(captions, references, {"CLIPScore": score}).statistic(rows)
    drawn = [captions[i] for i in rows], [references[i] for i in rows]
    bleu = captioning.bleu(*drawn).corpus
    assert [found[f"Bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu)
    assert found["ROUGE_L"] == pytest.approx(captioning.rouge_l(*drawn).corpus)
    frequency = captioning.document_frequency(references)
    cider = captioning.cider(*drawn, frequency=frequency).corpus
    assert found["CIDEr"] == pytest.approx(cider)
    assert found["rep_2"] == pytest.approx(captioning.rep_n(drawn[0], 2).corpus)
    assert found["diversity"] == pytest.approx(captioning.diversity(drawn[0]))
    assert found["CLIPScore"] == pytest.approx(score[rows].mean())
    assert found["words"] == pytest.approx(6)


def test_figures_of_ranks_are_the_metrics_of_the_pictures_drawn():
    counts = np.array([2, 1, 3, 2, 1, 3, 1, 2, 2, 1, 2, 3])
    image_of_text = RNG.permutation(np.repeat(np.arange(12), counts))
    scores = RNG.normal(size=(12, counts.sum()))
    rows = RNG.integers(0, 12, 12)
    found = statistics.measure_retrieval(scores, image_of_text).statistic(rows)
    of_text = matching.text_ranks(scores, image_of_text)[rows]
    of_image = matching.image_ranks(scores, image_of_text)
    of_image = np.concatenate([of_image[image_of_text == i] for i in rows])
    for k in (1, 5, 10):
        assert found[f"text_retrieval_recall@{k}"] == matching.recall_at(of_text, k)
        expected = pytest.approx(matching.recall_at(of_image, k))
        assert found[f"image_retrieval_recall@{k}"] == expected
    assert found["text_retrieval_median_rank"] == np.median(of_text)
    assert found["image_retrieval_median_rank"] == np.median(of_image)


def test_what_cannot_be_drawn_has_no_interval_and_what_never_varies_an_exact_one():
    captions = texts(9)
    found = statistics.measure_captions(captions, [[c] for c in captions]).figures(
        seeded(), draws=30
    )
    assert found["distinct_2"].value == captioning.distinct_n(captions, 2)
    assert math.isnan(found["distinct_2"].low)
    sure = np.eye(3)[[0, 1, 2, 0]]
    found = statistics.measure_scores(sure, np.array([0, 1, 2, 0])).figures(seeded(), draws=30)
    assert (found["acc1"].value, found["acc1"].high) == (1, 1)
    assert found["acc1"].low == pytest.approx(0.025 ** (1 / 4))
    assert "auroc" not in found  # every picture is right: there is nothing to tell apart


def test_differences_are_paired_and_shares_are_tested_by_mcnemar():
    _, labels = problem(200)
    good = np.full((200, 7), 0.1)
    good[np.arange(200), labels] = 0.4
    worse = good.copy()
    worse[:30] = 1 / 7
    worse[:30, 0] = 0.2
    first, second = (
        statistics.measure_scores(worse, labels),
        statistics.measure_scores(good, labels),
    )
    found = statistics.differences(first, second, seeded(), draws=100)
    wrong = int((labels[:30] != 0).sum())
    assert found["acc1"].value == pytest.approx(wrong / 200)
    assert found["acc1"].p == pytest.approx(2 * 0.5**wrong)
    assert found["acc1"].low > 0
    assert found["ece"].p <= 1


def test_one_picture_has_no_cider():
    with pytest.raises(UserError, match="one image"):
        statistics.measure_captions(["a dog"], [["a dog"]])


def test_tables_print_shares_as_percent():
    assert statistics.to_table_units("acc1", 0.5) == 50
    assert statistics.to_table_units("nll", 0.5) == 0.5


@pytest.mark.parametrize("probabilities", [True, False])
def test_a_method_whose_scores_are_nan_has_no_right_image(probabilities):
    labels = np.zeros(8, int)
    measure = statistics.measure_scores(
        np.full((8, 6), np.nan), labels, probabilities=probabilities
    )
    found = measure.statistic(np.arange(8))
    assert found["acc1"] == found["acc5"] == found["mean_per_class_recall"] == 0
    assert measure.figures(seeded(), draws=10)["acc1"].value == 0


def test_retrieval_by_scores_that_are_nan_recalls_nothing():
    found = statistics.measure_retrieval(np.full((12, 24), np.nan), np.repeat(np.arange(12), 2))
    figures = found.statistic(np.arange(12))
    assert figures["text_retrieval_recall@10"] == figures["image_retrieval_recall@10"] == 0
