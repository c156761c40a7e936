"""`tune` from images and arrays to a recipe, and `classify` by it."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import zeroshot as zeroshot_package
from zeroshot.commands import console
from zeroshot.errors import UserError
from zeroshot.tasks.tuning import tune as choice
from zeroshot.tasks.tuning.recipe import (
    HeldOut,
    Recipe,
    RecipeFigures,
    RecipeMember,
    read_recipe,
    to_toml,
)
from zeroshot.tasks.tuning.tune import TuneInterruptedError
from zeroshot.tasks.tuning.tune_options import TuneOptions, seconds
from zeroshot.tasks.tuning.tune_task import tune_arrays
from zeroshot.tuning.greedy_ensemble import GreedyEnsemble
from zeroshot.tuning.selection import ChoiceInterruptedError, Selection

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60)}
POCKET = ("--models", "pocket", "--offline")
WHOLE = Recipe(
    labels=("cat", 'a "dog"', "Ö"),
    verdict="ncm: better",
    members=(
        RecipeMember("ncm", 0.75, 2.5),
        RecipeMember("gda", 0.25, 0.001, {"alpha": 1.5}, "openai", "csa"),
    ),
    models={"encoder": "hf:clip@1"},
    shots="shots.csv",
    shots_fingerprint="0123456789ab",
    seed=3,
    figures=RecipeFigures(0.9, 0.8, 0.95, 0.7, 0.6, 0.8, 0.2, 0.001, 40, 5, 2),
    tried=({"name": "ncm", "accuracy": 0.9, "error": 0.01, "share": 1.0},),
    left_out=("ape",),
    curve=({"labels": 4.0, "accuracy": 0.9, "error": 0.01},),
    suggested=("a.png",),
    held_out=HeldOut(("a.png", "b.png"), (0, 1), (0, 2), (0.5, 0.75)),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six labelled squares of each colour, and images of the same kind without labels."""
    folder = tmp_path_factory.mktemp("tune")
    random = np.random.default_rng(0)
    for colour, value in COLOURS.items():
        (folder / "shots" / colour).mkdir(parents=True)
        for i in range(6):
            image = Image.new("RGB", (96, 96), ("white", "black")[i % 2])
            x, y, side = random.integers(5, 50, 3).tolist()
            ImageDraw.Draw(image).rectangle([x, y, x + side, y + side], fill=value)
            image.save(folder / "shots" / colour / f"{i}.png")
            (folder / "rest").mkdir(exist_ok=True)
            image.rotate(90).save(folder / "rest" / f"{colour}-{i}.png")
    return folder


def tune(printed, place, out, *more, images=("rest",)):
    return printed(
        *("tune", *(place / name for name in images), "--labels", "red,blue,green"),
        *("--among", "ncm", "--out", out, *POCKET, *more),
    )


# The file


