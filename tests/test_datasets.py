"""Readers of data sets: every layout read back, and files that somebody made to do harm."""

import gzip
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from zeroshot.datasets import captions, clip_benchmark, ground_truth
from zeroshot.datasets.protocols import PROTOCOLS, Protocol, protocol
from zeroshot.errors import UserError
from zeroshot.evaluation import predictions
from zeroshot.images import reading as images
from zeroshot.inputs.tables import path_below
from zeroshot.inputs.text_files import read_text

RNG = np.random.default_rng(2)


def picture(kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (6, 5, 3), dtype=np.uint8)).save(data, kind)
    return data.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def names(sources, folder):
    return [str(s.path).removeprefix(f"{folder}/") for s in sources]


# --- captions -----------------------------------------------------------------------------------

COCO = {
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
    "annotations": [
        {"image_id": 3, "caption": "one dog"},
        {"image_id": 7, "caption": "a cat "},
        {"image_id": 3, "caption": "a dog"},
    ],
}
KARPATHY = {
    "images": [
        {"filepath": "val", "filename": "b.jpg", "split": "test", "sentences": [{"raw": "a cat"}]},
        {"filename": "c.jpg", "split": "train", "sentences": [{"raw": "no"}]},
        {
            "filename": "a.jpg",
            "split": "test",
            "sentences": [{"raw": "one dog"}, {"raw": "a dog"}],
        },
    ]
}
ROWS = [
    {"path": "b.jpg", "caption": "a cat"},
    {"file": "a.jpg", "captions": ["one dog", "a dog"], "licence": "CC BY"},
]
FLICKR = "image,caption\nb.jpg,a cat\na.jpg,one dog\na.jpg,a dog\n"
FILES = {
    "coco.json": (COCO, ["b.jpg", "a.jpg"]),
    "dataset_coco.json": (KARPATHY, ["val/b.jpg", "a.jpg"]),
    "rows.jsonl": (lines(*ROWS), ["b.jpg", "a.jpg"]),
    "rows.jsonl.gz": (gzip.compress(lines(*ROWS).encode(), mtime=0), ["b.jpg", "a.jpg"]),
    "results.token": ("b.jpg#0\ta cat\na.jpg#0\tone dog\na.jpg#1\ta dog\n", ["b.jpg", "a.jpg"]),
    "captions.txt": (FLICKR, ["b.jpg", "a.jpg"]),
    "captions.csv": (FLICKR.replace("a cat", '"a cat"'), ["b.jpg", "a.jpg"]),
}


@pytest.mark.parametrize("name", FILES)
def test_captions_of_every_layout(name, tmp_path):
    content, expected = FILES[name]
    truth = write(tmp_path / name, content)
    split = "test" if "dataset" in name else None
    found = captions.read_caption_dataset(truth, tmp_path / "photos", split)
    assert names(found.sources, tmp_path / "photos") == expected
    assert found.references == (("a cat",), ("one dog", "a dog"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[1]", "no file of captions"),
        ("x.json", "{", "not JSON"),
        ("x.json", "[" * 100_000, "not JSON"),
        (
            "x.json",
            {"images": [{"id": 1}], "annotations": []},
            "entry 1: expected an id .* file_name",
        ),
        ("x.json", {"images": COCO["images"] * 2, "annotations": []}, "id of its own"),
        ("x.json", COCO | {"annotations": [{"image_id": 9, "caption": "x"}]}, "one of the images"),
        ("x.json", COCO | {"annotations": COCO["annotations"][:1]}, "'b.jpg' has no captions"),
        ("x.json", {"images": [{"filename": "a.jpg"}]}, "image 1: expected filename and sentences"),
        ("x.json", KARPATHY, "choose with --split"),
        (
            "x.jsonl",
            lines({"path": "a.jpg", "captions": [3]}),
            "line 1, column 'captions': .* a list of captions",
        ),
        ("x.jsonl", lines({"path": "a.jpg", "captions": []}), "no captions"),
        ("x.jsonl", lines({"path": "a.jpg", "captions": [" "]}), "empty caption"),
        ("x.jsonl", lines({"path": "a.jpg"}), "line 1: expected a column named references"),
        ("x.jsonl", lines(ROWS[0], ROWS[0]), "captions already"),
        ("x.jsonl", lines(ROWS[0]) + "[1]\n", "line 2: expected a JSON object"),
        ("x.jsonl", "\n", "has no rows"),
        ("x.jsonl", b"\xff\xfe", "has no rows"),
        ("x.jsonl.gz", b"\x1f\x8b nothing", "cannot be unpacked"),
        ("x.jsonl.gz", gzip.compress(lines(*ROWS).encode(), mtime=0)[:30], "cannot be unpacked"),
        ("x.token", "a.jpg a dog\n", "NAME#NUMBER"),
        ("x.csv", "image,caption\na.jpg\n", "line 2: 1 cell for 2 columns"),
        ("x.csv", "image,caption\na.jpg,b,c\n", "line 2: 3 cells for 2 columns"),
        ("x.xml", "<a/>", "known are"),
    ],
)
def test_files_that_are_no_captions(name, content, message, tmp_path):
    truth = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        captions.read_caption_dataset(truth, tmp_path)


