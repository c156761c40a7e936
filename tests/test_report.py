"""`zeroshot report`: what stands on the page, and that nothing from a file acts on it."""

import dataclasses
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from zeroshot import cli
from zeroshot.metrics.captioning import cider
from zeroshot.report import caption_tables, figures, label_tables, load_results, render, traces
from zeroshot.report.recipe_tables import OF_PLAIN, OTHER, SHOWN, TAKEN, recipe_section
from zeroshot.report.result_files import LoadedResults
from zeroshot.tasks.tuning.recipe import HeldOut, Recipe, RecipeFigures, RecipeMember, to_toml

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
EVIL = "<script>alert(1)</script><img src=http://evil/x>\"' onload=x"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        code = cli.run([str(a) for a in arguments])
        return code, " ".join(capsys.readouterr().err.split())

    return run


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())


def needs_nothing(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {
        tag for tag, _ in page.tags
    }
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:image/jpeg;base64,") or (
            "src" not in attributes
        )
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    return page


def write(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def said(name, caption, **more):
    path = str(SCENES / name)
    return {"schema": "zeroshot.caption/1", "path": path, "caption": caption, **more}


@pytest.fixture
def rows(tmp_path):
    """Two methods on three scenes, one of which is not there."""
    a = write(
        tmp_path / "a.jsonl",
        said("1-red-heart.png", "a large red heart on a white background"),
        said("2-blue-star.png", "a green ring"),
        said("gone.png", "nothing"),
    )
    b = write(
        tmp_path / "b.jsonl",
        said("1-red-heart.png", "a red star"),
        said("2-blue-star.png", "a small blue star on a black background"),
        {**said("gone.png", None), "error": {"type": "UnreadableImage", "message": "no such file"}},
    )
    truth = write(
        tmp_path / "truth.jsonl",
        {"path": "1-red-heart.png", "references": ["a large red heart on a white background"]},
        {"path": "2-blue-star.png", "references": ["a small blue star on a black background"]},
        {"path": "gone.png", "references": ["a thing", "something"]},
        {"path": "unasked.png", "references": ["more than was asked"]},
    )
    return a, b, truth


def test_captions_of_several_methods_beside_what_people_said(rows, tmp_path, run):
    a, b, truth = rows
    code, told = run("report", a, b, "--truth", truth, "--out", tmp_path / "page.html")
    assert code == 0
    assert "wrote" in told
    text = (tmp_path / "page.html").read_text("utf-8")
    page = needs_nothing(text)
    assert "a large red heart on a white background" in page.said
    assert "UnreadableImage: no such file" in page.said
    assert "1 of 3 images have no result" in page.said
    assert "more than was asked" not in page.said
    assert text.count("data:image/jpeg;base64,") == 2
    assert page.said.count("image not found") == 1
    assert '<span class="new">green</span>' in text  # no reference says so
    assert '<span class="new">star</span>' in text
    assert '<span class="new">a</span>' not in text
    code, told = run("report", a, "--out", tmp_path / "page.html")
    assert code == 2
    assert "--overwrite" in told


def test_figures_of_bare_rows_are_those_of_eval(rows):
    a, b, truth = rows
    [group] = load_results([a, b], truth).groups
    table = figures.table(group)
    assert [name for name, *_ in table.rows] == ["a", "b"]
    said = [row["caption"] for row in group.methods[0].rows]
    references = [group.truth[row["path"]]["references"] for row in group.methods[0].rows]
    expected = cider(said, references)
    cell = table.rows[0][1][table.columns.index("CIDEr")]
    assert cell.value == f"{100 * expected.corpus:.2f}"
    shown = caption_tables.captions(group, 30, "data")
    assert [one.captions[0].cider for one in shown] == [f"{100 * s:.0f}" for s in expected.each]
    worst = caption_tables.captions(group, 1, "worst")
    assert worst[0].name == "gone.png"


def test_captions_without_references_stand_side_by_side(rows):
    a, b, _ = rows
    found = load_results([a, b])
    text = render(found, title="two")
    page = needs_nothing(text)
    assert "a green ring" in page.said
    assert "the CIDEr of the caption times 100" not in page.said  # there is nothing to compare with
    assert figures.table(found.groups[0]) is None


def test_the_page_of_labels(run, tmp_path):
    line = ("eval", SCENES, "--task", "classify", "--models", "pocket", "--out", tmp_path / "out")
    assert run(*line, "--templates", "a {}", "--compare", "ensemble,asif,center")[0] == 0
    [group] = load_results([tmp_path / "out"]).groups
    assert [m.name for m in group.methods] == ["ensemble", "asif", "center"]
    asif = next(own for own in label_tables.labels(group) if own.method == "asif")
    lines = (tmp_path / "out" / "asif.rows.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    truth = [group.truth[row["path"]]["label"] for row in rows]
    best = [row["labels"][0]["label"] for row in rows]
    wrong = [(t, s) for t, s in zip(truth, best, strict=True) if t != s]
    assert len(asif.mistakes) == asif.wrong == len(wrong) > 0
    for t, cells in zip(asif.confusion.labels, asif.confusion.rows, strict=True):
        for s, (share, count) in zip(asif.confusion.labels, cells, strict=True):
            expected = sum(pair == (t, s) for pair in zip(truth, best, strict=True))
            assert count == expected
            assert share == pytest.approx(100 * expected / max(1, truth.count(t)))
    assert sum(b.count for b in asif.reliability) == 8
    for b in asif.reliability:
        inside = [
            (row["labels"][0]["score"], t == s)
            for row, t, s in zip(rows, truth, best, strict=True)
            if b.left < 100 * row["labels"][0]["score"] <= b.left + 10
        ]
        assert len(inside) == b.count
        assert b.accuracy == pytest.approx(100 * sum(right for _, right in inside) / b.count)
    page = needs_nothing(render(load_results([tmp_path / "out"])))
    assert "Compared with ensemble" in page.said
    assert "asif: surest mistakes" in page.said


def test_the_page_of_retrieval(run, tmp_path):
    line = ("eval", SCENES, "--task", "retrieve", "--models", "pocket", "--out", tmp_path / "out")
    assert run(*line, "--method", "relative")[0] == 0
    found = load_results([tmp_path / "out"])
    [(name, shown, wrong)] = label_tables.misses(found.groups[0])
    page = needs_nothing(render(found))
    assert name == "relative"
    assert len(shown) == wrong
    assert ("another's caption first" in page.said) == bool(wrong)


def test_choices_word_by_word(run, tmp_path):
    line = ("caption", SCENES / "1-red-heart.png", "--models", "pocket", "-o", "max_tokens=4")
    assert run(*line, "--trace", tmp_path / "trace.jsonl", "--out", tmp_path / "x.jsonl")[0] == 0
    [trace] = traces.traces(load_results([tmp_path / "trace.jsonl"]).traces)
    assert len(trace.steps) == 4
    for step in trace.steps:
        assert max(c.likely + c.guide for c in step.candidates) == pytest.approx(100, abs=0.2)
    page = needs_nothing(render(load_results([tmp_path / "x.jsonl", tmp_path / "trace.jsonl"])))
    assert "Choices, word by word" in page.said


def test_nothing_from_a_file_acts_on_the_page(run, tmp_path):
    rows = [
        {"schema": "zeroshot.caption/1", "path": EVIL + str(i), "caption": EVIL, "x": EVIL}
        for i in (1, 2)
    ]
    truth = [{"path": row["path"].rsplit("/", 1)[-1], "references": [EVIL]} for row in rows]
    a = write(tmp_path / "a.jsonl", *rows)
    failed = {**rows[0], "error": {"type": EVIL, "message": EVIL}}
    b = write(tmp_path / f"{'<b>'}.jsonl", failed, rows[1])
    candidate = {"text": EVIL, "total": 1.0, "guide": 0.5}
    trace = write(
        tmp_path / "t.jsonl",
        {
            "schema": "zeroshot.trace/1",
            "path": EVIL,
            "caption": EVIL,
            "steps": [{"text": EVIL, "candidates": [candidate]}],
        },
    )
    told = write(tmp_path / "truth.jsonl", *truth)
    text = render(load_results([a, b, trace], told), title=EVIL)
    page = needs_nothing(text)
    assert page.said.count("alert(1)") > 5
    assert not [tag for tag, attributes in page.tags if tag == "img"]


def test_results_that_somebody_made_up_are_refused_or_harmless(run, tmp_path):
    line = ("eval", SCENES, "--task", "classify", "--models", "pocket", "--out", tmp_path / "out")
    assert run(*line)[0] == 0
    file = tmp_path / "out" / "ensemble.eval.json"
    good = json.loads(file.read_text())
    for change, message in [
        ({"metrics": {"acc1": EVIL}}, "no result"),
        ({"metrics": {"acc1": 1e999}}, "no result"),
        ({"intervals": {"acc1": [EVIL, 1]}}, "no result"),
        ({"task": "other"}, "no result"),
        ({"schema": "zeroshot.eval/9"}, "no result"),
        ({"rows": "../../../etc/passwd"}, "outside the folder"),
        ({"rows": "/etc/passwd"}, "outside the folder"),
    ]:
        write(file, good | change)
        code, told = run("report", tmp_path / "out", "--out", tmp_path / "page.html")
        assert code == 2
        assert message in told
    names = {"dataset": EVIL, "method": EVIL, "seconds": EVIL, "settings": {EVIL: EVIL}}
    write(file, good | names)
    comparison = {"schema": "zeroshot.comparison/1", "first": EVIL, "methods": {EVIL: EVIL}}
    write(tmp_path / "out" / "comparison.json", comparison)
    needs_nothing(render(load_results([tmp_path / "out"])))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([{"schema": "zeroshot.embed/1", "path": "a"}], "it has zeroshot.embed/1, and rows of one"),
        ([{"path": "a", "caption": "x"}], "it has None, and rows of one"),
        (
            [said("a", "x"), {"schema": "zeroshot.classify/1"}],
            "has zeroshot.caption/1, zeroshot.cl",
        ),
    ],
)
def test_files_that_cannot_be_shown(rows, message, tmp_path, run):
    file = write(tmp_path / "x.jsonl", *rows)
    code, told = run("report", file, "--out", tmp_path / "page.html")
    assert code == 2
    assert message in told