def test_a_recipe_reads_back(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(to_toml(WHOLE), "utf-8")
    assert read_recipe(path) == WHOLE
    path.write_bytes(b"\xef\xbb\xbf" + to_toml(WHOLE).encode())
    assert read_recipe(path) == WHOLE
    plain = Recipe(("a", "b"), "plain", (RecipeMember("ensemble"),))
    path.write_text(to_toml(plain), "utf-8")
    assert read_recipe(path) == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("zeroshot.recipe/1", "zeroshot.recipe/9"), "no schema"),
        (lambda t: t[: len(t) // 2], "is not TOML: "),
        (lambda t: "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (lambda t: "", "no schema"),
        (lambda t: t.replace("seed = 3", "seed = 3\ncolour = 1"), "a recipe has no 'colour'"),
        (
            lambda t: t.replace('method = "ncm"', "method = 7"),
            "members.method = 7 is of another kind",
        ),
        (lambda t: t.replace("weight = 0.75", "weight = nan"), "members.weight = nan"),
        (lambda t: t.replace("weight = 0.", "weight = -0."), "no members with a weight"),
        (lambda t: t.replace("weight = 0.75", "weight = -0.01"), "a weight below 0"),
        (lambda t: re.sub(r"temperature = [\d.]+", "temperature = 0.0", t), "is not above 0"),
        (lambda t: t.replace("folds = 5", 'folds = "5"'), "figures.folds = 5 is of another kind"),
        (lambda t: t.replace('"cat"', "1"), "labels is no list of texts"),
        (lambda t: t.replace("seed = 3", f"seed = {'[' * 5000}"), "it is nested too deeply"),
        (lambda t: t.replace("weight = 0.75", f"weight = {'9' * 400}"), "members.weight = 999"),
        (lambda t: t.replace("weight = 0.75", "weight = inf"), "members.weight = inf"),
        (lambda t: t.replace("seed = 3", 'seed = "x"'), "seed = x is of another kind"),
        (lambda t: t.replace("share = 1.0", 'share = "all"'), "tried = all is of another kind"),
        (lambda t: t.replace(", share = 1.0", ""), "tried needs name, accuracy, error, share"),
        (lambda t: t.replace("labels = 4.0", "labels = nan"), "curve = nan is of another kind"),
        (lambda t: t.replace("    0,\n    2,", "    0,"), "the columns of held_out differ"),
        (lambda t: t.replace("    0,\n    2,", "    0,\n    3,"), "a class that is none of 3"),
        (lambda t: t.replace("    0.75,", "    7.5,"), "a confidence that is not between 0 and 1"),
    ],
)
def test_a_damaged_recipe_ends_with_one_sentence(tmp_path, change, message):
    path = tmp_path / "r.toml"
    path.write_text(change(to_toml(WHOLE)), "utf-8")
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_recipe(tmp_path / "gone.toml")


def test_what_decides_the_answers_changes_the_fingerprint():
    changed = [
        dataclasses.replace(WHOLE, labels=("cat", "dog", "Ö")),
        dataclasses.replace(WHOLE, members=WHOLE.members[:1]),
        dataclasses.replace(WHOLE, shots_fingerprint="x"),
        dataclasses.replace(WHOLE, models={}),
    ]
    assert len({r.fingerprint for r in [WHOLE, *changed]}) == 5
    assert dataclasses.replace(WHOLE, verdict="", tried=()).fingerprint == WHOLE.fingerprint


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("2min", 120), ("1.5m", 90)])
def test_budgets(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "-1", "0", "nan", "inf", "1h", "a"])
def test_budgets_that_are_none(text):
    with pytest.raises(UserError, match="expected seconds or minutes above 0"):
        seconds(text)


# The commands


def test_tune_and_classify(printed, zeroshot, place, tmp_path):
    out = tmp_path / "r.toml"
    code, _, err = tune(printed, place, out, "--shots", place / "shots", "--suggest", 2)
    assert code == 0, err
    assert "95 % interval" in err
    recipe = read_recipe(out)
    assert recipe.labels == ("red", "blue", "green")
    assert recipe.figures is not None
    assert recipe.figures.images == 18
    assert {path.rsplit("/", 1)[0] for path in recipe.suggested} == {str(place / "rest")}
    assert len(recipe.suggested) == 2
    code, rows, err = zeroshot("classify", place / "rest", "--recipe", out, *POCKET, "--json")
    assert code == 0, err
    assert len(rows) == 18
    for row in rows:
        assert row["scored"] == "softmax"
        assert row["method"].startswith("recipe(")
        assert sum(label["score"] for label in row["labels"]) == pytest.approx(1, abs=1e-5)
        assert row["path"].rsplit("/", 1)[1].startswith(row["labels"][0]["label"])

    again = tmp_path / "again" / "r.toml"
    assert tune(printed, place, again, "--shots", place / "shots", "--suggest", 2)[0] == 0
    same = tomllib.loads(again.read_text()) | {"shots": ""}
    assert same == tomllib.loads(out.read_text()) | {"shots": ""}


