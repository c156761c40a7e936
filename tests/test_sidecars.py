"""Captions beside their images: whose file is whose, what is never replaced, what is missing."""

import errno
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source, UnreadableBlob
from zeroshot.output import atomic
from zeroshot.tasks.sidecars import text_sidecars
from zeroshot.tasks.sidecars.sidecar_task import check_sidecars
from zeroshot.tasks.sidecars.text_options import TextOptions
from zeroshot.tasks.sidecars.text_sidecars import TextSidecars

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))
COMMON = ["--models", "pocket", "-o", "k=2", "--sidecar", "txt"]


@pytest.fixture
def unopened(monkeypatch):
    """No model is loaded."""
    from zeroshot.tasks.captioning.caption_task import CaptionImages

    def opened(*given, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(CaptionImages, "open", opened)


def texts(folder="p"):
    return {path.stem: path.read_text() for path in Path(folder).glob("*.txt")}


# Whose file is whose


@pytest.mark.parametrize(
    ("names", "both"),
    [
        (["p/a.jpg", "p/a.png"], "'p/a.jpg' and 'p/a.png' .* 'p/a.txt'"),
        (["p/a.v1.JPEG", "p/b.png", "p/a.v1.png"], "a.v1.JPEG' and 'p/a.v1.png' .* 'p/a.v1.txt'"),
        (["p/a.png", "q/../p/a.gif"], "'p/a.png' and 'q/../p/a.gif'"),
        (["p/a.png", "link/a.gif"], "'p/a.png' and 'link/a.gif'"),
        (["p/a.heic", "p/a.avif"], "a.heic' and 'p/a.avif'"),
        (["p/a.png", "p/a.v1.png", "q/a.png", "p/a.png", "link/a.png"], None),
        (["p/a.png", "p/a", "p/a.txt", "p/A.gif", "p/b\0.png", "gone/a.png"], None),
    ],
)
def test_two_images_never_share_a_file(folder, names, both):
    os.symlink("p", "link")
    if both is None:
        check_sidecars(map(Source, names), TextSidecars())
    else:
        with pytest.raises(ValueError, match=both):
            check_sidecars(map(Source, names), TextSidecars())


@pytest.mark.parametrize("content", [b"bytes", UnreadableBlob("row 3 names no image")])
def test_images_that_are_no_files(content):
    """What cannot be read anyway is no reason to refuse the run."""
    source = Source("x.parquet#3", content)
    if isinstance(content, bytes):
        with pytest.raises(ValueError, match=r"'x\.parquet#3' is no file of its own"):
            check_sidecars([source], TextSidecars())
    else:
        check_sidecars([source], TextSidecars())


@pytest.mark.parametrize("how", ["two images", "a URL", "a tar file", "tar files as shards"])
def test_a_refusal_comes_before_any_model(zeroshot, folder, unopened, how):
    images, more = [folder], []
    if how == "two images":
        shutil.copy("p/a.png", "p/a.gif")
    elif how == "a URL":
        images.append("https://example.org/a.png")
    else:
        images, more = ["1.tar", "2.tar"], ["--out", "o/"] if how.endswith("shards") else []
        for name in images:
            with tarfile.open(name, "w") as file:
                file.add("p/a.png", "a.png")
    before = sorted(Path().rglob("*"))
    code, rows, err = zeroshot("caption", *images, *COMMON, *more)
    assert (code, rows) == (2, [])
    assert "--sidecar" in err
    assert sorted(Path().rglob("*")) == before


# What is there already


KINDS = {
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to a text": lambda path: path.symlink_to("other.md"),
    "link to the image": lambda path: path.symlink_to("b.png"),
    "image": lambda path: shutil.copy(SCENES[3], path),
    "large text": lambda path: path.write_bytes(b"x" * (text_sidecars.MAX_TEXT + 1)),
}


def state(path):
    info = path.lstat()
    return info.st_mode, info.st_ino, info.st_size, info.st_mtime_ns


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_text_stays_and_is_named(zeroshot, folder, overwrite):
    """Among other images, whose captions are written."""
    names = dict(zip(KINDS, ("b0", "b1", "b2", "b3", "b4", "b5", "b6"), strict=True))
    for kind, name in names.items():
        shutil.copy("p/b.png", f"p/{name}.png")
        KINDS[kind](folder / f"{name}.txt")
    Path("p/other.md").write_text("my own")
    shutil.copy("p/a.png", "p/no suffix")
    before = {kind: state(folder / f"{name}.txt") for kind, name in names.items()}
    code, rows, err = zeroshot("caption", "p", *COMMON, *(["--overwrite"] if overwrite else []))
    assert code == 3
    assert not [row for row in rows if "error" in row]
    assert {kind: state(folder / f"{name}.txt") for kind, name in names.items()} == before
    assert Path("p/other.md").read_text() == "my own"
    captions = {Path(row["path"]).stem: row["caption"] for row in rows}
    for name in "abcd":
        assert (folder / f"{name}.txt").read_text() == captions[name] + "\n"
    assert "'p/b2.txt' and 2 more: a link has its name" in err
    assert "'p/b0.txt': a pipe has its name" in err
    assert "'p/b1.txt': a folder has its name" in err
    assert "'p/no suffix': the image's name has no suffix" in err
    kept = "'p/b5.txt' and 1 more: a file that is no text has its name"
    assert (kept if overwrite else "kept 2 sidecar files that existed") in err


def test_an_image_with_the_suffix_of_a_text_is_not_replaced(zeroshot, folder):
    shutil.copy("p/a.png", "x.txt")
    data = Path("x.txt").read_bytes()
    code, [row], err = zeroshot("caption", "x.txt", *COMMON, "--overwrite")
    assert (code, row["path"]) == (3, "x.txt")
    assert "not written: 'x.txt'" in err
    assert Path("x.txt").read_bytes() == data


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("out", [None, "o.jsonl"])
def test_nothing_about_one_image_ends_the_run(zeroshot, folder, monkeypatch, number, out):
    real = atomic.publish

    def fails(path, data):
        if path.name == "b.txt":
            raise OSError(number, os.strerror(number))
        return real(path, data)

    more = ["--out", out, "--json"] if out else []
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "publish", fails)
        code, rows, err = zeroshot("caption", "p", *COMMON, *more)
    assert (code, len(rows)) == (3, 4)
    assert f"not written: 'p/b.txt': {os.strerror(number)}" in err
    assert sorted(texts()) == ["a", "c", "d"]
    if out:
        code, _, err = zeroshot("caption", "p", *COMMON, *more)
        assert code == 0
        assert "captions of earlier rows that are now beside their images: 1" in err
        assert texts()["b"] == rows[1]["caption"] + "\n"


