"""Caption metrics against loops and exact fractions, by hand, and by what must be true of them."""

import gzip
import json
import math
import runpy
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from zeroshot.errors import UserError
from zeroshot.metrics.captioning import (
    bleu,
    caption_scores,
    cider,
    distinct_n,
    diversity,
    document_frequency,
    rep_n,
    rouge_l,
)

CAPTIONS = [
    "A brown dog runs on the wet grass.",
    "The cat, the cat sleeps on a red chair",
    "Two people ride bikes.",
    "bikes",
    "A dog's ball on the grass isn't red, the dog's is",
]
REFERENCES = [
    ["A dog runs across the grass.", "The brown dog is running on wet grass near a tree."],
    ["A cat sleeps on the chair.", "the red chair", "A cat and a dog sleep on a red chair."],
    ["Two people ride bikes.", "People on their bikes in the street."],
    ["A bike leans on a wall.", "bikes", "Three bikes near a tree."],
    ["The dog's ball is red.", "A ball in the grass.", "The ball on the grass isn't red."],
]
WORDS = [
    "a brown dog runs on the wet grass",
    "the cat the cat sleeps on a red chair",
    "two people ride bikes",
    "bikes",
    "a dog 's ball on the grass is n't red the dog 's is",
]
TEXTS = [
    ["a dog runs across the grass", "the brown dog is running on wet grass near a tree"],
    ["a cat sleeps on the chair", "the red chair", "a cat and a dog sleep on a red chair"],
    ["two people ride bikes", "people on their bikes in the street"],
    ["a bike leans on a wall", "bikes", "three bikes near a tree"],
    ["the dog 's ball is red", "a ball in the grass", "the ball on the grass is n't red"],
]
"""The same, split by hand."""


def grams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def bleu_by_loops(pairs):
    """Papineni's definition with no smoothing, in fractions; None where a precision is 0 / 0."""
    matches, totals, length, closest = [0] * 4, [0] * 4, 0, 0
    for text, references in pairs:
        words, lists = text.split(), [reference.split() for reference in references]
        length += len(words)
        distances = sorted((abs(len(r) - len(words)), len(r)) for r in lists)
        closest += distances[0][1]
        for n in range(1, 5):
            for gram in set(grams(words, n)):
                most = max(grams(r, n).count(gram) for r in lists)
                matches[n - 1] += min(grams(words, n).count(gram), most)
            totals[n - 1] += max(0, len(words) - n + 1)
    out = []
    for n in range(1, 5):
        product = Fraction(1)
        for m, t in zip(matches[:n], totals[:n], strict=True):
            product *= Fraction(m, t) if t else 0
        brevity = 1.0 if length >= closest else math.exp(1 - closest / length)
        out.append(brevity * float(product) ** (1 / n))
    return out, matches, totals, length, closest


def common(a, b):
    """The textbook table of the longest common subsequence."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a)):
        for j in range(len(b)):
            same = table[i][j] + 1 if a[i] == b[j] else 0
            table[i + 1][j + 1] = max(same, table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def rouge_by_loops(text, references):
    words = text.split()
    precision = max(common(words, r.split()) / len(words) for r in references)
    recall = max(common(words, r.split()) / len(r.split()) for r in references)
    if precision == 0:
        return 0.0
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision)


def cider_by_arrays(texts, all_references, clip, sigma, corpus=None):
    """Vedantam's definition on dense vectors over every n-gram there is."""
    corpus = corpus or all_references
    out = []
    for text, references in zip(texts, all_references, strict=True):
        scores = np.zeros((4, len(references)))
        for n in range(1, 5):
            every = [text, *references]
            known = sorted({g for t in every for g in grams(t.split(), n)})
            seen = [
                sum(any(g in grams(r.split(), n) for r in own) for own in corpus) for g in known
            ]
            idf = np.log(len(corpus) / np.maximum(1, seen))
            rows = np.array([[grams(t.split(), n).count(g) for g in known] for t in every]) * idf
            for j, row in enumerate(rows[1:]):
                norm = np.linalg.norm(rows[0]) * np.linalg.norm(row)
                if norm:
                    left = np.minimum(rows[0], row) if clip else rows[0]
                    scores[n - 1, j] = left @ row / norm
        if sigma:
            apart = np.array([len(text.split()) - len(r.split()) for r in references])
            scores *= np.exp(-(apart**2) / (2 * sigma**2))
        out.append(10 * scores.mean())
    return out


