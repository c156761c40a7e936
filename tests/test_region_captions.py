"""Captions of regions: the caption of a box is that of the part of the image that it covers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import zeroshot as package
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Picture
from zeroshot.methods import Caption
from zeroshot.report.galleries.row_gallery import gallery
from zeroshot.report.result_files import load_results
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.captioning.caption_task import caption_task
from zeroshot.tasks.captioning.region_captions import ImageBoxes, cut, read_boxes

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
TWO = str(SCENES / "4-yellow-circle-purple-cross.png")  # 128 x 128
HEART = str(SCENES / "1-red-heart.png")
BOXES = [(0, 0, 64, 64), (40.5, 30, 128, 128)]


@pytest.fixture(scope="module")
def pocket():
    return package.load("pocket")


@pytest.fixture(scope="module")
def numbered():
    """8 x 6 pixels, each of which says where it is."""
    rows, columns = np.mgrid[:6, :8]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], 2).astype(np.uint8))


@pytest.mark.parametrize(
    ("box", "margin", "corners"),
    [
        ((2, 1, 6, 5), 0, (2, 1, 6, 5)),
        ((2.5, 1.2, 5.5, 4.9), 0, (2, 1, 6, 5)),  # every pixel that it touches
        ((3, 2, 5, 4), 0.5, (2, 1, 6, 5)),
        ((3, 2, 5, 4), 0.25, (2, 1, 6, 5)),  # half a pixel more on each side
        ((0, 1, 4, 5), 0.25, (0, 0, 5, 6)),  # as far as the image goes
        ((7, 5, 8, 6), 10, (0, 0, 8, 6)),
    ],
)
def test_what_is_cut_out_by_hand(numbered, box, margin, corners):
    part = np.asarray(cut(Picture("id", numbered), box, margin).image)
    left, top, right, bottom = corners
    assert part.shape == (bottom - top, right - left, 3)
    assert (part[0, 0, :2] == (left, top)).all()
    assert (part[-1, -1, :2] == (right - 1, bottom - 1)).all()


def test_boxes_are_in_pixels_of_the_file_if_it_was_decoded_smaller(numbered):
    part = cut(Picture("id", numbered, (32, 24)), (8, 4, 24, 20), 0)
    assert part.image.tobytes() == numbered.crop((2, 1, 6, 5)).tobytes()


def test_each_part_of_each_image_has_an_id_of_its_own(numbered):
    whole = (0, 0, 8, 6)
    ids = [cut(Picture(i, numbered), b, 0).id for i in "ab" for b in (whole, (0, 0, 8, 5))]
    assert len({*ids, "a", "b"}) == 6


def test_a_box_outside_is_refused(numbered):
    with pytest.raises(
        UnreadableImageError, match=r"the box 0,0,8\.5,6 is not within 8 x 6 pixels"
    ):
        cut(Picture("id", numbered), (0, 0, 8.5, 6), 0)


@pytest.mark.parametrize(
    "given",
    [
        "1,2,3,4.5",
        (1, 2, 3, 4.5),
        [(1, 2, 3, 4.5)],
        ["1, 2, 3, 4.5"],
        np.array([1, 2, 3, 4.5]),
        np.array([[1, 2, 3, 4.5]]),
        [np.float32(x) for x in (1, 2, 3, 4.5)],
    ],
)
def test_one_box_or_several(given):
    assert read_boxes(given) == ((1, 2, 3, 4.5),)
    assert read_boxes({"a": given}) == {"a": ImageBoxes(((1, 2, 3, 4.5),))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1,2,3", "'1,2,3' is no box; a box is left, top"),
        (["1,2,3,4", "a,b,c,d"], "'a,b,c,d' is no box"),
        ((1, 2, 3), "is no box"),
        ([[1, 2, 3, 4, 5]], "is no box"),
        (7, "7 is no box"),
        ([None], "is no box"),
        ("0,0,nan,5", "no finite number"),
        ("0,0,inf,5", "no finite number"),
        ("-1,0,5,5", "begins outside"),
        ("5,0,5,5", "is empty"),
        ([(0, 6, 5, 5)], "is empty"),
        ([], "there are no boxes"),
        ({}, "there are no boxes"),
        ({"a.png": "1,2"}, "is no box"),
    ],
)
def test_other_boxes_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        read_boxes(given)


@dataclass(frozen=True)
class Bright:
    """A method that says how the embedding begins."""

    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()

    def caption(self, images, encoder, **more):
        return [Caption(f"{x:.3f}", float(x)) for x in images[:, 0]]


@pytest.mark.parametrize("method", ["magic", Bright()], ids=["magic", "no texts"])
def test_a_region_is_captioned_as_the_image_that_it_is(pocket, method):
    found = package.caption([HEART, TWO], pocket, method, box=BOXES, margin=0, cache=False)
    corners = [(0, 0, 64, 64), (40, 30, 128, 128)]
    for path, one in zip([HEART, TWO], found, strict=True):
        parts = [Image.open(path).convert("RGB").crop(place) for place in corners]
        alone = package.caption(parts, pocket, method, cache=False)
        assert [r.caption for r in one.regions] == [x.caption for x in alone]
        assert [r.score for r in one.regions] == pytest.approx([x.score for x in alone], abs=1e-5)
        assert [r.box for r in one.regions] == BOXES
        assert (one.path, one.width, one.height, one.caption) == (path, 128, 128, None)
    assert len({r.caption for one in found for r in one.regions}) > 2


def test_the_margin_is_seen(pocket):
    wide = package.caption(TWO, pocket, box=(16, 16, 48, 48), margin=1, cache=False)
    part = Image.open(TWO).convert("RGB").crop((0, 0, 80, 80))
    (alone,) = package.caption([part], pocket, cache=False)
    assert wide[0].regions[0].score == pytest.approx(alone.score, abs=1e-5)


def test_rows_tables_and_traces_say_the_box(pocket):
    found = package.caption(TWO, pocket, "magic", box=BOXES, trace=True, cache=False)
    (row,) = found.rows()
    assert row["schema"] == "zeroshot.regions/1"
    assert [r["box"] for r in row["regions"]] == [list(box) for box in BOXES]
    assert row["id"] == package.embed(TWO, pocket)[0].id
    assert [t["box"] for t in found[0].trace_rows()] == [list(box) for box in BOXES]
    texts = [t["caption"] for t in found[0].trace_rows()]
    assert all(t["steps"][-1]["text"] in t["caption"] for t in found[0].trace_rows())
    assert texts == [r["caption"] for r in row["regions"]]
    table = found.to_pandas(long=True)
    assert table["left"].tolist() == [0, 40.5]
    assert table["caption"].tolist() == texts
    assert found[0].summary().splitlines()[1].startswith("40.5,30,128,128 ")


def test_an_image_with_a_box_outside_fails_alone(pocket):
    small = Image.new("RGB", (60, 60), "red")
    bad, good = package.caption([small, HEART], pocket, box="0,0,64,64", cache=False)
    assert bad.error.type == "OutsideImage"
    assert "0,0,64,64 is not within 60 x 60 pixels" in bad.error.message
    assert good.error is None


def test_boxes_by_path(pocket):
    boxes = {HEART: [], TWO: [(0, 0, 64, 64)]}
    nothing, one = package.caption([HEART, TWO], pocket, box=boxes, cache=False)
    assert (nothing.regions, nothing.method, len(one.regions)) == ((), "magic", 1)
    assert nothing.row()["models"] == one.row()["models"]
    with pytest.raises(UserError, match=r"no boxes for 1 of 2 images, first for .*1-red-heart"):
        package.caption([HEART, TWO], pocket, box={TWO: (0, 0, 9, 9)}, cache=False)


def test_boxes_of_another_image_are_not_taken(pocket):
    boxes = {HEART: ImageBoxes(((0, 0, 9, 9),), "0" * 64), TWO: ImageBoxes((), missing="no rows")}
    changed, missing = package.caption([HEART, TWO], pocket, box=boxes, cache=False)
    assert (changed.error.type, missing.error.type) == ("ChangedImage", "NoBoxes")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"margin": 1.0}, "a margin is around boxes"),
        ({"box": "0,0,9,9", "prompt": ["a"]}, "regions have one prompt"),
        ({"box": "0,0,9,9", "margin": -1}, "margin is -1"),
        ({"box": "0,0,9,9", "model": "hf:x"}, "belong together"),
    ],
)
def test_options_that_do_not_fit(pocket, more, message):
    with pytest.raises(UserError, match=message):
        package.caption(TWO, pocket, **more)


def test_videos_have_no_boxes():
    with pytest.raises(UserError, match="no box and no margin"):
        package.video.caption(TWO, "pocket", box="0,0,9,9")


def test_settings_and_counts(pocket):
    def runner(**more):
        task = caption_task(pocket, CaptionOptions(**more))
        return task.open(NullCache(), Meter())

    one = runner(box="0,0,64,64")
    assert one.settings()["boxes"] == [[0, 0, 64, 64]]
    assert one.settings()["margin"] == 0.25
    assert runner(box="0,0,64,64", margin=0.5).settings() != one.settings()
    by_path = [runner(box={TWO: (0, 0, size, size)}).settings() for size in (8, 9)]
    assert by_path[0] != by_path[1]
    meter = Meter()
    found = list(runner(box=["0,0,64,64", "1,1,9,9"])(find([TWO, HEART]).sources, meter))
    assert [len(x.regions) for x in found] == [2, 2]
    assert (meter.pictures, meter.failed, meter.images_encoded) == (2, 0, 4)


def test_the_command(zeroshot, tmp_path):
    out = tmp_path / "regions.jsonl"
    line = ["caption", TWO, HEART, "--models", "pocket", "--box", "0,0,64,64", "--out", out]
    assert zeroshot(*line)[0] == 0
    assert zeroshot(*line)[2].startswith("resumed: 2 of 2")
    assert "other settings" in zeroshot(*line, "--box", "1,1,9,9")[2]
    (page,) = load_results([out]).files
    tiles = gallery(page).clusters[0].tiles
    row = json.loads(out.read_text().splitlines()[0])
    assert tiles[0].boxes == [(0.0, 0.0, 64.0, 64.0, row["regions"][0]["caption"])]
    assert tiles[0].size == (128, 128)
    assert "leave the boxes out" in zeroshot(*line[:-2], "--sidecar", "txt")[2]


def test_boxes_that_detect_found(zeroshot, tmp_path):
    rows, broken = tmp_path / "rows.jsonl", tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    looked = ["detect", TWO, broken, "--models", "pocket", "--labels", "yellow circle"]
    zeroshot(*looked, "--out", rows)
    found = json.loads(rows.read_text().splitlines()[0])["boxes"]
    code, shown, error = zeroshot("caption", "--boxes", rows, "--models", "pocket", "--json")
    assert [x["box"] for x in shown[0]["regions"]] == [x["box"] for x in found] != []
    assert shown[0]["path"] == TWO
    assert (code, shown[1]["error"]["type"]) == (3, "UnreadableImage"), error
    more = ["--models", "pocket", "--boxes"]
    assert "no boxes for 1 of 1 image" in zeroshot("caption", HEART, *more, rows)[2]
    assert "give one" in zeroshot("caption", TWO, "--box", "0,0,9,9", *more, rows)[2]
    rows = tmp_path / "captions.jsonl"
    rows.write_text('{"schema": "zeroshot.caption/1", "path": "a.png"}\n')
    assert "rows of detect have boxes" in zeroshot("caption", *more, rows)[2]
