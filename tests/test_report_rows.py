"""`zeroshot report` of rows without truth: every image once, in its group, and no empty page."""

import contextlib
import re
from pathlib import Path

import pytest

from tests.browser import AXE, browser, needs_axe, needs_browser
from tests.test_report import EVIL, SCENES, Page, needs_nothing, run, write  # noqa: F401
from zeroshot.errors import UserError
from zeroshot.report import figures, load_results, render
from zeroshot.report.galleries.row_gallery import KINDS, gallery, summary
from zeroshot.report.result_files import SHOWN_ROWS, RowFile

NAMES = sorted(path.name for path in SCENES.glob("*.png"))
FAILED = {"path": "gone.png", "id": None, "error": {"type": "UnreadableImage", "message": "why"}}


def row(schema, number=0, **more):
    path = str(SCENES / NAMES[number % len(NAMES)])
    return {"schema": f"zeroshot.{schema}/1", "path": path, "id": str(number), **more}


def labels(number, *scores, **more):
    named = [{"label": label, "score": score} for label, score in scores]
    return row(
        "classify", number, labels=named, **{"abstained": False, "scored": "softmax", **more}
    )


ROWS = {
    "classify": [labels(0, ("cat", 0.9), ("dog", 0.1)), labels(1, ("dog", 0.6), ("cat", 0.4))],
    "caption": [row("caption", 0, caption="a heart"), row("caption", 1, caption="a star")],
    "read": [row("read", 0, text="STOP", score=0.9), row("read", 1, text=None, score=None)],
    "search": [
        row("search", 0, query="a cat", rank=1, score=0.31, cosine=0.31, hidden=2),
        row("search", 1, query="a dog", rank=1, score=0.25, cosine=0.25),
    ],
    "detect": [
        row(
            "detect",
            0,
            width=128,
            height=96,
            boxes=[
                {"label": "cat", "score": 0.5, "box": [1, 2, 11, 22]},
                {"label": "cat", "score": 0.7, "box": [0, 0, 5, 5]},
            ],
        ),
        row("detect", 1, width=128, height=96, boxes=[]),
    ],
    "segment": [
        row("segment", 0, width=1, height=1, regions=[{"label": "cat", "score": 1, "share": 0.31}]),
        row("segment", 1, width=1, height=1, regions=[]),
    ],
    "explain": [
        row("explain", 0, words=[{"word": "cat", "weight": 0.31}]),
        row("explain", 1, words=[]),
    ],
    "dedupe": [
        row("dedupe", 0, group=1, keep=False, kind="near", width=5, height=4),
        row("dedupe", 1, group=1, keep=True, kind=None, width=9, height=8),
        row("dedupe", 2, group=None, keep=True, kind=None),
    ],
    "filter": [
        row("filter", 0, caption="a heart", score=0.3, kept=True),
        row("filter", 1, caption="a star", score=0.2, kept=False, copy_of="x.png"),
    ],
    "match": [row("match", 0, texts=[{"text": "a heart", "score": 0.3}], scored="cosine")],
    "ask": [
        row("ask", 0, questions=[{"question": "what?", "answers": [{"answer": "x", "score": 0.5}]}])
    ],
    "regions": [
        row(
            "regions",
            0,
            width=128,
            height=96,
            regions=[{"box": [1, 2, 11, 22], "caption": "a red heart", "score": 0.5}],
        ),
        row("regions", 1, width=128, height=96, regions=[]),
    ],
}
SAID = {
    "classify": ["cat 1", "dog 0.10", "dog 1", "cat 0.40"],
    "caption": ["a heart", "a star"],
    "read": ["STOP", "no text"],
    "search": ["a cat 1", "1. 0.31", "2 copies hidden", "a dog 1"],
    "detect": ["Something found 1", "cat x 2 0.70", "Nothing found 1", "nothing"],
    "segment": ["cat 31 %", "nothing but background"],
    "explain": ["Images 2", "cat 0.31", "no words"],
    "dedupe": ["Group 1 2", "near copy", "9 x 8", "Without copies 1"],
    "filter": ["Kept 1", "0.30 a heart", "Left out 1", "copy"],
    "match": ["0.30 a heart"],
    "ask": ["what? 1", "x 0.50"],
    "regions": ["a red heart", "no boxes"],
}