def test_bleu_equals_the_definition():
    got = bleu(CAPTIONS, REFERENCES)
    expected, matches, totals, length, closest = bleu_by_loops(zip(WORDS, TEXTS, strict=True))
    assert got.corpus == pytest.approx(expected, rel=1e-7)
    assert (got.matches, got.totals) == (tuple(matches), tuple(totals))
    assert (got.length, got.reference_length) == (length, closest)
    for i in (0, 1, 4):  # long enough to have an n-gram of each length
        one = bleu_by_loops([(WORDS[i], TEXTS[i])])[0]
        assert got.each[i] == pytest.approx(one, rel=1e-7, abs=1e-3)  # 0 is 1e-15 / n to the 1/4


def test_rouge_l_equals_the_definition():
    got = rouge_l(CAPTIONS, REFERENCES)
    assert got.each.tolist() == pytest.approx(list(map(rouge_by_loops, WORDS, TEXTS)))
    assert got.corpus == pytest.approx(got.each.mean())


def test_cider_equals_the_definition():
    got = cider(CAPTIONS, REFERENCES)
    assert got.each.tolist() == pytest.approx(cider_by_arrays(WORDS, TEXTS, True, 6))
    assert got.corpus == pytest.approx(got.each.mean())
    plain = cider(CAPTIONS, REFERENCES, plain=True)
    assert plain.each.tolist() == pytest.approx(cider_by_arrays(WORDS, TEXTS, False, None))
    assert (plain.each >= got.each).all()


def test_cider_takes_its_idf_from_a_corpus():
    frequency = document_frequency(REFERENCES)
    one = cider(CAPTIONS[:1], REFERENCES[:1], frequency=frequency)
    assert one.each[0] == pytest.approx(cider(CAPTIONS, REFERENCES).each[0])
    other = document_frequency(REFERENCES[1:])
    expected = cider_by_arrays(WORDS[:1], TEXTS[:1], True, 6, corpus=TEXTS[1:])
    assert cider(CAPTIONS[:1], REFERENCES[:1], frequency=other).each.tolist() == pytest.approx(
        expected
    )


TWO = ["a dog runs on grass", "a cat sleeps"]
OF_TWO = [["a dog runs", "the dog runs on the grass"], ["a cat sleeps here", "the cat"]]


def test_bleu_by_hand():
    got = bleu(TWO, OF_TWO)
    # words 5 + 3; closest: 6 (one away, "a dog runs" two), then 2 (one away, shorter of 2 and 4)
    assert (got.length, got.reference_length) == (8, 8)
    # dog 1: a dog runs on grass, all 5; a dog, dog runs, runs on; a dog runs, dog runs on; none
    # cat 2: all 3; a cat, cat sleeps; a cat sleeps
    assert got.matches == (8, 5, 3, 0)
    assert got.totals == (8, 6, 4, 2)
    assert got.corpus[:3] == pytest.approx([1, (5 / 6) ** 0.5, (5 / 6 * 3 / 4) ** (1 / 3)])
    assert got.corpus[3] < 1e-3


def test_bleu_is_less_for_short_captions():
    got = bleu(["a dog"], [["a dog runs home"]])
    assert got.corpus[:2] == pytest.approx([math.exp(1 - 4 / 2)] * 2)


def test_rouge_l_by_hand():
    # dog: 3 of 5 words are "a dog runs" (all 3 of it); 4 of 5 are "dog runs on grass" (4 of 6)
    # so P = 4/5 (the second), R = 3/3 (the first): 2.44 * .8 / (1 + 1.44 * .8)
    # cat: P = 3/3, R = 3/4 ("the cat": 1/2): 2.44 * .75 / (.75 + 1.44)
    expected = [2.44 * 0.8 / 2.152, 2.44 * 0.75 / 2.19]
    assert rouge_l(TWO, OF_TWO).each.tolist() == pytest.approx(expected)


