"""`tune` for searches and captions: outcomes, the choice among them, recipes and their use."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import zeroshot as zeroshot_package
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.commands import console
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.metrics.captioning import cider
from zeroshot.metrics.retrieval import image_ranks
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.tasks.tuning.recipe import Recipe, RecipeFigures, RecipeMember, read_recipe, to_toml
from zeroshot.tasks.tuning.search_items import SPLITS, SearchItems
from zeroshot.tasks.tuning.tuning_data import PairModels
from zeroshot.tuning.folds import stratified_folds
from zeroshot.tuning.intervals import estimate_mean
from zeroshot.tuning.outcomes import OutcomeCandidate, choose_by_outcomes
from zeroshot.tuning.problem import TunedMethod
from zeroshot.tuning.selection import ChoiceInterruptedError

POCKET = ("--models", "pocket", "--offline")
PLAIN = TunedMethod("cosine", {})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def known(name, outcomes, cost=0.0, asked=None):
    """A candidate with these outcomes; `asked` counts the items that it was tried on."""

    def of(rows):
        if asked is not None:
            asked[name] = asked.get(name, 0) + len(rows)
        return torch.as_tensor(outcomes)[rows]

    return OutcomeCandidate(name, of, cost)


# The choice


def test_a_choice_by_hand():
    """Of 20 outcomes: the default 0.5 each, one that is always 0.75, one that is 0.5 or 0."""
    better = torch.full((20,), 0.75)
    better[:2] = 0.5  # else the paired error would be none
    worse = torch.tensor([0.5, 0.0] * 10)
    one = [known("default", [0.5] * 20), known("better", better), known("worse", worse)]
    result = choose_by_outcomes(one, 20, largest=1.0)
    assert result.better
    assert result.selection.single == 1
    assert result.accuracy.value == pytest.approx((18 * 0.75 + 2 * 0.5) / 20)
    assert result.plain.value == 0.5
    assert result.gain == pytest.approx(18 * 0.25 / 20)
    assert result.p == 1 / 5000  # 18 gains of one sign are 1 of 2^18
    by_name = {tried.name: tried for tried in result.selection.tried}
    assert by_name["worse"].share < 1
    assert by_name["better"].accuracy == pytest.approx(0.725)


def test_an_interval_by_hand():
    found = estimate_mean(torch.tensor([0.0, 1, 2, 3, 4]))
    assert (found.value, found.error) == pytest.approx((2, (2.5 / 5) ** 0.5))
    assert found.high == pytest.approx(2 + 2.776445 * 0.5**0.5 * 2**0.5, abs=1e-5)
    assert found.low == 0
    level = estimate_mean(torch.ones(10), largest=1.0)
    assert level.low < 0.9 < level.high == 1


def test_noise_keeps_the_default_and_the_figure_is_honest():
    """Nothing differs but by chance: in hindsight the best gains, the outer loop does not."""
    generator, gains, hindsight, taken = seeded(1), [], [], 0
    for seed in range(25):
        outcomes = torch.rand(12, 30, generator=generator)
        result = choose_by_outcomes(
            [known(str(i), own) for i, own in enumerate(outcomes)], 30, seed=seed
        )
        gains.append(result.gain)
        hindsight.append(float(outcomes.mean(1).max() - outcomes[0].mean()))
        taken += result.better
        assert result.better or result.accuracy == result.plain
    assert np.mean(hindsight) > 0.06
    assert abs(np.mean(gains)) < 0.04
    assert taken <= 3


def test_who_falls_far_behind_is_dropped_and_nothing_is_tried_twice():
    asked = {}
    generator = seeded()
    outcomes = torch.rand(50, generator=generator)
    candidates = [
        known("default", outcomes, asked=asked),
        known("level", outcomes + 0.1 * torch.rand(50, generator=generator) - 0.05, asked=asked),
        known("hopeless", outcomes - 5 + torch.rand(50, generator=generator), asked=asked),
    ]
    choose_by_outcomes(candidates, 50)
    assert asked["default"] == asked["level"] == 50
    assert asked["hopeless"] == 20  # once where a race begins: fold 0, and fold 1 without it


def test_a_race_without_a_fold_does_not_see_it():
    """A candidate that is dropped by the first fold alone is still chosen where that is left out.

    Dropped once and for all, it would be missing from the outer choice, which the fold then made.
    """
    folds = stratified_folds(torch.zeros(50, dtype=torch.int64), 5, seeded())
    outcomes = torch.full((50,), 1.0) + 0.1 * torch.rand(50, generator=seeded(2))
    outcomes[folds == 0] -= 3
    asked = {}
    default = known("default", [0.5] * 50)
    choose_by_outcomes([default, known("good elsewhere", outcomes, asked=asked)], 50)
    assert asked["good elsewhere"] == 50


def test_the_budget_leaves_out_the_costliest_but_never_the_default():
    candidates = [
        known(n, torch.rand(20), c) for n, c in zip("abcd", (9e9, 5, 50, 10), strict=True)
    ]
    result = choose_by_outcomes(candidates, 20, operations=16)
    assert result.left_out == ("c",)
    assert {tried.name for tried in result.selection.tried} == {"a", "b", "d"}


def test_too_few_items():
    with pytest.raises(UserError, match="10 are needed"):
        choose_by_outcomes([known("a", [1.0] * 9)], 9)


def test_an_interrupted_choice_has_the_best_so_far():
    def stops(name, best, done):
        if done > 0.5:
            raise KeyboardInterrupt

    two = [known("a", torch.zeros(20)), known("b", torch.ones(20))]
    with pytest.raises(ChoiceInterruptedError) as caught:
        choose_by_outcomes(two, 20, progress=stops)
    assert caught.value.selection.single == 1
    assert caught.value.done == pytest.approx(0.6)


# Searches


class NoModels(PairModels):
    """Of rows that are there; no model is loaded."""

    couplings = ()


def items_of(images, texts, pairs, seed=0):
    """Of rows in one space, without a model."""
    queries = [str(i) for i in range(len(texts))]
    none = NoModels(resolve("pocket"), NullCache(), Meter(), 1)
    found = SearchItems(none, images, queries, torch.tensor(pairs), seed)
    found._joint[None] = texts, images
    return found


def test_images_that_share_a_query_are_one_item():
    rows = torch.eye(6)
    found = items_of(rows, torch.eye(6)[:5], [(0, 0), (0, 1), (1, 2), (2, 3), (3, 2), (4, 4)])
    assert found.item_of_query.tolist() == [0, 1, 2, 1, 3]
    assert found.count == 4


def test_reciprocal_ranks_by_another_way():
    generator = seeded(3)
    images = normalize(torch.randn(24, 8, generator=generator))
    owner = torch.arange(40) % 20  # four images belong to no query
    texts = normalize(images[owner] + 0.8 * torch.randn(40, 8, generator=generator))
    found = items_of(images, texts, list(enumerate(owner.tolist())), seed=5)
    total, again = np.zeros(40), seeded(5)
    for _ in range(SPLITS):
        side = stratified_folds(torch.zeros(20, dtype=torch.int64), 2, again)[found.item_of_query]
        for half in (0, 1):
            asked = (side == half).nonzero()[:, 0]
            gallery = [*owner[asked].unique().tolist(), 20, 21, 22, 23]
            own = np.array([gallery.index(owner[q]) for q in asked.tolist()])
            scores = (images[gallery] @ texts[asked].T).numpy()
            total[asked.numpy()] += 1 / image_ranks(scores, own)
    assert found.reciprocal_ranks(PLAIN).numpy() == pytest.approx(total / SPLITS)


def test_several_images_of_a_query_count_by_the_first():
    """The first query names images 0 and 1, and nearer to it is 2: the better rank of both is 2."""
    images = normalize(torch.tensor([[1.0, 0.5], [1, 1], [1, 0], [0, -1], [0, -1.1], [0, -1.2]]))
    texts = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    found = items_of(images, texts, [(0, 0), (0, 1), (1, 5)])
    assert found.reciprocal_ranks(PLAIN).tolist() == pytest.approx([0.5, 1 / 3])  # equals: in order


@pytest.mark.parametrize("method", ["nnn", "csls", "inverted_softmax", "dis", "dn"])
def test_the_bank_does_not_say_which_image_is_asked_for(method):
    """An image has a query that is near it and one that has nothing to do with it.

    The second finds it by chance alone. With all images in the gallery, those of the bank's
    queries would be pushed back, and the image asked for, which is none of them, be found.
    """
    generator, ranks, chance = seeded(7), [], []
    unrelated = slice(40, None)
    for trial in range(8):
        images = normalize(torch.randn(40, 32, generator=generator))
        near = normalize(images + 0.1 * torch.randn(40, 32, generator=generator))
        texts = torch.cat([near, normalize(torch.randn(40, 32, generator=generator))])
        found = items_of(images, texts, [(i, i % 40) for i in range(80)], seed=trial)
        reached = found.reciprocal_ranks(TunedMethod(method, {}))
        assert reached[:40].mean() > 0.99
        ranks += reached[unrelated].tolist()
        chance += found.reciprocal_ranks(PLAIN)[unrelated].tolist()
    assert np.mean(ranks) == pytest.approx(np.mean(chance), abs=0.03)


# The commands


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Fifteen drawings, each with one query, or caption, of its own."""
    folder = tmp_path_factory.mktemp("pairs")
    colours = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60)}
    colours |= {"yellow": (230, 210, 40), "purple": (130, 40, 160)}
    lines = ["image,caption"]
    for (colour, value), ground in itertools.product(colours.items(), ("white", "black", "grey")):
        image = Image.new("RGB", (96, 96), ground)
        ImageDraw.Draw(image).rectangle([20, 20, 75, 75], fill=value)
        image.save(folder / f"{colour}-{ground}.png")
        lines.append(f"{colour}-{ground}.png,a large {colour} square on a {ground} background")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def recipes(place):
    """A recipe of each task, in Python."""
    more = {"models": "pocket", "among": ["csls"]}
    search = zeroshot_package.tune(place, queries=place / "pairs.csv", **more)
    more = {"models": "pocket", "among": ["retrieve"]}
    caption = zeroshot_package.tune(captions=place / "pairs.csv", **more)
    return {"search": search, "caption": caption}


