"""`detect` as a person uses it: on the pocket set, and on tiny models of the real classes."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zeroshot as package
from tests.models import tiny
from tests.tools import world
from zeroshot.errors import UserError
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks.localization.detect_options import DetectOptions
from zeroshot.tasks.localization.detection import Detect

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART = SCENES / "1-red-heart.png"
BACKGROUND = "background,white background,black background"


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """The directory of a tiny model, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(name):
        if name not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[name] = {**tiny.DETECTORS, **tiny.SEGMENTERS}[name](root / name)
        return f"hf:{made[name]}"

    return get


def command(*more, labels="red heart,blue star"):
    return (
        *("detect", *more, "--models", "pocket", "--labels", labels),
        *("--background", BACKGROUND, "--json"),
    )


def test_a_heart_is_where_it_is(zeroshot, tmp_path):
    code, rows, _ = zeroshot(
        *command(HEART, "--draw", tmp_path / "drawn", "--coco", tmp_path / "boxes.json")
    )
    assert code == 0
    (row,) = rows
    assert row["schema"] == "zeroshot.detect/1"
    assert (row["width"], row["height"], row["method"]) == (128, 128, "regions")
    best = row["boxes"][0]
    assert best["label"] == "red heart"
    pixels = np.asarray(Image.open(HEART).convert("RGB")).astype(int)
    down, across = ((pixels[..., 0] > 150) & (pixels[..., 1] < 120)).nonzero()
    truth = (across.min(), down.min(), across.max() + 1, down.max() + 1)
    assert np.abs(np.array(best["box"]) - truth).max() < 10
    with Image.open(tmp_path / "drawn" / row["drawn"]) as picture:
        assert picture.width == 384
    held = json.loads((tmp_path / "boxes.json").read_text())
    assert [c["name"] for c in held["categories"]] == ["red heart", "blue star"]
    assert len(held["annotations"]) == len(row["boxes"])
    assert held["annotations"][0]["bbox"][2] == pytest.approx(best["box"][2] - best["box"][0])


def test_labels_are_encoded_once(zeroshot):
    assert zeroshot(*command(HEART))[0] == 0
    _, _, said = zeroshot(*command(SCENES, "-v"))
    assert "0 texts encoded, 175 from the cache" in said


def test_batched_as_one_by_one(zeroshot):
    _, together, _ = zeroshot(*command(SCENES))
    _, alone, _ = zeroshot(*command(SCENES, "--batch-size", 1))
    assert len(together) == 8
    for row, other in zip(together, alone, strict=True):
        for one, same in zip(row["boxes"], other["boxes"], strict=True):
            assert one["label"] == same["label"]
            assert one["box"] == same["box"]
            assert one["score"] == pytest.approx(same["score"], abs=1e-4)


def test_windows_find_too(zeroshot):
    code, rows, _ = zeroshot(*command(HEART, "--regions", "windows"))
    assert code == 0
    assert rows[0]["boxes"][0]["label"] == "red heart"


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_detection_models_from_disk(name, zeroshot, model_of, tmp_path):
    """By the command and in Python, the same rows; boxes within pictures, best first."""
    asked = ("--labels", "a cat,two dogs", "--templates", "none", "--threshold", 0.3)
    arguments = (*asked, "--model", model_of(name))
    code, rows, said = zeroshot("detect", SCENES, *arguments, "--draw", tmp_path, "--json", "-v")
    assert code == 0
    assert "2 texts encoded" in said
    assert any(row["boxes"] for row in rows)
    results = package.detect(
        SCENES, "a cat,two dogs", model=model_of(name), templates="none", threshold=0.3
    )
    for row, result in zip(rows, results, strict=True):
        assert row["method"] == "native"
        assert (tmp_path / row["drawn"]).is_file()
        assert [box["score"] for box in row["boxes"]] == [b["score"] for b in result.row()["boxes"]]
        scores = [box["score"] for box in row["boxes"]]
        assert scores == sorted(scores, reverse=True)
        for box in row["boxes"]:
            left, top, right, bottom = box["box"]
            assert 0 <= left <= right <= row["width"]
            assert 0 <= top <= bottom <= row["height"]