def test_cider_by_hand():
    # Two pictures; "a" and "the" belong to both, all else to one: idf 0 and log 2, which cancels.
    captions, references = ["a red dog", "a cat"], [["the red dog", "a dog"], ["a cat", "the cat"]]
    # words: [red dog] . [red dog] 1, [red dog] . [dog] 1/sqrt 2
    # pairs: a red, red dog . the red, red dog: 1/2; . a dog: 0
    # triples: a red dog . the red dog: 0; no triples: 0
    # lengths: equal; one apart exp(-1/72)
    apart = math.exp(-1 / 72)
    dog = 10 / 4 * (1 + 0.5 + apart * (1 / math.sqrt(2))) / 2
    cat = 10 / 4 * ((1 + 1) + 1) / 2  # with itself: words and pairs; with "the cat": words only
    got = cider(captions, references)
    assert got.each.tolist() == pytest.approx([dog, cat])
    plain = cider(captions, references, plain=True).each[0]
    assert plain == pytest.approx(10 / 4 * (1 + 0.5 + 1 / math.sqrt(2)) / 2)


def test_cider_d_clips_what_a_caption_says_too_often():
    captions, references = ["dog dog dog", "cat"], [["dog"], ["cat"]]
    # weights 3 and 1 log 2: a cosine of 1, clipped min(3, 1) 1 / 3 1; two words apart: exp(-4/72)
    assert cider(captions, references, plain=True).each[0] == pytest.approx(10 / 4)
    assert cider(captions, references).each[0] == pytest.approx(10 / 4 / 3 * math.exp(-4 / 72))


def test_pycocoevalcap_counts_pairs_as_lengths():
    # so the empty caption and a caption of one word are equally long
    assert cider(["dog", "cat"], [["dog sat"], ["cat"]]).each[0] == pytest.approx(
        10 / 4 * math.exp(-1 / 72) / math.sqrt(2)
    )


def test_a_caption_that_is_its_reference_has_the_most():
    texts = ["a dog runs on wet grass", "two people ride bikes home", "the cat sleeps on a chair"]
    got = caption_scores(texts, [[text] for text in texts])
    assert got.bleu.corpus == pytest.approx((1, 1, 1, 1))
    assert got.bleu.each == pytest.approx(np.ones((3, 4)))
    assert got.rouge_l.each.tolist() == pytest.approx([1, 1, 1])
    assert got.cider.each.tolist() == pytest.approx([10, 10, 10])
    assert got.cider_plain.each.tolist() == pytest.approx([10, 10, 10])


TEXT = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "red", "on"]), max_size=9).map(" ".join)


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=4)), min_size=2, max_size=5))
def test_the_order_of_references_and_of_pictures_is_irrelevant(pairs):
    def rows(pairs):
        got = caption_scores([c for c, _ in pairs], [r for _, r in pairs])
        each = (got.bleu.each, got.rouge_l.each, got.cider.each, got.cider_plain.each)
        return np.column_stack(each), got.percent()

    expected, corpus = rows(pairs)
    turned, same = rows([(c, r[::-1]) for c, r in pairs])
    assert turned == pytest.approx(expected)
    assert same == pytest.approx(corpus)
    reverse, same = rows(pairs[::-1])
    assert reverse[::-1] == pytest.approx(expected)
    assert same == pytest.approx(corpus)
    assert (expected >= 0).all()
    assert (expected <= [1, 1, 1, 1, 1, 10 + 1e-9, 10 + 1e-9]).all()


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_rouge_l_of_any_words(text, references):
    if not text or not all(references):
        return
    expected = rouge_by_loops(text, references)
    assert rouge_l([text], [references]).corpus == pytest.approx(expected)


def test_an_empty_caption_has_nothing():
    got = caption_scores(["", "..."], [["a dog runs", ""], ["a cat", "the cat sleeps"]])
    assert not got.rouge_l.each.any()
    assert not got.cider.each.any()
    assert got.bleu.each == pytest.approx(np.zeros((2, 4)))
    assert got.bleu.corpus == pytest.approx((0, 0, 0, 0))