@pytest.mark.parametrize(("task", "default"), [("search", "cosine"), ("caption", "magic")])
def test_a_recipe_reads_back(recipes, tmp_path, task, default):
    recipe, path = recipes[task], tmp_path / "r.toml"
    path.write_text(to_toml(recipe), "utf-8")
    read = read_recipe(path)
    assert (read.task, read.default, read.members) == (task, default, recipe.members)
    assert read.fingerprint == recipe.fingerprint
    assert read.figures is not None
    assert read.figures.images == 15
    assert {tried["name"] for tried in read.tried} >= {default}
    if not read.verdict.startswith(read.members[0].method):
        assert read.verdict.startswith(f"the default ({default}): nothing was better")
        assert read.figures.accuracy == read.figures.plain


def test_captions_are_measured_by_cider(recipes, place):
    """The default's figure is what `caption` and the metric give."""
    rows = zeroshot_package.caption(sorted(place.glob("*.png")), "pocket")
    lines = dict(line.split(",") for line in (place / "pairs.csv").read_text().splitlines()[1:])
    names = [str(row.path).rsplit("/", 1)[1] for row in rows]
    score = cider([row.caption for row in rows], [[lines[name]] for name in names])
    assert recipes["caption"].figures.plain == pytest.approx(score.corpus, abs=1e-6)