def test_a_split_of_a_file_without_splits(tmp_path):
    with pytest.raises(UserError, match="no splits"):
        captions.read_caption_dataset(write(tmp_path / "c.json", COCO), tmp_path, "test")


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", ""])
def test_a_name_that_leads_out_of_the_folder(name, tmp_path):
    with pytest.raises(UserError, match="outside the folder"):
        path_below(tmp_path, name, "here")
    assert path_below(tmp_path, "a/../b.jpg", "here") == str(tmp_path / "b.jpg")


def test_a_file_that_grows_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("zeroshot.inputs.text_files.MAX_BYTES", 1 << 20)
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_text(write(tmp_path / "bomb.jsonl.gz", gzip.compress(b" " * (2 << 20))))


# --- classes ------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    for name in ("val/dog/1.png", "val/cat/2.png", "val/cat/1.png", "train/dog/9.png"):
        write(tmp_path / "set" / name, picture())
    return tmp_path / "set"


def test_a_folder_per_class(folders):
    found = ground_truth.load_classification(folders, split="val")
    assert found.labels == ("cat", "dog")
    assert names(found.sources, folders / "val") == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert found.classes == (0, 0, 1)
    assert len(found.prompts[0]) == 7


def test_folders_by_given_names(folders):
    found = ground_truth.load_classification(
        folders, split="val", labels="dog,cat,bird", templates="a {c}"
    )
    assert found.classes == (1, 1, 0)
    assert found.prompts == [["a dog"], ["a cat"], ["a bird"]]


def test_folders_in_order_by_a_protocol(folders, tmp_path):
    write(tmp_path / "names.json", ["house cat", "big dog"])
    own = Protocol("own", "classify", "", "", str(tmp_path / "names.json"), "none", "val", 3)
    found = ground_truth.load_classification(folders, protocol=own)
    assert found.prompts == [["house cat"], ["big dog"]]
    assert found.classes == (0, 0, 1)
    write(folders / "val" / "cat" / "3.png", picture())
    with pytest.raises(UserError, match="has 3 images, and these data have 4"):
        ground_truth.load_classification(folders, protocol=own)
    write(folders / "val" / "eel" / "3.png", picture())
    with pytest.raises(UserError, match="3 folders for 2 classes"):
        ground_truth.load_classification(folders, protocol=own)


@pytest.mark.parametrize("name", ["truth.csv", "truth.jsonl"])
def test_a_file_of_labels(name, tmp_path):
    rows = [("b.png", "dog"), ("a.png", "cat"), ("c.png", "dog")]
    table = "path,label\n" + "".join(f"{p},{c}\n" for p, c in rows)
    each = lines(*({"path": p, "label": c} for p, c in rows))
    truth = write(tmp_path / name, table if name.endswith("csv") else each)
    for found in (
        ground_truth.load_classification(tmp_path),
        ground_truth.load_classification(truth),
    ):
        assert found.labels == ("cat", "dog")
        assert found.classes == (1, 0, 1)
        assert names(found.sources, tmp_path) == ["b.png", "a.png", "c.png"]
    with pytest.raises(UserError, match="none of the labels"):
        ground_truth.load_classification(tmp_path, labels="cat,bird")


