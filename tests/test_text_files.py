"""Every reader of a text file: encodings, line ends, blank lines, cells, and its complaints."""

import csv
import gzip
import io
import json
import os
import re
import tarfile
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from zeroshot import prompts
from zeroshot.datasets import captions, clip_benchmark, labels, multilabel_images, winoground
from zeroshot.datasets.pairs import read_pairs
from zeroshot.datasets.questions import read_prompts, read_questions
from zeroshot.errors import UserError
from zeroshot.evaluation import predictions
from zeroshot.inputs import text_files
from zeroshot.inputs.resolve import find
from zeroshot.inputs.text_files import (
    read_json,
    read_json_lines,
    read_lines,
    read_records,
    read_text,
)
from zeroshot.inputs.webdataset import pictures, read_dataset
from zeroshot.model_set.anchor_file import _entries
from zeroshot.model_set.spec import find_set
from zeroshot.tasks.classification.calibration import Calibration, read_calibration
from zeroshot.tasks.matching.thresholds import Thresholds, read_thresholds
from zeroshot.tasks.search import read_queries

ODD = "Tür\u2028 \x85 😀 'x' #1"
"""One line, although `str.splitlines` makes three of it."""


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(*rows, delimiter=","):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def document(value):
    return json.dumps(value, ensure_ascii=False, indent=1)


def image_rows(path):
    return [(source.path, dict(source.fields)) for source in find(str(path)).sources]


def pairs_of(path):
    return [(pair.id, pair.captions) for pair in read_pairs(str(path))]


def multilabel_of(path):
    found = multilabel_images.read_multilabel_dataset(path, path.parent)
    return [source.path for source in found.sources], found.truth, found.labels


def labeled_of(path):
    found = labels.read_labeled_images(path, ("cat", ODD))
    return [source.path for source in found.sources], found.classes


def captions_of(path):
    return [(image.name, image.captions) for image in captions.read_image_captions(path)]


def predictions_of(read):
    return lambda path: [
        {key: row[key] for key in ("path", "caption", "labels") if key in row}
        for row in read(path).rows
    ]


def sources_of(read):
    return lambda path: [(source.path, dict(source.fields)) for source in read(path)]


def labels_of(path):
    return prompts.load_labels(str(path))


def templates_of(path):
    return prompts.load_templates(str(path))