@pytest.mark.parametrize("name", ["publish", "replace"])
def test_a_full_disk_ends_the_run(zeroshot, folder, monkeypatch, name):
    def fails(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    more = ["--overwrite"] if name == "replace" else []
    monkeypatch.setattr(text_sidecars, "atomic", Atomic(**{name: fails}))
    code, _, err = zeroshot("caption", "p", *COMMON, *more)
    assert code == 4
    assert "cannot write to 'p/a.txt': No space left on device" in err


class Atomic:
    """`atomic` with one function replaced."""

    def __init__(self, **other):
        self.__dict__ |= {name: getattr(atomic, name) for name in atomic.__all__} | other


# Finished outputs


@pytest.mark.parametrize("out", ["o.jsonl", "o.csv", "o.parquet", "o/", "o/ --format csv"])
def test_a_finished_output_gets_the_files_that_are_missing(zeroshot, folder, monkeypatch, out):
    arguments = ["caption", "p", *COMMON[:4], "--out", *out.split()]
    Path("p/broken.png").write_bytes(b"no image")
    if out == "o/":
        arguments += ["--shard-size", "2"]
    code, rows, _ = zeroshot(*arguments, "--json")
    assert (code, len(rows), texts()) == (3, 5, {})
    Path("p/c.txt").write_text("my own")
    expected = {Path(r["path"]).stem: f"{r['caption']}\n" for r in rows if "error" not in r}
    expected["c"] = "my own"
    for gone in ("a", "b"):
        code, again, err = zeroshot(*arguments, "--sidecar", "txt", "--json")
        assert (code, again) == (0, [])
        assert texts() == expected
        assert "beside their images: " + ("3" if gone == "a" else "1") in err
        Path(f"p/{gone}.txt").unlink()
    assert zeroshot(*arguments, "--sidecar", "txt")[0] == 0
    assert texts() == expected
    assert "now beside" not in zeroshot(*arguments, "--sidecar", "txt")[2]
    assert "now beside" not in zeroshot(*arguments, "--sidecar", "txt", "--overwrite")[2]


def test_a_caption_that_a_spreadsheet_would_compute(zeroshot, folder):
    """Its cell is guarded, its file is not."""
    arguments = ["caption", "p", *COMMON[:4], "--out", "o.csv"]
    zeroshot(*arguments)
    table = Path("o.csv").read_text()
    caption = table.splitlines()[1].split(",")[2]
    Path("o.csv").write_text(table.replace(caption, "'=SUM(A1)", 1))
    assert zeroshot(*arguments, "--sidecar", "txt")[0] == 0
    assert texts()["a"] == "=SUM(A1)\n"


def test_counts_of_processes_are_added():
    """As JSON, and what came later apart."""
    meter = Meter()
    meter.add_unwritten("Permission denied", "a.txt")
    before = meter.counts()
    meter.add_unwritten("Permission denied", "b.txt")
    meter.add_unwritten("a pipe has its name", "c.txt")
    assert meter.since(before).unwritten == {
        "Permission denied": (1, "a.txt"),
        "a pipe has its name": (1, "c.txt"),
    }
    other = Meter()
    other.add(json.loads(json.dumps(meter.counts())))
    assert other.unwritten == meter.unwritten
    assert meter.since(meter.counts()).unwritten == {}


# Texts for training sets


@pytest.mark.parametrize(
    ("options", "caption", "text"),
    [
        ({}, " as  it is, ", " as  it is, "),
        ({"prefix": "sks, "}, "a cat", "sks, a cat"),
        ({"prefix": "sks, ", "suffix": ", 35mm"}, "a cat", "sks, a cat, 35mm"),
        ({"drop_words": "a photo of, very"}, "A photo  of a very big cat.", "a big cat."),
        ({"drop_words": "cat"}, "a cat, a catalogue, a Cat", "a, a catalogue, a"),
        ({"drop_words": "a,a photo of"}, "a photo of a cat", "cat"),  # the longest first
        ({"drop_words": "c++,(x)"}, "a c++ (x) book", "a book"),
        ({"max_words": 3}, "a cat on, the sofa", "a cat on"),
        ({"max_words": 3, "prefix": "one two three "}, "a cat on the", "one two three a cat on"),
        ({"drop_words": "a", "max_words": 2}, "a cat on a sofa", "cat on"),
        ({"prefix": "sks, "}, "", "sks"),
        ({"prefix": "sks, ", "suffix": ", b"}, "", "sks b"),
        ({"drop_words": ["cat"], "prefix": "sks, "}, "cat", "sks"),
    ],
)
def test_the_text_of_a_caption(options, caption, text):
    assert TextOptions(**options).of_caption(caption) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "red cat, tree, very tall"),
        ({"prefix": "sks, "}, "sks, red cat, tree, very tall"),
        ({"drop_words": "Tree, cat"}, "red cat, very tall"),
        ({"max_words": 2, "drop_words": "tree"}, "red cat, very tall"),
        ({"max_words": 1, "suffix": ", end"}, "red cat, end"),
        ({"drop_words": "red cat,tree,very tall", "prefix": "sks, "}, "sks"),
    ],
)
def test_the_text_of_tags(options, text):
    assert TextOptions(**options).of_tags(["red cat", "tree", "very tall"]) == text