def test_tune_without_labelled_images_goes_by_rule(printed, zeroshot, place, tmp_path):
    out = tmp_path / "r.toml"
    code, _, err = printed(
        "tune", place / "rest", "--labels", "red,blue,green", "--out", out, *POCKET
    )
    assert code == 0, err
    assert "there are no labelled images to choose by" in err
    assert "a hint, no accuracy" in err
    recipe = read_recipe(out)
    assert [m.method for m in recipe.members] == ["dn"]
    assert recipe.figures is None
    assert all(0 <= share <= 1 for share in recipe.agreement.values())
    code, rows, err = zeroshot("classify", place / "rest", "--recipe", out, *POCKET, "--json")
    assert (code, len(rows)) == (0, 18), err
    code, _, err = printed("classify", place / "rest", "--recipe", out, "--abstain", "0.2", *POCKET)
    assert code == 2
    assert "too few labelled images" in err


def test_candidates_do_not_warn(tmp_path):
    """`frolic` warns where classes are missing, as here; pytest would make it an error."""
    random = np.random.default_rng(4)
    texts = random.normal(size=(5, 2, 16))
    images = texts[[0] * 120].mean(1) + 0.5 * random.normal(size=(120, 16))
    np.savez(tmp_path / "a.npz", texts=texts, images=images)
    recipe = tune_arrays(tmp_path / "a.npz", TuneOptions(), lambda *_: None)
    assert "frolic" in recipe.agreement


def test_truth_chooses_among_methods_that_learn_nothing(printed, place, tmp_path):
    out = tmp_path / "r.toml"
    code, _, err = printed(
        *("tune", "--labels", "red,blue,green", "--truth", place / "shots"),
        *("--among", "zpe,stata", "--out", out, *POCKET),
    )
    assert code == 0, err
    recipe = read_recipe(out)
    assert recipe.shots == ""
    names = {t["name"].split(",")[0] for t in recipe.tried}
    assert names == {"ensemble", "zpe", "stata", "ensemble of several"}
    code, _, err = printed(
        *("tune", "--labels", "red,blue,green", "--truth", place / "shots"),
        *("--among", "ncm", "--out", tmp_path / "x.toml", *POCKET),
    )
    assert code == 2
    assert "ncm learns from labelled images, and there are none to learn from" in err
    code, _, err = printed(
        *("tune", "--labels", "red,blue,green", "--truth", place / "shots"),
        *("--among", "nmc", "--out", tmp_path / "x.toml", *POCKET),
    )
    assert code == 2
    assert "unknown method to try 'nmc'" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--labels", "red,blue"), "the recipe is for the labels red, blue, green"),
        (("--method", "zpe"), "--recipe and --method: the recipe has its own"),
        (("--templates", "openai"), "--recipe and --templates"),
        (("--multi",), "--recipe and --multi: a recipe has no use for it"),
        (("--explain", "2"), "--recipe and --explain"),
        (("--compare", "zpe,stata"), "--compare takes no --method, --calibration, --recipe"),
    ],
)
def test_options_that_a_recipe_decides(printed, place, tmp_path, more, message):
    out = tmp_path / "r.toml"
    out.write_text(
        to_toml(Recipe(("red", "blue", "green"), "plain", (RecipeMember("ensemble"),))), "utf-8"
    )
    code, _, err = printed("classify", place / "rest", "--recipe", out, *POCKET, *more)
    assert code == 2
    assert message in err


def test_rows_of_another_recipe_do_not_share_an_output(printed, place, tmp_path):
    out, rows = tmp_path / "r.toml", tmp_path / "rows.jsonl"
    for method, code in (("ensemble", 0), ("ensemble", 0), ("zpe", 2)):
        recipe = Recipe(("red", "blue", "green"), "", (RecipeMember(method),))
        out.write_text(to_toml(recipe), "utf-8")
        found, _, err = printed("classify", place / "rest", "--recipe", out, "--out", rows, *POCKET)
        assert found == code, err
    assert "recipe" in err