def saved(write):
    """The text that a function writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x.json")
        return (Path(folder) / "x.json").read_text("utf-8")


COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
    "annotations": [{"image_id": 3, "caption": "a dog"}, {"image_id": 7, "caption": ODD}],
}
KARPATHY = {
    "images": [
        {"filename": "a.png", "split": "test", "sentences": [{"raw": ODD}]},
        {"filename": "b.png", "split": "val", "sentences": [{"raw": "a dog"}, {"raw": "dogs"}]},
    ]
}
INSTANCES = {
    "images": COCO["images"],
    "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": ODD}],
    "annotations": [{"image_id": 7, "category_id": 5}, {"image_id": 7, "category_id": 1}],
}
CAPTIONS = [("image", "caption"), ("a.png", ODD), ("b.png", "a dog"), ("a.png", "one, two")]
LABELED = [("path", "label"), ("a.png", "cat"), ("b.png", ODD), ("c.png", "cat")]
THRESHOLDS = Thresholds(("no", "yes"), (0.25,), "m", 0.9, 10)
CALIBRATION = Calibration({}, "ensemble", {}, "softmax", "p", 2.0, (0.5,), {ODD: 0.25})
EXAMPLE = {f"image_{i}": f"{i}.png" for i in (0, 1)} | {"caption_0": "a b", "caption_1": "b a"}

READERS = {
    "labels .txt": ("x.txt", f"cat\n{ODD}\n#dog\n", labels_of),
    "labels .names": ("x.NAMES", f"cat\n{ODD}\n", labels_of),
    "labels .json": ("x.json", document(["cat", ODD]), labels_of),
    "labels .csv": ("x.csv", table(*LABELED[:3]), labels_of),
    "templates .txt": ("x.txt", "a {}\nthe {c}\n", templates_of),
    "templates .json": ("x.json", document({"cat": ["a cat", ODD]}), templates_of),
    "queries .txt": ("x.txt", f"a heart\n{ODD}\n", read_queries),
    "queries .jsonl": ("x.jsonl", lines({"text": "a"}, {"text": ODD, "plus": ["b"]}), read_queries),
    "questions": (
        "x.jsonl",
        lines({"path": "a.png", "question": ODD}, {"path": "b.png", "question": "b?"}),
        read_questions,
    ),
    "prompts": (
        "x.jsonl",
        lines({"path": "a.png", "prompt": ODD}, {"path": "b.png", "prompt": ""}),
        read_prompts,
    ),
    "labeled images .csv": ("x.csv", table(*LABELED), labeled_of),
    "labeled images .tsv": ("x.tsv", table(*LABELED, delimiter="\t"), labeled_of),
    "labeled images ;": ("x.csv", table(*LABELED, delimiter=";"), labeled_of),
    "labeled images .jsonl": (
        "x.jsonl",
        lines(*({"path": p, "label": c} for p, c in LABELED[1:])),
        labeled_of,
    ),
    "hierarchy": ("x.json", document({"cat": ["lynx"], "dog": [ODD]}), labels.read_hierarchy),
    "prior": (
        "x.json",
        document({"b": 1, "a": 3}),
        lambda path: labels.read_prior(str(path), ("a", "b")),
    ),
    "several labels .csv": (
        "x.csv",
        table(("path", "labels"), ("a.png", f"cat; {ODD}"), ("b.png", "")),
        multilabel_of,
    ),
    "several labels .jsonl": (
        "x.jsonl",
        lines({"path": "a.png", "labels": ["cat", ODD]}, {"path": "b.png", "labels": []}),
        multilabel_of,
    ),
    "several labels .json": ("x.json", document(INSTANCES), multilabel_of),
    "captions .csv": ("x.csv", table(*CAPTIONS), captions_of),
    "captions .tsv": ("x.tsv", table(*CAPTIONS, delimiter="\t"), captions_of),
    "captions .txt": ("x.txt", table(*CAPTIONS), captions_of),
    "captions .jsonl": (
        "x.jsonl",
        lines({"path": "a.png", "references": [ODD, "a"]}, {"file": "b.png", "caption": "b"}),
        captions_of,
    ),
    "captions .token": ("x.token", f"a.png#0\t{ODD}\nb.png#0\ta dog\na.png#1\ta\n", captions_of),
    "captions .json": ("x.json", document(COCO), captions_of),
    "captions of Karpathy": ("x.json", document(KARPATHY), captions_of),
    "pairs .csv": ("x.csv", table(*CAPTIONS), pairs_of),
    "pairs .jsonl": (
        "x.jsonl",
        lines({"image": "a.png", "texts": [ODD, "a"]}, {"image": "b.png", "text": "b"}),
        pairs_of,
    ),
    "pairs .json": ("x.json", document(COCO), pairs_of),
    "pairs of Karpathy": ("x.json", document(KARPATHY), pairs_of),
    "Winoground": ("x.jsonl", lines(EXAMPLE, EXAMPLE), sources_of(winoground.winoground)),
    "NLVR2": (
        "x.jsonl",
        lines({"left": "a.png", "right": "b.png", "sentence": "a  b", "label": True}),
        sources_of(winoground.nlvr2),
    ),
    "predicted captions .jsonl": (
        "x.jsonl",
        lines({"path": "a.png", "caption": ODD}, {"path": "b.png", "error": {"type": "x"}}),
        predictions_of(predictions.read_captions),
    ),
    "predicted captions .json": (
        "x.json",
        document([{"image_id": 7, "caption": ODD}, {"image_id": 3, "caption": "a"}]),
        predictions_of(lambda p: predictions.read_captions(p, {"7": "a.png", "3": "b.png"})),
    ),
    "predicted labels": (
        "x.jsonl",
        lines({"path": "a.png", "labels": [{"label": ODD, "score": 1}]}),
        predictions_of(predictions.read_labels),
    ),
    "images .csv": ("x.csv", table(*CAPTIONS), image_rows),
    "images .tsv": ("x.tsv", table(*CAPTIONS, delimiter="\t"), image_rows),
    "images .jsonl": (
        "x.jsonl",
        lines(*({"path": p, "caption": c, "label": 3} for p, c in CAPTIONS[1:])),
        image_rows,
    ),
    "thresholds": ("x.json", saved(THRESHOLDS.save), read_thresholds),
    "calibration": ("x.json", saved(CALIBRATION.write), read_calibration),
    "anchors": (
        "x.jsonl",
        lines({"id": "a", "captions": [ODD]}, {"captions": ["b"], "path": "b.png"}),
        lambda path: list(_entries(path)),
    ),
}
"""A name, a text and the function that reads it, for each reader and kind of file."""
EVERY = pytest.mark.parametrize("name", READERS)
JSON_LINES = [name for name, (file, *_) in READERS.items() if file.endswith(".jsonl")]
TABLES = [name for name, (file, *_) in READERS.items() if file.endswith((".csv", ".tsv"))]
JSON = [name for name, (file, *_) in READERS.items() if file.endswith(".json")]
KEEPS_BYTES = ("images .csv", "images .tsv", "images .jsonl", "anchors")
"""Readers of paths that may be no UTF-8, as file names may be."""
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")  # the last one writes a byte-order mark, too


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("texts")


def written(text, encoding, line_end, compressed):
    """The bytes of a text as another program may write it."""
    data = text.replace("\n", line_end).encode(encoding)
    return gzip.compress(data, 1, mtime=0) if compressed else data


@EVERY
@given(
    encoding=st.sampled_from(ENCODINGS),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    before=st.sampled_from(["", "\n", " \n\n"]),
    after=st.sampled_from(["", "\n", "\n \n"]),
    compressed=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_the_same_text_in_another_form(place, name, encoding, line_end, before, after, compressed):
    file, text, read = READERS[name]
    (place / file).write_bytes(text.encode())
    expected = read(place / file)
    assert expected
    other = place / (f"{file}.gz" if compressed else file)
    text = before + text.rstrip("\n") + after
    other.write_bytes(written(text, encoding, line_end, compressed))
    assert read(other) == expected


@EVERY
def test_blank_lines_between_rows(place, name):
    file, text, read = READERS[name]
    path = place / file
    path.write_bytes(text.encode())
    expected = read(path)
    path.write_bytes(text.replace("\n", "\n \n\n").encode())
    assert read(path) == expected


@pytest.mark.parametrize("name", [name for name in READERS if name not in KEEPS_BYTES])
def test_a_byte_that_is_not_utf8(place, name):
    file, text, read = READERS[name]
    data = text.encode()
    at = data.rindex(b"a")
    path = place / file
    path.write_bytes(data[:at] + b"\xe9" + data[at + 1 :])
    line, character = data[:at].count(b"\n") + 1, len(data[:at].split(b"\n")[-1].decode()) + 1
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == (
        f"'{path}' line {line}, character {character} is the byte 0xe9, which is not UTF-8; "
        "convert the file, for example with: iconv -f cp1252 -t utf-8"
    )


def complaint(name, path, text):
    """The message about a file with this text; of images, about the last row that fails."""
    path.write_bytes(text.encode())
    try:
        if not name.startswith("images"):
            READERS[name][2](path)
            raise AssertionError("no complaint")
        failed = [s for s in find(str(path)).sources if hasattr(s.content, "reason")]
    except UserError as error:
        return str(error)
    reason = failed[-1].content.reason
    for begin in ("the rows from here on cannot be read: ", "the table "):
        reason = reason.removeprefix(begin)
    return f"'{path}' {reason}"


@pytest.mark.parametrize("name", JSON_LINES)
def test_faults_of_json_lines(place, name):
    file, text, _ = READERS[name]
    path, first = place / file, text.split("\n")[0]
    for bad, message in (
        ("{", "line 3: not JSON at character 2: Expecting property name"),
        ("[1, 2]", "line 3: expected a JSON object, got [1, 2]"),
        ("[" * 100_000, "line 3: not JSON"),
    ):
        assert complaint(name, path, f"{first}\n\n{bad}\n").startswith(f"'{path}' {message}")
    assert complaint(name, path, "\n \n") == f"'{path}' has no rows"
    said = complaint(name, path, '{"other": 3}\n')
    assert said.startswith(f"'{path}'")
    assert "line 1" in said or "'other'" in said


@pytest.mark.parametrize("name", TABLES)
def test_faults_of_tables(place, name):
    file, text, _ = READERS[name]
    path, mark = place / file, "\t" if file.endswith(".tsv") else ","
    head, first, *_ = (text.replace(";", ",") if name.endswith(";") else text).split("\n")
    column = head.split(mark)[0]
    for bad, message in (
        (f"{head}\n{first}\n\nalone\n", "line 4: 1 cell for 2 columns"),
        (f"{head}\n{first}\na{mark}b{mark}c\n", "line 3: 3 cells for 2 columns"),
        (f'{head}\n{first}\n"a{mark}b\n\n', "line 3: a cell begins with a quotation mark"),
        (f"{head}{mark}{column}\n", f"line 1, column '{column}': 2 columns have this name"),
        (f"{head}\n\n{mark}\n", "has column names and no rows"),
        ("\n", "is empty; a table begins with a row of column names"),
        ("p\0a\0t\0h\0\n", "line 1, character 2 is null: this is no text"),
    ):
        assert complaint(name, path, bad).startswith(f"'{path}' {message}")
    said = complaint(name, path, f"other{mark}column\nx{mark}y\n")
    assert said.startswith(f"'{path}'")
    assert "line 2" in said or "'other'" in said


RESULTS = "predicted captions .json"
"""Of a list or of lines, whatever the suffix says."""


@pytest.mark.parametrize("name", [name for name in JSON if name != RESULTS])
def test_faults_of_json(place, name):
    path = place / READERS[name][0]
    said = complaint(name, path, '{\n "a": [1,\n ]}')
    assert said.startswith(f"'{path}' line 3, character 2 is not JSON: ")
    assert complaint(name, path, "[" * 100_000).startswith(f"'{path}' is not JSON")
    assert str(path) in complaint(name, path, "3")


@pytest.mark.parametrize("name", [n for n in READERS if not n.startswith(("images", "pairs"))])
def test_a_file_that_is_not_there(place, name):
    file, _, read = READERS[name]
    path = place / f"gone-{file}"
    with pytest.raises(UserError, match=re.escape(f"no such file '{path}'")):
        read(path)


# Round trips


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6)
FORMS = st.tuples(st.sampled_from(ENCODINGS), st.booleans())


@given(st.lists(st.dictionaries(NAMES, TEXTS | st.integers() | st.lists(TEXTS)), min_size=1), FORMS)
@settings(deadline=None)
def test_json_lines_round_trip(place, rows, form):
    encoding, compressed = form
    path = place / ("round.jsonl.gz" if compressed else "round.jsonl")
    path.write_bytes(written(lines(*rows), encoding, "\n", compressed))
    assert [row for _, row in read_records(path)] == rows
    assert [where for where, _ in read_json_lines(path)] == [
        f"'{path}' line {number}" for number in range(1, len(rows) + 1)
    ]


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            st.lists(NAMES, min_size=n, max_size=n),
            st.lists(st.lists(TEXTS, min_size=n, max_size=n), min_size=1, max_size=5),
        )
    ),
    FORMS,
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@settings(deadline=None)
def test_tables_round_trip(place, table, form, delimiter, line_end):
    """Cells may hold delimiters, quotation marks and line ends of every kind."""
    (names, rows), (encoding, compressed) = table, form
    names = [f"{i}{name}" for i, name in enumerate(names)]  # no two alike
    names = [re.sub("[,;\t]", "_", name) for name in names]  # they decide the delimiter
    rows = [[f"{i}{cell}" for i, cell in enumerate(row)] for row in rows]  # no row is blank
    text = io.StringIO()
    writer = csv.writer(text, csv.unix_dialect, delimiter=delimiter, lineterminator=line_end)
    writer.writerows([names, *rows])  # the dialect quotes every cell
    suffix = "tsv" if delimiter == "\t" else "csv"
    path = place / (f"round.{suffix}.gz" if compressed else f"round.{suffix}")
    data = text.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(data, mtime=0) if compressed else data)
    assert [list(row.items()) for _, row in read_records(path)] == [
        list(zip(names, row, strict=True)) for row in rows
    ]


@given(TEXTS, FORMS)
@settings(deadline=None)
def test_texts_and_json_round_trip(place, text, form):
    encoding, compressed = form
    path = place / ("round.json.gz" if compressed else "round.json")
    path.write_bytes(written(json.dumps([text]), encoding, "\n", compressed))
    assert read_json(path) == [text]
    text = text.lstrip("\ufeff")  # at the beginning it is a byte-order mark
    path.write_bytes(written(text, encoding, "\n", compressed))
    assert read_text(path) == text


# Rules of one kind of file


def test_cells(place):
    path = place / "cells.csv"
    path.write_bytes(b' path , caption ,,\na.png," x""y\nz",,\n\n,,,\nb.png, two ,,,,\n')
    assert list(read_records(path)) == [
        (f"'{path}' line 2", {"path": "a.png", "caption": ' x"y\nz'}),
        (f"'{path}' line 6", {"path": "b.png", "caption": "two "}),
    ]


@pytest.mark.parametrize(
    ("names", "cells", "row"),
    [
        ("a,b", "1,2;3", {"a": "1", "b": "2;3"}),
        ("a;b", "1;2,5", {"a": "1", "b": "2,5"}),
        ("a\tb", "1\t2,5", {"a": "1", "b": "2,5"}),
        ("a;b,c", "1;2,3", {"a;b": "1;2", "c": "3"}),
        ("a;b;c,d", "1;2,3;4", {"a": "1", "b": "2,3", "c,d": "4"}),
        ('"a,b,c";d', "1;2", {"a,b,c": "1", "d": "2"}),
        ("a| b| c", "1| 2, 3; 4| 5", {"a": "1", "b": "2, 3; 4", "c": "5"}),
        ("a", "1;2", {"a": "1;2"}),
        ("sep=;\na;b,c,d", "1;2", {"a": "1", "b,c,d": "2"}),
        ("SEP=\t\r\na,b\tc", "1\t2", {"a,b": "1", "c": "2"}),
        ("a, b", '1,  "2, ""3"" "', {"a": "1", "b": '2, "3" '}),
    ],
)
def test_the_column_names_decide_the_delimiter(place, names, cells, row):
    path = place / "delimiter.csv"
    path.write_bytes(f"{names}\n{cells}\n".encode())
    assert [values for _, values in read_records(path)] == [row]


@pytest.mark.parametrize("text", ["a,b\tc\n1\t2\n", "sep=;\na,b;c\n1;2\n", '"a,b",c\n1,2\n'])
def test_a_tsv_file_may_have_another_delimiter(place, text):
    path = place / "x.tsv"
    path.write_text(text)
    assert [values for _, values in read_records(path)] == [{"a,b": "1", "c": "2"}]


def test_a_line_of_excel_counts_as_a_line(place):
    path = place / "x.csv"
    path.write_text("sep=;\na;b\n1;2;3\n")
    with pytest.raises(UserError, match=r"x\.csv' line 3: 3 cells for 2 columns"):
        list(read_records(path))
    path.write_text("sep=;\n")
    with pytest.raises(UserError, match=r"x\.csv' is empty"):
        list(read_records(path))


@pytest.mark.parametrize("name", JSON_LINES)
def test_a_list_of_objects_is_read_as_json_lines(place, name):
    file, text, read = READERS[name]
    path = place / file
    path.write_bytes(text.encode())
    expected = read(path)
    rows = [json.loads(line) for line in text.split("\n") if line]
    for indent in (None, 1):
        path.write_text(json.dumps(rows, indent=indent), "utf-8-sig")
        assert read(path) == expected
    said = complaint(name, path, json.dumps([rows[0], 3]))
    assert said == f"'{path}' entry 2: expected a JSON object, got 3"
    assert complaint(name, path, "[]") == f"'{path}' has no rows"
    assert complaint(name, path, "[{}").startswith(f"'{path}' line 1, character 4 is not JSON")


def test_a_list_may_be_longer_than_a_line(place, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE", 1000)
    path = place / "x.jsonl"
    path.write_text(json.dumps([{"a": number} for number in range(500)]))
    assert [row["a"] for _, row in read_json_lines(path)] == list(range(500))
    path.write_text('{"a": "' + "x" * 1000 + '"}')
    with pytest.raises(UserError, match="line 1 has more than 1000 characters"):
        list(read_json_lines(path))
    path.write_bytes(b'[\n{"a": 1},\n{"a": "\xe9"}]')
    with pytest.raises(UserError, match="line 3, character 8 is the byte 0xe9"):
        list(read_json_lines(path))


@EVERY
def test_a_pointer_of_git_lfs(place, name):
    said = complaint(name, place / READERS[name][0], "version https://git-lfs.github.com/spec/v1\n")
    assert said.endswith("is a Git LFS pointer; fetch the file with: git lfs pull")


DEEP = "[" * 5000 + "]" * 5000
LONG = "9" * 5000


@pytest.mark.parametrize("name", [*JSON, *JSON_LINES])
@pytest.mark.parametrize(
    ("value", "why"),
    [(DEEP, "it is nested too deeply"), (LONG, "it has a number of more than 4300 digits")],
)
def test_beyond_the_limits_of_the_parser(place, name, value, why):
    path = place / READERS[name][0]
    form = "line 1: not" if name in (*JSON_LINES, RESULTS) else "is not"
    said = complaint(name, path, f'{{"path": {value}}}')
    assert said == f"'{path}' {form} JSON that can be read: {why}"


def test_a_key_twice(place):
    path = place / "x.json"
    path.write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    assert read_json(path) == {"a": {"b": 3, "c": 2}}
    with pytest.raises(UserError, match=r"x\.json' has the key \"b\" twice in one object"):
        read_json(path, distinct=True)


def test_values_in_messages():
    assert text_files.shown("Tür\ud83d") == '"Tür\\ud83d"'
    assert text_files.shown([1] * 100, 6) == "[1, 1,..."
    assert text_files.shown(b"x") == "\"b'x'\""
    assert text_files.shown(10**5000) == "a number that is too long"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert text_files.shown(deep) == "a value that is nested too deeply"


def test_a_hash_begins_no_comment(place):
    path = place / "x.txt"
    path.write_text("#1\n # two\n")
    assert [line for _, line in read_lines(path)] == ["#1", "# two"]


def test_a_pipe(place):
    path = place / "pipe"
    os.mkfifo(path)
    data = b'\xef\xbb\xbf{"a": 1}\r{"a": 2}'
    for _ in range(2):
        writer = threading.Thread(target=path.write_bytes, args=(data,))
        writer.start()
        assert [row["a"] for _, row in read_json_lines(path)] == [1, 2]
        writer.join()


def test_utf16_that_is_cut_off(place):
    path = place / "x.txt"
    path.write_bytes("ab".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"x\.txt' is not UTF-16 text: truncated data"):
        read_text(path)
    path = place / "x.jsonl"
    path.write_bytes('{"a": 1}\n{'.encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"x\.jsonl' line 2 is not UTF-16 text: truncated data"):
        list(read_records(path))


def test_limits(place, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(text_files, "MAX_LINE", 1000)
    path = place / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "%s"}\n' % (b"x" * 900) * 1200))
    with pytest.raises(UserError, match="holds more than 1 MiB of text"):
        list(read_records(path))
    path = place / "x.jsonl"
    path.write_bytes(b"{}\n" + b" " * 1001)
    with pytest.raises(UserError, match="line 2 has more than 1000 characters"):
        list(read_records(path))


HALF = {
    "queries .jsonl": '{"text": "\\ud83d"}',
    "questions": '{"path": "a.png", "question": "\\ud83d"}',
    "prompts": '{"path": "a.png", "prompt": "\\ud83d"}',
    "labeled images .jsonl": '{"path": "a.png", "label": "\\ud83d"}',
    "captions .jsonl": '{"path": "a.png", "references": ["a", "\\ud83d"]}',
    "pairs .jsonl": '{"path": "a.png", "text": "\\ud83d"}',
    "NLVR2": '{"left": "a.png", "right": "b.png", "sentence": "\\ud83d"}',
}


@pytest.mark.parametrize("name", HALF)
def test_half_of_a_character(place, name):
    path = place / "x.jsonl"
    said = complaint(name, path, HALF[name] + "\n")
    assert said.startswith(f"'{path}' line 1")
    assert said.endswith("'\\ud83d' has half of a character")
    whole = HALF[name].replace("\\ud83d", "\\ud83d\\ude00")
    path.write_text(whole)
    if name != "labeled images .jsonl":  # of other labels
        assert READERS[name][2](path)


def test_a_name_of_bytes_that_are_not_utf8(place):
    """Rows of zeroshot's own spell such names as JSON can."""
    (place / "x.jsonl").write_text('{"path": "\\udce9.png", "caption": "a"}\n')
    [row] = predictions.read_captions(place / "x.jsonl").rows
    assert os.fsencode(row["path"]) == b"\xe9.png"