def test_names_in_a_file_of_labels_are_relative_to_the_data(tmp_path):
    truth = write(tmp_path / "lists" / "my.csv", "path;label\nin/a.png; cat\nb.png;dog\n")
    found = ground_truth.load_classification(tmp_path / "lists", truth=truth)
    assert names(found.sources, tmp_path / "lists") == ["in/a.png", "b.png"]
    (tmp_path / "photos").mkdir()
    found = ground_truth.load_classification(tmp_path / "photos", truth=truth)
    assert names(found.sources, tmp_path / "photos") == ["in/a.png", "b.png"]
    for outside in ("../a.png", "/etc/passwd", "in/../../a.png"):
        write(truth, f"path,label\n{outside},cat\n")
        with pytest.raises(UserError, match=r"line 2: .* lies outside the folder of images"):
            ground_truth.load_classification(tmp_path / "photos", truth=truth)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train/cat", "test/cat", "test/dog"], "'test', 'train'"),
        (["Train", "Valid"], "'Train', 'Valid'"),
        (["training/cat"], "'training'"),
        (["train2017/cat", "val2017/cat", "annotations"], "'train2017', 'val2017'"),
    ],
)
def test_splits_are_no_classes(tmp_path, folders, splits):
    for folder in folders:
        write(tmp_path / folder / "1.png", picture())
    first = splits.split("'")[1]
    for labels in (None, "cat,dog"):
        with pytest.raises(UserError) as caught:
            ground_truth.load_classification(tmp_path, labels=labels)
        assert str(caught.value) == (
            f"'{tmp_path}' has the folders {splits}, which are splits of a data set and no "
            f"classes; measure on one of them: --split {first}"
        )


def test_classes_that_are_named_like_splits(tmp_path):
    for name in ("train", "bus", "testimony"):
        write(tmp_path / name / "1.png", picture())
    assert ground_truth.load_classification(tmp_path).labels == ("bus", "testimony", "train")
    (tmp_path / "bus").rename(tmp_path / "test")
    found = ground_truth.load_classification(tmp_path, labels="train,test,testimony")
    assert found.classes == (1, 2, 0)


def test_no_data(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ground_truth.load_classification(tmp_path / "x")
    with pytest.raises(UserError, match="no folder per class"):
        ground_truth.load_classification(tmp_path)
    with pytest.raises(UserError, match="no folder 'test'"):
        ground_truth.load_classification(tmp_path, split="test")
    with pytest.raises(UserError, match=r"no captions.jsonl or captions.json"):
        ground_truth.load_captions(tmp_path)


def test_fingerprints_follow_the_truth_and_not_the_place(folders, tmp_path):
    def of(place):
        found = ground_truth.load_classification(place, split="val")
        return ground_truth.fingerprint(place, found.sources, found.classes)

    first = of(folders)
    moved = folders.rename(tmp_path / "elsewhere")
    assert of(moved) == first
    (moved / "val" / "cat" / "1.png").rename(moved / "val" / "dog" / "2.png")
    assert of(moved) != first


# --- webdatasets --------------------------------------------------------------------------------


def tar(path, *members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
            else:
                info.type, info.linkname = data
                file.addfile(info)
    return path


@pytest.fixture
def shards(tmp_path):
    held = [picture("PNG"), picture("JPEG"), picture("WEBP")]
    write(tmp_path / "classnames.txt", "missile\ncat, small\nmissile\n")
    write(tmp_path / "zeroshot_classification_templates.txt", "a photo of a {c}.\na {c}\n")
    write(tmp_path / "test" / "nshards.txt", "2\n")
    tar(tmp_path / "test" / "0.tar", ("s1.png", held[0]), ("s1.cls", b"2"), ("s1.json", b"{}"))
    tar(
        tmp_path / "test" / "1.tar",
        ("s2.cls", b"1\n"),
        ("s2.jpg", held[1]),
        ("s3.webp", held[2]),
        ("s3.cls", b"0"),
    )
    return tmp_path, held


def test_a_webdataset_as_it_is(shards):
    folder, held = shards
    found = ground_truth.load_classification(
        folder, protocol=protocol("clip_benchmark/classification")
    )
    assert found.labels == ("missile", "cat, small", "missile")
    assert found.classes == (2, 1, 0)
    assert found.prompts[1] == ["a photo of a cat, small.", "a cat, small"]
    assert names(found.sources, folder / "test") == [
        "0.tar/s1.png",
        "1.tar/s2.jpg",
        "1.tar/s3.webp",
    ]
    for source, data in zip(found.sources, held, strict=True):
        assert images.read(source) == images.read(data)


def test_own_names_for_the_classes_of_a_webdataset(shards):
    found = ground_truth.load_classification(shards[0], labels="a,b,c", templates="none")
    assert found.prompts == [["a"], ["b"], ["c"]]
    with pytest.raises(UserError, match="2 labels for the 3 classes"):
        ground_truth.load_classification(shards[0], labels="a,b")
    names = write(shards[0] / "own.txt", "a\nb\nc\n\n")
    assert ground_truth.load_classification(shards[0], labels=str(names)).labels == ("a", "b", "c")
    write(names, "a\n\nb\nc\n")
    with pytest.raises(UserError, match=r"own\.txt' line 2 is blank, and the number of a line is"):
        ground_truth.load_classification(shards[0], labels=str(names))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "classnames.txt",
            "missile\n\ncat\n",
            "classnames.txt' line 2 is blank, and the number of",
        ),
        ("classnames.txt", "\ufeff \nmissile\ncat\n", "classnames.txt' line 1 is blank"),
        ("classnames.txt", "\n \n", "classnames.txt' is missing or empty"),
        ("classnames.txt", "missile\ncat\n\n\n", "'2' is no class; the classes are 0 to 1"),
        ("zeroshot_classification_templates.txt", "a cat\n", "template 'a cat' has no {}"),
    ],
)
def test_names_of_classes_and_templates_that_are_refused(shards, file, text, message):
    write(shards[0] / file, text)
    with pytest.raises(UserError, match=re.escape(message)):
        ground_truth.load_classification(shards[0])