def test_moved_shots_and_other_models_are_refused(printed, place, tmp_path):
    recipe = Recipe(("red", "blue", "green"), "", (RecipeMember("ncm"),))
    out = tmp_path / "r.toml"
    for changed, message in (
        ({"shots": "gone"}, "gone"),
        ({"shots": str(place / "shots"), "shots_fingerprint": "0"}, "has other images or labels"),
        ({"members": (RecipeMember("ensemble"),), "models": {"encoder": "x"}}, "was tuned with x"),
    ):
        out.write_text(to_toml(dataclasses.replace(recipe, **changed)), "utf-8")
        code, _, err = printed("classify", place / "rest", "--recipe", out, *POCKET)
        assert code == 2, err
        assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "red,blue"), "--out FILE.toml"),
        (("--labels", "red,blue", "--out", "r.json"), "--out FILE.toml"),
        (("--out", "r.toml"), "labels"),
        (("--labels", "red", "--out", "r.toml"), "give two labels or more"),
        (("--labels", "red,blue", "--out", "r.toml"), "tune needs images"),
        (("--labels", "red,blue", "--out", "r.toml", "--budget", "soon"), "budget"),
        (("--embeddings", "x.npz", "--labels", "a,b", "--out", "r.toml"), "--embeddings takes no"),
        (("--embeddings", "x.npz", "--out", "r.toml"), "no such file"),
    ],
)
def test_what_tune_refuses(printed, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = printed("tune", *arguments, *POCKET)
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("*.toml"))


def test_an_existing_recipe_stays(printed, place, tmp_path):
    out = tmp_path / "r.toml"
    out.write_text("mine")
    code, _, err = tune(printed, place, out)
    assert code == 2
    assert "exists; --overwrite replaces it" in err
    assert out.read_text() == "mine"


# Ctrl-C


def test_ctrl_c_keeps_the_best_so_far(printed, zeroshot, place, tmp_path, monkeypatch):
    def stops(quiet):
        def progress(name, best, done):
            if done > 0.5:
                raise KeyboardInterrupt

        return progress

    monkeypatch.setattr(console, "tuning_progress", stops)
    out = tmp_path / "r.toml"
    code, _, err = tune(printed, place, out, "--shots", place / "shots")
    assert code == 130
    assert "the best so far, interrupted after 53% of the choice" in err
    assert "all results so far are written" in err
    recipe = read_recipe(out)
    assert recipe.figures is None
    assert "not measured" in recipe.verdict
    assert recipe.tried
    code, rows, err = zeroshot("classify", place / "rest", "--recipe", out, *POCKET, "--json")
    assert (code, len(rows)) == (0, 18), err
    assert {row["scored"] for row in rows} == {"uncalibrated"}
    code, _, err = printed("classify", place / "rest", "--recipe", out, "--abstain", "0.2", *POCKET)
    assert code == 2


