"""Arrays in, scores out: `classify --embeddings` and its checks."""

from pathlib import Path

import numpy as np
import pytest

from zeroshot import cli
from zeroshot.errors import UserError
from zeroshot.tasks.classification.arrays import read_arrays, score_arrays

DATA = Path(__file__).parent / "data"


def asif_arrays():
    with np.load(DATA / "coupling" / "asif_a.npz") as z:
        return {
            "images": z["query_img"],
            "texts": z["prompt_txt"].reshape(7, 3, 26),
            "anchor_images": z["anchors_img"],
            "anchor_texts": z["anchors_txt"],
        }


@pytest.mark.parametrize("templates", [None, "max"])
@pytest.mark.parametrize(("i", "k"), [(0, 6), (2, 84), (4, 413)])
@pytest.mark.parametrize(("j", "p"), [(0, 1), (1, 2), (4, 8)])
def test_authors_asif_from_the_command_line(tmp_path, i, k, j, p, templates):
    np.savez(tmp_path / "in.npz", **asif_arrays())
    reduce = ["-o", f"templates={templates}"] if templates else []
    arguments = ["--method", "asif", "-o", f"k={k}", "-o", f"p={p}", *reduce]
    out = tmp_path / "scores.npz"
    command = ["classify", "--embeddings", str(tmp_path / "in.npz"), *arguments]
    assert cli.run([*command, "--out", str(out)]) == 0
    with np.load(DATA / "coupling" / "asif_a.npz") as z:
        sims = z["sims"][i, j].astype(np.float64).reshape(47, 7, 3)
    expected = sims.max(-1) if templates else sims.mean(-1)
    with np.load(out) as written:
        assert written.files == ["scores"]
        np.testing.assert_allclose(written["scores"], expected, rtol=1e-5, atol=0)


def test_rows_are_brought_to_unit_length_for_a_shared_space():
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(5, 6)), rng.normal(size=(3, 2, 6))
    scores = score_arrays({"images": images, "texts": texts}, "ensemble", {"mode": "score"})
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (images, texts)]
    expected = np.einsum("nd,ctd->nc", *unit) / 2
    np.testing.assert_allclose(scores["scores"], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imges": np.ones((2, 2))}, "did you mean 'images'?"),
        ({"texts": None}, r"asif needs the array texts \[c t e\]"),
        ({"anchor_images": None, "anchor_texts": None}, "arrays anchor_images"),
        ({"images": np.ones((47, 5))}, r"\[47, 5\] for \[n d\], but d is 33"),
        ({"images": np.ones(33)}, r"shape \[33\], expected \[n d\]"),
        ({"images": np.ones((0, 33))}, "none empty"),
        ({"images": np.full((4, 33), np.nan)}, "images has NaN"),
        ({"images": np.zeros((4, 33))}, r"images: embedding \[0\] is zero"),
        ({"images": np.array([["a"] * 33])}, "expected numbers"),
        ({"anchor_texts": np.ones((7, 26))}, "a is 413 in array anchor_images"),
        ({"text_mask": np.zeros((7, 3))}, "a class has no prompt"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    arrays = {k: v for k, v in (asif_arrays() | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        score_arrays(arrays, "asif", {})


def test_files_that_are_no_arrays(tmp_path):
    text = tmp_path / "x.npz"
    text.write_text("hello")
    with pytest.raises(UserError, match=r"not an \.npz file"):
        read_arrays(text)
    np.savez(tmp_path / "objects.npz", images=np.array([{}, []], dtype=object))
    with pytest.raises(UserError, match="plain arrays"):
        read_arrays(tmp_path / "objects.npz")
    with pytest.raises(UserError, match="no such file"):
        read_arrays(tmp_path / "nothing.npz")


def test_an_earlier_result_is_not_written_over(tmp_path, capsys):
    np.savez(tmp_path / "in.npz", **asif_arrays())
    out = tmp_path / "scores.npz"
    command = ["classify", "--embeddings", str(tmp_path / "in.npz"), "--method", "asif"]
    assert cli.run([*command, "--out", str(out)]) == 0
    assert cli.run([*command, "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.run([*command, "--out", str(out), "--overwrite"]) == 0