def test_a_webdataset_with_captions(shards):
    folder, held = shards
    write(folder / "dataset_type.txt", "retrieval\n")
    write(folder / "test" / "nshards.txt", "1")
    tar(folder / "test" / "0.tar", ("s.jpg", held[1]), ("s.txt", b"a cat\na small cat\n"))
    found = ground_truth.load_captions(folder, protocol=protocol("clip_benchmark/retrieval"))
    assert found.references == (("a cat", "a small cat"),)
    dotted = [("s.1.jpg", held[1]), ("s.1.txt", b"one"), ("s.2.jpg", held[1]), ("s.2.txt", b"two")]
    tar(folder / "test" / "0.tar", *dotted)
    assert clip_benchmark.read_retrieval(folder).references == (("one",), ("two",))
    with pytest.raises(UserError, match="is a retrieval set"):
        ground_truth.load_classification(folder)


LINK, DEVICE = (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.CHRTYPE, "")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x"), ("a.cls", b"7")], "'7' is no class"),
        ([("a.png", b"x"), ("a.cls", b"-1")], "is no class"),
        ([("a.png", b"x"), ("a.cls", b"9" * 5000)], "is no class"),
        ([("a.png", b"x"), ("a.cls", b"\xff")], "not UTF-8"),
        ([("a.png", b"x"), ("a.cls", b"1" * (2 << 20))], "larger than"),
        ([("a.png", b"x")], "'' is no class"),
        ([("a.cls", b"1")], r"a\.cls' has no image"),
        ([("a.png", LINK), ("a.cls", b"1")], "symbolic link"),
        ([("a.png", DEVICE), ("a.cls", b"1")], "device"),
        ([("../a.png", b"x"), ("../a.cls", b"1")], "leads out"),
        ([("a.png", b"x"), ("a.cls", b"1"), ("b.x", b""), ("a.png", b"x")], "twice"),
        ([("a.png", b"x"), ("a.cls", b"1"), ("a.cls", b"2")], "not known which one holds"),
        ([("a.png", b"x"), ("a.CLS", b"1"), ("a.jpg", b"x")], "2 images have the name of 'a.CLS'"),
        ([("a.1.png", b"x"), ("a.2.cls", b"1")], "'' is no class"),
    ],
)
def test_shards_that_are_not_what_they_should_be(members, message, shards):
    tar(shards[0] / "test" / "0.tar", *members)
    with pytest.raises(UserError, match=message):
        clip_benchmark.read_classification(shards[0])


@pytest.mark.parametrize("count", ["", "x", "0", "-1", "9" * 5000])
def test_no_number_of_shards(count, shards):
    write(shards[0] / "test" / "nshards.txt", count)
    with pytest.raises(UserError, match="tar files"):
        clip_benchmark.read_classification(shards[0])


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_a_webdataset_without_names_or_templates(name, shards):
    (shards[0] / name).unlink()
    with pytest.raises(UserError, match="missing or empty"):
        clip_benchmark.read_classification(shards[0])