# Labels, templates and queries in files with another suffix


@pytest.mark.parametrize("name", ["x.names", "LABELS.TXT", "x"])
def test_a_file_that_exists_is_no_label(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("cat\ndog\n")
    assert prompts.load_labels(name) == ("cat", "dog")
    assert prompts.load_labels("cat,dog") == ("cat", "dog")
    assert prompts.load_labels("St. Bernard") == ("St. Bernard",)


def test_a_table_of_labels_needs_its_column(place):
    (place / "x.csv").write_text("cat\ndog\n")
    with pytest.raises(UserError, match="line 2: expected a column named label, labels"):
        prompts.load_labels(str(place / "x.csv"))


@pytest.mark.parametrize("name", ["q.csv", "q.json"])
def test_queries_in_a_file_of_another_kind(place, name):
    (place / name).write_text("a heart\n")
    with pytest.raises(UserError, match=r"queries are a \.jsonl file, or a text file"):
        read_queries(place / name)


# COCO and Karpathy: one set of rules for captions and pairs


@pytest.mark.parametrize("read", [captions_of, pairs_of])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 1}]}, "images, entry 1: expected an id of its own and a file_name"),
        ({"images": COCO["images"] * 2}, "images, entry 3: expected an id of its own"),
        ({"annotations": [{"image_id": 9}]}, "annotations, entry 1: image_id 9 is none of the"),
        ({"annotations": [3]}, "annotations, entry 1: image_id null is none of the images"),
        ({"annotations": [{"image_id": 3}]}, "entry 1, caption: expected a caption .* got null"),
        ({"images": 3}, "expected COCO's .* or Karpathy's"),
    ],
)
def test_faults_of_coco(place, read, change, message):
    path = place / "coco.json"
    path.write_text(json.dumps(COCO | change))
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("read", [captions_of, pairs_of])
def test_faults_of_karpathy(place, read):
    path = place / "karpathy.json"
    path.write_text(json.dumps({"images": [{"filename": "a.png"}]}))
    with pytest.raises(UserError, match="image 1: expected filename and sentences"):
        read(path)
    path.write_text(json.dumps({"images": [{"filename": "a.png", "sentences": [{"raw": 3}]}]}))
    with pytest.raises(UserError, match=r"image 'a\.png', sentences: expected a caption"):
        read(path)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 7}, "entry 1: category_id null is none of the categories"),
        ({"image_id": 8, "category_id": 1}, "entry 1: image_id 8 is none of the images"),
    ],
)
def test_faults_of_instances(place, annotation, message):
    path = place / "instances.json"
    path.write_text(json.dumps(INSTANCES | {"annotations": [annotation]}))
    with pytest.raises(UserError, match=message):
        multilabel_of(path)