def test_tune_and_search(printed, zeroshot, place, tmp_path):
    out = tmp_path / "r.toml"
    code, _, err = printed(
        *("tune", place, "--queries", place / "pairs.csv", "--among", "nnn", "--out", out, *POCKET)
    )
    assert code == 0, err
    assert "mean reciprocal rank" in err
    assert 'zeroshot search "QUERY" IMAGES --recipe' in err
    query = ("search", "a large red square on a black background", place, "-k", 3, *POCKET)
    assert zeroshot(*query, "--recipe", out)[1] == zeroshot(*query)[1]
    recipe = read_recipe(out)
    ranked = Recipe(
        task="search", members=(RecipeMember("nnn", options={"k": 2}),), models=recipe.models,
        bank=("a blue square", "a green square"),
    )  # fmt: skip
    out.write_text(to_toml(ranked), "utf-8")
    (tmp_path / "bank.txt").write_text("a blue square\na green square\n")
    by_hand = ("--method", "nnn", "-o", "k=2", "--bank", tmp_path / "bank.txt")
    code, rows, err = zeroshot(*query, "--recipe", out)
    assert code == 0, err
    assert {row["method"] for row in rows} == {"nnn"}
    assert rows == zeroshot(*query, *by_hand)[1]
    same = zeroshot_package.search(query[1], place, "pocket", top_k=3, recipe=out)
    assert [row["score"] for row in rows] == pytest.approx([row.score for row in same])


