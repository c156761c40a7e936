"""Parquet files that unpack to far more than they weigh, and the headers that say so."""

import io
import os
import tracemalloc

import PIL.Image
import pytest
from hypothesis import given, settings, strategies as st

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.reading import fetch
from zeroshot.inputs.columnar import checked_parquet
from zeroshot.inputs.columnar.footer import Chunk, FooterError, row_groups
from zeroshot.inputs.columnar.page_headers import Page, PageError, pages
from zeroshot.inputs.resolve import find

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(table, name="x.parquet", **options):
    options = {"compression": "zstd", "write_statistics": False, **options}
    pq.write_table(pa.table(table), name, **options)
    return name


def pages_of(name, column=0):
    """All pages of a file's column, and the size of what lies between them."""
    with open(name, "rb") as file, pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            part = parquet.metadata.row_group(group).column(column)
            start = min(part.data_page_offset, part.dictionary_page_offset or part.data_page_offset)
            yield from pages(file, start, part.total_compressed_size, part.num_values)


# Headers


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd", "snappy", "gzip"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("statistics", [True, False])
def test_headers_add_up_to_what_the_file_says(version, compression, dictionary, statistics):
    values = [f"{i % 100:05d}" * 20 for i in range(5000)]
    name = write(
        {"path": values},
        compression=compression,
        use_dictionary=dictionary,
        write_statistics=statistics,
        data_page_version=version,
        data_page_size=4096,
        row_group_size=3000,
    )
    found = list(pages_of(name))
    assert sum(page.values for page in found if not page.dictionary) == 5000
    with pq.ParquetFile(name) as parquet:
        parts = [parquet.metadata.row_group(i).column(0) for i in range(2)]
    headers = sum(part.total_compressed_size for part in parts) - sum(page.packed for page in found)
    assert 0 < headers < 400 * len(found)
    assert sum(part.total_uncompressed_size for part in parts) == headers + sum(
        page.unpacked for page in found
    )
    assert any(page.repeats for page in found) == dictionary
    if dictionary:
        assert found[0] == Page(100 * (4 + 100), found[0].packed, 100, True, True)


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def header(unpacked, packed, values, encoding=0, kind=0):
    """A header written by hand: fields 1 to 3, and 5 with fields 1 and 2."""
    number = [b"\x15" + varint(2 * n) for n in (kind, unpacked, packed, values, encoding)]
    return b"".join(number[:3]) + b"\x2c" + b"".join(number[3:]) + b"\0\0"


def test_a_header_by_hand():
    data = header(1000, 3, 7) + b"abc" + header(5, 2, 4, encoding=8) + b"de"
    assert list(pages(io.BytesIO(b"PAR1" + data), 4, len(data), 11)) == [
        Page(1000, 3, 7, False, False),
        Page(5, 2, 4, False, True),
    ]
    assert len(list(pages(io.BytesIO(data), 0, len(data), 7))) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header(1000, 3, 7)[:-3],
        b"\x15" + b"\xff" * 20,  # a number without end
        b"\x1c" * 100,  # structs in structs
        b"\x19\x00\x00",  # a list, which no header has
        header(1 << 31, 3, 7),
        b"\x15\x01" + header(1, 1, 1)[2:4] + b"\0",  # no size
        b"\x15\x00\x15\x03\x15\x02\x2c\x15\x02\x00\x00",  # a negative one
        b"\x18\xff\xff\xff\x7f",  # a text longer than the file
    ],
)
def test_damaged_headers(data):
    with pytest.raises(PageError, match="damaged: the header of a page"):
        list(pages(io.BytesIO(data), 0, max(len(data), 1), 100))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_pages_or_an_error(data):
    try:
        found = list(pages(io.BytesIO(data), 0, len(data), 1 << 40))
    except PageError:
        return
    assert all(page.packed >= 0 for page in found)


# Files


BIG = "b" * 300_000


def hostile():
    """Files of at most some kilobytes, by name: their rows, and the reason."""
    yield "a dictionary", {"path": ["a.png"] * 64, "caption": [BIG * 2] * 64}, {}, "far more than"
    yield (
        "values built from the one before",
        {"path": ["a.png"] * 400, "caption": [BIG[:90_000] + str(i) for i in range(400)]},
        {
            "use_dictionary": False,
            "column_encoding": {"caption": "DELTA_BYTE_ARRAY", "path": "PLAIN"},
        },
        "far more than",
    )
    yield (
        "one page",
        {"path": ["a.png"] * 60, "caption": [BIG] * 60},
        {"use_dictionary": False, "write_batch_size": 60, "data_page_size": 1 << 30},
        "bytes unpacks to 18000",
    )
    yield (
        "rows without bytes",
        {"path": pa.DictionaryArray.from_arrays(pa.array([0] * 4_000_000, pa.int8()), ["a.png"])},
        {},
        "4000000 rows in a file of",
    )
    yield (
        "values without bytes",
        {"path": ["a.png"], "caption": pa.array([[None] * 4_000_000], pa.list_(pa.string()))},
        {},
        "4000000 values in a file of",
    )


