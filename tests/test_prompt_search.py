"""The search among templates, synonyms and descriptions, and recipes that keep what it found."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from zeroshot.errors import UserError
from zeroshot.methods.ensemble import Ensemble
from zeroshot.tasks.tuning.prompt_columns import PromptColumns
from zeroshot.tasks.tuning.recipe import Recipe, RecipeMember, read_recipe, to_toml
from zeroshot.tuning.folds import class_weights
from zeroshot.tuning.prompt_search import PromptPool, _Search, search_prompts, taken

POCKET = ("--models", "pocket", "--offline")
COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def world(seed=0, classes=4, rows=60, shared=3, own=3, width=8):
    """A pool whose prompts know the classes more or less, and images."""
    generator = seeded(seed)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.arange(rows) % classes
    images = centres[labels] + torch.randn(rows, width, generator=generator)
    noise = torch.rand(classes, shared + own, 1, generator=generator) * 3
    texts = centres[:, None] + noise * torch.randn(
        classes, shared + own, width, generator=generator
    )
    mask = torch.ones(classes, shared + own, dtype=torch.bool)
    mask[0, -1] = False
    texts = torch.nn.functional.normalize(texts, dim=-1) * mask[..., None]
    start = torch.zeros_like(mask)
    start[:, 0] = True
    is_shared = torch.arange(shared + own) < shared
    pool = PromptPool(texts, mask, is_shared, start[None])
    return pool, torch.nn.functional.normalize(images, dim=-1), labels


def loss_of(pool, images, labels, chosen, scale):
    logits = scale * Ensemble().scores(images, pool.texts, chosen).double()
    own = logits.log_softmax(1)[torch.arange(len(labels)), labels]
    return -float((class_weights(labels) * own).sum())


@pytest.mark.parametrize("seed", range(4))
def test_each_move_of_a_template_is_the_best(seed):
    pool, images, labels = world(seed)
    search = _Search(pool, images, labels, 10.0)
    search.fit(pool.starts[0])
    assert search.loss(pool.starts[0], search.scale) == pytest.approx(
        loss_of(pool, images, labels, pool.starts[0], search.scale), abs=1e-5
    )
    before = pool.starts[0]
    for moved in search.templates(before):
        every = []
        for t in range(3):
            turned = before.clone()
            turned[:, t] ^= True
            if turned.any(1).all():
                every.append(loss_of(pool, images, labels, turned, search.scale))
        found = loss_of(pool, images, labels, moved, search.scale)
        assert found == pytest.approx(min(every), abs=1e-5)
        assert found < loss_of(pool, images, labels, before, search.scale)
        before = moved


@pytest.mark.parametrize("seed", range(4))
def test_moves_of_a_class_lower_the_loss_and_keep_a_prompt(seed):
    pool, images, labels = world(seed)
    start = torch.zeros_like(pool.mask)
    start[:, 3] = True  # one own prompt of each class
    search = _Search(pool, images, labels, 10.0)
    search.fit(start)
    before = start
    for moved in search.own_prompts(start):
        assert moved.any(1).all()
        assert not (moved & ~pool.mask).any()
        assert not (moved != before)[:, :3].any()  # no template
        assert ((moved != before).sum(1) <= 1).all()
        was, now = (loss_of(pool, images, labels, x, search.scale) for x in (before, moved))
        assert now < was
        before = moved
    assert not torch.equal(before, start)
    for c, t in ((c, t) for c in range(4) for t in range(3, 6)):  # none of all is left
        turned = before.clone()
        turned[c, t] ^= True
        if pool.mask[c, t] and turned[c].any():
            was, now = (loss_of(pool, images, labels, x, search.scale) for x in (before, turned))
            assert now > was - 1e-4


def test_a_search_finds_the_synonym_that_fits():
    generator = seeded(1)
    centres = torch.eye(3, 8)
    labels = torch.arange(60) % 3
    images = centres[labels] + 0.4 * torch.randn(60, 8, generator=generator)
    images = torch.nn.functional.normalize(images, dim=-1)
    texts = torch.randn(3, 4, 8, generator=generator)
    texts[:, 2] = centres  # column 2 has a word that fits
    texts = torch.nn.functional.normalize(texts, dim=-1)
    start = torch.zeros(3, 4, dtype=torch.bool)
    start[:, 0] = True
    pool = PromptPool(
        texts, torch.ones(3, 4, dtype=torch.bool), torch.tensor([True] + [False] * 3), start[None]
    )
    found = search_prompts(pool, images, labels, 10.0, seeded())
    assert found[:, 2].all()
    own, mask = taken(pool, found)
    right = Ensemble().scores(images, own, mask).argmax(1) == labels
    assert right.double().mean() > 0.9


def test_noise_is_not_learned_by_heart():
    """Where no prompt knows anything, held-aside rows end the search after few moves."""
    generator = seeded(2)
    labels = torch.arange(90) % 3
    unit = torch.nn.functional.normalize
    gains = []
    for _ in range(5):
        images, later = (unit(torch.randn(90, 16, generator=generator), dim=1) for _ in range(2))
        texts = unit(torch.randn(3, 40, 16, generator=generator), dim=-1)
        start = torch.zeros(3, 40, dtype=torch.bool)
        start[:, :5] = True
        pool = PromptPool(texts, torch.ones_like(start), torch.arange(40) < 5, start[None])
        found = search_prompts(pool, images, labels, 10.0, seeded())
        was, now = (loss_of(pool, later, labels, chosen, 1.0) for chosen in (start, found))
        gains.append(was - now)
    assert abs(sum(gains) / 5) < 0.02


def test_one_row_a_class_searches_nothing():
    pool, images, labels = world()
    found = search_prompts(pool, images[:4], labels[:4], 10.0, seeded())
    assert torch.equal(found, pool.starts[0])


def test_many_cosines_search_on_a_part(monkeypatch):
    pool, images, labels = world(rows=90)
    monkeypatch.setattr("zeroshot.tuning.prompt_search.MOST_COSINES", 30 * pool.mask.numel())
    seen = []
    monkeypatch.setattr(_Search, "fit", lambda self, chosen: seen.append(len(self.labels)) or 0.0)
    search_prompts(pool, images, labels, 10.0, seeded())
    assert max(seen) <= 30


def test_columns():
    given = {
        "a": ("a {}", "one {}"),
        "b": {"cat": ("kitten", "a tom"), "dog": ("puppy",)},
        "c": ("one {}", "two {}"),
    }
    found = PromptColumns.of(["cat", "dog"], given)
    assert found.texts == [
        ["a cat", "one cat", "two cat", "kitten", "a tom"],
        ["a dog", "one dog", "two dog", "puppy", ""],
    ]
    assert found.shared == [True, True, True, False, False]
    a, b, c = torch.tensor(found.starts)
    assert a.tolist() == [[True, True, False, False, False]] * 2
    assert b.tolist() == [[False, False, False, True, True], [False, False, False, True, False]]
    assert c.tolist() == [[False, True, True, False, False]] * 2
    rows = {t: torch.full((2,), float(i)) for i, t in enumerate(itertools.chain(*found.texts)) if t}
    pool = found.pool(rows)
    assert pool.mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    assert pool.texts[1, 3].tolist() == [8.0, 8.0]
    assert pool.texts[1, 4].tolist() == [0.0, 0.0]
    assert found.named(b) == [["kitten", "a tom"], ["puppy"]]


# Recipes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Labels that say nothing, and descriptions of which some fit."""
    folder = tmp_path_factory.mktemp("searched")
    random = np.random.default_rng(0)
    for value, name in zip(COLOURS.values(), "xyz", strict=True):
        (folder / "labelled" / name).mkdir(parents=True)
        for i in range(8):
            image = Image.new("RGB", (96, 96), ("white", "black")[i % 2])
            x, y, side = random.integers(5, 50, 3).tolist()
            ImageDraw.Draw(image).rectangle([x, y, x + side, y + side], fill=value)
            image.save(folder / "labelled" / name / f"{i}.png")
    words = {label: [f"a {colour} square" for colour in COLOURS] for label in "xyz"}
    (folder / "words.json").write_text(json.dumps(words))
    return folder