def test_a_picture_of_a_webdataset_without_captions(shards):
    write(shards[0] / "dataset_type.txt", "retrieval")
    tar(shards[0] / "test" / "0.tar", ("s.jpg", b"x"), ("s.txt", b" \n"))
    with pytest.raises(UserError, match="has no captions"):
        clip_benchmark.read_retrieval(shards[0])


def test_a_shard_that_is_missing_or_torn(shards):
    archive = shards[0] / "test" / "1.tar"
    for data in (archive.read_bytes()[:700], b"no archive" * 100):
        archive.write_bytes(data)
        with pytest.raises(UserError, match="tar file"):
            clip_benchmark.read_classification(shards[0])
    archive.unlink()
    with pytest.raises(UserError, match="no such file"):
        clip_benchmark.read_classification(shards[0])


# --- rows of earlier runs -----------------------------------------------------------------------


def sources(*paths):
    return [images.Source(path) for path in paths]


def given(*paths):
    return predictions.SavedPredictions("m", tuple({"path": path} for path in paths), None)


def test_rows_find_their_pictures_by_the_end_of_the_path():
    pictures = sources("d/a/1.jpg", "d/b/1.jpg", "d/b/2.jpg")
    found = predictions.in_order(given("2.jpg", "/else/b/1.jpg", "a/1.jpg"), pictures)
    assert [row["path"] for row in found] == ["a/1.jpg", "/else/b/1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["a/1.jpg", "b/1.jpg"], "no row for 1 of 3 images"),
        (["a/1.jpg", "b/1.jpg", "3.jpg"], "the path of no image"),
        (["1.jpg", "b/1.jpg", "2.jpg"], "or of several"),
        (["a/1.jpg", "b/1.jpg", "2.jpg", "x/2.jpg"], "two rows"),
    ],
)
def test_rows_that_do_not_fit_the_pictures(paths, message):
    with pytest.raises(UserError, match=message):
        predictions.in_order(given(*paths), sources("d/a/1.jpg", "d/b/1.jpg", "d/b/2.jpg"))


def test_rows_with_their_own_references(tmp_path):
    rows = [
        {"id": "x1", "prediction": "a dog", "references": ["one dog", "a dog"]},
        {"path": "x2", "caption": "a cat", "references": ["cats"]},
        {"path": "x3", "error": {"type": "UnreadableImage", "message": "gone"}},
    ]
    found = predictions.read_captions(write(tmp_path / "magic.rows.jsonl", lines(*rows)))
    assert found.name == "magic"
    assert names(found.dataset.sources, "") == ["x1", "x2", "x3"]
    assert found.dataset.references == (("one dog", "a dog"), ("cats",), ())
    del rows[1]["references"]
    with pytest.raises(UserError, match="1 of 3 rows have no references"):
        predictions.read_captions(write(tmp_path / "x.jsonl", lines(*rows)))


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (predictions.read_captions, {"path": "a"}, "expected a caption"),
        (predictions.read_captions, {"path": 3, "caption": "x"}, "column 'path': expected a text"),
        (predictions.read_captions, {"caption": "x"}, "column 'path': expected a text"),
        (predictions.read_labels, {"path": "a", "labels": []}, "expected labels"),
        (predictions.read_labels, {"path": "a", "labels": [{"label": "x"}]}, "expected labels"),
        (predictions.read_labels, {"path": "a", "labels": "x"}, "expected labels"),
    ],
)
def test_rows_that_are_no_predictions(read, row, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "x.jsonl", lines(row)))


def test_every_protocol_can_be_kept():
    for one in PROTOCOLS.values():
        assert one.task in ("classify", "multilabel", "caption", "retrieve")
        assert (one.labels is None) == (one.templates is None)
    with pytest.raises(UserError, match="did you mean 'clip/imagenet'"):
        protocol("clip/imagnet")


def test_a_protocol_takes_the_first_captions(tmp_path):
    own = Protocol("own", "retrieve", "", "", split=None, captions=1)
    write(tmp_path / "captions.jsonl", lines(*ROWS))
    assert ground_truth.load_captions(tmp_path, protocol=own).references == (
        ("a cat",),
        ("one dog",),
    )
    own = Protocol("own", "retrieve", "", "", split=None, captions=2)
    with pytest.raises(UserError, match="1 have fewer"):
        ground_truth.load_captions(tmp_path, protocol=own)
