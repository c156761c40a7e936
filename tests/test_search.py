"""`zeroshot search` and `zeroshot.search`, on the pocket set: answers, rows, mistakes, the page."""

import csv
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

import zeroshot as package
from zeroshot import cli
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.errors import UserError
from zeroshot.inference import embedding_matrix as gathering
from zeroshot.inference.embedding_matrix import embedding_matrix
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.model_set.model_set import resolve
from zeroshot.ops import normalize
from zeroshot.report.search_page import POLICY, search_page
from zeroshot.results.result import AnchorContribution, Failure, SearchResult, Source

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART, STAR = SCENES / "1-red-heart.png", SCENES / "2-blue-star.png"
POCKET = ["--models", "pocket"]


@pytest.fixture(scope="module")
def pocket():
    return resolve("pocket")


@pytest.fixture(scope="module")
def coupled():
    return resolve("pocket", encoder="coupled")


@pytest.fixture
def zeroshot(capsys):
    """Run a command; its exit code, the JSON rows of standard output, and standard error."""

    def run(*arguments):
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], " ".join(err.split())

    return run


def cosines(models, wanted, joined=False):
    """Every scene with its cosine, best first, straight from the encoder."""
    encoder = models.encoder
    paths = sorted(SCENES.glob("*.png"))
    rows = encoder.encode_images([Image.open(p).convert("RGB") for p in paths])
    scored = zip((rows @ wanted).tolist(), map(str, paths), strict=True)
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


# Answers


@pytest.mark.parametrize("kind", ["pocket", "coupled"])
def test_words_find_pictures(kind, request, zeroshot):
    models = request.getfixturevalue(kind)
    expected = cosines(models, models.encoder.encode_texts(["a blue star"])[0])
    pair = ["--encoder", "coupled"] if kind == "coupled" else []
    code, rows, _ = zeroshot("search", "a blue star", SCENES, *POCKET, *pair, "-k", 4)
    assert code == 0
    assert rows[0]["path"] == str(STAR)
    assert [r["path"] for r in rows] == [path for _, path in expected[:4]]
    assert [r["score"] for r in rows] == pytest.approx([c for c, _ in expected[:4]], abs=1e-5)
    assert [r["rank"] for r in rows] == [1, 2, 3, 4]
    first = rows[0]
    assert first["schema"] == "zeroshot.search/1"
    assert (first["query"], first["method"]) == ("a blue star", "cosine")
    assert first["score"] == first["cosine"]
    assert len(first["id"]) == 64
    assert first["models"]


def test_a_picture_finds_itself_and_the_sum_is_what_it_says(pocket, zeroshot):
    _, rows, _ = zeroshot("search", "--image", STAR, SCENES, *POCKET, "-k", 1)
    assert (rows[0]["path"], rows[0]["query"]) == (str(STAR), f"image:{STAR}")
    assert rows[0]["score"] == pytest.approx(1, abs=1e-5)
    encoder = pocket.encoder
    picture = encoder.encode_images([Image.open(STAR).convert("RGB")])[0]
    words = encoder.encode_texts(["a red heart", "a green ring", "blue"])
    total = picture + words[0] + words[1] - words[2]
    expected = cosines(pocket, normalize(total[None])[0])
    more = ["--plus", "a red heart", "--plus", "text:a green ring", "--minus", "blue"]
    code, rows, _ = zeroshot("search", "--image", STAR, SCENES, *POCKET, *more)
    assert code == 0
    assert [r["path"] for r in rows] == [path for _, path in expected]
    assert [r["score"] for r in rows] == pytest.approx([c for c, _ in expected], abs=1e-5)
    assert rows[0]["query"] == f"image:{STAR} + a red heart + a green ring - blue"


