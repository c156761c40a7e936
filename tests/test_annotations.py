"""Annotation files: by hand, by readers that are not ours, and as a person makes them."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from zeroshot.errors import OutputError, UserError
from zeroshot.output import atomic
from zeroshot.output.annotations import exporting, label_studio, yolo_annotations
from zeroshot.output.annotations.annotated import Annotations
from zeroshot.output.annotations.polygons import area, polygons
from zeroshot.results import coco_rle
from zeroshot.tasks.localization.detection import Detect

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART, STAR = SCENES / "1-red-heart.png", SCENES / "2-blue-star.png"
LABELS = ("--labels", "red heart,blue star")
POCKET = ("--models", "pocket", "--offline", "--background", "white background,black background")
NUMPY_2 = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools' own arrays, not ours."""
RING = np.array([[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]], bool)
"""A ring of a hole, and a pixel that touches it at a corner alone."""
ODD = [
    'a"b\n,é.png',
    "images/images/x.png",
    "-.d/y.z.png",
    "y.png",
    "y.jpg",
    os.fsdecode(b"\xff.png"),
]
EVIL = ['cat, "big"', "two\nlines", "naïve ☃ \U0001f600 \x7f\x85\u2028\ufeff", "a: b # c", "<&>'"]


def detected(path, *boxes, size=(10, 20), id=None):
    found = [{"label": label, "score": 0.5, "box": list(box)} for label, *box in boxes]
    width, height = size
    known = {"path": path, "id": id or hashlib.sha256(path.encode("utf-8", "replace")).hexdigest()}
    row = {"schema": "zeroshot.detect/1", **known, "width": width, "height": height}
    return row | {"boxes": found, "models": {"detector": "m@1"}, "method": "native"}


def segmented(path, **masks):
    regions = [
        {"label": label, "score": 0.25, "rle": coco_rle.encode(mask)}
        for label, mask in masks.items()
    ]
    height, width = next(iter(masks.values())).shape
    row = {"schema": "zeroshot.segment/1", "path": path, "id": "5e6"}
    row |= {"width": width, "height": height, "regions": regions}
    return row | {"models": {"segmenter": "m@1"}, "method": "native"}


def failed(path):
    error = {"type": "UnreadableImage", "message": "no such file"}
    return {"schema": "zeroshot.detect/1", "path": path, "id": None, "error": error}


def annotations(rows, labels=(), **more):
    return Annotations(rows[0]["schema"], lambda: iter(rows), labels, **more)


def written(format, path, rows, labels=(), **more):
    exporting.export(format, path, annotations(rows, labels, **more), {})
    return json.loads(path.read_text()) if path.is_file() else path


def inside(ring, height, width):
    """The pixels whose centres are in a ring, by counting the sides to the right of each."""
    x, y = np.asarray(ring, float).T
    down, across = np.mgrid[:height, :width] + 0.5
    result = np.zeros((height, width), bool)
    for x1, y1, x2, y2 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        if y1 != y2:
            at = x1 + (down - y1) * (x2 - x1) / (y2 - y1)
            result ^= ((y1 > down) != (y2 > down)) & (across < at)
    return result


# Polygons


def test_a_ring_by_hand():
    ring, pixel = polygons(RING)
    outline = np.roll(ring.outline, -ring.outline.tolist().index([1, 0]), 0)
    assert outline.tolist() == [[1, 0], [4, 0], [4, 3], [1, 3]]  # with the clock
    assert sorted(ring.holes[0].tolist()) == [[2, 1], [2, 2], [3, 1], [3, 2]]
    assert (area(ring.outline), area(ring.holes[0])) == (9, -1)
    assert (sorted(pixel.outline.tolist()), pixel.holes) == ([[0, 3], [0, 4], [1, 3], [1, 4]], ())
    assert polygons(np.zeros((3, 3), bool)) == []