@pytest.mark.parametrize("out", ["o.jsonl", "o.csv", "o.parquet", "o/"])
def test_earlier_rows_get_the_text_that_is_asked_for_now(zeroshot, folder, out):
    """Rows keep the model's caption; files that have another text stay, and are counted."""
    arguments = ["caption", "p", *COMMON[:4], "--out", out]
    code, rows, _ = zeroshot(*arguments, "--json")
    captions = {Path(row["path"]).stem: row["caption"] for row in rows}
    shaped = [*arguments, "--sidecar", "txt", "--prefix", "sks, ", "--max-words", "2"]
    Path("p/c.txt").write_text("my own")
    code, _, err = zeroshot(*shaped)
    assert code == 0
    assert "captions of earlier rows that are now beside their images: 3" in err
    assert "kept 1 sidecar file that existed" in err
    first = {name: "sks, " + " ".join(text.split()[:2]) for name, text in captions.items()}
    expected = {name: f"{text}\n" for name, text in first.items()} | {"c": "my own"}
    assert texts() == expected
    code, _, err = zeroshot(*shaped, "--suffix", " end")
    assert (code, texts()) == (0, expected)
    assert "kept 4 sidecar files that existed; --overwrite replaces them" in err
    code, rows, err = zeroshot(*shaped, "--suffix", " end", "--overwrite", "--json")
    assert texts() == {name: f"{text} end\n" for name, text in first.items()}
    assert {Path(row["path"]).stem: row["caption"] for row in rows} == captions