def test_folders_that_cannot_be_shown(tmp_path, run):
    code, told = run("report", tmp_path, "--out", tmp_path / "page.html")
    assert (code, "has no results" in told) == (2, True)
    code, told = run("report", tmp_path, "--out", tmp_path / "page.pdf")
    assert (code, "an .html file" in told) == (2, True)


def test_the_same_method_twice_is_told_apart(tmp_path, rows):
    a, _, _ = rows
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(a, other / "a.jsonl")
    [group] = load_results([a, other / "a.jsonl"]).groups
    assert [m.name for m in group.methods] == ["a", "a (elsewhere)"]


def test_an_axis_has_round_ticks(tmp_path):
    assert [figures._step(span) for span in (1, 4.9, 12, 60, 0)] == [0.2, 1, 5, 20, 0.0002]


@pytest.mark.parametrize("name", ["page.html", "parts.html", "recipe.html", "gallery.html"])
def test_the_template_escapes_by_itself(name):
    source = (Path(figures.__file__).parent / name).read_text("utf-8")
    assert "|safe" not in re.sub(r"\s", "", source)
    assert "<script" not in source


# Recipes


def tried(name, accuracy, error=0.05, share=1.0):
    return {"name": name, "accuracy": accuracy, "error": error, "share": share}


def point(labels, accuracy):
    return {"labels": labels, "accuracy": accuracy, "error": 0.02}