def test_a_file_of_that_name_is_a_picture_unless_said_otherwise(zeroshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(STAR, "heart")
    labels = []
    for given in ("heart", "image:heart", "text:heart"):
        _, rows, _ = zeroshot("search", "a", SCENES, *POCKET, "--plus", given, "-k", 1)
        labels.append(rows[0]["query"])
    assert labels == ["a + image:heart", "a + image:heart", "a + heart"]


def test_many_queries_from_a_file(zeroshot, tmp_path):
    lines, objects = tmp_path / "q.txt", tmp_path / "q.jsonl"
    lines.write_text("a red heart\n\na blue star\n")
    wanted = [
        {"text": "a red heart"},
        {"image": str(STAR), "minus": ["a red heart"]},
        {"text": "image:of a ring", "plus": ["green"]},
    ]
    objects.write_text("".join(json.dumps(w) + "\n" for w in wanted))
    _, rows, _ = zeroshot("search", "--queries", lines, SCENES, *POCKET, "-k", 2)
    assert [(r["query"], r["rank"]) for r in rows] == [
        ("a red heart", 1),
        ("a red heart", 2),
        ("a blue star", 1),
        ("a blue star", 2),
    ]
    assert [rows[0]["path"], rows[2]["path"]] == [str(HEART), str(STAR)]
    _, rows, _ = zeroshot("search", "--queries", objects, SCENES, *POCKET, "-k", 1)
    queries = ["a red heart", f"image:{STAR} - a red heart", "image:of a ring + green"]
    assert [r["query"] for r in rows] == queries


@pytest.mark.parametrize("name", ["dis", "nnn", "csls", "inverted_softmax", "dn"])
def test_every_correction_runs_and_says_so(zeroshot, tmp_path, name):
    bank = tmp_path / "bank.txt"
    bank.write_text("a red heart\na green ring\na purple cross\n")
    arguments = ["search", "a blue star", SCENES, *POCKET, "--method", name, "--bank", bank]
    code, rows, _ = zeroshot(*arguments)
    assert code == 0
    assert {r["method"] for r in rows} == {name}
    assert len(rows) == 8
    scores = [r["score"] for r in rows]
    assert scores == sorted(scores, reverse=True)
    cosine = {r["path"]: r["cosine"] for r in rows}
    plain = {r["path"]: r["score"] for r in zeroshot("search", "a blue star", SCENES, *POCKET)[1]}
    assert cosine == pytest.approx(plain, abs=1e-6)


def test_anchors_are_named(zeroshot):
    pair = ["--encoder", "coupled", "--explain", 2]
    _, rows, _ = zeroshot("search", "a red heart", SCENES, *POCKET, *pair, "-k", 1)
    because = rows[0]["because"]
    assert len(because) == 2
    assert all("red heart" in said for reason in because for said in reason["captions"])
    assert sum(reason["share"] for reason in because) < rows[0]["cosine"]
    code, _, err = zeroshot("search", "a red heart", SCENES, *POCKET, "--explain", 2)
    assert code == 2
    assert "of which this encoder's scores are no sum" in " ".join(err.split())


def test_half_precision_is_near(zeroshot):
    full, half = (
        zeroshot("search", "a red heart", SCENES, *POCKET, *more)[1] for more in ([], ["--half"])
    )
    assert [r["path"] for r in full] == [r["path"] for r in half]
    assert [r["score"] for r in full] == pytest.approx([r["score"] for r in half], abs=2e-3)
    assert [r["score"] for r in full] != [r["score"] for r in half]


def test_a_second_search_encodes_nothing(zeroshot):
    zeroshot("search", "a red heart", SCENES, *POCKET)
    _, _, err = zeroshot("search", "a red heart", SCENES, *POCKET, "--verbose")
    assert "no encoder call was made" in err
    assert "8 from the cache" in err


@pytest.mark.filterwarnings("default::zeroshot.errors.ApproximateWarning")
@pytest.mark.parametrize("index", ["ivf", "ivfpq"])
def test_an_index_says_its_recall(zeroshot, index):
    _, every, _ = zeroshot("search", "a blue star", SCENES, *POCKET)
    code, rows, err = zeroshot("search", "a blue star", SCENES, *POCKET, "--index", index)
    assert code == 0
    found = {r["path"]: r["score"] for r in every}
    assert all(r["score"] == pytest.approx(found[r["path"]], abs=1e-6) for r in rows)
    assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
    assert f"finds {len(rows) / 8:.3f} of the 8 best (measured on 1 of the queries)" in err


def test_an_index_takes_no_method(zeroshot, tmp_path):
    (tmp_path / "bank.txt").write_text("a ring\n")
    more = ["--index", "ivf", "--method", "nnn", "--bank", tmp_path / "bank.txt"]
    code, _, err = zeroshot("search", "a blue star", SCENES, *POCKET, *more)
    assert code == 2
    assert "--index ivf searches by plain cosines" in err


# Rows and files


@pytest.fixture
def mixed(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(STAR, folder / "star.png")
    (folder / "broken.png").write_bytes(STAR.read_bytes()[:200])
    return folder


def test_a_picture_that_cannot_be_read_is_named(zeroshot, mixed):
    code, rows, err = zeroshot("search", "a star", mixed, mixed / "gone.png", *POCKET)
    assert code == 3
    assert [Path(r["path"]).name for r in rows] == ["star.png", "broken.png", "gone.png"]
    assert [r.get("error", {}).get("type") for r in rows] == [None] + ["UnreadableImage"] * 2
    assert "3 images, 2 failed" in err


def test_nothing_but_failures(zeroshot, mixed):
    code, rows, err = zeroshot("search", "a star", mixed / "broken.png", *POCKET)
    assert code == 3, err
    assert len(rows) == 1
    assert "no image for 'a star'" in err


def test_a_least_score(zeroshot):
    _, every, _ = zeroshot("search", "a blue star", SCENES, *POCKET)
    least = every[1]["score"]
    _, rows, _ = zeroshot("search", "a blue star", SCENES, *POCKET, "--min-score", least)
    assert rows == every[:2]
    code, rows, err = zeroshot("search", "a blue star", SCENES, *POCKET, "--min-score", 1)
    assert (code, rows) == (0, [])
    assert f"no image for 'a blue star'; the best has {every[0]['score']:.3f}" in err


def test_files_of_rows(zeroshot, mixed, tmp_path):
    for name in ("a.jsonl", "a.csv", "a.parquet", "a.txt"):
        out = tmp_path / name
        arguments = ["search", "=a star", mixed, SCENES, *POCKET, "-k", 2, "--out", out]
        code, rows, err = zeroshot(*arguments)
        assert (code, rows) == (3, [])
        assert "broken.png" in err
        code, _, err = zeroshot(*arguments)
        assert code == 2
        assert "exists; --overwrite replaces it" in err
        assert zeroshot(*arguments, "--overwrite")[0] == 3
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r.get("rank"), "error" in r) for r in lines] == [(1, False), (2, False), (None, True)]
    table = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [(r["query"], r["rank"]) for r in table[:2]] == [("'=a star", "1"), ("'=a star", "2")]
    assert table[2]["error_type"] == "UnreadableImage"
    import pyarrow.parquet

    stored = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [r["rank"] for r in stored] == [1, 2, None]
    assert (tmp_path / "a.txt").read_text().splitlines()[0] == lines[0]["path"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a star"], "search needs images: zeroshot search 'a star' DIR"),
        ([" ", SCENES], "the query is empty"),
        (["--image", "gone.png", SCENES], "no such file 'gone.png'"),
        (["--image", STAR, "a star", SCENES], "'a star' is no file or folder; with --image"),
        (["--image", STAR, "--queries", "q.txt", SCENES], "give one"),
        (["--queries", "gone.txt", SCENES], "no such file 'gone.txt'"),
        (["--queries", STAR, SCENES], "line 1, character 1 is the byte 0x89, which is not UTF-8"),
        (["a", SCENES, "--minus", "a"], "the terms of 'a - a' cancel each other"),
        (["a", SCENES, "--method", "nnn"], "give --bank too"),
        (["a", SCENES, "--bank", "b.txt"], "give --method too"),
        (["a", SCENES, "-o", "k=3"], "give --method and --bank"),
        (["a", SCENES, "--method", "zpe", "--bank", "b.txt"], "'zpe' does not re-rank a search"),
        (["star " * 300, SCENES], "a query of"),
        (["a", "nothing/*.png"], "no images found"),
    ],
)
def test_wrong_usage_is_one_clear_message(zeroshot, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, rows, err = zeroshot("search", *arguments, *POCKET)
    assert code == 2, err
    assert message in err
    assert rows == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no rows"),
        ("a star", "line 1: not JSON at character 1"),
        ("[]", "has no rows"),
        ('{"text": "a", "image": "b"}', 'expected {"text"'),
        ('{"text": "a", "k": 3}', 'expected {"text"'),
        ('{"text": 3}', '"text" is a text'),
        ('{"text": "a"}\n{"text": "a", "plus": "b"}', 'line 2: "plus" and "minus" are lists'),
        ('{"image": "gone.png"}', "line 1: no such file 'gone.png'"),
    ],
)
def test_a_file_of_queries_that_is_wrong(zeroshot, tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text(line)
    code, _, err = zeroshot("search", "--queries", tmp_path / "q.jsonl", SCENES, *POCKET)
    assert code == 2
    assert message in err


# Rows of many pictures


def test_gathered_rows_are_the_encoders(pocket, mixed, monkeypatch):
    """In chunks, with failures, duplicates and pictures in memory among them."""
    monkeypatch.setattr(gathering, "CHUNK", 3)
    memory = Image.open(HEART).convert("RGB")
    inputs = [
        mixed / "broken.png",
        STAR,
        HEART,
        memory,
        mixed / "gone.png",
        STAR,
        mixed / "star.png",
    ]
    sources = find(inputs).sources
    seen = []
    for known in (False, True):
        meter = Meter()
        with EmbeddingCache() as cache:
            found = embedding_matrix(sources, pocket.encoder, cache, meter, seen=seen.append)
        paths = [s.path for s in found.sources]
        assert paths == [str(STAR), str(HEART), None, str(STAR), str(mixed / "star.png")]
        assert [Path(f.source.path).name for f in found.failed] == ["broken.png", "gone.png"]
        expected = pocket.encoder.encode_images([Image.open(STAR).convert("RGB"), memory])
        assert torch.allclose(found.embeddings, expected[[0, 1, 1, 0, 0]], atol=1e-5)
        assert len({found.ids[0], found.ids[3], found.ids[4]}) == 1
        assert (meter.pictures, meter.failed) == (7, 2)
        assert (meter.images_encoded == 0) is known or meter.images_encoded == 1
        assert sum(seen) == 7
        seen.clear()


def test_gathering_without_a_cache_and_in_half(pocket, mixed):
    sources = find([STAR, mixed / "broken.png", HEART]).sources
    with NullCache() as cache:
        found = embedding_matrix(sources, pocket.encoder, cache, Meter(), half=True)
    assert found.embeddings.dtype == torch.float16
    assert len(found.embeddings) == len(found.sources) == len(found.ids) == 2
    with NullCache() as cache:
        none = embedding_matrix(find(mixed / "broken.png").sources, pocket.encoder, cache, Meter())
    assert (len(none.embeddings), len(none.failed)) == (0, 1)


# Python


def test_from_python(pocket, mixed):
    results = package.search("a blue star", [SCENES, mixed], pocket, top_k=2)
    assert [r.path for r in results if not r.error] == [str(STAR), str(mixed / "star.png")]
    assert [Path(r.path).name for r in results.failed] == ["broken.png"]
    picture = Image.open(HEART)
    several = package.search([picture, HEART, "a red heart"], SCENES, pocket, top_k=1)
    assert [r.path for r in several] == [str(HEART)] * 3
    assert several[0].query == "image:in memory"
    assert several[0].score == pytest.approx(several[1].score, abs=1e-5)
    mixture = package.search(HEART, SCENES, pocket, plus="a blue star", minus=[picture], top_k=1)
    assert mixture[0].path == str(STAR)
    corrected = package.search("a star", SCENES, pocket, "nnn", bank=["a ring"], alpha=0.5, top_k=1)
    assert corrected[0].method == "nnn"
    assert corrected[0].score != corrected[0].cosine


def test_mistakes_in_python(pocket):
    for given, message in [
        ({"plus": "a", "query": ["a", "b"]}, "plus and minus go with one query, not with 2"),
        ({"method": "nnn"}, "give --bank too"),
        ({"alpha": 3}, "an option of a method"),
        ({"query": ""}, "the query is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            package.search(**{"query": "a", "images": SCENES, "models": pocket} | given)


def test_results_show_as_a_table_in_a_notebook(pocket):
    page = package.search("a <b>star", SCENES, pocket, top_k=3)._repr_html_()
    assert page.count("<tr>") - 1 == page.count('<img src="data:image/jpeg;base64,') == 3
    assert "1. a &lt;b&gt;star" in page


# The page


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>.png",
    '" onerror="alert(1)',
    "' onload='alert(1)",
    "</title><img src=x onerror=alert(1)>",
    "]]><!--",
    "&lt;b&gt;",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name):
    reason = AnchorContribution(name, 0.1, (name,), None)
    hit = SearchResult(
        Source(name, STAR.read_bytes()),
        name,
        query=name,
        rank=1,
        models={name: name},
        explanation=(reason,),
    )
    failed = SearchResult(Source(name), None, error=Failure(name, name))
    plain = Tags(search_page([_named(hit, "a"), _named(failed, "a")], ["a"]))
    hostile = Tags(search_page([hit, failed], [name]))
    assert hostile.tags == plain.tags
    assert {a[:2] for a in hostile.attributes} == {a[:2] for a in plain.attributes}
    assert hostile.text.count(name) >= 5
    assert "script" not in hostile.tags


def _named(result, name):
    reasons = tuple(AnchorContribution(name, r.share, (name,), None) for r in result.explanation)
    error = result.error and Failure(name, name)
    content = result.source.content
    return SearchResult(
        Source(name, content),
        name,
        error=error,
        query=name,
        rank=1,
        models={name: name} if result.models else {},
        explanation=reasons,
    )


def test_a_page_needs_nothing_else(zeroshot, mixed, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(mixed) + b"/caf\xe9.png"))
    shutil.copy(HEART, odd)
    target = tmp_path / "pages" / "page.html"
    arguments = ["search", "a star", mixed, *POCKET, "--html", target]
    code, _, err = zeroshot(*arguments)
    assert code == 3, err
    page = Tags(target.read_text("utf-8"))
    assert page.tags.count("img") == 2
    addresses = [v for _, k, v in page.attributes if k in ("src", "href", "action", "srcset")]
    assert all(a.startswith("data:image/jpeg;base64,") for a in addresses)
    assert ("meta", "content", POLICY) in page.attributes
    assert "1 image could not be read" in page.text
    assert "broken.png: " in page.text
    assert "caf\\udce9.png" in page.text
    code, _, err = zeroshot(*arguments)
    assert code == 2
    assert "exists; --overwrite" in err


def test_a_picture_that_went_is_told(tmp_path):
    hit = SearchResult(Source(str(tmp_path / "gone.png")), "x", query="a", rank=1)
    assert "no longer there" in search_page([hit], ["a"])
    assert "no image" in search_page([], ["a"])