@pytest.mark.parametrize(
    ("table", "options", "reason"),
    [pytest.param(*rest, id=name) for name, *rest in hostile()],
)
def test_a_listing_is_bounded_by_the_files_bytes(table, options, reason, monkeypatch):
    monkeypatch.setattr(checked_parquet, "UNPACKED", 13 << 20)
    name = write(table, dictionary_pagesize_limit=1 << 30, row_group_size=10**7, **options)
    assert os.path.getsize(name) < 30_000
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    found = find(name).sources
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) < 300
    with pytest.raises(UnreadableImageError, match=reason):
        fetch(found[-1])
    assert peak < 30_000_000
    assert pa.total_allocated_bytes() == before


def test_a_text_that_is_too_long_is_a_row_that_fails_and_the_others_are_read():
    captions = ["a", "b" * (1 << 20), "c" * ((1 << 20) + 1), "d"]
    found = find(write({"path": ["a.png"] * 4, "caption": captions})).sources
    assert [s.fields.get("caption") for s in found[:2]] == captions[:2]
    assert not found[2].fields.get("caption")
    assert found[3].fields["caption"] == "d"


@pytest.mark.parametrize("dictionary", [True, False])
def test_bytes_of_images_are_bounded_too(dictionary, monkeypatch):
    monkeypatch.setattr(checked_parquet, "UNPACKED", 13_000_000)
    name = write(
        {"image": [bytes(2_000_000)] * 9 + [b"x"]},
        dictionary_pagesize_limit=1 << 30,
        use_dictionary=dictionary,
        data_page_size=1 << 20,
        write_batch_size=1,
    )
    found = find(name).sources
    assert [len(fetch(one).content) for one in found[:6]] == [2_000_000] * 6
    for one in (*found[6:], found[8]):
        with pytest.raises(UnreadableImageError, match="far more than"):
            fetch(one)
    assert len(fetch(found[0]).content) == 2_000_000  # from the beginning again


def test_values_of_a_fixed_length_are_read_few_at_a_time(monkeypatch):
    """Also those that are null take their length in memory."""
    monkeypatch.setattr(checked_parquet, "UNPACKED", 1 << 20)
    name = write({"path": ["a.png"] * 90, "label": pa.nulls(90, pa.binary(100_000))})
    with checked_parquet.CheckedParquet.open(name) as opened:
        sizes = [batch.num_rows for batch in opened.batches(0, ["path", "label"], 1024)]
    assert sizes == [10] * 9


def test_ordinary_files_are_read_as_before():
    """Repeated captions, lists of them, a struct of images, columns with dots in their names."""
    images = [{"bytes": os.urandom(70_000), "path": f"{i}.png"} for i in range(40)]
    name = write(
        {
            "image": images,
            "caption": [["a cat", None, "a dog" * i] for i in range(40)],
            "image.path": ["no"] * 40,
            "label": pa.array(["x", "y"] * 20).dictionary_encode(),
        },
        row_group_size=17,
        write_statistics=True,
    )
    found = find(name).sources
    assert [fetch(one).content for one in found] == [image["bytes"] for image in images]
    assert [one.fields["label"] for one in found] == ["x", "y"] * 20
    assert found[2].fields["caption"] == ("a cat", "a doga dog")


def test_many_rows_of_few_bytes_are_allowed():
    name = write({"path": [f"{i:07d}.png" for i in range(1_000_000)]})
    assert os.path.getsize(name) < 800_000
    with checked_parquet.CheckedParquet.open(name) as opened:
        opened.check_rows()


# The footer


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("size_statistics", [True, False])
def test_the_footer_says_what_pyarrow_reads(compression, size_statistics):
    rows = {"path": ["a.png", None] * 40, "tags": [["x", "y"], []] * 40, "at": [{"n": 1}] * 80}
    name = write(rows, compression=compression, row_group_size=30, write_statistics=size_statistics)
    with open(name, "rb") as file, pq.ParquetFile(name) as parquet:
        groups = row_groups(file)
        assert len(groups) == parquet.num_row_groups == 3
        for number, chunks in enumerate(groups):
            theirs = parquet.metadata.row_group(number)
            assert len(chunks) == theirs.num_columns == len(parquet.schema)
            for i, chunk in enumerate(chunks):
                part = theirs.column(i)
                start = min(part.data_page_offset, part.dictionary_page_offset or 1 << 60)
                assert chunk == Chunk(part.num_values, start, part.total_compressed_size)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255])