RECIPE = Recipe(
    labels=("heart", "star", "ring"),
    verdict="ncm: better",
    members=(RecipeMember("ncm"),),
    models={"encoder": "pocket"},
    figures=RecipeFigures(0.75, 0.6, 0.85, 0.5, 0.4, 0.6, 0.25, 0.001, 40, 5, 2),
    tried=(
        tried("ncm", 0.8),
        *(tried(f"method {i}", 0.7 - i / 100) for i in range(20)),
        tried("ensemble", 0.4),
        tried("stopped", 0.3, math.inf, 0.2),
    ),
    left_out=("ape",),
    curve=(point(1.0, 0.5), point(2.2, 0.6), point(4.0, 0.75)),
    suggested=("3-green-ring.png",),
    held_out=HeldOut(
        ("1-red-heart.png", "2-blue-star.png", "gone.png", "3-green-ring.png"),
        (0, 1, 2, 2),
        (0, 0, 1, 2),
        (0.95, 0.6, 0.9, 0.55),
    ),
)


def test_the_page_of_a_recipe(tmp_path, run):
    for scene in SCENES.glob("[123]-*.png"):
        shutil.copy(scene, tmp_path)
    (tmp_path / "r.toml").write_text(to_toml(RECIPE), "utf-8")
    code, told = run("report", tmp_path / "r.toml", "--out", tmp_path / "page.html")
    assert code == 0, told
    page = needs_nothing((tmp_path / "page.html").read_text("utf-8"))
    for text in (
        "Recipe r.toml: 3 labels, 40 labelled images.",
        "+25.0 points, one-sided p = 0.001",
        "ncm (taken)",
        "From 2.2 to 4.0 labels a class the accuracy went from 60.0 to 75.0",
        "more labels are likely to help",
        "Left out for the budget: ape.",
        "expected calibration error",
    ):
        assert text in page.said
    assert [a["alt"] for t, a in page.tags if t == "img"] == ["2-blue-star.png", "3-green-ring.png"]
    assert page.said.count("image not found") == 1
    assert page.said.index("gone.png") < page.said.index("2-blue-star.png")  # the surest first
    assert "nothing was measured" not in page.said