def test_descriptions_are_searched_and_kept(printed, zeroshot, place, tmp_path):
    out = tmp_path / "r.toml"
    code, _, err = printed(
        *("tune", "--labels", "x,y,z", "--truth", place / "labelled", "--among", "ensemble"),
        *("--templates", "simple", "--templates", place / "words.json", "--out", out, *POCKET),
    )
    assert code == 0, err
    recipe = read_recipe(out)
    names = {t["name"]: t["accuracy"] for t in recipe.tried}
    assert names["ensemble, templates searched"] > names["ensemble"] + 0.3
    assert [m.templates for m in recipe.members] == ["searched"]
    found = recipe.prompts["searched"]
    for label, right in zip("xyz", COLOURS, strict=True):
        assert [text for text in found[label] if "square" in text] == [f"a {right} square"]
    code, rows, err = zeroshot("classify", place / "labelled", "--recipe", out, *POCKET, "--json")
    assert code == 0, err
    right = [row["path"].split("/")[-2] == row["labels"][0]["label"] for row in rows]
    assert sum(right) > 0.8 * len(right)


def test_without_templates_of_ones_own_nothing_is_searched(printed, place, tmp_path):
    out = tmp_path / "r.toml"
    line = ("tune", "--labels", "x,y,z", "--shots", place / "labelled", "--among", "ncm")
    assert printed(*line, "--out", out, *POCKET)[0] == 0
    assert not [t for t in read_recipe(out).tried if "searched" in t["name"]]