def test_all_scores_are_those_of_the_single_metrics():
    got = caption_scores(CAPTIONS, REFERENCES)
    assert got.bleu.corpus == bleu(CAPTIONS, REFERENCES).corpus
    percent = got.percent()
    assert list(percent) == ["B@1", "B@2", "B@3", "B@4", "ROUGE-L", "CIDEr"]
    assert percent["ROUGE-L"] == 100 * rouge_l(CAPTIONS, REFERENCES).corpus
    assert percent["CIDEr"] == 100 * cider(CAPTIONS, REFERENCES).corpus
    assert got.cider_plain.corpus == cider(CAPTIONS, REFERENCES, plain=True).corpus


@pytest.mark.parametrize("metric", [bleu, rouge_l, cider, caption_scores])
@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (["a", "b"], [["a"], []], r"no references for caption 1 \('b'\).*leave it out"),
        (["a", "b"], [["a"]], "2 captions for 1 lists of references"),
        ([], [], "no captions to score"),
        ("a dog", [["a"]], "a text where a list is expected"),
        (["a dog"], ["a dog"], "a text where a list is expected"),
    ],
)
def test_what_does_not_fit_is_refused(metric, captions, references, message):
    with pytest.raises(UserError, match=message):
        metric(captions, references)


def test_cider_of_one_picture_is_refused():
    with pytest.raises(UserError, match=r"there is one image; score more at once, or give freq"):
        cider(["a dog"], [["a dog"]])


def test_distinct_and_repeated_by_hand():
    texts = ["a b a b a", "a b c"]
    assert distinct_n(texts, 1) == 3 / 8
    assert distinct_n(texts, 2) == 3 / 6  # ab ba bc of ab ba ab ba, ab bc
    assert distinct_n(texts, 6) == 0
    assert rep_n(texts, 2).each.tolist() == [1 - 2 / 4, 0]
    assert rep_n(texts, 2).corpus == pytest.approx(1 - 4 / 6)
    assert rep_n(texts, 4).each.tolist() == [0, 0]  # abab, baba; the second has none
    # 2: 4 of 6; 3: aba, bab of aba bab aba, and abc: 3 of 4; 4: 2 of 2
    assert diversity(texts) == pytest.approx(4 / 6 * 3 / 4)
    with pytest.raises(UserError, match="no texts"):
        rep_n([], 2)


def script(name, monkeypatch, *arguments):
    path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [path.name, *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")


def json_lines(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_the_script_prints_the_figures_of_a_file(tmp_path, monkeypatch, capsys):
    rows = [{"prediction": c, "references": r} for c, r in zip(CAPTIONS, REFERENCES, strict=True)]
    script("caption_metrics", monkeypatch, json_lines(tmp_path / "captions.jsonl.gz", rows))
    printed = capsys.readouterr().out
    percent = caption_scores(CAPTIONS, REFERENCES).percent()
    assert f"| {' | '.join(f'{value:.2f}' for value in percent.values())} |" in printed
    assert "5 captions of" in printed


def test_the_script_captions_pictures_and_scores_them(tmp_path, monkeypatch, capsys):
    scenes = Path(__file__).parent.parent / "examples" / "scenes"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    said = []
    for line in (scenes / "captions.jsonl").read_text("utf-8").splitlines()[:2]:
        row = json.loads(line)
        shutil.copy(scenes / row["path"], pictures)
        said.append({"file": row["path"], "captions": [row["caption"]]})
    file = json_lines(tmp_path / "captions.jsonl", said)
    script(
        "captions",
        monkeypatch,
        *("pocket", pictures, file, "--method", "magic:k=2", "--method", "magic:k=4,beta=1.5"),
        *("--out", tmp_path / "out", "--threads", torch.get_num_threads()),
    )
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in table] == [
        "| method",
        "|---|---|---|---|---|---|---|---|",
        "| magic:k=2",
        "| magic:k=4,beta=1.5",
    ]
    said_by_magic = (tmp_path / "out" / "2-magic.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in said_by_magic.splitlines()]
    percent = caption_scores(
        [row["prediction"] for row in rows], [row["references"] for row in rows]
    ).percent()
    assert f"| {percent['CIDEr']:.2f} |" in table[-1]
    (pictures / said[0]["file"]).unlink()
    with pytest.raises(SystemExit, match="captions without a picture"):
        script("captions", monkeypatch, "pocket", pictures, file)