@settings(max_examples=200, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_polygons_have_the_pixels_of_the_mask(mask):
    found, again = polygons(mask), np.zeros(mask.shape, int)
    for part in found:
        assert all(len(ring) >= 4 for ring in (part.outline, *part.holes))
        again += inside(part.joined(), *mask.shape)
    np.testing.assert_array_equal(again, mask)
    assert sum(area(part.joined()) for part in found) == mask.sum()


# COCO


def test_coco_by_hand(tmp_path):
    rows = [failed("b.png"), detected("a.png", ("dog", 1, 2, 4, 8), ("bird", 0, 0, 2, 2.5))]
    held = written("coco", tmp_path / "x.json", rows, ["cat", "dog"], model="m@1 (native)")
    assert held["info"]["description"] == "m@1 (native)"
    assert held["images"] == [{"id": 1, "file_name": "a.png", "width": 10, "height": 20}]
    assert [(c["id"], c["name"]) for c in held["categories"]] == [
        (1, "cat"),
        (2, "dog"),
        (3, "bird"),
    ]
    box = {"image_id": 1, "iscrowd": 0, "score": 0.5}
    assert held["annotations"] == [
        {"id": 1, "category_id": 2, "bbox": [1, 2, 3, 6], "area": 18, **box},
        {"id": 2, "category_id": 3, "bbox": [0, 0, 2, 2.5], "area": 5, **box},
    ]


@NUMPY_2
def test_pycocotools_reads_boxes_and_masks(tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    parts = np.zeros((4, 5), bool)
    parts[0, :2] = parts[3, 3:] = parts[2, 0] = True
    rows = [segmented("a.png", ring=RING, parts=parts)]
    written("coco", tmp_path / "x.json", rows, ["parts", "ring"])
    read = coco.COCO(str(tmp_path / "x.json"))
    read.info()
    capsys.readouterr()
    first, second = read.loadAnns(read.getAnnIds())
    assert isinstance(first["segmentation"], dict)  # it has a hole
    assert sorted(map(len, second["segmentation"])) == [8, 8, 8]
    np.testing.assert_array_equal(read.annToMask(first).astype(bool), RING)
    np.testing.assert_array_equal(read.annToMask(second).astype(bool), parts)
    assert (second["bbox"], second["area"]) == ([0, 0, 5, 4], 5)
    assert read.cats[first["category_id"]]["name"] == "ring"


@NUMPY_2
@pytest.mark.parametrize("seed", range(5))
def test_pycocotools_fills_polygons_with_the_same_pixels(seed, tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    mask = gaussian_filter(np.random.default_rng(seed).normal(size=(60, 90)), 3) > 0.05
    mask = binary_fill_holes(mask)
    held = written("coco", tmp_path / "x.json", [segmented("a.png", thing=mask)])
    assert isinstance(held["annotations"][0]["segmentation"], list)
    read = coco.COCO(str(tmp_path / "x.json"))
    capsys.readouterr()
    np.testing.assert_array_equal(read.annToMask(read.loadAnns(1)[0]).astype(bool), mask)


def test_coco_has_what_cvats_importer_asks_for(tmp_path):
    """As datumaro's importer, by which CVAT reads COCO: types, and names within their folder."""
    rows = [detected(str(tmp_path / "p" / "a.png"), ("cat", 0, 0, 1, 1)), segmented("a", x=RING)]
    for row in rows:
        held = written("coco", tmp_path / f"{row['schema'][9:12]}.json", [row])
        assert {"images", "annotations", "categories"} <= held.keys()
        for image in held["images"]:
            assert all(type(image[key]) is int for key in ("id", "width", "height"))
            name = Path(image["file_name"])
            assert not name.is_absolute()
            assert ".." not in name.parts
        assert all(type(c["id"]) is int and type(c["name"]) is str for c in held["categories"])
        for mark in held["annotations"]:
            assert all(
                type(mark[key]) is int for key in ("id", "image_id", "category_id", "iscrowd")
            )
            assert mark["image_id"] in {image["id"] for image in held["images"]}
            assert mark["category_id"] in {c["id"] for c in held["categories"]}
            assert len(mark["bbox"]) == 4


# YOLO


def test_yolo_by_hand(tmp_path):
    rows = [
        detected("p/a.png", ("dog", 1, 2, 4, 8), ("cat", 0, 0, 10, 20)),
        failed("p/b.png"),
        detected("p/empty.jpg"),
    ]
    folder = written("yolo", tmp_path / "x", rows, ["cat", "dog"])
    assert (folder / "labels/p/a.txt").read_text().splitlines() == [
        "1 0.250000 0.250000 0.300000 0.300000",
        "0 0.500000 0.500000 1.000000 1.000000",
    ]
    assert (folder / "labels/p/empty.txt").read_text() == ""
    assert not (folder / "labels/p/b.txt").exists()
    config = yaml.safe_load((folder / "data.yaml").read_text())
    assert config == {"train": "images", "val": "images", "names": {0: "cat", 1: "dog"}}


def test_yolo_has_a_line_for_each_part_with_its_holes_cut_in(tmp_path):
    folder = written("yolo", tmp_path / "x", [segmented("a.png", ring=RING)])
    again = np.zeros(RING.shape, int)
    for line in (folder / "labels/a.txt").read_text().splitlines():
        number, *values = line.split()
        assert number == "0"
        again += inside(np.array(values, float).reshape(-1, 2) * [5, 4], 4, 5)
    np.testing.assert_array_equal(again, RING)


def test_yolo_links_images_that_are_the_ones_of_their_rows(tmp_path, monkeypatch):
    """A row may name any file, as a label in an archive does; only its content tells."""
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    shutil.copy(HEART, "p/a.png")
    Path("p/secret").write_text("not an image")
    heart = hashlib.sha256(HEART.read_bytes()).hexdigest()
    rows = [
        detected("p/a.png", ("cat", 0, 0, 1, 1), id=heart),
        detected("p/secret", id=heart),
        detected("p/x.tar/../../../etc/passwd"),
        detected("https://a.b/c d/images/e.jpg?sig=***"),
        detected("p/pipe.png"),
    ]
    os.mkfifo("p/pipe.png")
    notes = exporting.export("yolo", Path("x"), annotations(rows), {})
    links = [path for path in Path("x").rglob("*") if path.is_symlink()]
    assert [(str(link), link.resolve()) for link in links] == [
        (f"x/images/{tmp_path.name}/p/a.png", tmp_path / "p/a.png")
    ]
    assert "4 images of 'x' without a link" in notes[0]
    assert len(list(Path("x/labels").rglob("*.txt"))) == 5
    assert all(tmp_path / "x" in path.absolute().parents for path in Path("x").rglob("*"))


def test_yolo_finds_the_labels_of_odd_names(tmp_path, monkeypatch):
    """By the rule of its readers: the last folder `images` becomes `labels`."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(ODD):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(name, "PNG")
    rows = [
        detected(n, ("x", 0, 0, i + 1, 1), id=hashlib.sha256(Path(n).read_bytes()).hexdigest())
        for i, n in enumerate(ODD)
    ]
    written("yolo", tmp_path / "x", [*rows, rows[0]])
    found = [str(path) for path in Path("x/images").rglob("*") if path.is_symlink()]
    assert len(found) == len(ODD)
    for name in found:
        label = "/labels/".join(name.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"
        with Image.open(name) as image:
            number = image.getpixel((0, 0))[0]
        width = float(Path(label).read_text().split()[3])
        assert width == pytest.approx((number + 1) / 10)


def test_labels_of_any_kind(tmp_path):
    rows = [detected("a.png", *((label, 0, 0, 1, 1) for label in EVIL))]
    folder = written("yolo", tmp_path / "x", rows, EVIL)
    assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == dict(enumerate(EVIL))
    held = written("coco", tmp_path / "x.json", rows, EVIL)
    assert [c["name"] for c in held["categories"]] == EVIL
    (task,) = written("label-studio", tmp_path / "l.json", rows, EVIL)
    shapes = task["predictions"][0]["result"]
    assert [shape["value"]["rectanglelabels"][0] for shape in shapes] == EVIL
    tree = ElementTree.fromstring((tmp_path / "l.xml").read_text())
    assert [label.get("value") for label in tree.iter("Label")] == EVIL


# Label Studio


def unpacked(rle):
    """thi.ng's rle-pack, read as its source does: https://github.com/thi-ng/umbrella."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def read(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out = []
    while len(out) < number:
        same, length = read(1), 0
        length = read(sizes[read(2)]) + 1
        out += [read(word)] * length if same else [read(word) for _ in range(length)]
    return np.array(out)


@pytest.mark.parametrize("mask", [RING, np.ones((150, 200), bool), np.zeros((1, 1), bool)])
def test_a_brush_is_the_mask(mask):
    rle = label_studio.brush(mask)
    values = unpacked(rle).reshape(*mask.shape, 4)
    np.testing.assert_array_equal(values, np.repeat(mask[..., None] * 255, 4, -1))


def test_label_studio_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        detected("p/a b.png", ("dog", 1, 2, 4, 8)),
        detected("https://a.b/c.png"),
        failed("p/c.png"),
    ]
    first, second = written("label-studio", tmp_path / "x.json", rows, ["cat", "dog"], model="m")
    folder = str(tmp_path).lstrip("/")
    assert first["data"]["image"] == f"/data/local-files/?d={folder}/p/a%20b.png"
    assert second["data"]["image"] == "https://a.b/c.png"
    (prediction,) = first["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("m", 0.5)
    (shape,) = prediction["result"]
    assert shape["value"] == {
        **{"x": 10, "y": 10, "width": 30, "height": 30, "rotation": 0},
        "rectanglelabels": ["dog"],
    }
    assert (shape["original_width"], shape["original_height"]) == (10, 20)
    assert second["predictions"][0]["result"] == []
    tree = ElementTree.fromstring((tmp_path / "x.xml").read_text())
    control = tree.find("RectangleLabels")
    assert [x.get("value") for x in control] == ["cat", "dog"]
    assert (shape["from_name"], shape["to_name"]) == (control.get("name"), control.get("toName"))
    assert tree.find("Image").get("value") == "$image"


@pytest.mark.parametrize("several", [False, True])
def test_label_studio_has_choices(several, tmp_path):
    labels = [{"label": x, "score": s, "cosine": 0.1} for x, s in (("cat", 0.75), ("dog", 0.25))]
    row = {"schema": "zeroshot.classify/1", "path": "a.png", "id": "1", "scored": "softmax"}
    rows = [row | {"labels": labels, "abstained": False}]
    rows.append(row | {"path": "b.png", "labels": labels, "abstained": True})
    held = written("label-studio", tmp_path / "x.json", rows, ["dog", "cat"], several=several)
    (first,), (second,) = (task["predictions"] for task in held)
    chosen = ["cat", "dog"] if several else ["cat"]
    assert first["result"][0]["value"] == {"choices": chosen}
    assert first["score"] == (0.5 if several else 0.75)
    assert second["result"] == []
    config = (tmp_path / "x.xml").read_text()
    assert f'choice="{"multiple" if several else "single"}"' in config
    with pytest.raises(UserError, match="no place for labels of whole images; take --label-studio"):
        exporting.check("yolo", tmp_path / "y", row["schema"], False, False)


# Names


def test_names_are_relative(tmp_path, monkeypatch):
    def names(*paths, root=None):
        rows = [detected(str(path)) for path in paths]
        name = annotations(rows, root=root).relative()
        return [name(str(path)) for path in paths]

    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    assert names("p/a.png", tmp_path / "w/b.png") == ["p/a.png", "b.png"]
    assert names("p/a.png", "../q/b.png") == ["w/p/a.png", "q/b.png"]
    assert names("p/a.png", "p/r/b.png", root=Path("p")) == ["a.png", "r/b.png"]
    assert names("https://a.b/c.png", "p/a.png", root=Path("p")) == ["https://a.b/c.png", "a.png"]
    with pytest.raises(UserError, match=r"'a\.png' is not in '.*p'.*--export-root"):
        names("a.png", root=Path("p"))


# Runs


def test_turned_photographs_are_annotated_as_they_are_seen(zeroshot, tmp_path, monkeypatch):
    """Browsers, CVAT and YOLO's readers turn an image as its EXIF says, and so do rows."""
    monkeypatch.chdir(tmp_path)
    wide = Image.new("RGB", (192, 128), "white")
    with Image.open(HEART) as heart:
        wide.paste(heart.convert("RGB"), (64, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees with the clock
    wide.transpose(Image.Transpose.ROTATE_90).save("turned.jpg", exif=exif, quality=95)
    wide.save("stored.jpg", quality=95)
    code, _, said = zeroshot(
        *(
            "detect",
            "turned.jpg",
            "stored.jpg",
            *LABELS,
            *POCKET,
            "--coco",
            "x.json",
            "--yolo",
            "y",
        ),
        *("--label-studio", "l.json"),
    )
    assert code == 0, said
    held = json.loads(Path("x.json").read_text())
    assert [(i["width"], i["height"]) for i in held["images"]] == [(192, 128)] * 2
    with Image.open("turned.jpg") as turned:
        assert turned.size == (128, 192)
    boxes = [a["bbox"] for a in held["annotations"] if a["category_id"] == 1]
    assert boxes[0][0] > 64
    np.testing.assert_allclose(boxes[0], boxes[1], atol=12)
    lines = [Path(f"y/labels/{n}.txt").read_text().split() for n in ("turned", "stored")]
    np.testing.assert_allclose(
        np.array(lines[0][:5], float), np.array(lines[1][:5], float), atol=0.1
    )
    task = json.loads(Path("l.json").read_text())[0]["predictions"][0]["result"][0]
    assert (task["original_width"], task["image_rotation"]) == (192, 0)


def ask(kind, out=None, *more):
    given = (kind, "p", *LABELS, *POCKET[:3], *more)
    if kind != "classify":
        given += POCKET[3:]
    return given if out is None else (*given, "--out", out)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    shutil.copy(HEART, "p")
    Path("p/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def held(path):
    """What an export says: without when it was made."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(f): f.read_bytes() for f in files if f.name != "run.json"}


@pytest.mark.parametrize(
    ("kind", "out"),
    [
        ("detect", "rows.jsonl"),
        ("segment", "rows.csv"),
        ("classify", "rows.parquet"),
        ("classify", "shards/"),
    ],
)
def test_a_run_that_continues_and_rows_that_are_there(kind, out, zeroshot, pictures):
    if out == "rows.parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    exports = ["--label-studio", "l.json"]
    if kind != "classify":
        exports += ["--coco", "c.json", "--yolo", "y"]
    plain = ask(kind, None, *exports, "--quiet")
    assert zeroshot(*plain)[0] == 3
    alone = [held(Path(path)) for path in exports[1::2]]
    for path in exports[1::2]:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
    Path("l.xml").unlink()
    assert zeroshot(*ask(kind, out, *exports))[0] == 3
    assert [held(Path(path)) for path in exports[1::2]] == alone  # by --out, or without it
    code, _, said = zeroshot(*ask(kind, out, *exports))
    assert code == 0, said  # replaces its own
    if out == "shards/":
        return
    shutil.copy(STAR, "p")
    code, _, said = zeroshot(*ask(kind, out, *exports))
    assert code == 0, said
    assert len(json.loads(Path("l.json").read_text())) == 2
    again = [f"2{path}" for path in exports[1::2]]
    more = [word for pair in zip(exports[::2], again, strict=True) for word in pair]
    code, _, said = zeroshot("export", out, *more)
    assert code == 0, said
    for path, other in zip(exports[1::2], again, strict=True):
        assert list(held(Path(path)).values()) == list(held(Path(other)).values())
    record = json.loads(Path("l.json.run.json").read_text())
    assert record["classes"] == ["red heart", "blue star"]
    assert record["models"]


def test_what_was_changed_is_not_replaced(zeroshot, pictures):
    run = ask("detect", "rows.jsonl", "--coco", "c.json", "--yolo", "y")
    assert zeroshot(*run)[0] == 3
    Path("c.json").write_text("mine")
    code, _, said = zeroshot(*run)
    assert (code, Path("c.json").read_text()) == (2, "mine")
    assert "'c.json' exists and is not as an earlier run wrote it" in said
    Path("c.json").unlink()
    Path("y/labels/p/broken.txt").write_text("0 0 0 1 1\n")
    code, _, said = zeroshot(*run)
    assert (code, "'y' exists and is not as an earlier run" in said) == (2, True)
    code, _, said = zeroshot("export", "rows.jsonl", "--yolo", "y")
    assert (code, "'y' exists; --overwrite" in said) == (2, True)
    assert zeroshot("export", "rows.jsonl", "--yolo", "y", "--overwrite")[0] == 0
    assert not Path("y/labels/p/broken.txt").exists()


def test_no_folder_of_others_is_replaced(zeroshot, pictures):
    assert zeroshot(*ask("detect", "rows.jsonl"))[0] == 3
    before = held(Path("p"))
    for path in ("p", "rows.jsonl"):
        code, _, said = zeroshot("export", "rows.jsonl", "--yolo", path, "--overwrite")
        assert code == 2, said
    assert held(Path("p")) == before
    Path("empty").mkdir()
    assert zeroshot("export", "rows.jsonl", "--yolo", "empty", "--overwrite")[0] == 0
    Path("empty/labels/p.cache").write_bytes(b"of ultralytics")
    assert zeroshot("export", "rows.jsonl", "--yolo", "empty", "--overwrite")[0] == 0
    Path("empty/images/mine.jpg").write_bytes(b"x")
    code, _, said = zeroshot("export", "rows.jsonl", "--yolo", "empty", "--overwrite")
    assert (code, "has files that no --yolo wrote ('images/mine.jpg')" in said) == (2, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export rows.jsonl", "export needs --coco, --yolo or --label-studio"),
        ("export rosw.jsonl --coco c.json", "did you mean 'rows.jsonl'"),
        ("export p --coco c.json", "no folder of rows"),
        ("export bad.jsonl --coco c.json", "'bad.jsonl' line 2 is no row"),
        ("export box.jsonl --coco c.json", "the row of 'a.png' has boxes of another form"),
        ("export less.jsonl --coco c.json", "the row of 'a.png' has no 'boxes'"),
        ("export t.csv --coco c.json", "has no t.csv.run.json beside it"),
        ("export rows.jsonl --coco c.txt", "the file is a .json file"),
        ("export captions.jsonl --coco c.json", "no place for rows of zeroshot.caption/1"),
        ("export rows.jsonl --coco c.json --label-studio c.json", "its own path"),
        ("detect p --labels a --export-root p", "is for annotation files"),
        ("detect p --labels a --out d/ --yolo d", "needs a path of its own"),
        ("detect p --labels a --out d/ --shards 1/2 --coco c.json", "--shards"),
        ("detect p --labels a --coco c.json --export-root rows.jsonl", "is no folder"),
        ("detect p --labels a --yolo p --overwrite", "has files that no --yolo wrote"),
        ("classify p --labels a --multi --label-studio l.json", "give --threshold"),
        ("classify p --labels a --compare a,b --label-studio l.json", "one method"),
    ],
)
def test_wrong_usage(line, said, zeroshot, pictures, monkeypatch):
    row = detected("a.png", ("cat", 0, 0, 1, 1))
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    Path("bad.jsonl").write_text(json.dumps(row) + '\n{"path": "a')
    Path("box.jsonl").write_text(json.dumps(detected("a.png", ("cat", 0, 0, 99, 1))) + "\n")
    Path("less.jsonl").write_text(json.dumps({k: v for k, v in row.items() if k != "boxes"}) + "\n")
    Path("t.csv").write_text("path,label\na.png,cat\n")
    Path("captions.jsonl").write_text('{"schema": "zeroshot.caption/1", "path": "a.png"}\n')
    before = sorted(Path().rglob("*"))
    monkeypatch.setattr(Detect, "open", lambda *x: pytest.fail("a model was loaded"))
    code, _, err = zeroshot(*line.split(), *(() if line.startswith("export") else POCKET[:3]))
    assert (code, said in err) == (2, True), err
    assert sorted(Path().rglob("*")) == before


def test_a_mask_that_lies_about_its_size_is_refused(tmp_path):
    row = segmented("a.png", x=RING)
    row["regions"][0]["rle"]["size"] = [10**6, 10**6]
    with pytest.raises(UserError, match="a mask of another size than 5 x 4"):
        written("coco", tmp_path / "x.json", [row])
    row["width"] = row["height"] = 10**6
    with pytest.raises(UserError, match="a size of 1000000 x 1000000"):
        written("yolo", tmp_path / "x", [row])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"boxes": None}, "None is no list"),
        ({"boxes": {}}, "{} is no list"),
        ({"boxes": "[" * 100_000}, "of another form"),
        ({"boxes": [{"label": "a", "score": float("inf"), "box": [0, 0, 1, 1]}]}, "a score inf"),
        ({"boxes": [{"label": "a", "score": 1, "rle": {"size": [20, 10], "counts": 5}}]}, "mask 5"),
        ({"id": 7}, "an id 7"),
    ],
)
def test_rows_that_no_command_writes(edit, said, tmp_path):
    with pytest.raises(UserError, match=re.escape(said)):
        written("coco", tmp_path / "x.json", [detected("a.png") | edit])
    assert list(tmp_path.iterdir()) == []


def test_ids_name_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [detected("a.png"), detected("a.png", id="/../../x")]
    exporting.export("yolo", tmp_path / "y", annotations(rows), {})
    assert sorted(p.name for p in (tmp_path / "y" / "labels").iterdir()) == [
        "a-_______x.txt",
        "a.txt",
    ]


def test_an_endless_number_of_a_mask():
    with pytest.raises(UserError, match="more pixels than any image"):
        coco_rle.decode({"size": [2, 2], "counts": "o" * 1_000_000})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "line 1 is no row: it is nested too deeply"),
        (json.dumps(detected("a.png") | {"models": "x"}), "models of another form: 'x'"),
        (json.dumps(detected("a.png") | {"models": [1]}), "models of another form: [1]"),
    ],
)
def test_files_that_no_command_writes(text, said, zeroshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(text + "\n")
    code, _, err = zeroshot("export", "rows.jsonl", "--coco", "x.json")
    assert code == 2
    assert said in err


# Folders that are written whole


def test_a_folder_appears_when_its_block_is_done(tmp_path):
    for text in ("one", "two"):
        with atomic.whole_folder(tmp_path / "x", overwrite=True) as folder:
            folder.write(f"in/{text}", text.encode())
            assert not (tmp_path / "x" / "in" / text).exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "in", "two"]
    for name in ("../y", "/y", "a/../../y"):
        with pytest.raises(ValueError, match="not below"):
            folder.write(name, b"")
    with pytest.raises(UserError, match="exists; --overwrite"), atomic.whole_folder(tmp_path / "x"):
        pass
    error = OSError(28, "No space left on device")
    with pytest.raises(OutputError), atomic.whole_folder(tmp_path / "x", overwrite=True):
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "in", "two"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".x.00000000-1-1-00000000.new"
    if os.fork() == 0:
        with atomic.whole_folder(tmp_path / "x") as folder:
            folder.write("half", b"")
            os._exit(9)
    os.wait()
    assert left.name != next(tmp_path.iterdir()).name
    atomic._swept.clear()
    with atomic.whole_folder(tmp_path / "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_archive_has_labels_for_its_images(zeroshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open("a.tar", "w") as tar:
        data = HEART.read_bytes()
        info = tarfile.TarInfo("in/heart.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    code, _, said = zeroshot("detect", "a.tar", *LABELS, *POCKET, "--yolo", "y")
    assert code == 0
    assert "1 image of 'y' without a link" in said
    (label,) = Path("y/labels").rglob("*.txt")
    assert label.stem == "heart"
    assert label.read_text().startswith("0 ")


def test_rows_of_yolo_cut_to_the_image():
    row = detected("a.png", ("x", 0, 0, 10.005, 20))
    (image,) = annotations([row]).images()
    (line,) = yolo_annotations._lines(image, image.marks[0], {"x": 0})
    assert line == "0 0.500250 0.500000 1.000000 1.000000\n"