def test_tune_and_caption(zeroshot, place, tmp_path, recipes):
    out = tmp_path / "r.toml"
    recipe = Recipe(task="caption", members=(RecipeMember("magic", options={"k": 3}),))
    out.write_text(to_toml(recipe), "utf-8")
    image = place / "red-white.png"
    code, rows, err = zeroshot("caption", image, "--recipe", out, *POCKET)
    assert code == 0, err
    assert [row["method"] for row in rows] == ["magic"]
    by_hand = ("--method", "magic", "-o", "k=3")
    assert rows == zeroshot("caption", image, *by_hand, *POCKET)[1]
    (row,) = zeroshot_package.caption(image, "pocket", recipe=recipe)
    assert row.caption == rows[0]["caption"]
    (row,) = zeroshot_package.caption(image, "pocket", recipe=recipes["caption"])
    assert row.method == recipes["caption"].members[0].method


def test_a_report_of_a_recipe(recipes, printed, tmp_path):
    for task, said in (("search", "Mean reciprocal rank"), ("caption", "CIDEr")):
        out, page = tmp_path / "r.toml", tmp_path / f"{task}.html"
        out.write_text(to_toml(recipes[task]), "utf-8")
        assert printed("report", out, "--out", page)[0] == 0
        text = page.read_text("utf-8")
        assert f"{said}, on images that took no part in the choice" in text
        assert "the default" in text
        assert "plain zero-shot" not in text
        assert "0 labels" not in text


SEARCH = Recipe(task="search", members=(RecipeMember("nnn"),), bank=("a", "b"))
CAPTION = Recipe(task="caption", members=(RecipeMember("retrieve"),))
LABELS = Recipe(("red", "blue"), "", (RecipeMember("ensemble"),))


@pytest.mark.parametrize(
    ("recipe", "command", "message"),
    [
        (CAPTION, ("search", "red"), "the recipe is for 'caption', not for 'search'"),
        (LABELS, ("search", "red"), "the recipe is for 'classify', not for 'search'"),
        (SEARCH, ("caption",), "the recipe is for 'search', not for 'caption'"),
        (SEARCH, ("classify",), "the recipe is for 'search', not for 'classify'"),
        (SEARCH, ("search", "red", "--method", "csls"), "--recipe and --method: the recipe has"),
        (SEARCH, ("search", "red", "--coupling", "csa"), "--recipe and --coupling: the recipe"),
        (CAPTION, ("caption", "--preset", "coco"), "--recipe and --preset: the recipe has its own"),
        (CAPTION, ("caption", "--method", "native", "--model", "m"), "--recipe: a recipe has no"),
        (CAPTION, ("caption", "--prompt", "A red"), "method 'retrieve' takes no prompts"),
    ],
)
def test_what_a_recipe_refuses(printed, place, tmp_path, recipe, command, message):
    out = tmp_path / "r.toml"
    out.write_text(to_toml(recipe), "utf-8")
    code, _, err = printed(*command, place / "red-white.png", "--recipe", out, *POCKET)
    assert code == 2, err
    assert message in err


