"""`segment` as a person uses it, on the pocket set and its drawn scenes."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zeroshot as package
from tests.tools import world
from zeroshot import cli
from zeroshot.errors import UserError
from zeroshot.model_set.model_set import resolve
from zeroshot.output.formats import pyarrow
from zeroshot.results import coco_rle
from zeroshot.tasks.localization.segment_options import SegmentOptions
from zeroshot.tasks.localization.segmentation import Segment

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART = SCENES / "1-red-heart.png"
LABELS = "red heart,blue star"
BACKGROUND = "background,white background,black background"


@pytest.fixture
def zeroshot(capsys):
    """Run a command; its exit code, the JSON rows of standard output, and standard error."""

    def run(*arguments):
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return code, rows, " ".join(err.split())

    return run


def command(*more):
    return (
        *("segment", *more, "--models", "pocket", "--labels", LABELS),
        *("--background", BACKGROUND, "--json"),
    )


def test_a_heart_is_where_it_is(zeroshot, tmp_path):
    code, rows, _ = zeroshot(
        *command(HEART, "--masks", tmp_path / "masks", "--draw", tmp_path / "drawn")
    )
    assert code == 0
    (row,) = rows
    assert row["schema"] == "zeroshot.segment/1"
    assert (row["width"], row["height"], row["scored"]) == (128, 128, "softmax")
    assert (row["method"], list(row["models"])) == ("naclip", ["segmenter"])
    (heart,) = [r for r in row["regions"] if r["label"] == "red heart"]
    mask = coco_rle.decode(heart["rle"])
    assert mask.sum() == heart["pixels"]
    assert heart["share"] == pytest.approx(heart["pixels"] / 128**2, abs=1e-6)
    pixels = np.asarray(Image.open(HEART).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 120)
    assert (mask & red).sum() / (mask | red).sum() > 0.6
    with Image.open(tmp_path / "masks" / row["mask"]) as picture:
        np.testing.assert_array_equal(np.asarray(picture) == 1, mask)
    with Image.open(tmp_path / "drawn" / row["drawn"]) as picture:
        assert picture.width == 384


def test_labels_are_encoded_once(zeroshot):
    """The second run finds its prompts in the cache, and classify's prompts are the same rows."""
    assert zeroshot(*command(HEART))[0] == 0
    _, _, said = zeroshot(*command(HEART, "-v"))
    assert "0 texts encoded, 35 from the cache" in said
    _, _, said = zeroshot("classify", HEART, "--labels", LABELS, "--models", "pocket", "-v")
    assert "0 texts encoded" in said


def test_batched_as_one_by_one(zeroshot):
    _, together, _ = zeroshot(*command(SCENES))
    _, alone, _ = zeroshot(*command(SCENES, "--batch-size", 1))
    assert len(together) == 8
    for row, other in zip(together, alone, strict=True):
        assert [r["label"] for r in row["regions"]] == [r["label"] for r in other["regions"]]
        for region, again in zip(row["regions"], other["regions"], strict=True):
            apart = coco_rle.decode(region["rle"]) != coco_rle.decode(again["rle"])
            assert apart.mean() < 1e-3  # ties within rounding


def test_a_picture_that_cannot_be_read_is_a_row(zeroshot, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "good.png").write_bytes(HEART.read_bytes())
    code, rows, _ = zeroshot(*command(tmp_path))
    assert code == 3
    assert rows[0]["error"]["type"] == "UnreadableImage"
    assert rows[1]["regions"]


def test_a_run_goes_on(zeroshot, tmp_path):
    out = tmp_path / "rows.jsonl"
    first = (SCENES / "1-red-heart.png", SCENES / "2-blue-star.png")
    assert zeroshot(*command(first[0], "--out", out))[0] == 0
    _, rows, _ = zeroshot(*command(*first, "--out", out))
    assert [Path(r["path"]).name for r in rows] == ["2-blue-star.png"]
    code, _, said = zeroshot(*command(*first, "--out", out, "--threshold", 0.9))
    assert code == 2
    assert "threshold was 0.0, is 0.9" in said


