"""`video` on clips of drawn scenes, written here by PyAV."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.moving import HEART, LABELS, plain, read, scene, write
from zeroshot import cli, framewise
from zeroshot.images import Source
from zeroshot.model_set import resolve


@pytest.fixture
def zeroshot(capsys):
    """Run a command; its exit code, the JSON rows of standard output, and standard error."""

    def run(*arguments):
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return code, rows, " ".join(err.split())

    return run


def test_a_clip_of_one_scene_gets_its_label(zeroshot, tmp_path):
    write(tmp_path / "heart.mp4", [scene("red-heart")])
    write(tmp_path / "star.mp4", [scene("blue-star")])
    command = ("video", "classify", tmp_path, "--labels", LABELS, "--models", "pocket", "--json")
    code, rows, _ = zeroshot(*command)
    assert code == 0
    assert [Path(row["path"]).name for row in rows] == ["heart.mp4", "star.mp4"]
    assert [row["labels"][0]["label"] for row in rows] == ["red heart", "blue star"]
    assert {row["schema"] for row in rows} == {"zeroshot.classify/1"}
    assert rows[0]["models"]["clips"].startswith("clip-2/8-middles/mean")
    _, again, said = zeroshot(*command[:-1], "-v", "--json")
    assert again == rows
    assert "0 images encoded, 2 from the cache" in said


def test_a_clip_is_the_mean_of_its_frames(tmp_path):
    """Against the encoder on the frames themselves, batched and one by one."""
    from zeroshot.store import NullCache
    from zeroshot.tasks.embedding import embed_all
    from zeroshot.tasks.meter import Meter

    a = write(tmp_path / "a.mp4", [scene("red-heart"), scene("blue-star")])
    b = write(tmp_path / "b.mp4", [scene("blue-star")])
    models = framewise.ClipModels.of(resolve("pocket"), 4)
    encoder = models.encoder
    encoder = getattr(encoder, "image_encoder", encoder)
    rows = embed_all([Source(str(a)), Source(str(b))], encoder, NullCache(), Meter())
    for path, row in zip((a, b), rows, strict=True):
        frames = encoder.encoder.encode_images(read(path, 4)).numpy()
        mean = frames.mean(0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
        (alone,) = embed_all([Source(str(path))], encoder, NullCache(), Meter())
        np.testing.assert_allclose(row, alone, atol=1e-5)


def test_both_scenes_of_a_clip_are_found(zeroshot, tmp_path):
    write(tmp_path / "both.mp4", [scene("red-heart"), scene("blue-star")])
    _, rows, _ = zeroshot(
        *("video", "classify", tmp_path / "both.mp4", "--models", "pocket", "--json"),
        *("--labels", LABELS),
    )
    assert {label["label"] for label in rows[0]["labels"][:2]} == {"red heart", "blue star"}


def test_search_ranks_clips(zeroshot, tmp_path):
    write(tmp_path / "heart.mp4", [scene("red-heart")])
    write(tmp_path / "star.mp4", [scene("blue-star")])
    out = tmp_path / "hits.jsonl"
    code, rows, _ = zeroshot(
        *("video", "search", "a blue star", tmp_path, "--models", "pocket", "--json"),
        *("--out", out),
    )
    assert code == 0
    assert [Path(row["path"]).name for row in rows] == ["star.mp4", "heart.mp4"]
    assert rows[0]["schema"] == "zeroshot.search/1"
    assert len(out.read_text().splitlines()) >= 2


@pytest.mark.parametrize("method", ["mbr", "magic"])
def test_captions_of_a_clip(zeroshot, tmp_path, method):
    write(tmp_path / "heart.mp4", [scene("red-heart")])
    code, rows, _ = zeroshot(
        *("video", "caption", tmp_path, "--models", "pocket", "--json", "--method", method)
    )
    assert code == 0
    assert "heart" in rows[0]["caption"]


def test_what_is_no_clip_is_a_row_with_a_reason(zeroshot, tmp_path):
    whole = write(tmp_path / "whole.avi", plain("red", "blue"))
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "1-empty.mp4").write_bytes(b"")
    (folder / "2-noise.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(range(256)) * 9)
    secret = tmp_path / "secret.ts"
    shutil.copy(write(tmp_path / "s.ts", plain("red")), secret)
    (folder / "3-list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    (folder / "4-concat.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    shutil.copy(HEART, folder / "5-picture.mp4")
    shutil.copy(whole, folder / "6-whole.avi")
    code, rows, _ = zeroshot(
        *("video", "classify", folder, "--labels", LABELS, "--models", "pocket", "--json")
    )
    assert code == 3
    assert ["error" in row and row["error"] is not None for row in rows] == [True] * 5 + [False]
    assert "empty" in rows[0]["error"]["message"]
    assert "damaged" in rows[1]["error"]["message"]
    assert all("no clip" in row["error"]["message"] for row in rows[2:5])


def test_without_pyav(zeroshot, tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", plain("red"))
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, said = zeroshot("video", "classify", path, "--labels", LABELS, "--models", "pocket")
    assert code == 4
    assert "pip install 'zeroshot[video]'" in said


def test_attention_by_hand():
    """Two frames, one text: the weights are a softmax of (1, 0) / t."""
    frames = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    (found,) = framewise.attended_cosines(frames, torch.tensor([[1.0, 0.0]]), 0.5)
    weight = math.exp(2) / (math.exp(2) + 1)
    assert found.item() == pytest.approx(weight / math.hypot(weight, 1 - weight), abs=1e-6)
    same = frames[:, :1].repeat(1, 3, 1)
    text = torch.tensor([[0.6, 0.8]])
    assert framewise.attended_cosines(same, text).item() == pytest.approx(0.6, abs=1e-6)


def test_attention_finds_what_is_seen_for_a_moment(zeroshot, tmp_path):
    """One frame of eight shows a star: attention gives it a larger cosine than the mean does."""
    write(tmp_path / "a.mp4", [scene("red-heart")] * 7 + [scene("blue-star")])
    command = ("video", "classify", tmp_path, "--labels", LABELS, "--models", "pocket", "--json")
    found = {}
    for pooling in ("mean", "attention"):
        code, rows, said = zeroshot(*command, "--pooling", pooling)
        assert code == 0, said
        found[pooling] = {x["label"]: x["cosine"] for x in rows[0]["labels"]}
    assert found["attention"]["blue star"] > found["mean"]["blue star"]
    assert max(found["attention"], key=found["attention"].get) == "red heart"
    assert rows[0]["method"] == "attention"
    assert zeroshot(*command, "--pooling", "attention", "--method", "ensemble")[0] == 2


def test_a_model_of_clips(zeroshot, tmp_path):
    """X-CLIP on tiny random weights: batched as one by one, cached, and refused options."""
    from tests.models import tiny

    directory = tiny.xclip(tmp_path / "xclip")
    folder = tmp_path / "clips"
    folder.mkdir()
    write(folder / "a.mp4", [scene("red-heart")])
    write(folder / "b.mp4", [scene("blue-star"), scene("red-heart")])
    (folder / "c.mp4").write_bytes(b"")
    command = ("video", "classify", folder, "--labels", "a,b,c d", "--model", directory, "--json")
    code, rows, _ = zeroshot(*command)
    assert code == 3
    assert [len(row.get("labels") or ()) for row in rows] == [3, 3, 0]
    assert rows[0]["models"].keys() == {"clip_model", "clips"}
    assert sum(label["score"] for label in rows[0]["labels"]) == pytest.approx(1, abs=1e-4)
    _, again, said = zeroshot(*command, "-v")
    assert again == rows
    assert "0 images encoded, 2 from the cache" in said
    _, alone, _ = zeroshot(*command, "--no-cache", "--batch-size", 1)
    for one, other in zip(rows[:2], alone[:2], strict=True):
        assert [x["label"] for x in one["labels"]] == [x["label"] for x in other["labels"]]
        scores = [[x["score"] for x in row["labels"]] for row in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    code, _, said = zeroshot(*command, "--frames", 3)
    assert code == 2
    assert "--frames" in said