@pytest.mark.parametrize("recipe", [SEARCH, CAPTION], ids=["search", "caption"])
def test_a_recipe_of_other_models(printed, place, tmp_path, recipe):
    out = tmp_path / "r.toml"
    other = to_toml(recipe) + '\n[models]\nencoder = "hf:other@1"\n'
    out.write_text(other, "utf-8")
    words = ("search", "red") if recipe is SEARCH else ("caption",)
    code, _, err = printed(*words, place / "red-white.png", "--recipe", out, *POCKET)
    assert code == 2
    assert "the recipe was tuned with hf:other@1, and these models are" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace('"search"', '"find"'), "task is none of classify, search, caption"),
        (lambda t: t.replace('task = "search"\n', ""), "labels are for a recipe of classify"),
        (lambda t: t + 'labels = ["a"]\n', "labels"),
        (lambda t: t.replace('"a",', "7,"), "bank is no list of texts"),
        (lambda t: t.replace("members", "x"), "a recipe has no 'x'"),
    ],
)
def test_a_damaged_recipe_ends_with_one_sentence(tmp_path, change, message):
    path = tmp_path / "r.toml"
    figures = RecipeFigures(0.9, 0.8, 0.95, 0.7, 0.6, 0.8, 0.2, 0.001, 40, 5, 1)
    whole = Recipe(
        task="search", verdict="x", members=SEARCH.members, bank=("a", "b"), figures=figures
    )
    path.write_text(to_toml(whole), "utf-8")
    assert read_recipe(path) == whole
    path.write_text(change(to_toml(whole)), "utf-8")
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--labels", "red,blue"), "--queries and --labels are for different tasks"),
        (("--captions", "x.csv"), "--queries and --captions are for different tasks"),
        (("--suggest", "3"), "--queries and --suggest are for different tasks"),
        (("--among", "mbr"), "unknown method to try for search 'mbr'"),
        (("--split", "val"), "has no splits; leave --split val out"),
    ],
)
def test_what_tune_refuses(printed, place, tmp_path, more, message):
    out = tmp_path / "r.toml"
    code, _, err = printed(
        "tune", place, "--queries", place / "pairs.csv", "--out", out, *POCKET, *more
    )
    assert code == 2
    assert message in err
    assert not out.exists()


def test_too_few_images(printed, place, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("image,caption\nred-white.png,a red square\n")
    code, _, err = printed("tune", place, "--queries", few, "--out", tmp_path / "r.toml", *POCKET)
    assert code == 2
    assert "10 are needed" in err


def test_an_image_that_is_an_anchor(place):
    coupled = resolve("pocket", encoder="coupled", offline=True)
    rows = coupled.image_encoder.encode_images([Image.open(place / "red-white.png")])
    anchors = coupled.anchors
    images = torch.cat([rows.to(anchors.images.dtype), anchors.images[1:]])
    coupled = coupled.with_parts(anchors=dataclasses.replace(anchors, images=images))
    with pytest.raises(UserError, match="1 image of 15 are anchors of the model set"):
        zeroshot_package.tune(place, queries=place / "pairs.csv", models=coupled)


def test_couplings_are_tried_for_a_coupled_pair(place):
    coupled = resolve("pocket", encoder="coupled", offline=True)
    recipe = zeroshot_package.tune(place, queries=place / "pairs.csv", models=coupled)
    names = {tried["name"] for tried in recipe.tried}
    assert {"cosine", "nnn", "cosine, coupled by csa"} <= names
    found = zeroshot_package.search("a red square", place, coupled, recipe=recipe, top_k=1)
    assert len(found) == 1


def test_ctrl_c_keeps_the_best_so_far(printed, place, tmp_path, monkeypatch):
    def stops(quiet):
        def progress(name, best, done):
            raise KeyboardInterrupt

        return progress

    monkeypatch.setattr(console, "tuning_progress", stops)
    out = tmp_path / "r.toml"
    code, _, err = printed(
        *("tune", place, "--queries", place / "pairs.csv", "--among", "nnn", "--out", out, *POCKET)
    )
    assert code == 130, err
    recipe = read_recipe(out)
    assert recipe.task == "search"
    assert recipe.figures is None
    assert "interrupted after 20% of the choice" in recipe.verdict
    assert printed("search", "red", place, "--recipe", out, *POCKET)[0] == 0
