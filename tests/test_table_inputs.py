"""Tables of pictures (CSV, TSV, JSON lines, Parquet), data sets, and files elsewhere."""

import csv
import gzip
import io
import json
import os
import pickle
import re
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from zeroshot.errors import NotAvailableError, UnreadableImageError, UserError
from zeroshot.images.reading import read
from zeroshot.inputs import parquet, tables, text_files
from zeroshot.inputs.columns import Columns
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.remote.fetch import Fetch, Url
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Source, with_captions
from zeroshot.inputs.tables import InputOptions
from zeroshot.packaging.extras import how_to_install

datasets = pytest.importorskip("datasets")
fsspec = pytest.importorskip("fsspec")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
datasets.disable_progress_bars()


def png(seed=0):
    data = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    PIL.Image.fromarray(values).save(data, "PNG")
    return data.getvalue()


def ok(seed):
    return read(png(seed)).id[:8]


def outcome(source):
    """The label of a source, and its id or the reason why there is none."""
    try:
        return source.path, read(source).id[:8]
    except UnreadableImageError as error:
        return source.path, str(error)


def outcomes(*names, **options):
    return [outcome(s) for s in find(names, options=InputOptions(**options)).sources]


def with_texts(name):
    """The outcomes for a task that needs captions and labels."""
    return [outcome(source) for source in with_captions(find(name).sources)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`set/a.png`, `set/b.png`, and `secret.png` outside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for seed, name in enumerate(["set/a.png", "set/b.png", "secret.png"]):
        (tmp_path / name).write_bytes(png(seed))
    return tmp_path


def rows_of(folder, suffix, rows):
    """A table of these rows in a file of that kind."""
    path = folder / "set" / f"pairs{suffix}"
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        comma = "\t" if suffix == ".tsv" else ","
        lines = [names, *([str(row.get(n, "")) for n in names] for row in rows)]
        path.write_text("".join(comma.join(line) + "\n" for line in lines))
    return f"set/{path.name}"


ALL = pytest.mark.parametrize("suffix", tables.SUFFIXES)


# Tables of paths


@ALL
def test_paths_captions_and_labels(folder, suffix):
    rows = [
        {"file_name": "a.png", "TEXT": "a cat", "cls": 3, "more": 1},
        {"file_name": "b.png", "TEXT": "a dog", "cls": 4, "more": 2},
        {"file_name": "gone.png", "TEXT": "none", "cls": 5, "more": 3},
    ]
    name = rows_of(folder, suffix, rows)
    assert outcomes(name) == [
        ("set/a.png", ok(0)),
        ("set/b.png", ok(1)),
        ("set/gone.png", "no such file"),
    ]
    fields = [dict(s.fields) for s in find(name).sources]
    assert fields[0] == {"caption": "a cat", "label": "3"}
    assert [f["label"] for f in fields] == ["3", "4", "5"]


@ALL
def test_urls_and_buckets(folder, suffix):
    name = rows_of(
        folder,
        suffix,
        [{"url": "https://x.org/a.png"}, {"url": "s3://b/a.png"}, {"url": "ftp://x"}],
    )
    first, second, third = find(name).sources
    assert (first.path, first.content) == (
        "https://x.org/a.png",
        Url(first.path, InputOptions().fetch),
    )
    assert (second.path, second.content) == ("s3://b/a.png", fsspec_files.Remote("s3://b/a.png"))
    assert third.path == f"{name}#2"
    assert "'ftp://x' is neither a path nor a URL nor an object of a bucket" in outcome(third)[1]


HOSTILE = ["../secret.png", "/etc/passwd", "x/../../secret.png", "{folder}/secret.png", "../set2/x"]


@ALL
@pytest.mark.parametrize("path", HOSTILE)
def test_paths_that_lead_out_of_the_folder(folder, suffix, path):
    path = path.format(folder=folder)
    name = rows_of(folder, suffix, [{"path": path}, {"path": "a.png"}])
    bad, good = outcomes(name)
    assert bad[0] == f"{name}#0"
    assert "lies outside the folder 'set'; --image-root names the folder" in bad[1]
    assert good == ("set/a.png", ok(0))


def test_image_root(folder):
    name = rows_of(folder, ".csv", [{"path": "set/a.png"}, {"path": f"{folder}/secret.png"}])
    good, bad = outcomes(name, root=".")
    assert (good, bad) == (("./set/a.png", ok(0)), (f"{folder}/secret.png", ok(2)))
    assert "lies outside" in outcomes(name, root="set")[1][1]
    assert outcomes(name, root="/")[1] == (f"{folder}/secret.png", ok(2))


@ALL
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a\0b.png", "null byte"),
        ("x" * 5000, "File name too long"),
        (".", "a folder, not a picture"),
        ("pipe", "a pipe or a device, not a file"),
        ("loop", "Too many levels of symbolic links"),
        (" ", "the row names no image"),
        ("file:///etc/passwd", "is neither a path nor a URL nor an object of a bucket"),
        ("zip://a.png::s3://b/c.zip", "is neither a path nor a URL nor an object of a bucket"),
        ("s3://b/c::file:///etc/passwd", "is neither a path nor a URL nor an object of a bucket"),
    ],
)
def test_paths_that_are_no_pictures(folder, suffix, path, reason):
    os.mkfifo("set/pipe")
    os.symlink("loop", "set/loop")
    name = rows_of(folder, suffix, [{"path": path, "x": 1}, {"path": "a.png", "x": 1}])
    bad, good = outcomes(name)
    assert reason in bad[1]
    assert good == ("set/a.png", ok(0))