@pytest.mark.parametrize("suffix", ["csv", "parquet", "txt"])
def test_tables(zeroshot, tmp_path, suffix):
    out = tmp_path / f"rows.{suffix}"
    assert zeroshot(*command(HEART, "--out", out))[0] == 0
    if suffix == "txt":
        assert out.read_text().startswith("red heart")
    elif suffix == "csv":
        (row,) = csv.DictReader(out.read_text().splitlines())
        assert json.loads(row["regions"])[0]["label"] == "red heart"
        assert row["width"] == "128"
    else:
        (row,) = pyarrow().parquet.read_table(out).to_pylist()
        assert (row["width"], row["scored"]) == (128, "softmax")


def test_masks_of_other_labels_are_not_written_over(zeroshot, tmp_path):
    assert zeroshot(*command(HEART, "--masks", tmp_path))[0] == 0
    code, _, said = zeroshot(*command(HEART, "--masks", tmp_path, "--threshold", 0.9))
    assert code == 2
    assert "--overwrite" in said
    assert zeroshot(*command(HEART, "--masks", tmp_path, "--threshold", 0.9, "--overwrite"))[0] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--method", "ensemble"), "methods that do: lposs, naclip, proxyclip, sclip"),
        (("--method", "nacl"), "did you mean 'naclip'?"),
        (("-o", "std=0"), "greater than 0"),
        (("--encoder", "coupled"), "no dual encoder with embeddings of patches"),
        (("--model", "hf:./nowhere", "--window", "8"), "takes no --method"),
        (("--resolution", "4"), "patches of"),
        (("--masks", HEART), "cannot write"),
    ],
)
def test_wrong_usage(zeroshot, more, said):
    code, _, err = zeroshot(*command(HEART, *more))
    assert code == 2
    assert said in err


def test_labels_have_to_be_given(zeroshot):
    code, _, err = zeroshot("segment", HEART, "--models", "pocket")
    assert code == 2
    assert "needs --labels" in err


def test_too_many_labels_for_a_file(tmp_path):
    names = tuple(f"thing {i}" for i in range(256))
    with pytest.raises(UserError, match="room for 255"):
        package.segment(HEART, names, "pocket", templates="none", masks=tmp_path)


def test_a_dual_encoder_takes_no_examples(tmp_path):
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "a.png").write_bytes(HEART.read_bytes())
    with pytest.raises(UserError, match="lie apart"):
        package.segment(HEART, ["thing"], "pocket", examples=tmp_path)


def test_in_python():
    results = package.segment(SCENES, ["red heart", "blue star"], "pocket", background=BACKGROUND)
    assert len(results) == 8
    assert results[0].regions[0].label == "red heart"
    assert results[0].summary().startswith("red heart 1")
    assert "<table" in results._repr_html_()


def test_a_task_travels():
    given = SegmentOptions("a", options={"std": 2.0}, masks=Path("x"))
    task = Segment.from_options(resolve("pocket"), given)
    assert pickle.loads(pickle.dumps(task)) == task


def test_mean_iou_on_drawn_scenes():
    """The renderer knows every pixel: 12 scenes, the labels of each picture."""
    dense = world("dense")
    assert dense.mean_iou(scenes=12, seed=5, **dense.PUBLISHED) > 0.4
    assert dense.mean_iou(scenes=12, seed=5) > 0.7


def test_a_background_by_default():
    """None is the default background, `none` and nothing are no background: all is a heart."""
    by_default, none, nothing = (
        package.segment(HEART, ["red heart"], "pocket", background=background)[0].regions[0]
        for background in (None, "none", ())
    )
    assert by_default.pixels < 3000
    assert none.pixels == nothing.pixels == 128**2


def test_refinement_is_recorded_and_refused(zeroshot, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert zeroshot(*command(HEART, "--out", out, "--refine", 3))[0] == 0
    code, _, said = zeroshot(*command(HEART, "--out", out))
    assert (code, "refine was 3, is 20" in said) == (2, True)
    code, _, said = zeroshot(*command(HEART, "--model", "hf:x/y", "--refine", 3))
    assert (code, "takes no --method, -o, --patches-by, --resolution, --refine" in said) == (
        2,
        True,
    )