@pytest.mark.parametrize("kind", SHOWN_ROWS)
def test_each_kind_of_rows(kind, run, tmp_path):  # noqa: F811
    rows = write(tmp_path / "r.jsonl", *ROWS[kind], FAILED | {"schema": f"zeroshot.{kind}/1"})
    code, told = run("report", rows, "--out", tmp_path / "page.html")
    assert code == 0, told
    page = needs_nothing((tmp_path / "page.html").read_text("utf-8"))
    for text in SAID[kind]:
        assert text in page.said
    assert f"{len(ROWS[kind]) + 1} rows, 1 without a result" in page.said
    assert "gone.png why" in page.said
    images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert sorted(images) == sorted(Path(row["path"]).name for row in ROWS[kind])
    targets = [a["href"] for tag, a in page.tags if tag == "a"]
    assert {t[1:] for t in targets} <= {a["id"] for _, a in page.tags if "id" in a}


def test_all_rows_that_commands_write_are_shown():
    assert KINDS.keys() == {f"zeroshot.{name}/1" for name in SHOWN_ROWS}


def test_the_least_sure_are_marked_and_come_first():
    """By hand: of 20 images, two; the ahead of the best label is 0.01, 0.02, ... 0.20."""
    rows = [
        labels(i, ("cat" if i % 2 else "dog", 0.5 + i / 200), ("x", 0.5 - i / 200))
        for i in range(1, 21)
    ]
    one = gallery(RowFile("r", "zeroshot.classify/1", rows[::-1]))
    assert [(c.title, c.count) for c in one.clusters] == [("dog", 10), ("cat", 10)]
    first = {c.title: c.tiles[0] for c in one.clusters}
    marked = [t for c in one.clusters for t in (*c.tiles, *c.rest) if t.mark]
    assert marked == [first["dog"], first["cat"]]
    assert first["cat"].lines == ["cat 0.51", "x 0.49"]
    # labels that may all hold: by the best score alone
    rows = [labels(i, ("cat", i / 10), ("dog", i / 10), scored="sigmoid") for i in range(10)]
    one = gallery(RowFile("r", "zeroshot.classify/1", rows))
    assert [t.lines[0] for t in one.clusters[0].tiles if t.mark] == ["cat 0.00"]
    few = gallery(RowFile("r", "zeroshot.classify/1", rows[:3]))
    assert not [t for t in few.clusters[0].tiles if t.mark]


def test_images_without_a_label_are_a_group():
    rows = [
        labels(0, ("cat", 0.9), ("dog", 0.1)),
        labels(1, ("cat", 0.5), ("dog", 0.5), abstained=True),
        labels(2, abstained=True),
    ]
    one = gallery(RowFile("r", "zeroshot.classify/1", rows))
    assert [(c.title, c.count) for c in one.clusters] == [("cat", 1), ("Without a label", 2)]
    assert [t.lines[0] for t in one.clusters[1].tiles] == ["cat 0.50", "no label holds"]


@pytest.mark.parametrize("most", [0, 1, 5, 20, 31, 100, None])
def test_how_many_are_on_the_page(most):
    sizes = {"a": 3, "b": 40, "c": 20}
    rows = [labels(i, (label, 0.9)) for label, n in sizes.items() for i in range(n)]
    one = gallery(RowFile("r", "zeroshot.classify/1", rows), most)
    shown = {c.title: len(c.tiles) + len(c.rest) for c in one.clusters}
    assert sum(shown.values()) == min(sum(sizes.values()), 600 if most is None else most)
    assert all(len(c.tiles) <= 12 for c in one.clusters)
    assert {c.title: shown[c.title] + c.left_out for c in one.clusters} == sizes


def test_shards_and_captions_that_nobody_compares(run, tmp_path):  # noqa: F811
    write(tmp_path / "rows" / "00000.jsonl", *ROWS["classify"])
    write(tmp_path / "rows" / "00001.jsonl", *ROWS["classify"][:1])
    write(tmp_path / "rows" / "plan.jsonl", {"x": 1})
    captions = write(tmp_path / "c.jsonl", *ROWS["caption"])
    results = load_results([tmp_path / "rows", captions])
    assert [(file.name, len(file.rows)) for file in results.files] == [("rows", 3), ("c", 2)]
    assert not results.groups
    both = load_results([captions, write(tmp_path / "d.jsonl", *ROWS["caption"])])
    assert [len(group.methods) for group in both.groups] == [2]
    assert not both.files