@ALL
def test_columns_by_name(folder, suffix):
    rows = [{"path": "b.png", "url": "a.png", "caption": "no", "title_de": "ja", "k": 1}]
    name = rows_of(folder, suffix, rows)
    with pytest.raises(UserError, match=r"several columns .* 'path', 'url'; choose one"):
        find(name)
    columns = Columns("url", "title_de", "k")
    [source] = find(name, options=InputOptions(columns)).sources
    assert (source.path, source.fields) == ("set/a.png", {"caption": "ja", "label": "1"})
    with pytest.raises(UserError, match="has no column 'where'; it has 'path', 'url'"):
        find(name, options=InputOptions(Columns("where")))


@ALL
def test_a_table_without_pictures(folder, suffix):
    name = rows_of(folder, suffix, [{"what": "a.png"}])
    with pytest.raises(UserError, match="'what'; none of these names is known for images"):
        find(name)


def test_tables_are_named_outright(folder):
    rows_of(folder, ".csv", [{"path": "b.png"}])
    assert [s.path for s in find("set").sources] == ["set/a.png", "set/b.png"]
    assert find("set").left_out == ("set/pairs.csv",)
    assert [s.path for s in find("set/*.csv").sources] == ["set/b.png"]
    assert [s.path for s in find("-", io.StringIO("set/pairs.csv\n")).sources] == ["set/b.png"]
    with pytest.raises(UserError, match="only 1 file of other kinds"):
        find("set/p*")


def test_csv_rows_that_do_not_fit(folder):
    (folder / "set/x.csv").write_bytes(
        b"path,caption\na.png\n\nb.png,one, two\nb.png,caf\xe9\na.png,ok\n"
        b'"a.png","in two\nlines",\n"a.png","never closed\n' + b"x" * 100
    )
    said = with_texts("set/x.csv")
    assert [name for name, _ in said] == [
        *("set/x.csv#0", "set/x.csv#1", "set/b.png", "set/a.png", "set/a.png", "set/x.csv#5"),
    ]
    assert outcomes("set/x.csv")[2] == ("set/b.png", ok(1))  # its caption is not needed
    assert said[0][1] == "line 2: 1 cell for 2 columns"
    assert said[1][1] == "line 4: 3 cells for 2 columns"
    assert said[2][1].startswith("line 5, column 'caption': 'caf\\udce9' is no valid text")
    assert "iconv -f cp1252 -t utf-8" in said[2][1]
    assert said[5][1] == (
        "the rows from here on cannot be read: line 9: a cell begins with a quotation mark and "
        "never ends"
    )