def test_ctrl_c_while_images_are_suggested_keeps_all_figures(printed, place, tmp_path, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(choice, "suggest", stops)
    out = tmp_path / "r.toml"
    more = ("--shots", place / "shots", "--suggest", 2)
    assert tune(printed, place, out, *more)[0] == 130
    recipe = read_recipe(out)
    assert recipe.figures is not None
    assert recipe.shots_fingerprint
    assert recipe.suggested == ()


def test_in_python_the_exception_has_the_recipe(place, monkeypatch):
    def stops(*_, **__):
        selection = Selection(GreedyEnsemble((1,), (1.0,), (2.0,)), ())
        raise ChoiceInterruptedError(selection, (), 0.25)

    monkeypatch.setattr(choice, "evaluate", stops)
    with pytest.raises(KeyboardInterrupt) as caught:
        zeroshot_package.tune((), list(COLOURS), "pocket", shots=place / "shots")
    assert isinstance(caught.value, TuneInterruptedError)
    [member] = caught.value.recipe.members
    assert (member.method, member.temperature) == ("ensemble", 2.0)
    assert "after 25% of the choice" in caught.value.recipe.verdict


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process")
def test_a_real_ctrl_c(tmp_path):
    random = np.random.default_rng(3)
    labels = np.arange(1200) % 30
    texts = random.normal(size=(30, 2, 256))
    rows = texts[labels].mean(1) + 8 * random.normal(size=(1200, 256))
    np.savez(
        tmp_path / "a.npz", texts=texts, images=rows[600:], shots=rows[:600],
        shot_labels=labels[:600],
    )  # fmt: skip
    told_at_once = (
        "from zeroshot.commands import console; console.SECONDS_PER_LINE = 0; "
        "from zeroshot import __main__; __main__.main()"
    )
    line = [sys.executable, "-c", told_at_once, "tune", "--embeddings", "a.npz", "--out", "r.toml"]
    with subprocess.Popen(
        [*line, "--budget", "10min"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        for told in process.stderr:
            if told.startswith("choosing:"):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in read_recipe(tmp_path / "r.toml").verdict


# Arrays


def test_arrays(printed, tmp_path):
    random = np.random.default_rng(1)
    labels = np.arange(120) % 4
    texts = random.normal(size=(4, 3, 16))
    rows = texts[labels].mean(1) + 1.5 * random.normal(size=(120, 16))
    arrays = {"texts": texts, "images": rows[60:], "shots": rows[:60], "shot_labels": labels[:60]}
    file, out = tmp_path / "a.npz", tmp_path / "r.toml"
    np.savez(file, **arrays)
    code, _, err = printed(
        "tune", "--embeddings", file, "--among", "ncm,ridge", "--suggest", 3, "--out", out
    )
    assert code == 0, err
    recipe = read_recipe(out)
    assert recipe.suggested[0].startswith("images[")
    scores = tmp_path / "s.npz"
    code, _, err = printed("classify", "--embeddings", file, "--recipe", out, "--out", scores)
    assert code == 0, err
    found = np.load(scores)["scores"]
    assert found.sum(1) == pytest.approx(np.ones(60))
    right = (found.argmax(1) == labels[60:]).mean()
    assert recipe.figures is not None
    assert recipe.figures.low <= right <= recipe.figures.high

    np.savez(file, **{k: v for k, v in arrays.items() if not k.startswith("shot")})
    if any(m.method in ("ncm", "ridge", "evidence") for m in recipe.members):
        code, _, err = printed(
            "classify", "--embeddings", file, "--recipe", out, "--out", tmp_path / "t.npz"
        )
        assert code == 2
        assert "needs the arrays shots and shot_labels" in err


def test_anchors_of_arrays_are_coupled(printed, tmp_path):
    random = np.random.default_rng(2)
    mix, other = random.normal(size=(6, 12)), random.normal(size=(6, 10))
    anchors = random.normal(size=(300, 6))
    classes = random.normal(size=(3, 6))
    labels = np.arange(90) % 3
    images = classes[labels] + 0.5 * random.normal(size=(90, 6))
    file, out = tmp_path / "a.npz", tmp_path / "r.toml"
    np.savez(
        file,
        images=images[30:] @ mix,
        shots=images[:30] @ mix,
        shot_labels=labels[:30],
        texts=(classes @ other)[:, None],
        anchor_images=anchors @ mix,
        anchor_texts=anchors @ other,
    )
    code, _, err = printed("tune", "--embeddings", file, "--among", "ncm", "--out", out)
    assert code == 0, err
    names = {t["name"] for t in read_recipe(out).tried}
    assert {"evidence", "ensemble", "ncm"} <= names
