"""Results as tables: data frames of three libraries, a notebook's HTML, a repr."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas
import polars
import pyarrow.parquet
import pytest
from PIL import Image

import zeroshot
from zeroshot.errors import NotAvailableError
from zeroshot.inputs.source import Source
from zeroshot.output import formats
from zeroshot.results import notebook_table, result as module
from zeroshot.results.data_frames import COLUMNS, LONG, DataTable, columns
from zeroshot.results.duplicate import DedupeResult
from zeroshot.results.explained import ExplainResult, WordWeight
from zeroshot.results.notebook_table import Line, TableRow, html_table
from zeroshot.results.regions import (
    Detection,
    DetectResult,
    Region,
    RegionCaption,
    RegionsResult,
    SegmentResult,
)
from zeroshot.results.result import (
    CaptionResult,
    ClassifyResult,
    EmbedResult,
    Failure,
    FilterResult,
    Label,
    Result,
    Results,
    SearchResult,
)
from zeroshot.results.text import (
    Answer,
    AskResult,
    MatchResult,
    QuestionAnswers,
    ReadResult,
    TextScore,
)

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART = Source(str(SCENES / "1-red-heart.png"))
WORDS = QuestionAnswers("what?", (Answer("heart", 0.75), Answer("star", 0.25)))
RESULTS = [
    CaptionResult(HEART, "i", caption="a heart", score=0.5),
    ClassifyResult(HEART, "i", labels=(Label("cat", 0.75, 0.5), Label("dog", 0.25, 0.25))),
    EmbedResult(HEART, "i", embedding=(0.5, -0.25)),
    SegmentResult(
        HEART, "i", width=2, height=1, regions=(Region("cat", 0.5, 1, {"size": [1, 2]}),)
    ),
    DetectResult(HEART, "i", width=9, height=9, boxes=(Detection("cat", 0.5, (1, 2, 3, 4.5)),)),
    RegionsResult(
        HEART, "i", width=9, height=9, regions=(RegionCaption((1, 2, 3, 4.5), "a heart", 0.5),)
    ),
    MatchResult(HEART, "i", texts=(TextScore("a", 0.75, "yes"), TextScore("b", 0.5, "no"))),
    AskResult(HEART, "i", questions=(WORDS, QuestionAnswers("who?", (Answer("I", None),)))),
    ReadResult(HEART, "i", text="word", score=0.5),
    FilterResult(HEART, "i", caption="a", score=0.5, kept=True),
    SearchResult(HEART, "i", query="a", rank=1, score=0.5, cosine=0.25),
    ExplainResult(
        HEART,
        "i",
        words=(WordWeight("red", 0.5), WordWeight("heart", 0.25)),
        nonzero=3,
        cosine=0.75,
        mean_of="nothing",
    ),
    DedupeResult(HEART, "i", group=1, keep=False, kind="near", copy_of="b", cosine=0.5, width=4),
]
KINDS = [pytest.param(r, id=type(r).__name__) for r in RESULTS]
LIBRARIES = ["pandas", "polars", "arrow"]


def failed(kind):
    return kind(Source("x.png"), None, Failure("UnreadableImage", "truncated"))


def records(results, library, **how):
    """The table as a list of dicts, with None for what is missing, whatever the library."""
    frame = getattr(results, f"to_{library}")(**how)
    if library == "pandas":
        return [
            {
                k: None if v is pandas.NA or (isinstance(v, float) and v != v) else v
                for k, v in row.items()
            }
            for row in frame.to_dict("records")
        ]
    return frame.to_dicts() if library == "polars" else frame.to_pylist()


def test_every_kind_of_result_is_here():
    assert {r.schema for r in RESULTS} == set(COLUMNS)
    assert set(LONG) <= set(COLUMNS)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("result", [p for p in KINDS if p.id != "EmbedResult"])
def test_a_table_is_what_a_parquet_file_has(result, library):
    """The reference is the writer of files, read back by pyarrow."""
    results = Results([result, failed(type(result))])
    names = columns(result.schema)
    lines = b"".join(formats.FlatLines(names).encode(row) for row in results.rows())
    table = pyarrow.parquet.read_table(io.BytesIO(formats.to_parquet(lines, names)))
    assert records(results, library) == table.to_pylist()
    assert records(results, library)[1]["error_type"] == "UnreadableImage"


def test_types_have_a_missing_value_of_their_own():
    [detect, search] = [r for r in RESULTS if isinstance(r, SearchResult | DetectResult)][:2]
    frame = Results([detect, failed(DetectResult)]).to_pandas()
    assert frame.width.dtype == "Int64"
    assert frame.width.tolist() == [9, pandas.NA]
    frames = Results([search]).to_polars()
    assert frames.schema["score"] == polars.Float64
    assert frames.schema["rank"] == polars.Int64
    assert frames.schema["because"] == polars.String  # none of it is there


def test_embeddings_are_arrays():
    results = Results([r for r in RESULTS if isinstance(r, EmbedResult)] + [failed(EmbedResult)])
    for library in LIBRARIES:
        first, second = [row["embedding"] for row in records(results, library)]
        assert list(first) == [0.5, -0.25]
        assert second is None
    assert results.to_pandas().embedding[0].dtype == np.float32
    assert results.to_polars().schema["embedding"] == polars.List(polars.Float32)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_long_form_by_hand(library):
    def table(kind, *names):
        results = Results([r for r in RESULTS if isinstance(r, kind)] + [failed(kind)])
        rows = records(results, library, long=True)
        assert rows[-1]["error_message"] == "truncated"
        assert {type(row["path"]) for row in rows} == {str}
        return [tuple(row[n] for n in names) for row in rows]

    nothing = (None,) * 4
    assert table(ClassifyResult, "rank", "label", "score", "cosine") == [
        (1, "cat", 0.75, 0.5),
        (2, "dog", 0.25, 0.25),
        nothing,
    ]
    assert table(DetectResult, "left", "top", "right", "bottom") == [(1, 2, 3, 4.5), nothing]
    assert table(SegmentResult, "label", "score", "pixels", "share") == [
        ("cat", 0.5, 1, 0.5),
        nothing,
    ]
    assert table(MatchResult, "rank", "text", "score", "label") == [
        (1, "a", 0.75, "yes"),
        (2, "b", 0.5, "no"),
        nothing,
    ]
    assert table(AskResult, "question", "rank", "answer", "score") == [
        ("what?", 1, "heart", 0.75),
        ("what?", 2, "star", 0.25),
        ("who?", 1, "I", None),
        nothing,
    ]


def test_a_result_without_boxes_has_a_line():
    none = DetectResult(HEART, "i", width=9, height=9)
    [row] = records(Results([none]), "polars", long=True)
    assert (row["path"], row["label"], row["left"]) == (HEART.path, None, None)


def test_no_results_have_columns_if_their_kind_is_known():
    assert list(Results([], SearchResult.schema).to_pandas()) == list(
        Results([r for r in RESULTS if isinstance(r, SearchResult)]).to_pandas()
    )
    assert Results([]).to_polars().shape == (0, 0)
    assert Results([RESULTS[0]]).failed.to_pandas().columns[2] == "caption"
    hits = zeroshot.search("a star", SCENES, "pocket", min_score=0.9)
    assert hits == []
    assert "score" in hits.to_pandas()


def test_a_name_that_is_no_utf8():
    odd = CaptionResult(Source("a\udcff.png"), "i", caption="x", score=0.5)
    for library in LIBRARIES:
        assert records(Results([odd]), library)[0]["path"] == "a\\udcff.png"
    assert "a\\udcff.png" in odd._repr_html_()


def test_one_large_table_is_quick_and_right():
    rows = [Results([RESULTS[1]]).rows()[0]] * 2000
    table = DataTable.from_rows(rows, RESULTS[1].schema, long=True)
    assert table.to_polars().height == 4000


@pytest.mark.parametrize(("library", "hidden"), [("pandas", "pandas"), ("polars", "polars")])
def test_a_library_that_is_missing_is_named(library, hidden, monkeypatch):
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(NotAvailableError, match=f"pip install {library}; rows"):
        getattr(Results(RESULTS[:1]), f"to_{library}")()


def test_without_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NotAvailableError, match="an Arrow table needs pyarrow"):
        Results(RESULTS[:1]).to_arrow()
    assert Results(RESULTS[:1]).to_polars().height == 1


# In a notebook


class Parsed(HTMLParser):
    """Tags in their order, their attributes, and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("result", KINDS)