def test_csv_that_is_damaged(folder, monkeypatch):
    before = csv.field_size_limit()
    monkeypatch.setattr(text_files, "MAX_LINE", 1000)
    (folder / "set/x.csv").write_text('path,caption\na.png,x\n"b.png,' + "y" * 2000)
    good, bad = outcomes("set/x.csv")
    assert good == ("set/a.png", ok(0))
    assert bad[0] == "set/x.csv#1"
    assert bad[1] == "the rows from here on cannot be read: line 3 has more than 1000 characters"
    (folder / "set/x.csv").write_text('path,caption\na.png,x\n"b.png,' + "y\n" * 600)
    assert "line 3: field larger than field limit (1000)" in outcomes("set/x.csv")[1][1]
    assert csv.field_size_limit() == before
    (folder / "set/x.csv").write_bytes(b"caf\xe9;path\nx; a.png\n")  # that column is not needed
    assert outcomes("set/x.csv") == [("set/a.png", ok(0))]
    for content, reason in (
        (b"", "is empty; a table begins with a row of column names"),
        (b"\n", "is empty; a table begins with a row of column names"),
        (b"\0\1\2,\0\n", "line 1, character 1 is null: this is no text"),
        (b"caf\xe9,x\nx,a.png\n", "has column names that are not UTF-8; convert the file"),
        (b"path,url,path\n", "line 1, column 'path': 2 columns have this name"),
        (b"path,caption\n\n,\n", "has column names and no rows"),
    ):
        (folder / "set/x.csv").write_bytes(content)
        [(name, said)] = outcomes("set/x.csv")
        assert name == "set/x.csv"
        assert said.startswith(f"the table {reason}")


def test_file_names_that_are_no_utf8(folder):
    os.rename(b"set/a.png", b"set/caf\xe9.png")
    (folder / "set/x.csv").write_bytes(b"path\ncaf\xe9.png\n")
    assert outcomes("set/x.csv") == [("set/caf\udce9.png", ok(0))]
    (folder / "set/x.jsonl").write_bytes(b'{"path": "caf\xe9.png"}\n')
    assert outcomes("set/x.jsonl") == [("set/caf\udce9.png", ok(0))]


def test_a_byte_order_mark_and_other_line_ends(folder):
    (folder / "set/x.csv").write_bytes(b"\xef\xbb\xbfpath\r\na.png\r\n")
    assert outcomes("set/x.csv") == [("set/a.png", ok(0))]


