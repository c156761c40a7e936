"""`explain`: the authors' numbers, the optimum's conditions, and words as a user meets them."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

import zeroshot as product
from tests.conftest import SCENES
from tests.golden import close, tensors
from zeroshot.errors import UserError
from zeroshot.methods.splice import SpLiCE, lasso
from zeroshot.ops import normalize
from zeroshot.report import load_results, render

FOLDER = SCENES[0].parent
WORDS = "red,blue,green,yellow,purple,orange,brown,pink,heart,star,ring,circle,cross,square"
COMMON = ("--models", "pocket", "--words", WORDS)


@pytest.mark.parametrize("case", [0, 1])
def test_weights_are_the_authors(case):
    z = tensors("splice_a")
    method = SpLiCE(float(z["hp_l1_penalty"][case])).fit(z["in_words"])
    close(method.words_, z["out_dictionary"])
    images, mean = z["in_images"], z["in_image_mean"]
    weights = method.decompose(images, mean)
    close(weights, z[f"out_weights_tight_{case}"])
    assert float((weights > 0).sum(1).double().mean()) == float(z[f"out_l0_{case}"])
    again = method.recompose(weights, mean)
    for ours, name in [(weights, "weights"), (weights, "weights_admm"), (again, "reconstruction")]:
        close(ours, z[f"out_{name}_{case}"], rtol=5e-5)
    close((again * images).sum(1).mean(), z[f"out_cosine_{case}"], rtol=5e-5)
    close(weights.mean(0), z[f"out_mean_weights_{case}"], rtol=5e-5)
    without = weights.clone()
    without[:, z["hp_intervention"]] = 0
    close(without, z[f"out_weights_intervened_{case}"], rtol=5e-5)


def test_by_hand():
    row = torch.tensor([[0.8, 0.6, 0.0]], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    close(lasso(row, eye, 0.25), [[0.675, 0.475, 0]])
    close(lasso(row, eye, 1.3), [[0.15, 0, 0]])
    assert not lasso(row, eye, 1.6).any()
    # the sum of two words alone is cheaper than both
    both = torch.cat([eye[:2], normalize(torch.ones(1, 3).double() * eye[:2].sum(0))])
    close(lasso(both[2:], both, 0.25), [[0, 0, 0.875]])


def gap(rows, words, penalty, weights):
    """The largest violation of the conditions of the optimum."""
    slope = (rows - weights @ words) @ words.T - penalty / 2
    return max(float(slope.max()), float((slope * (weights > 0)).abs().max()))


SMALL = st.integers(-2, 2)


@settings(max_examples=60, deadline=None)
@given(
    words=arrays.arrays(np.int64, st.tuples(st.integers(1, 90), st.just(4)), elements=SMALL),
    rows=arrays.arrays(np.int64, (3, 4), elements=SMALL),
    penalty=st.sampled_from([1e-4, 0.01, 0.1, 0.25, 1.0]),
    noise=st.sampled_from([0, 1e-7, 1e-3]),
)
def test_no_word_gains_at_the_optimum(words, rows, penalty, noise):
    """Words that are equal, opposite, sums of others, all but equal, or zero."""
    rng = np.random.default_rng(len(words))
    words = words + noise * rng.standard_normal(words.shape)
    words, rows = (normalize(torch.from_numpy(x).double()) for x in (words, rows))
    weights = lasso(rows, words, penalty)
    assert (weights >= 0).all()
    assert gap(rows, words, penalty, weights) < 1e-8
    alone = torch.cat([lasso(row[None], words, penalty) for row in rows])
    torch.testing.assert_close(alone @ words, weights @ words, rtol=0, atol=1e-6)


def drawn(words, rows, width):
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(n, width, generator=generator).double() for n in (words, rows))
    return tuple(map(normalize, made))


def test_more_words_than_are_looked_at_together():
    words, rows = drawn(400, 4, 30)
    for penalty in (0.25, 0.01):
        assert gap(rows, words, penalty, lasso(rows, words, penalty)) < 1e-9


def test_weights_are_those_of_scikit_learn():
    from sklearn import linear_model

    words, rows = drawn(50, 3, 12)
    reference = linear_model.Lasso(
        alpha=0.2 / 24, fit_intercept=False, positive=True, tol=1e-12, max_iter=100_000
    ).fit(words.T.numpy(), rows.T.numpy())
    np.testing.assert_allclose(lasso(rows, words, 0.2), reference.coef_, atol=1e-7)


def test_words_say_all_or_nothing():
    words, rows = drawn(30, 1, 40)
    method = SpLiCE(0.001).fit(words)
    own = words[:2]  # texts: centred as the words are
    close(method.cosines(method.decompose(own), own), [1, 1], rtol=1e-3)
    none = torch.zeros(1, 30, dtype=torch.float64)
    assert float(method.cosines(none, rows)) == 0
    with pytest.raises(UserError, match="splice needs words"):
        SpLiCE().decompose(rows)
    with pytest.raises(UserError, match="has to be above 0"):
        SpLiCE(0)


# As a user meets them


@pytest.fixture(scope="module")
def scenes():
    """The example scenes, three times: enough for a mean."""
    return product.explain([FOLDER] * 3, "pocket", words=WORDS, cache=False)


def test_scenes_are_their_colours_and_shapes(scenes):
    assert len(scenes) == 24
    for result in scenes:
        assert result.mean_of == "24 images"
        assert result.nonzero >= len(result.words)
        assert 0.4 < result.cosine < 1
        said = [x.word for x in result.words]
        shown = [x for x in result.path.split("/")[-1][2:-4].split("-") if x in WORDS.split(",")]
        assert said[0] in shown
        assert len(shown) > 2 or set(said[:2]) == set(shown)
        weights = [x.weight for x in result.words]
        assert weights == sorted(weights, reverse=True)
        assert min(weights) > 0
    assert scenes[0].words == pytest.approx(scenes[8].words)


def test_the_mean_of_a_folder_is_the_mean_of_its_images(scenes):
    [mean] = product.explain([FOLDER] * 3, "pocket", words=WORDS, mean=True, cache=False)
    assert (mean.path, mean.images, mean.id) == (str(FOLDER), 24, None)
    heart = sum(x.weight for r in scenes for x in r.words if x.word == "heart") / 24
    assert {x.word: x.weight for x in mean.words}["heart"] == pytest.approx(heart)
    assert mean.cosine == pytest.approx(sum(r.cosine for r in scenes) / 24)
    assert mean.words[0].word in mean._repr_html_()


def test_a_bank_takes_the_place_of_the_mean(scenes):
    banked = product.explain(SCENES[0], "pocket", words=WORDS, bank=[FOLDER] * 3, cache=False)
    [one] = banked
    assert one.mean_of == "24 images of the bank"
    assert [x.word for x in one.words] == [x.word for x in scenes[0].words]
    assert one.cosine == pytest.approx(scenes[0].cosine)


def test_images_texts_and_failures_in_order(zeroshot, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    out = tmp_path / "words.jsonl"
    line = ("explain", broken, SCENES[0], *COMMON, "--text", "a blue star", "-k", "1")
    code, rows, said = zeroshot(*line, "--json", "--out", out)
    assert code == 3
    image, text, failed = rows
    assert image["words"] == [{"word": "red", "weight": pytest.approx(0.3, abs=0.1)}]
    assert (image["mean_of"], image["nonzero"]) == ("nothing", 2)
    assert "subtracted: nothing, as fewer than 20 images give no mean" in said
    assert (text["path"], text["text"], text["mean_of"]) == (None, "a blue star", "14 words")
    assert text["words"][0]["word"] in ("blue", "star")
    assert failed["error"]["type"] == "UnreadableImage"
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**image, "path": "some/dogs", "id": None, "images": 2}) + "\n")
    page = render(load_results([out]))
    for shown in ("Texts", "a blue star", "Folders", "dogs", "red 0.3"):
        assert shown in page
    [long] = product.explain(texts="a blue star", models="pocket", words=WORDS, cache=False)
    assert long.words[0].weight == pytest.approx(text["words"][0]["weight"])
    assert "blue" in long._repr_html_()


def test_a_folder_as_a_table(zeroshot, tmp_path):
    out = tmp_path / "words.csv"
    code, _, said = zeroshot("explain", SCENES[0], *COMMON, "--mean", "--out", out)
    assert code == 0, said
    [row] = csv.DictReader(out.read_text("utf-8").splitlines())
    assert (row["path"], row["images"], row["word"]) == (str(FOLDER), "1", "red")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ((), "nothing to explain: give images, or a text (--text)"),
        (("--text", "a", "--mean"), "--mean and --bank are for images"),
        (("--text", " "), "a text to explain (--text) is empty"),
        (("--text", "a", "--words", "red"), "--words has one word"),
        (("--text", "a", "--words", "nowhere.txt"), "no such file 'nowhere.txt'"),
        (("--text", "a", "--words", "empty.txt"), "'empty.txt' has no labels"),
        (("--text", "a", "-o", "penalty=-1"), "penalty=-1.0, and has to be above 0"),
        (("--text", "a", "-o", "lambda=1"), "lambda"),
        (("--text", "a", "--coupling", "csa"), "needs no coupling"),
        (("--text", "word " * 100), "a word or a text"),
        ((str(SCENES[0]), "--bank", str(FOLDER)), "--bank has 8 images, too few for a mean: 20"),
    ],
)
def test_what_cannot_be_explained_is_said(line, why, printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    words = () if "--words" in line else ("--words", "red,blue")
    code, out, said = printed("explain", *line, "--models", "pocket", *words)
    assert (code, out) == (2, "")
    assert why in said