def test_a_changed_byte_of_a_footer_ends_no_process(value):
    """pyarrow makes objects of a footer without a way to say that it is damaged."""
    for more in ({}, {"write_statistics": True}):
        name = write({"path": ["a.png"] * 6, "label": [["x"]] * 6}, **more)
        with open(name, "rb") as file:
            whole = file.read()
        length = int.from_bytes(whole[-8:-4], "little")
        for place in range(len(whole) - 8 - length, len(whole) - 4):
            changed = bytearray(whole)
            changed[place] = value
            with open(name, "wb") as file:
                file.write(changed)
            try:
                sources = find(name).sources
            except UserError:  # another name of a column
                continue
            assert len(sources) <= 7


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1c" * 300, "values nested too deeply"),
        (b"\x1d\0", "a value of no kind that there is"),
        (b"\x49\x19\x15\0", "no struct where one belongs"),
        (b"\x49\x1c\x19\x1c\x8c\0\0\0\0\0\0", "encrypted"),
        (b"\x49\x1c\x19\x1c\x3c\x55\1\0\0\0\0", "a column that does not lie in the file"),
        (b"\x49\x1c\x19\x1c", "cut off"),
        (b"\x16" + b"\xff" * 12, "a number without end"),
    ],
)
def test_damaged_footers(data, reason):
    with pytest.raises(FooterError, match=reason):
        row_groups(io.BytesIO(b"PAR1" + data + len(data).to_bytes(4, "little") + b"PAR1"))


def test_a_footer_larger_than_the_file():
    with pytest.raises(FooterError, match="larger than the file"):
        row_groups(io.BytesIO(b"PAR1\xff\xff\0\0PAR1"))


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_a_footer_or_an_error(data):
    try:
        found = row_groups(io.BytesIO(data + len(data).to_bytes(4, "little") + b"PAR1"))
    except FooterError:
        return
    assert all(chunk.start <= len(data) + 8 for group in found for chunk in group)


def test_row_groups_take_time_by_their_number(monkeypatch):
    """The footer was read again for the images of each."""
    with open("a.png", "wb") as file:
        PIL.Image.new("RGB", (8, 8)).save(file)
    with open("a.png", "rb") as file:
        name = write({"image": [file.read()] * 300}, row_group_size=1)
    times = []
    read = checked_parquet.row_groups
    monkeypatch.setattr(
        checked_parquet, "row_groups", lambda file: times.append(file) or read(file)
    )
    sources = find(name).sources
    assert len({fetch(source).id for source in sources}) == 1
    assert len(times) == 2
    name = write({"image": [b"other"] * 2}, row_group_size=1)  # another file in its place
    with pytest.raises(UnreadableImageError, match="the file has 2 row groups now"):
        fetch(sources[250])


# Columns and values that are shared


@pytest.mark.parametrize("twice", ["path", "caption", "label"])
def test_a_column_that_is_there_twice_is_refused(twice):
    names = ["path", "caption", "label", twice]
    table = pa.Table.from_arrays([pa.array(["a.png"])] * 4, names=names)
    pq.write_table(table, "x.parquet")
    with pytest.raises(UserError, match=rf"'x.parquet' has 2 columns with the name '{twice}'"):
        find("x.parquet")


def test_a_column_that_is_there_twice_and_not_read():
    names = ["path", "more", "more"]
    pq.write_table(pa.Table.from_arrays([pa.array(["a.png"])] * 3, names=names), "x.parquet")
    assert [source.path for source in find("x.parquet").sources] == ["a.png"]


def one_for_all(rows, length=600_000):
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["w" * length])


@pytest.mark.parametrize(
    "values",
    [
        one_for_all(2000),
        pa.ListArray.from_arrays(pa.array(range(2001), pa.int32()), one_for_all(2000)),
        pa.StructArray.from_arrays([one_for_all(2000)], ["text"]),
    ],
    ids=["text", "list", "struct"],
)
@pytest.mark.parametrize("column", ["caption", "label"])
def test_a_text_of_a_dictionary_counts_for_each_row(values, column):
    name = write({"path": ["a.png"] * 2000, column: values})
    assert os.path.getsize(name) < 100_000
    tracemalloc.start()
    sources = find(name).sources
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 800_000_000
    assert len(sources) < 1000
    with pytest.raises(UnreadableImageError, match="unpack to far more than it has"):
        fetch(sources[-1])


def test_a_dictionary_of_few_words_is_read():
    words = pa.array(["red", "blue"] * 3000).dictionary_encode()
    sources = find(write({"path": ["a.png"] * 6000, "caption": words})).sources
    assert [source.captions for source in sources[:2]] == [("red",), ("blue",)]
    assert len(sources) == 6000
