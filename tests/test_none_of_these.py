"""Whether an image shows none of the labels: recorded numbers, by hand, and as typed."""

import json

import numpy as np
import pytest
import torch

from tests.golden import close, tensors
from tests.test_classify_options import COMMON, SCENES, zeroshot
from zeroshot.errors import UserError
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.neglabel import NegLabel, farthest
from zeroshot.ops import normalize
from zeroshot.prompts import common_words
from zeroshot.tasks.classification.arrays import score_arrays
from zeroshot.tasks.classification.heads import apply_head

__all__ = ["zeroshot"]
SHAPES = "red heart,blue star,green ring"


@pytest.mark.parametrize("kind", ["nouns", "adjectives"])
def test_the_words_that_are_kept_are_the_authors(kind):
    z = tensors("neglabel_a")
    share, quantile = float(z["hp_share"]), float(z["hp_quantile"])
    kept = farthest(z[f"in_{kind}"], z["in_W"], share, quantile)
    assert torch.equal(kept, z[f"out_selected_{kind}"])
    kept = farthest(z[f"in_{kind}"], z["in_W"], share, quantile, nearest=0.95)
    assert torch.equal(kept, z[f"out_csp_selected_{kind}"])
    pool, given = z[f"in_{kind}"], torch.arange(len(z[f"in_{kind}"]))
    if kind == "nouns":  # NegRefine drops the class names, and takes the nearest label
        given = given[~z["in_noun_is_class"]]
    kept = given[farthest(pool[given], z["in_W"], share, 1.0)]
    assert torch.equal(kept, z[f"out_refine_selected_{kind}"])


def chosen(z):
    nouns, adjectives = z["out_selected_nouns"], z["out_selected_adjectives"]
    return torch.cat([z["in_nouns"][nouns], z["in_adjectives"][adjectives]])


def test_scores_are_the_authors():
    z = tensors("neglabel_a")
    arrays = {"images": z["in_X"], "texts": z["in_W"][:, None], "words": chosen(z)}
    arrays = {k: v.numpy() for k, v in arrays.items()}
    arrays["logit_scale"] = np.array(float(z["hp_logit_scale"]))
    every = {"share": 1, "nearest": 1}
    found = score_arrays(arrays, "neglabel", every)["scores"]
    close(found.sum(1), z["out_score"])
    # their groups: words that fill none are dropped, then the rest is permuted
    groups = chosen(z)[z["in_perm"]].chunk(int(z["hp_groups"]))
    parts = [
        score_arrays(arrays | {"words": part.numpy()}, "neglabel", every)["scores"].sum(1)
        for part in groups
    ]
    close(np.mean(parts, 0), z["out_score_grouped"])
    ours = score_arrays(arrays, "neglabel", every | {"groups": int(z["hp_groups"])})
    assert np.abs(ours["scores"].sum(1) - z["out_score_grouped"].numpy()).mean() < 0.1


def test_mcm_is_the_confidence_of_cosines():
    """The baseline: what `--abstain` looks at, without the logit scale."""
    z = tensors("mcm_a")
    cosines = Ensemble().scores(z["in_X"], z["in_W"][:, None])
    close(-apply_head(cosines, "softmax", None, len(z["in_W"])).amax(1), z["out_mcm"])
    close(-cosines.amax(1), z["out_max_logit"])


def test_by_hand():
    eye = torch.eye(3, dtype=torch.float64)
    method = NegLabel(share=1).fit(eye[2:])
    image = normalize(torch.tensor([[1.0, 0, 1]], dtype=torch.float64))
    scores = method.scores(image, eye[:2, None], logit_scale=1)
    e = np.exp(np.sqrt(0.5))
    close(scores, [[e / (2 * e + 1), 1 / (2 * e + 1)]])


def test_groups_keep_every_word():
    generator = torch.Generator().manual_seed(0)
    words = normalize(torch.randn(7, 4, generator=generator, dtype=torch.float64))
    x, w = (normalize(torch.randn(n, 4, generator=generator).double()) for n in (5, 2))
    one = NegLabel(share=1, groups=7).fit(words).scores(x, w[:, None])
    alone = [NegLabel(share=1).fit(row[None]).scores(x, w[:, None]) for row in words]
    close(one, torch.stack(alone).mean(0))
    many = NegLabel(share=1, groups=100).fit(words).scores(x, w[:, None])
    close(many, one)


def test_no_words_are_said():
    with pytest.raises(UserError, match="needs the array words"):
        NegLabel().scores(torch.eye(2), torch.eye(2)[:, None])
    with pytest.raises(UserError, match=r"no word is left of 3 with share=0\.15"):
        NegLabel().fit(torch.eye(3)).scores(torch.eye(3), torch.eye(3)[:2, None])


def test_our_words_are_words():
    words = common_words()
    assert len(words) == len(set(words)) == 2000
    assert {"dog", "bicycle", "train", "flower", "giraffe"} - set(words) <= {"giraffe"}
    assert all(word.isalpha() and word.islower() for word in words)


# As a user meets them


def test_rows_say_how_likely_none_is(zeroshot):
    others = "yellow circle,orange triangle,pink diamond,brown square,purple cross,grey dog"
    words = ["--none-of-these", "--words", others + ",white cat,black tree,red car,green house"]
    code, rows, said = zeroshot("classify", *SCENES[:6], *COMMON, *words)
    assert code == 0, said
    _, plain, _ = zeroshot("classify", *SCENES[:6], *COMMON)
    for row, before in zip(rows, plain, strict=True):
        assert 0 <= row["none"] <= 1
        assert not row["abstained"]
        assert row["labels"] == before["labels"]
        assert "none" not in before


def test_a_calibration_leaves_out_as_many_as_promised(zeroshot, tmp_path):
    made, none = tmp_path / "made.json", ["--none-of-these"]
    assert zeroshot("calibrate", *SCENES, *COMMON, *none, "--out", made)[0] == 0
    reference = json.loads(made.read_text())["confidences"]
    command = ["classify", *SCENES, *COMMON, "--calibration", made, "--abstain", "0.35"]
    _, rows, said = zeroshot(*command, *none)
    known = np.array([1 - row["none"] for row in rows])
    close(np.sort(known), reference, rtol=1e-3)
    rank = [(1 + (known <= k + 1e-7).sum()) / 9 for k in known]
    assert [row["abstained"] for row in rows] == [r <= 0.35 for r in rank], said
    for more, message in (
        ([], "the calibration was made with --none-of-these"),
        ([*none, "--words", "a,b,c,d,e,f,g"], "with --none-of-these of other words"),
    ):
        code, _, said = zeroshot(*command, *more)
        assert code == 2
        assert message in " ".join(said.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--words", "a,b"], "--words are for --none-of-these"),
        (["--none-of-these", "--multi"], "--none-of-these is for one label per image"),
        (["--none-of-these", "--words", "red heart,dog"], "no word is left of 1"),
        (["--none-of-these", "--words", "none.txt"], "no such file"),
        (["--method", "neglabel"], "needs the array words"),
    ],
)
def test_what_is_refused(zeroshot, more, message):
    code, _, said = zeroshot("classify", SCENES[0], *COMMON, *more)
    assert code == 2
    assert message in " ".join(said.split())