@pytest.mark.parametrize("name", ["owlvit", "owlv2"])
def test_a_query_image(name, zeroshot, model_of):
    arguments = ("--query-image", HEART, "--model", model_of(name), "--threshold", 0, "--json")
    code, rows, _ = zeroshot("detect", SCENES, *arguments)
    assert code == 0
    assert {box["label"] for row in rows for box in row["boxes"]} == {"query"}
    two = package.detect(
        HEART, query_images=[HEART, SCENES / "2-blue-star.png"], model=model_of(name), threshold=0.0
    )
    assert {box.label for box in two[0].boxes} == {"1-red-heart", "2-blue-star"}


def test_a_sentence(zeroshot, model_of, tmp_path):
    sentence = "A red heart beside a star"
    arguments = ("--sentence", sentence, "--model", model_of("grounding_dino"))
    code, rows, _ = zeroshot(
        *("detect", HEART, *arguments, "--threshold", 0.3, "--word-threshold", 0.3),
        *("--coco", tmp_path / "boxes.json", "--json"),
    )
    assert code == 0
    for box in rows[0]["boxes"]:
        assert box["label"] == " ".join(sentence[b:e] for b, e in box["spans"])
    names = [c["name"] for c in json.loads((tmp_path / "boxes.json").read_text())["categories"]]
    assert set(names) == {box["label"] for box in rows[0]["boxes"]}


@pytest.mark.parametrize("name", tiny.SEGMENTERS)
def test_segmentation_models_from_disk(name, zeroshot, model_of, tmp_path):
    arguments = ("--labels", "a cat,sky", "--model", model_of(name), "--threshold", 0.2)
    code, rows, said = zeroshot("segment", SCENES, *arguments, "--masks", tmp_path, "--json", "-v")
    assert code == 0
    assert "2 texts encoded" in said
    results = package.segment(SCENES, "a cat,sky", model=model_of(name), threshold=0.2)
    assert any(row["regions"] for row in rows)
    for row, result in zip(rows, results, strict=True):
        assert row["method"] == "native"
        assert row["regions"] == result.row()["regions"]
        with Image.open(tmp_path / row["mask"]) as mask:
            assert mask.size == (row["width"], row["height"])
    _, _, said = zeroshot("segment", HEART, *arguments, "--json", "-v")
    assert "0 texts encoded, 2 from the cache" in said


def test_examples_mix_with_words(model_of, tmp_path):
    """CLIPSeg: words alone, pictures alone, and half of each differ; no weight is no example."""
    (tmp_path / "sky").mkdir()
    (tmp_path / "sky" / "a.png").write_bytes(HEART.read_bytes())

    def region(mix):
        results = package.segment(
            HEART,
            ["a cat", "sky"],
            model=model_of("clipseg"),
            threshold=0.0,
            examples=tmp_path,
            mix=mix,
        )
        return results[0].row()["regions"]

    plain = package.segment(HEART, ["a cat", "sky"], model=model_of("clipseg"), threshold=0.0)
    assert region(0.0) == plain[0].row()["regions"]
    assert region(0.5) != region(0.0)
    assert region(0.5) != region(1.0)


def test_a_picture_that_cannot_be_read_is_a_row(zeroshot, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "good.png").write_bytes(HEART.read_bytes())
    code, rows, _ = zeroshot(
        *command(tmp_path, "--coco", tmp_path.parent / f"{tmp_path.name}.json")
    )
    assert code == 3
    assert rows[0]["error"]["type"] == "UnreadableImage"
    assert rows[1]["boxes"]
    held = json.loads((tmp_path.parent / f"{tmp_path.name}.json").read_text())
    assert len(held["images"]) == 1