def test_a_recipe_has_the_prompts_of_a_file(printed, zeroshot, place, tmp_path):
    """It is used elsewhere, where the file may be another or none."""
    (tmp_path / "mine.txt").write_text("a {} square\na thing\n".replace("a thing", "one {}"))
    out = tmp_path / "r.toml"
    code, _, err = printed(
        *("tune", place / "labelled", "--labels", "red,blue,green", "--out", out, *POCKET),
        *("--templates", tmp_path / "mine.txt"),
    )
    assert code == 0, err
    recipe = read_recipe(out)
    assert recipe.templates == str(tmp_path / "mine.txt")
    assert recipe.prompts_of(recipe.members[0])[0] == ["a red square", "one red"]
    (tmp_path / "mine.txt").unlink()
    code, rows, err = zeroshot("classify", place / "labelled", "--recipe", out, *POCKET, "--json")
    assert (code, len(rows)) == (0, 24), err


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ('p = ["{}", 1]', "prompts is no list of texts"),
        ('p = {a = "x"}', "prompts is no list of texts"),
        ("p = 1", "prompts is no list of texts"),
    ],
)
def test_damaged_prompts_of_a_recipe(tmp_path, prompts, message):
    recipe = Recipe(("a", "b"), "", (RecipeMember("ensemble", templates="p"),))
    path = tmp_path / "r.toml"
    path.write_text(f"{to_toml(recipe)}\n[prompts]\n{prompts}\n")
    with pytest.raises(UserError, match=message):
        read_recipe(path)


def test_prompts_decide_the_fingerprint():
    recipe = Recipe(("a", "b"), "", (RecipeMember("ensemble", templates="p"),))
    changed = [
        dataclasses.replace(recipe, prompts={"p": ("{}",)}),
        dataclasses.replace(recipe, prompts={"p": ("a {}",)}),
        dataclasses.replace(recipe, templates="openai"),
    ]
    assert len({r.fingerprint for r in (recipe, *changed)}) == 4