def test_json_lines_that_do_not_fit(folder, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE", 500)
    lines = ['{"path": "a.png"}', "{", "[1]", '{"x": 1}', '{"path": 7}', "[" * 400]
    lines += ['{"path": "b.png", "caption": "\\ud800"}', "", '{"path": "c.png"}', "9" * 600]
    (folder / "set/x.jsonl").write_text("\n".join(lines))
    os.rename("set/b.png", "set/c.png")
    said = dict(with_texts("set/x.jsonl"))
    assert list(said) == [
        "set/a.png",
        *(f"set/x.jsonl#{i}" for i in range(1, 6)),
        "set/b.png",
        "set/c.png",
        "set/x.jsonl#8",
    ]
    assert said["set/x.jsonl#1"].startswith("line 2: not JSON at character 2: ")
    assert said["set/x.jsonl#2"] == "line 3: expected a JSON object, got [1]"
    assert "none of these names is known for images" in said["set/x.jsonl#3"]
    assert said["set/x.jsonl#4"] == "line 5: the row names no image"
    assert said["set/x.jsonl#5"].startswith("line 6: not JSON")
    assert said["set/b.png"] == "line 7, column 'caption': '\\ud800' is no valid text"
    assert said["set/x.jsonl#8"].endswith("line 10 has more than 500 characters")
    (folder / "set/x.jsonl").write_text("")
    assert outcomes("set/x.jsonl") == [("set/x.jsonl", "the table has no rows")]


def test_labels_that_are_nested_too_deeply(folder):
    """At some depth a value can still be read, and no longer be written."""
    rows = [f'{{"path": "a.png", "label": {"[" * deep}{"]" * deep}}}' for deep in range(700, 1000)]
    (folder / "set/x.jsonl").write_text("\n".join(rows))
    for source in find("set/x.jsonl").sources:
        assert (
            source.fields
            or "nested too deeply" in (source.fields.fault or outcome(source)[1])
            or "not JSON" in outcome(source)[1]
        )


@ALL
def test_a_table_that_is_not_there(folder, suffix):
    assert outcomes(f"set/gone{suffix}") == [(f"set/gone{suffix}", "no such file")]


# Bytes in Parquet files


def stored(folder, kind="struct", count=50, group=20):
    """A Parquet file of pictures, numbered by their seeds."""
    cells = [png(i) for i in range(count)]
    if kind == "struct":
        cells = [{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(cells)]
    table = pa.table({"image": cells, "text": [[f"{i}", "same"] for i in range(count)]})
    if kind == "large":
        table = table.set_column(0, "image", table["image"].cast(pa.large_binary()))
    if kind == "dictionary":
        table = table.set_column(0, "image", table["image"].dictionary_encode())
    pq.write_table(table, folder / "x.parquet", row_group_size=group)
    return "x.parquet"


@pytest.mark.parametrize("kind", ["bytes", "struct", "large", "dictionary"])
def test_bytes_in_parquet(folder, kind):
    name = stored(folder, kind)
    sources = find(name).sources
    assert [outcome(s) for s in sources] == [(f"x.parquet#{i}", ok(i)) for i in range(50)]
    assert sources[7].fields == {"caption": ("7", "same")}
    order = np.random.default_rng(0).permutation(50)
    assert [outcome(sources[i])[1] for i in order] == [ok(i) for i in order]


def test_bytes_are_fetched_when_their_turn_comes(folder, monkeypatch):
    name, read_rows = stored(folder), []
    batches = parquet._batches

    def counted(*place):
        for batch in batches(*place):
            read_rows.append(len(batch))
            yield batch

    monkeypatch.setattr(parquet, "_batches", counted)
    sources = find(name).sources
    assert read_rows == []
    outcome(sources[0])
    assert read_rows == [parquet.ROWS]
    for source in sources:
        outcome(source)
    assert sum(read_rows) == 50  # each once
    assert len(parquet._readers) <= parquet.OPEN


def test_a_cell_is_small_and_travels(folder):
    source = find(stored(folder)).sources[33]
    again = pickle.loads(pickle.dumps(source))
    assert (again, outcome(again)) == (source, ("x.parquet#33", ok(33)))
    assert len(pickle.dumps(source)) < 900
    assert (again.content.group, again.content.row) == (1, 13)


def test_the_stamp_of_a_cell(folder, monkeypatch):
    sources = find(stored(folder)).sources
    assert sources[0].content.stamp is None
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 62)
    stamps = {s.content.stamp for s in sources}
    assert len(stamps) == 50
    stored(folder, "bytes")
    assert not stamps & {s.content.stamp for s in sources}


def test_a_file_that_changes_is_read_anew(folder):
    first = find(stored(folder)).sources
    assert outcome(first[3])[1] == ok(3)
    pq.write_table(pa.table({"image": [png(9)]}), "x.parquet")
    assert outcome(first[0])[1] == ok(9)
    assert "row group 0, row 3: the file has 1 rows in this row group now" in outcome(first[3])[1]
    os.remove("x.parquet")
    assert "row group 0, row 3: No such file" in outcome(first[3])[1]


def test_cells_without_bytes(folder):
    cells = [None, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": "../secret.png"}]
    cells += [{"bytes": None, "path": None}, {"bytes": b"text", "path": "a.png"}]
    cells += [{"bytes": None, "path": "http://127.0.0.1/x"}]
    pq.write_table(pa.table({"image": cells}), folder / "set/x.parquet")
    said = [reason for _, reason in outcomes("set/x.parquet")]
    assert said == [
        "row group 0, row 0 has no image",
        ok(1),
        "row group 0, row 2 has no bytes, and the path '../secret.png' leads outside",
        "row group 0, row 3 has no image",
        "a text file, not a picture",
        "row group 0, row 5 has no bytes, and the path 'http://127.0.0.1/x' leads outside",
    ]


def test_texts_in_parquet_that_are_no_utf8(folder):
    raw = pa.array([b"a.png", b"b.png", b"caf\xe9.png"]).view(pa.string())
    texts = pa.array([b"fine", b"caf\xe9", None]).view(pa.string())
    pq.write_table(pa.table({"path": raw, "caption": texts}), folder / "set/x.parquet")
    first, second, third = with_texts("set/x.parquet")
    assert first == ("set/a.png", ok(0))
    assert (second[0], "is no valid text" in second[1]) == ("set/b.png", True)
    assert third == ("set/caf\udce9.png", "no such file")
    assert outcomes("set/x.parquet")[1] == ("set/b.png", ok(1))


@pytest.mark.parametrize("kind", ["list", "date", "text"])
def test_parquet_cells_that_cannot_be_read(folder, kind):
    texts = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    if kind == "date":
        texts = pa.array([0, 10**14], pa.int64()).view(pa.timestamp("s"))
    elif kind == "list":
        texts = pa.ListArray.from_arrays([0, 1, 2], texts)
    else:
        texts = texts.view(pa.binary()).cast(pa.large_binary()).view(pa.large_string())
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "caption": texts}), "set/x.parquet")
    assert outcomes("set/x.parquet") == [("set/a.png", ok(0)), ("set/b.png", ok(1))]
    first, second = with_texts("set/x.parquet")
    assert first == ("set/a.png", ok(0))
    assert (second[0], second[1].startswith("column 'caption': ")) == ("set/b.png", True)
    if kind == "text":
        pq.write_table(pa.table({"path": texts}), "set/x.parquet")
        (_, why), (name, said) = outcomes("set/x.parquet")
        assert (why, name, "can't decode" in said) == ("no such file", "set/x.parquet#1", True)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".tar"])