def test_images_of_cocos_results_are_known_by_the_truth(place):
    (place / "coco.json").write_text(json.dumps(COCO))
    truth = captions.read_caption_dataset(place / "coco.json", place)
    assert truth.ids == {"7": str(place / "a.png"), "3": str(place / "b.png")}
    results = place / "results.json"
    results.write_text('[{"image_id": "3", "caption": "b"}, {"image_id": 7, "caption": "a"}]')
    found = predictions.in_order(predictions.read_captions(results, truth.ids), truth.sources)
    assert [row["caption"] for row in found] == ["a", "b"]
    with pytest.raises(UserError, match="entry 1: image_id 3 is an id of COCO's file"):
        predictions.read_captions(results)
    with pytest.raises(UserError, match="entry 2: image_id 7 is none of the images"):
        predictions.read_captions(results, {"3": "b.png"})
    results.write_text('{"image_id": 7}')
    with pytest.raises(UserError, match="line 1: expected a caption"):
        predictions.read_captions(results, truth.ids)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", '[{"image_id": 3, "caption": "b", "id": 1}]'),
        ("results.jsonl", '\ufeff[\n{"image_id": 3.0,\n"caption": "b"}]'),
        ("results.json", '{"image_id": "3", "caption": "b", "file": null}\n'),
        ("results", '{"image_id": 3, "caption": "b"}\r\n'),
    ],
)
def test_forms_of_cocos_results(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    (row,) = predictions.read_captions(tmp_path / name, {"3": "b.png"}).rows
    assert (row["path"], row["caption"]) == ("b.png", "b")


@pytest.mark.parametrize("id", ["[3]", "null", "true", "3.5", "NaN", "9" * 4000, '"x"'])
def test_ids_that_are_none(tmp_path, id):
    (tmp_path / "r.json").write_text(f'[{{"image_id": {id}, "caption": "b"}}]')
    with pytest.raises(UserError, match=r"entry 1: image_id .{1,63} is none of the images"):
        predictions.read_captions(tmp_path / "r.json", {"3": "b.png"})


@pytest.mark.parametrize("score", ["NaN", "Infinity", "9" * 4000, "null", '"1"'])
def test_scores_that_are_no_numbers(tmp_path, score):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"path": "a.png", "labels": [{{"label": "x", "score": {score}}}]}}')
    with pytest.raises(UserError, match="line 1: expected labels with label and score"):
        predictions.read_labels(path)