def test_every_result_shows(result):
    page = Parsed(result._repr_html_())
    assert page.tags.count("th") == page.tags.count("td") == 3
    assert page.text[:2] == ["image", "path"]
    assert HEART.path in page.text
    assert len(page.text) > 4
    failure = Parsed(failed(type(result))._repr_html_())
    assert "truncated" in failure.text


def test_a_thumbnail_is_a_small_jpeg(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (700, 3000, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    page = CaptionResult(Source(str(tmp_path / "noise.png")), "i", caption="x")._repr_html_()
    [data] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 22)
    assert len(data) < 8000


def test_bars_are_scores():
    row = TableRow("data:x", "p", [Line("x", s) for s in (0.25, 1.0, 0.0, -0.5)])
    assert re.findall(r";width:(\d+)%;", html_table([row], "s")) == ["25", "100", "0", "0"]
    large = TableRow("data:x", "p", [Line("x", s) for s in (50.0, 200.0)])
    assert re.findall(r";width:(\d+)%;", html_table([large], "s")) == ["25", "100"]


def test_nothing_from_outside_is_markup():
    hostile = '"><script>alert(1)</script><img src=x onerror=y>'
    picture = Source(f"{hostile}.png", Image.new("RGB", (4, 4)))
    shown = [
        ClassifyResult(picture, "i", labels=(Label(hostile, 0.5, 0.5),)),
        ClassifyResult(Source(hostile), None, Failure("UnreadableImage", hostile)),
        ClassifyResult(Source(hostile + "gone"), "i", labels=(Label("a", 0.5, 0.5),)),
    ]
    page = Parsed(Results(shown)._repr_html_())
    known = {"table", "thead", "tbody", "tr", "th", "td", "span", "div", "img", "i", "br"}
    assert set(page.tags) <= known
    assert page.tags.count("img") == 1
    assert {name for name, _ in page.attributes} == {"style", "scope", "src", "alt"}
    assert "no longer there" in page.text


def test_a_long_answer_is_cut_and_counted():
    labels = tuple(Label(f"l{i}", 0.1, 0.1) for i in range(notebook_table.MOST_LINES + 3))
    page = Parsed(ClassifyResult(HEART, "i", labels=labels)._repr_html_())
    assert "and 3 more" in page.text
    assert " l5" not in page.text
    many = Results([RESULTS[0]] * (module.MOST_SHOWN + 2))
    assert Parsed(many._repr_html_()).text[-1] == "... and 2 more"


def test_an_abstained_image_says_so():
    page = ClassifyResult(HEART, "i", labels=(Label("a", 0.5, 0.5),), abstained=True)._repr_html_()
    assert "abstained" in page


@pytest.mark.parametrize("result", KINDS)
def test_a_repr_has_the_path(result):
    assert repr(result).startswith(f"{type(result).__name__}(path={HEART.path!r}, id='i'")
    assert "source=" not in repr(result)


def test_a_kind_of_your_own_has_the_repr_too():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Mine(Result):
        schema = "mine/1"
        more: int = 1

    assert "path='a.png'" in repr(Mine(Source("a.png"), None))
    assert "more=1" in repr(Mine(Source("a.png"), None))


def test_what_a_tab_shows():
    """Functions, the videos' module and the version: no folders of the package."""
    import zeroshot.metrics
    import zeroshot.tasks.search

    public = {n for n in dir(zeroshot) if not n.startswith("_")}
    functions = {n for n in public if callable(getattr(zeroshot, n))}
    assert public - functions == {"video"}
    assert set(zeroshot.__all__) == set(dir(zeroshot))
    assert dir(zeroshot.video) == sorted(zeroshot.video.__all__)


def test_rows_stay_rows():
    assert json.loads(json.dumps(Results(RESULTS).rows()))[0]["caption"] == "a heart"


def test_a_trace_is_a_figure(monkeypatch):
    from zeroshot.trace import Candidate, Trace, TraceStep

    trace = Trace((TraceStep("a", (Candidate(1, "b", 0.5, 0.25, 0.125, 0.5),)),))
    assert repr(trace) == "Trace(text='a', 1 steps)"
    drawn = trace._repr_png_()
    assert drawn is not None
    assert Image.open(io.BytesIO(drawn)).format == "PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert trace._repr_png_() is None