def test_a_pointer_of_git_lfs(folder, suffix):
    (folder / f"x{suffix}").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    said = "cannot be read: it is a Git LFS pointer; fetch the file with: git lfs pull"
    if suffix == ".parquet":
        said = said.replace("cannot be read", "damaged Parquet file")
    assert outcomes(f"x{suffix}") == [(f"x{suffix}", said)]


def about(features):
    return {"huggingface": json.dumps({"info": {"features": features}})}


@pytest.mark.parametrize(
    ("numbers", "feature", "expected"),
    [
        ([1, 0], {"names": ["cat", "dog"], "_type": "ClassLabel"}, ["dog", "cat"]),
        ([1, -1, None], {"names": ["cat", "dog"]}, ["dog", None, None]),
        ([[1, 0], []], {"feature": {"names": ["cat", "dog"]}}, ["dog\ncat", None]),
        ([2, 0], {"names": ["cat", "dog"]}, ["2", "cat"]),
        ([1, 0], {"names": ["cat", 3]}, ["1", "0"]),
        ([1, 0], {"names": "ab"}, ["1", "0"]),
        ([1, 0], None, ["1", "0"]),
        ([1, 0], {"feature": [{"names": ["cat", "dog"]}]}, ["1", "0"]),
        (["1", "0"], {"names": ["cat", "dog"]}, ["1", "0"]),
    ],
)
def test_names_of_classes_in_the_metadata_of_parquet(folder, numbers, feature, expected):
    table = pa.table({"path": ["a.png"] * len(numbers), "label": numbers})
    table = table.replace_schema_metadata(about({"label": feature, "path": {}}))
    pq.write_table(table, "set/x.parquet")
    assert [s.text_of("label") for s in find("set/x.parquet").sources] == expected