def test_tables_and_going_on(zeroshot, tmp_path):
    out = tmp_path / "rows.csv"
    assert zeroshot(*command(HEART, "--out", out))[0] == 0
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert json.loads(row["boxes"])[0]["label"] == "red heart"
    code, rows, _ = zeroshot(*command(HEART, SCENES / "2-blue-star.png", "--out", out))
    assert code == 0
    assert len(rows) == 1
    code, _, said = zeroshot(*command(HEART, "--out", out, "--overlap", 0.1))
    assert code == 2
    assert "overlap was 0.5, is 0.1" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--sentence", "a cat"), "give one of them"),
        (("--encoder", "coupled", "--regions", "dense"), "no embeddings of patches"),
        (("--encoder", "coupled", "--resolution", "64"), "no embeddings of patches"),
        (("--coupling", "csa"), "needs no coupling; --encoder coupled"),
        (("--coco", HEART), "exists; --overwrite"),
        (("--templates", "simpel"), "did you mean 'simple'"),
        (("--resolution", "4"), "patches of"),
    ],
)
def test_wrong_usage(zeroshot, more, said):
    code, _, err = zeroshot(*command(HEART, *more))
    assert code == 2
    assert said in err


def test_what_needs_a_detection_model(zeroshot, model_of):
    code, _, err = zeroshot("detect", HEART, "--models", "pocket", "--sentence", "a cat")
    assert (code, "needs a detection model" in err) == (2, True)
    code, _, err = zeroshot("detect", HEART, "--model", model_of("owlvit"), "--sentence", "a cat")
    assert (code, "reads labels, not sentences" in err) == (2, True)
    code, _, err = zeroshot("detect", HEART, "--model", model_of("owlvit"))
    assert (code, "give one of them" in err) == (2, True)
    code, _, err = zeroshot(
        "detect", HEART, "--model", model_of("owlvit"), "--labels", "a", "--templates", "simple"
    )
    assert (code, "one prompt per label" in err) == (2, True)
    code, _, err = zeroshot("detect", HEART, "--model", model_of("clipseg"), "--labels", "a")
    assert (code, "is a segmenter, not a detector" in err) == (2, True)


def test_a_model_that_is_not_here(zeroshot):
    code, _, err = zeroshot("detect", HEART, "--labels", "a", "--model", "hf:google/owlvit-none")
    assert code == 4
    assert "is not available" in err


def test_a_task_travels():
    task = Detect.from_options(resolve("pocket"), DetectOptions("a", draw=Path("x")))
    assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(UserError, match="give one of them"):
        package.detect(HEART, models="pocket")


def test_boxes_of_drawn_scenes():
    """The renderer knows every box: 12 scenes, the labels of each picture, nothing else given."""
    found = world("dense").detection(scenes=12, seed=5)
    assert found.best > 0.7
    assert found.precision_by_rank > 0.8
    assert found.precision > 0.8


def test_average_precision_by_hand():
    """Right, wrong, right of three things: 1/3 at precision 1, 1/3 at 2/3, 1/3 never."""
    average_precision = world("dense").average_precision
    assert average_precision([(0.5, True), (0.9, True), (0.7, False)], 3) == pytest.approx(5 / 9)
    assert average_precision([(0.5, True), (0.9, False)], 1) == 0.5
    assert average_precision([], 3) == 0


def test_what_is_not_there_has_no_box(zeroshot):
    """Nothing given but labels: a box around each of the two things, none in the other scenes."""
    found = package.detect(SCENES, ["red heart", "blue star"], "pocket")
    assert [len(result.boxes) for result in found[:6]] == [1, 1, 0, 0, 0, 0]
    for result, truth in ((found[0], (12, 12, 65, 59)), (found[1], (50, 52, 82, 82))):
        assert np.abs(np.array(result.boxes[0].box) - truth).max() < 4
    code, rows, _ = zeroshot(
        *("detect", SCENES, "--models", "pocket", "--labels", "red heart,blue star", "--json"),
        *("--background", "none"),
    )
    assert code == 0
    assert rows[0]["boxes"]