# Webdatasets


def member(file, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_texts_in_tar_files(place, encoding):
    path = place / "x.tar"
    with tarfile.open(path, "w") as file:
        member(file, "a.png", b"x")
        member(file, "a.txt", f"{ODD}\r\rtwo\r\n".encode(encoding))
        member(file, "a.cls", "3\r\n".encode(encoding))
        member(file, "b.png", b"x")
        member(file, "b.json", '{"caption": "b"}'.encode(encoding))
    assert [dict(source.fields) for source in pictures(str(path))] == [
        {"caption": (ODD, "two"), "label": "3"},
        {"caption": "b"},
    ]
    assert pairs_of(path) == [("a", (ODD, "two")), ("b", ("b",))]


def test_a_pair_whose_text_cannot_be_read_is_named(place):
    path = place / "x.tar"
    with tarfile.open(path, "w") as file:
        member(file, "a.png", b"x")
        member(file, "a.txt", b"caf\xe9")
        member(file, "b.png", b"x")
        member(file, "b.txt", b"b")
    bad, good = read_pairs(str(path))
    assert (bad.id, bad.captions) == ("a.png", ())
    assert "'a.txt' line 1, character 4 is the byte 0xe9" in bad.source.content.reason
    assert good.captions == ("b",)


def benchmark(folder, encoding="utf-8-sig"):
    """A CLIP_benchmark set of two classes."""
    (folder / "test").mkdir(parents=True)
    templates = folder / "zeroshot_classification_templates.txt"
    templates.write_bytes("a {c}\rthe {c}\r".encode(encoding))
    (folder / "classnames.txt").write_bytes(f"cat\r\n{ODD}\r\n".encode(encoding))
    (folder / "test" / "nshards.txt").write_bytes("1\r\n".encode(encoding))
    with tarfile.open(folder / "test" / "0.tar", "w") as file:
        member(file, "a.png", b"x")
        member(file, "a.cls", b"1")
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_texts_beside_tar_files(tmp_path, encoding):
    found = read_dataset(benchmark(tmp_path / "set", encoding))
    assert len(found.tars) == 1
    assert (found.classes, found.templates) == (("cat", ODD), ("a {c}", "the {c}"))


def test_templates_and_labels_in_place_of_the_files(tmp_path):
    folder = benchmark(tmp_path / "set")
    (folder / "zeroshot_classification_templates.txt").unlink()
    with pytest.raises(UserError, match=r"templates\.txt' is missing or empty; --templates gives"):
        clip_benchmark.read_classification(folder)
    found = clip_benchmark.read_classification(folder, templates="a {}")
    assert found.prompts == [["a cat"], [f"a {ODD}"]]
    (folder / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"classnames\.txt' is missing or empty; --labels gives"):
        clip_benchmark.read_classification(folder, templates="a {}")
    found = clip_benchmark.read_classification(folder, labels="x,y", templates="a {}")
    assert (found.classes, found.prompts) == ((1,), [["a x"], ["a y"]])


# Other files


def test_a_manifest_of_models(tmp_path):
    text = '[image_encoder]\r\nmodel = "hf:org/model"\r\n'
    (tmp_path / "models.toml").write_bytes(text.encode("utf-8-sig"))
    assert str(find_set(str(tmp_path)).image_encoder) == "hf:org/model"
    (tmp_path / "models.toml").write_bytes(b'# caf\xe9\n[encoder]\nmodel = "hf:org/model"\n')
    with pytest.raises(UserError, match="line 1, character 6 is the byte 0xe9"):
        find_set(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[caption]\nmethod = 3", "[caption] method must be a text, not 3"),
        ("[classify]\nmethod = ['zpe']", '[classify] method must be a text, not ["zpe"]'),
        ('[encoder]\nmodel = "a\\u0000b"', r'[encoder] model must be a text, not "a\u0000b"'),
    ],
)
def test_values_of_a_manifest(tmp_path, text, why):
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises(UserError, match=re.escape(why)):
        find_set(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("version https://git-lfs.github.com", "is a Git LFS pointer; fetch the file with: git"),
        ("[encoder", "is not TOML: Expected ']' at the end of a table declaration"),
        (f"name = {LONG}", "is not TOML that can be read: it has a number of more than 4300"),
        (f"name = {DEEP}", "is not TOML that can be read: it is nested too deeply"),
        ("name = " + "{a = " * 3000, "is not TOML that can be read: it is nested too deeply"),
    ],
)
def test_a_manifest_that_is_refused(tmp_path, text, why):
    (tmp_path / "models.toml").write_text(text)
    with pytest.raises(UserError, match=rf"models\.toml' {re.escape(why)}"):
        find_set(str(tmp_path))


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "a.xmp", "a.xml", "x.csv.gz"])
def test_files_that_lie_beside_images(tmp_path, name):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / name).write_bytes(b"x")
    found = find(str(tmp_path))
    assert [source.path for source in found.sources] == [str(tmp_path / "a.png")]
    assert found.left_out == (str(tmp_path / name),)


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize(
    ("name", "begin"),
    [("x.csv.gz", "path\n"), ("x.jsonl.gz", '{"path": "a.png"}\n'), ("x.csv.gz", 'path\n"')],
)
def test_a_compressed_file_of_blank_lines_is_refused_in_time(
    tmp_path, name, begin, line_end, monkeypatch
):
    """A kilobyte was a minute of blank lines."""
    path = tmp_path / name
    path.write_bytes(gzip.compress((begin + line_end * 3_000_000).encode(), 9, mtime=0))
    unpacked = 0

    def counted(read):
        def reading(*given):
            nonlocal unpacked
            data = read(*given)
            unpacked += len(data)
            return data

        return reading

    for name in ("read", "read1"):
        monkeypatch.setattr(gzip.GzipFile, name, counted(getattr(gzip.GzipFile, name)))
    last = find(str(path)).sources[-1]
    assert 0 < unpacked < 1_200_000 * len(line_end)
    assert "far more lines than its size allows" in last.content.reason


@pytest.mark.parametrize(
    "read",
    [text_files.read_lines, text_files.read_text, lambda path: prompts.load_labels(str(path))],
)
def test_a_compressed_list_of_blank_lines_is_refused(tmp_path, read):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(b"cat\n" + b"\n" * 3_000_000, mtime=0))
    with pytest.raises(UserError, match="far more lines than its size allows"):
        read(path)


def test_a_compressed_file_of_many_short_lines_is_read(tmp_path):
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress(b"cat\n" * 200_000, mtime=0))
    assert len(text_files.read_lines(path)) == 200_000