@pytest.mark.parametrize(
    "metadata", ["[" * 5000, "{", "[]", '{"info": 3}', '{"info": {"features": []}}', "\udcff"]
)
def test_metadata_of_parquet_that_names_no_classes(folder, metadata):
    table = pa.table({"path": ["a.png"], "label": pa.array(["x"]).dictionary_encode()})
    data = metadata.encode("utf-8", "surrogateescape")
    pq.write_table(table.replace_schema_metadata({"huggingface": data}), "set/x.parquet")
    assert find("set/x.parquet").sources[0].text_of("label") == "x"


def test_columns_of_other_types(folder):
    pq.write_table(pa.table({"image": [[1, 2]], "path": ["a.png"]}), "x.parquet")
    with pytest.raises(UserError, match=r"column 'image' is list<.*--image-column names another"):
        find("x.parquet", options=InputOptions(Columns("image")))


def test_damaged_parquet(folder):
    name = stored(folder)
    whole = (folder / name).read_bytes()
    for content in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], b"x" * 500):
        (folder / name).write_bytes(content)
        [(label, said)] = outcomes(name)
        assert label == name
        assert said.startswith("damaged Parquet file: ")
    rng = np.random.default_rng(0)
    for _ in range(30):
        broken = bytearray(whole)
        for place in rng.integers(4, len(whole) - 8, 40):
            broken[place] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(broken)
        try:
            said = outcomes(name)
        except UserError:  # the name of a column
            continue
        assert said


def test_parquet_needs_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message = f"Parquet needs pyarrow: {how_to_install('data')}, or give a CSV"
    with pytest.raises(NotAvailableError, match=re.escape(message)):
        find("x.parquet")


# Data sets of Hugging Face