def test_what_is_drawn_of_a_recipe():
    found = recipe_section(Path("r.toml"), RECIPE)
    rows = found.candidates.whiskers
    assert [w.kind for w in rows] == [TAKEN, *[OTHER] * (SHOWN - 1), OF_PLAIN]
    assert len(rows) + found.hidden == len(RECIPE.tried)
    assert found.others[-1] == ("stopped", "30.0", "", "20%")
    wide = rows[0].high - rows[0].low
    per_point = (rows[0].at - rows[-1].at) / (80 - 40)
    assert wide == pytest.approx(2 * 1.96 * 5 * per_point, rel=0.01)
    assert [[count for _, count in row] for row in found.own.confusion.rows] == [
        [1, 0, 0],
        [0, 1, 1],
        [1, 0, 0],
    ]  # heart, ring, star
    # .95 and .9 are alone in their bins; .6 (wrong) and .55 (right) share one of the 15
    assert found.gap == f"{100 * (0.05 + 0.9 + 2 * abs(0.575 - 0.5)) / 4:.1f}"


def test_prompts_and_a_curve_without_change_and_arrays():
    level = dataclasses.replace(
        RECIPE,
        models={},
        prompts={"searched": {"heart": ("a heart", "love")}, "mine.txt": ("a {}",)},
        curve=tuple({**p, "accuracy": 1.0, "error": 0.0} for p in RECIPE.curve),
    )
    found = recipe_section(Path("r.toml"), level)
    assert found.prompts == [
        ("searched", [("heart", "a heart; love")]),
        ("mine.txt", [("all", "a {}")]),
    ]
    ticks = [float(tick) for _, tick in found.curve.rows]
    assert (min(ticks), max(ticks)) == (90, 100)
    page = needs_nothing(render(LoadedResults(recipes=[(Path("r.toml"), level)])))
    assert "Prompts: searched heart a heart; love" in page.said
    assert "more labels promise little" in page.said
    assert "image not found" not in page.said  # arrays have no images
    assert "gone.png" in page.said


def test_a_recipe_that_was_not_measured(tmp_path):
    bare = Recipe(("a", "b"), "plain", (RecipeMember("ensemble"),), agreement={"dn": 0.75})
    page = needs_nothing(render(LoadedResults(recipes=[(Path("r.toml"), bare)])))
    assert "Nothing was measured" in page.said
    assert "dn 75%" in page.said
    assert "What was tried" not in page.said


def test_nothing_from_a_recipe_acts_on_the_page():
    evil = dataclasses.replace(
        RECIPE,
        prompts={EVIL: {EVIL: (EVIL,)}},
        labels=(EVIL, "star", "ring"),
        verdict=EVIL,
        tried=(tried(EVIL, 0.5),),
        left_out=(EVIL,),
        agreement={EVIL: 0.5},
        suggested=(EVIL,),
        held_out=HeldOut((EVIL,), (0,), (1,), (0.5,)),
    )
    page = needs_nothing(render(LoadedResults(recipes=[(Path("<b>.toml"), evil)])))
    assert page.said.count("alert(1)") > 5
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_captions_without_references_need_no_legend_for_them(run, tmp_path):
    rows = tmp_path / "captions.jsonl"
    assert run("caption", SCENES, "--models", "pocket", "--limit", 2, "--out", rows)[0] == 0
    page = tmp_path / "a.html"
    assert run("report", rows, "--out", page)[0] == 0
    assert "reference" not in Page(page.read_text("utf-8")).said
    truth = tmp_path / "truth.jsonl"
    lines = (SCENES / "captions.jsonl").read_text("utf-8")
    truth.write_text(lines.replace('"path": "', f'"path": "{SCENES}/'), "utf-8")
    page = tmp_path / "b.html"
    assert run("report", rows, "--truth", truth, "--out", page)[0] == 0
    assert "Below the line: the reference captions." in Page(page.read_text("utf-8")).said
