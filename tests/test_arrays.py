"""Arrays in, scores out: `classify --embeddings` and its checks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from zeroshot import cli
from zeroshot.errors import UserError
from zeroshot.methods.asif import ASIF
from zeroshot.methods.auto import Auto
from zeroshot.methods.procrustes import Procrustes
from zeroshot.tasks.classification.arrays import couple_arrays, read_arrays, score_arrays

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


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def world(own=24, width=15, seed=0):
    """Pairs, classes and images of one world, whose two encoders share nothing but it."""
    rng = np.random.default_rng(seed)
    topics, left, right = rng.normal(size=(8, 10)), rng.normal(size=(10, own)), None
    right = rng.normal(size=(10, width))
    things = rng.normal(size=(400, 10))
    truth, shown = rng.integers(0, 8, 200), np.repeat(np.arange(8), 3)

    def look(x):
        return x @ left + 0.3 * rng.normal(size=(len(x), own))

    def say(x):
        return x @ right + 0.3 * rng.normal(size=(len(x), width))

    def vary(labels):
        return topics[labels] + 0.5 * rng.normal(size=(len(labels), 10))

    return truth, {
        "anchor_images": look(things),
        "anchor_texts": say(things),
        "texts": np.stack([say(topics), say(topics)], 1),
        "images": 5 * look(vary(truth)),
        "shots": look(vary(shown)),
        "shot_labels": shown,
    }


@pytest.mark.parametrize(
    ("given", "open_"),
    [({}, True), ({"templates": "max"}, True), ({"k": 9}, False), ({"center": True}, False)],
)
def test_asif_chooses_what_nobody_gives(given, open_):
    _, arrays = world()
    pairs = [torch.from_numpy(arrays[name]) for name in ("anchor_images", "anchor_texts")]
    chosen = Auto(among="asif", splits=1).choose(*pairs).chosen.coupling
    wanted = {"k": chosen.k, "p": chosen.p, "center": chosen.center} if open_ else {}
    assert (wanted.get("k"), wanted.get("p")) != (800, 8.0)
    coupling = ASIF(**(given | wanted)).fit(*pairs)
    expected = coupling.scores(*(torch.from_numpy(arrays[name]) for name in ("images", "texts")))
    ours = score_arrays(arrays, "asif", given)["scores"]
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize("name", ["csa", "procrustes", "auto"])
def test_coupled_arrays(name):
    truth, arrays = world()
    coupled = couple_arrays(arrays, name)
    assert coupled["images"].shape[1] == coupled["texts"].shape[2] == coupled["shots"].shape[1]
    np.testing.assert_allclose(coupled["own_images"], unit(arrays["images"]), rtol=1e-9)
    np.testing.assert_allclose(coupled["own_shots"], unit(arrays["shots"]), rtol=1e-9)
    assert 1 < coupled["logit_scale"] < 1000
    assert not {"anchor_images", "anchor_texts"} & coupled.keys()
    for method, least in (("ensemble", 0.8), ("ncm", 0.8), ("evidence", 0.9)):
        found = score_arrays(coupled, method, {})["scores"].argmax(1)
        assert (found == truth).mean() > least, method
    kept = couple_arrays(arrays | {"logit_scale": np.array(7.0)}, name)
    assert kept["logit_scale"] == 7.0


def test_coupled_arrays_by_hand():
    """Procrustes of unit rows, as the method itself does it."""
    _, arrays = world()
    rows = {k: torch.from_numpy(unit(v)) for k, v in arrays.items() if k != "shot_labels"}
    fitted = Procrustes().fit(rows["anchor_images"], rows["anchor_texts"])
    coupled = couple_arrays(arrays, "procrustes")
    np.testing.assert_allclose(coupled["images"], fitted.map_images(rows["images"]), rtol=1e-6)
    flat = fitted.map_texts(rows["texts"].flatten(0, 1))
    np.testing.assert_allclose(coupled["texts"].reshape(16, -1), flat, rtol=1e-6)
    mask = np.ones((8, 2), dtype=bool)
    mask[3, 1] = False
    arrays["texts"][3, 1] = 0.0
    missing = couple_arrays(arrays | {"text_mask": mask}, "procrustes")
    assert not missing["texts"][3, 1].any()
    np.testing.assert_allclose(missing["texts"][mask], coupled["texts"][mask], rtol=1e-6)


def test_a_classifier_beside_the_coupling_of_arrays():
    """Its names fit or they do not; then the coupling stands alone."""
    _, arrays = world()
    classes = {
        "class_weights": unit(arrays["anchor_images"][:60]) * 3,
        "class_names": arrays["anchor_texts"][:60],
    }
    alone, both = (couple_arrays(given, "csa") for given in (arrays, arrays | classes))
    wrong = arrays | classes | {"class_names": arrays["anchor_texts"][60:120]}
    np.testing.assert_allclose(couple_arrays(wrong, "csa")["images"], alone["images"])
    assert np.abs(unit(both["images"]) - unit(alone["images"])).max() > 0.1


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"anchor_texts": None}, "csa", r"--coupling csa needs the array anchor_texts \[a e\]"),
        ({}, "ensemble", "--coupling ensemble couples no encoders"),
        ({}, "cas", "did you mean 'csa'"),
        ({"own_images": np.ones((200, 3))}, "csa", "the file has them"),
        ({"class_names": np.ones((3, 2))}, "csa", r"\[3, 2\] for \[k e\], but e is 15"),
    ],
)
def test_arrays_that_cannot_be_coupled(change, name, message):
    arrays = {k: v for k, v in (world()[1] | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        couple_arrays(arrays, name)


@pytest.mark.parametrize("method", ["ensemble", "gda", "evidence", "center"])
def test_widths_that_differ_are_coupled_first(method):
    with pytest.raises(UserError, match="images are 24 wide and texts 15: --coupling auto"):
        score_arrays(world()[1], method, {})


def test_the_default_method_of_arrays(tmp_path):
    _, arrays = world()
    out = tmp_path / "scores.npz"
    for names, method in ((arrays, "evidence"), ({*arrays} - {"shots"}, "ensemble")):
        given = {name: arrays[name] for name in names}
        np.savez(tmp_path / "in.npz", **given)
        line = ["classify", "--embeddings", tmp_path / "in.npz", "--coupling", "csa", "--overwrite"]
        assert cli.run([*map(str, line), "--out", str(out)]) == 0
        expected = score_arrays(couple_arrays(given, "csa"), method, {})["scores"]
        np.testing.assert_allclose(np.load(out)["scores"], expected)
    line = ["classify", "--embeddings", tmp_path / "in.npz", "--coupling", "csa"]
    assert cli.run([*map(str, line), "--compare", "ensemble,center", "--quiet"]) == 0