@pytest.fixture
def saved(folder):
    """A data set on disk with two splits."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "caption": datasets.Value("string"),
        }
    )

    def split(seeds):
        columns = {
            "image": [{"bytes": png(i), "path": None} for i in seeds],
            "label": [-1 if i == 9 else i % 2 for i in seeds],
            "caption": [f"number {i}" for i in seeds],
        }
        return datasets.Dataset.from_dict(columns, features)

    both = datasets.DatasetDict({"train": split(range(4)), "test": split(range(4, 7))})
    both.save_to_disk(str(folder / "ds"))
    return folder


def test_a_data_set_on_disk(saved):
    sources = find("hf-dataset:ds:test").sources
    assert [outcome(s) for s in sources] == [
        (f"hf-dataset:ds:test#{i}", ok(seed)) for i, seed in enumerate((4, 5, 6))
    ]
    assert sources[1].fields == {"caption": "number 5", "label": "dog"}
    again = pickle.loads(pickle.dumps(sources[2]))
    assert (again, outcome(again)[1]) == (sources[2], ok(6))
    assert len(pickle.dumps(sources[2])) < 700
    assert [outcome(s)[1] for s in find("hf-dataset:./ds/train").sources] == [
        ok(i) for i in range(4)
    ]


def test_the_stamp_of_a_data_set(saved, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1 << 62)
    stamps = {
        s.content.stamp
        for split in ("train", "test")
        for s in find(f"hf-dataset:ds:{split}").sources
    }
    assert len(stamps) == 7
    assert {stamp.split("\0")[0] for stamp in stamps} == {str(saved / "ds")}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("hf-dataset:ds", UserError, "has the splits train, test; choose one: hf-dataset:ds:train"),
        ("hf-dataset:ds:dev", UserError, "has the splits train, test; choose one"),
        ("hf-dataset:", UserError, "names no data set: hf-dataset:org/name:split"),
        ("hf-dataset:set", NotAvailableError, "the data set 'set' cannot be had: "),
        ("hf-dataset:nobody/nothing", NotAvailableError, "'nobody/nothing' cannot be had: "),
    ],
)
def test_data_sets_that_cannot_be_had(saved, name, error, message):
    with pytest.raises(error, match=message):
        find(name)


def test_paths_in_a_data_set_stay_in_its_folder(folder):
    rows = {"image": [{"bytes": None, "path": str(folder / "secret.png")}]}
    features = datasets.Features(
        {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(folder / "ds"))
    [(_, said)] = outcomes("hf-dataset:ds")
    assert "leads outside" in said


# Files elsewhere


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        info = tarfile.TarInfo("t.png")
        info.size = len(png(5))
        file.addfile(info, io.BytesIO(png(5)))
    for name, content in {
        "/b/in/1.png": png(1),
        "/b/in/1.txt": b"a caption",
        "/b/in/deep/2.png": png(2),
        "/b/in/.hidden/3.png": png(3),
        "/b/in/notes.json": b"{}",
        "/b/in/x.tar": data.getvalue(),
        "/b/pairs.csv": b"path\nin/1.png\n../c/4.png\nin/gone.png\n/x.png\n",
        "/c/4.png": png(4),
    }.items():
        system.pipe(name, content)
    yield system
    system.store.clear()


def test_files_folders_and_globs_elsewhere(bucket):
    assert outcomes("memory://b/in/1.png") == [("memory://b/in/1.png", ok(1))]
    assert outcomes("memory://b/in") == [
        ("memory://b/in/1.png", ok(1)),
        ("memory://b/in/deep/2.png", ok(2)),
        ("memory://b/in/x.tar/t.png", ok(5)),
    ]
    assert find("memory://b/in").left_out == ("memory://b/in/1.txt", "memory://b/in/notes.json")
    assert outcomes("memory://b/in/*.png") == [("memory://b/in/1.png", ok(1))]
    assert outcomes("memory://b/in/x.tar") == [("memory://b/in/x.tar/t.png", ok(5))]
    assert outcomes("memory://{b,c}/4.png")[1] == ("memory://c/4.png", ok(4))
    assert outcomes("memory://b/in/gone.png") == [("memory://b/in/gone.png", "no such file")]
    with pytest.raises(UserError, match=r"no images found in pattern 'memory://b/\*.gif'"):
        find("memory://b/*.gif")


def test_a_table_elsewhere_names_what_is_beside_it(bucket):
    said = outcomes("memory://b/pairs.csv")
    assert said[0] == ("memory://b/in/1.png", ok(1))
    assert said[2] == ("memory://b/in/gone.png", "no such file")
    for row in (1, 3):
        assert said[row][0] == f"memory://b/pairs.csv#{row}"
        assert "lies outside the folder 'memory://b'" in said[row][1]


def test_parquet_elsewhere(bucket, folder):
    stored(folder, count=3)
    bucket.pipe("/b/x.parquet", (folder / "x.parquet").read_bytes())
    assert outcomes("memory://b/x.parquet") == [
        (f"memory://b/x.parquet#{i}", ok(i)) for i in range(3)
    ]


def test_files_elsewhere_that_are_too_large(bucket, monkeypatch):
    monkeypatch.setattr(fsspec_files, "MAX_BYTES", 10)
    assert outcomes("memory://b/in/1.png")[0][1].startswith("larger than ")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gs://bucket/x.png", NotAvailableError, "gcsfs.*'pip install' the driver of 'gs://'"),
        ("nonsense://x", UserError, "Protocol not known: nonsense; known: .*memory"),
        ("zip://a.png::memory://x.zip", UserError, "not a chain of them"),
    ],
)
def test_file_systems_that_are_not_there(name, error, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(error, match=message):
        find(name)


def test_what_drivers_raise_is_a_reason(bucket, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("the service\nis down")

    [source] = find("memory://b/in/1.png").sources
    monkeypatch.setattr(type(bucket), "_open", broken)
    assert outcome(source)[1] == "cannot be read: the service is down"
    monkeypatch.setattr(type(bucket), "isdir", broken)
    with pytest.raises(NotAvailableError, match="cannot list 'memory://b/in': the service is down"):
        find("memory://b/in")


def test_states_of_files_elsewhere():
    assert fsspec_files.remote_state({"size": 3, "ETag": '"ab"'}) == '3 ETag "ab"'
    assert fsspec_files.remote_state({"size": 3, "name": "x", "created": 1}) is None
    remote = fsspec_files.Remote("s3://b/x.png", '3 ETag "ab"')
    assert remote.stamp == 's3://b/x.png\0\x003 ETag "ab"'
    assert pickle.loads(pickle.dumps(remote)) == remote


def test_file_urls_are_paths(folder):
    assert outcomes(f"file://{folder}/secret.png") == [(f"{folder}/secret.png", ok(2))]


def test_memory_of_a_source(folder):
    """What ten million of them take, times ten million."""
    source = Source("x" * 40, fsspec_files.Remote("x" * 40))
    assert sys.getsizeof(source) + sys.getsizeof(source.content) <= 120
    assert not hasattr(source, "__dict__")


def test_offline_asks_no_bucket(folder, bucket):
    offline = Fetch(offline=True)
    with pytest.raises(NotAvailableError, match="needs the network"):
        find("s3://b/x.png", options=InputOptions(fetch=offline))
    name = rows_of(folder, ".csv", [{"path": "s3://b/x.png"}, {"path": "a.png"}])
    assert outcomes(name, fetch=offline) == [
        (f"{name}#0", "line 2: 's3://b/x.png' needs the network (--offline)"),
        ("set/a.png", ok(0)),
    ]
    assert outcomes("memory://b/in/1.png", fetch=offline) == [("memory://b/in/1.png", ok(1))]


# Compressed tables


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("x.csv.gz", b"path\n" + b"a\n" * 200),
        ("x.tsv.gz", b"path\tlabel\n" + b"a\tb\n" * 200),
        ("x.jsonl.gz", b'{"path": "a"}\n' * 200),
    ],
)
def test_a_packed_table_has_no_more_rows_than_its_bytes_allow(name, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with gzip.open(name, "wb") as file:
        file.write(rows)
    monkeypatch.setattr("zeroshot.inputs.source.MANY_ROWS", 20)
    most = 20 + 2 * os.path.getsize(name)
    assert most < 190
    found = outcomes(name)
    assert len(found) == most + 2
    assert found[-1][0] == f"{name}#{most + 1}"
    assert found[-1][1].endswith(f"cannot be read: has more than {most} rows")
    monkeypatch.setattr("zeroshot.inputs.source.MANY_ROWS", 200)
    assert len(outcomes(name)) == 200


@pytest.mark.parametrize("name", ["x.csv.gz", "x.jsonl.gz"])
def test_a_packed_text_is_bounded_by_its_size(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_files, "MAX_UNPACKED", 1 << 20)
    with gzip.open(name, "wb") as file:
        file.write(b"path\n" if "csv" in name else b'{"path": "a"}\n')
        file.write((b" " * 99_999 + b"\n") * 90)
    assert "MiB of text" in outcomes(name)[-1][1]
    with pytest.raises(UserError, match="holds more than 1 MiB of text"):
        text_files.read_text(Path(name))