def test_no_page_is_empty(run, tmp_path):  # noqa: F811
    only = write(tmp_path / "x.jsonl", FAILED | {"schema": "zeroshot.classify/1"})
    code, _ = run("report", only, "--out", tmp_path / "page.html")
    assert code == 0
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert "1 row, 1 without a result" in page.said
    assert ("details", {"open": None}) in page.tags
    write(tmp_path / "none.jsonl")
    code, told = run("report", tmp_path / "none.jsonl", "--out", tmp_path / "b.html")
    assert (code, "has no rows" in told) == (2, True)
    embedded = write(tmp_path / "e.jsonl", row("embed", dim=1, embedding=[1.0]))
    code, told = run("report", embedded, "--out", tmp_path / "b.html")
    assert (code, "it has zeroshot.embed/1" in told) == (2, True)


@pytest.mark.parametrize("kind", SHOWN_ROWS)
def test_rows_that_somebody_made_up(kind, tmp_path):
    """Texts are escaped; anything else in a place of a number or a text is refused."""

    def evil(value):
        if isinstance(value, dict):
            return {k: v if k == "schema" else evil(v) for k, v in value.items()}
        if isinstance(value, list):
            return [evil(x) for x in value]
        return EVIL if isinstance(value, str) else value

    rows = [evil(x) for x in ROWS[kind]]
    for x in rows:
        x["kind"] = EVIL
    failed = {"schema": f"zeroshot.{kind}/1", "path": EVIL, "error": {"message": EVIL}}
    page = needs_nothing(render(load_results([write(tmp_path / f"{kind}.jsonl", *rows, failed)])))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    for broken in (failed | {"error": 7}, {**ROWS[kind][0], "schema": ["x"]}):
        with pytest.raises(UserError):
            render(load_results([write(tmp_path / f"{kind}.jsonl", broken)]))
    keys = set(ROWS[kind][0]) - {"schema", "id", "width", "height", "cosine", "scored", "abstained"}
    for key in keys - {"hidden", "copy_of", "kept", "keep", "kind"}:
        for value in (7, {"x": 1}, [[]], None):
            broken = {**ROWS[kind][0], key: value}
            with contextlib.suppress(UserError):
                one = gallery(RowFile("r", f"zeroshot.{kind}/1", [broken]))
                assert summary(one) == "1 row"


@needs_browser
def test_a_phone_scrolls_tables_and_nothing_else(tmp_path):
    rows = write(tmp_path / "r.jsonl", *(x for x in ROWS["classify"] * 30))
    page = tmp_path / "page.html"
    page.write_text(render(load_results([rows])), "utf-8")
    with browser(width=390) as driver:
        driver.get(page.as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        columns = "return getComputedStyle(document.querySelector('.tiles')).gridTemplateColumns"
        assert len(driver.execute_script(columns).split()) == 3
        hidden = "return document.querySelector('details .tiles').checkVisibility()"
        assert not driver.execute_script(hidden)
        driver.execute_script("document.querySelector('summary').click()")
        assert driver.execute_script(hidden)


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_text_has_contrast(scheme):
    """WCAG AA: 4.5 to 1, of each colour of text on each background that has text."""
    css = (Path(figures.__file__).parent / "page.html").read_text("utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colors = dict(re.findall(r"--([\w]+): (#[0-9a-f]{3,6})", block))
    colors = {
        n: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for n, c in colors.items()
    }
    for text in ("ink", "soft", "faint", "accent", "good", "bad"):
        for ground in ("page", "card"):
            pair = sorted(luminance(colors[name]) for name in (text, ground))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (text, ground)


@needs_browser
@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_that_axe_finds(tmp_path, scheme, width):
    rows = [write(tmp_path / f"{kind}.jsonl", *ROWS[kind]) for kind in SHOWN_ROWS]
    page = tmp_path / "page.html"
    page.write_text(render(load_results(rows)).replace("default-src 'none'", "default-src *"))
    with browser(width=width, scheme=scheme) as driver:
        driver.get(page.as_uri())
        driver.execute_script(AXE.read_text("utf-8"))
        found = driver.execute_async_script(
            "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']})"
            ".then(arguments[arguments.length - 1])"
        )
    assert [(x["id"], [n["html"] for n in x["nodes"]]) for x in found["violations"]] == []
