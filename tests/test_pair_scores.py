"""negCLIPLoss, NormSim and F-CLIPScore: recorded numbers, by hand, and as typed."""

import math

import pytest
import torch

from tests.golden import close, tensors
from tests.test_classify_options import SCENES, zeroshot
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.prompts import nouns_of
from zeroshot.ranking import pair_scores
from zeroshot.ranking.pair_scores import fclip, negclip, normsim
from zeroshot.tasks.filter import Filter
from zeroshot.tasks.filter_options import FilterOptions

__all__ = ["zeroshot"]
PAIRS = SCENES[0].parent / "captions.jsonl"
POCKET = ["--models", "pocket"]


def test_negclip_is_the_authors_in_each_of_their_batches():
    z = tensors("negcliploss_a")
    images, texts = z["in_images"], z["in_texts"]
    own, temperature = torch.arange(len(images)), float(z["hp_temperature"])
    close(negclip(images, texts, own, temperature), z["out_score_one_batch"])
    scores = torch.zeros(len(images), dtype=torch.float64)
    for order in z["in_permutations"]:
        for batch in torch.split(order, int(z["hp_batch_size"])):
            scores[batch] += negclip(images[batch], texts[batch], own[: len(batch)], temperature)
    close(scores / len(z["in_permutations"]), z["out_score"])


def test_normsim_is_the_authors():
    z = tensors("negcliploss_a")
    images, targets = z["in_images"], z["in_targets"]
    close(normsim(images, targets, 2), z["out_normsim_2"])
    both = torch.cat([targets, -targets])  # their largest absolute value
    close(normsim(images, both), z["out_normsim_inf"])
    assert (normsim(images, targets) <= normsim(images, both) + 1e-12).all()


def test_f_clip_score_is_the_authors():
    z = tensors("fclipscore_a")
    texts = torch.einsum("nd,njd->nj", z["in_images"], z["in_captions"])
    nouns = torch.einsum("nd,njkd->njk", z["in_images"], z["in_nouns"])
    close(100 * fclip(texts, nouns, z["in_noun_mask"], floor=1e-9), z["out_am"])


def test_equal_captions_are_no_alternatives():
    g = torch.Generator().manual_seed(0)
    v, t = (normalize(torch.randn(5, 4, generator=g, dtype=torch.float64)) for _ in range(2))
    t[3] = t[1]
    same = torch.tensor([0, 1, 2, 1, 4])
    found = negclip(v, t, same, 0.1)
    s = v @ t.T
    for i in range(5):
        others = [j for j in range(5) if j == i or same[j] != same[i]]
        sums = [sum(math.exp(x / 0.1) for x in row) for row in (s[i, others], s[others, i])]
        over = [0.1 * math.log(total) for total in sums]
        assert float(found[i]) == pytest.approx(float(s[i, i]) - sum(over) / 2)


def test_many_pairs_are_cut_into_equal_batches(monkeypatch):
    g = torch.Generator().manual_seed(0)
    v, t = (normalize(torch.randn(10, 4, generator=g)) for _ in range(2))
    whole = negclip(v, t, torch.arange(10))
    monkeypatch.setattr(pair_scores, "BLOCK", 3)
    close(negclip(v, t, torch.arange(10)), whole)
    monkeypatch.setattr(pair_scores, "BATCH", 4)
    cut = negclip(v, t, torch.arange(10))
    assert (cut >= whole - 1e-12).all()  # fewer alternatives
    assert (cut != whole).any()
    assert negclip(v[:0], t[:0], torch.arange(0)).shape == (0,)


def test_nouns_are_things_and_come_once():
    text = "Two zebras and a dog, a red DOG, beside ladies running on grass"
    assert nouns_of(text) == ("zebras", "dog", "ladies", "grass")


# As a user meets them


def test_filter_by_all_pairs(zeroshot, tmp_path):
    code, rows, said = zeroshot("filter", PAIRS, *POCKET, "--score", "negclip", "--keep", "0.5")
    assert code == 0, said
    assert sum(row["kept"] for row in rows) == 4
    assert {row["method"] for row in rows} == {"negclip"}
    least = min(r["score"] for r in rows if r["kept"])
    assert least >= max(r["score"] for r in rows if not r["kept"])
    # a threshold needs all pairs as well, so the output is not continued
    out = tmp_path / "rows.jsonl"
    wanted = ("filter", PAIRS, *POCKET, "--score", "negclip", "--min-score", "-0.1", "--out", out)
    assert zeroshot(*wanted)[0] == 0
    code, _, said = zeroshot(*wanted)
    assert code == 2
    assert "it needs all pairs" in said


def test_filter_by_likeness(zeroshot):
    how = (*POCKET, "--score", "normsim", "--targets", SCENES[0], "--targets", SCENES[2])
    code, rows, said = zeroshot("filter", PAIRS, *how, "--min-score", "0.99")
    assert code == 0, said
    assert [row["kept"] for row in rows] == [i in (0, 2) for i in range(8)]
    for more in (["--score", "normsim"], ["--targets", SCENES[0]]):
        code, _, said = zeroshot("filter", PAIRS, *POCKET, "--keep", "0.5", *more)
        assert code == 2
        assert "--score normsim and --targets go together" in " ".join(said.split())


def test_match_names_the_noun_that_fits_least(zeroshot):
    texts = ("--text", "a red heart", "--text", "a heart beside a blue star", "--text", "nothing")
    code, rows, said = zeroshot("match", SCENES[0], *POCKET, *texts, "--score", "fclip")
    assert code == 0, said
    [row] = rows
    assert row["scored"] == "fclip"
    one, two, none = row["texts"]
    assert one["weakest"]["noun"] == "heart"
    assert two["weakest"]["noun"] == "star"
    assert "weakest" not in none
    _, [alone], _ = zeroshot("match", SCENES[0], *POCKET, "--text", "nothing", "--text", "heart")
    assert none["score"] == pytest.approx(alone["texts"][0]["score"], abs=1e-6)
    _, [plain], _ = zeroshot("match", SCENES[0], *POCKET, "--text", "a red heart")
    mean = (plain["texts"][0]["score"] + alone["texts"][1]["score"]) / 2
    assert one["score"] == pytest.approx(mean, abs=1e-6)
    against = ("--score", "fclip", "--against", "a")
    code, _, said = zeroshot("match", SCENES[0], *POCKET, *texts, *against)
    assert code == 2
    assert "leave --score fclip out" in " ".join(said.split())


def test_a_batch_without_a_caption_does_not_end_a_run():
    captions = ["", "", "a red heart", "a blue star"]
    images = ["1-red-heart.png", "2-blue-star.png"] * 2
    sources = [
        Source(str(PAIRS.parent / image), fields={"caption": text} if text else {})
        for image, text in zip(images, captions, strict=True)
    ]
    task = Filter.from_options(resolve("pocket"), FilterOptions(score="negclip", keep=0.5))
    with NullCache() as cache:
        rows = list(task.open(cache, Meter(), 2)(sources, Meter()))
    assert [row.error and row.error.type for row in rows] == ["NoCaption", "NoCaption", None, None]
    assert sum(row.kept for row in rows) == 1


def test_copies_and_negclip_are_two_runs():
    options = FilterOptions(score="negclip", keep=0.5, dedupe=True)
    with pytest.raises(UserError, match="two runs"):
        Filter.from_options(resolve("pocket"), options)