TAGS = [
    *("classify", "p", "--models", "pocket", "--labels", "red,green,blue,heart,square"),
    *("--multi", "--against", "a plain background"),
]


@pytest.mark.parametrize("out", [None, "o.jsonl", "o.csv"])
def test_labels_that_hold_are_tags(zeroshot, folder, out):
    arguments = [*TAGS, "--threshold", "0.6", *(["--out", out] if out else []), "--json"]
    code, rows, _ = zeroshot(*arguments)
    expected = {}
    for row in rows:
        best = [label["label"] for label in row["labels"]] if not row["abstained"] else []
        expected[Path(row["path"]).stem] = ", ".join(["sks", *best[:2]]) + "\n"
    assert max(map(len, expected.values())) > len("sks\n")
    shaped = ["--sidecar", "txt", "--prefix", "sks, ", "--max-words", "2"]
    code, again, _ = zeroshot(*arguments, *shaped)
    assert (code, texts()) == (0, expected)
    assert again == ([] if out else rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*TAGS, "--sidecar", "txt"], "--sidecar txt writes the labels that hold"),
        ([*TAGS, "--threshold", "0.5", "--prefix", "x"], "--sidecar txt: give it too"),
        ([*TAGS, "--threshold", "0.5", "--prefix", "x", "--sidecar", "xmp"], "give it too"),
        (["caption", "p", *COMMON[:4], "--max-words", "3"], "--sidecar txt: give it too"),
        (["caption", "p", *COMMON, "--max-words", "0"], "greater than or equal to 1"),
    ],
)
def test_what_texts_cannot_be(zeroshot, folder, arguments, said):
    code, rows, err = zeroshot(*arguments)
    assert (code, rows, texts()) == (2, [], {})
    assert said in err


def test_a_tag_has_no_comma(zeroshot, folder):
    Path("labels.txt").write_text('"a cat, black"\na dog\n')
    more = ["--labels", "labels.txt", "--threshold", "0.5", "--sidecar", "txt"]
    code, _, err = zeroshot(*TAGS, *more)
    assert (code, texts()) == (2, {})
    assert "the label 'a cat, black' has a comma, which separates tags: rename it" in err
