"""`video` on clips of drawn scenes, written here by PyAV."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.moving import HEART, LABELS, plain, read, scene, write
from zeroshot import cli
from zeroshot.inputs.source import Source
from zeroshot.model_set import frame_encoder
from zeroshot.model_set.model_set import resolve
from zeroshot.packaging.extras import how_to_install


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
    assert "0 videos encoded, 2 from the cache" in said


def test_a_clip_is_the_mean_of_its_frames(tmp_path):
    """Against the encoder on the frames themselves, batched and one by one."""
    from zeroshot.cache.embedding_cache import NullCache
    from zeroshot.inference.embedding import embed_all
    from zeroshot.inference.meter import Meter

    a = write(tmp_path / "a.mp4", [scene("red-heart"), scene("blue-star")])
    b = write(tmp_path / "b.mp4", [scene("blue-star")])
    models = frame_encoder.ClipModels.from_model_set(resolve("pocket"), 4)
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
    assert how_to_install("video") in said


def test_attention_by_hand():
    """Two frames, one text: the weights are a softmax of (1, 0) / t."""
    frames = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    (found,) = frame_encoder.attention_cosines(frames, torch.tensor([[1.0, 0.0]]), 0.5)
    weight = math.exp(2) / (math.exp(2) + 1)
    assert found.item() == pytest.approx(weight / math.hypot(weight, 1 - weight), abs=1e-6)
    same = frames[:, :1].repeat(1, 3, 1)
    text = torch.tensor([[0.6, 0.8]])
    assert frame_encoder.attention_cosines(same, text).item() == pytest.approx(0.6, abs=1e-6)


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
    assert "0 videos encoded, 2 from the cache" in said
    _, alone, _ = zeroshot(*command, "--no-cache", "--batch-size", 1)
    for one, other in zip(rows[:2], alone[:2], strict=True):
        assert [x["label"] for x in one["labels"]] == [x["label"] for x in other["labels"]]
        scores = [[x["score"] for x in row["labels"]] for row in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    code, _, said = zeroshot(*command, "--frames", 3)
    assert code == 2
    assert "--frames" in said


@pytest.fixture
def folder(tmp_path):
    """Three clips of scenes."""
    place = tmp_path / "clips"
    place.mkdir()
    for name in ("blue-star", "red-heart"):
        write(place / f"{name}.mp4", [scene(name)])
    write(place / "turning.mp4", [scene("red-heart"), scene("blue-star")])
    return place


def test_methods_work_on_clips_as_on_the_arrays_of_their_rows(zeroshot, folder):
    """Rows by `video embed`, scored by the method on arrays: no clip is met there."""
    from zeroshot import prompts
    from zeroshot.tasks.classification.arrays import score_arrays

    _, embedded, _ = zeroshot("video", "embed", folder, "--models", "pocket", "--json")
    images = np.array([row["embedding"] for row in embedded], np.float32)
    encoder = resolve("pocket").encoder
    names = LABELS.split(",")
    sentences = prompts.expand(names, prompts.load_templates("simple", names))
    texts = np.stack([encoder.encode_texts(own).numpy() for own in sentences])
    arrays = {"images": images, "texts": texts, "logit_scale": np.array(encoder.logit_scale)}
    for method in ("center", "zpe"):
        scores = score_arrays(arrays, method, {})["scores"]
        code, rows, said = zeroshot(
            *("video", "classify", folder, "--labels", LABELS, "--models", "pocket", "--json"),
            *("--method", method, "--score", "cosine"),
        )
        assert code == 0, said
        for row, own in zip(rows, scores, strict=True):
            found = {x["label"]: x["score"] for x in row["labels"]}
            assert [found[name] for name in names] == pytest.approx(own.tolist(), abs=1e-4)


@pytest.mark.parametrize("method", ["mta", "zero"])
def test_frames_are_the_views_of_a_clip(zeroshot, folder, method):
    """As the method scores arrays of the mean and the frames; the second run is from the cache."""
    from zeroshot.tasks.classification.arrays import score_arrays

    encoder = resolve("pocket").encoder
    frames = np.stack(
        [encoder.encode_images(read(clip, 4)).numpy() for clip in sorted(folder.iterdir())]
    )
    mean = frames.mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    names = LABELS.split(",")
    arrays = {
        "images": mean,
        "views": np.concatenate([mean[:, None], frames], axis=1),
        "texts": encoder.encode_texts(names).numpy()[:, None],
        "logit_scale": np.array(encoder.logit_scale),
    }
    scores = score_arrays(arrays, method, {})["scores"]
    command = ("video", "classify", folder, "--labels", LABELS, "--models", "pocket", "--json")
    command = (*command, "--method", method, "--templates", "none", "--frames", 4)
    code, rows, said = zeroshot(*command, "--score", "cosine")
    assert code == 0, said
    for row, own in zip(rows, scores, strict=True):
        found = {x["label"]: x["score"] for x in row["labels"]}
        assert [found[name] for name in names] == pytest.approx(own.tolist(), abs=1e-3)
    _, again, said = zeroshot(*command, "--score", "cosine", "-v")
    assert again == rows
    assert "no encoder call was made" in said


def test_clips_teach_a_method(zeroshot, folder, tmp_path):
    """Shots are clips, in a folder per class or named in a table; the prior is of the labels."""
    shots = tmp_path / "shots"
    for name in ("red heart", "blue star"):
        (shots / name).mkdir(parents=True)
        write(shots / name / "a.mp4", [scene(name.replace(" ", "-"))])
    command = ("video", "classify", folder, "--labels", "red heart,blue star", "--models", "pocket")
    code, rows, said = zeroshot(*command, "--method", "tip_adapter", "--shots", shots, "--json")
    assert code == 0, said
    assert [row["labels"][0]["label"] for row in rows[:2]] == ["blue star", "red heart"]
    assert rows[0]["method"] == "tip_adapter"
    shutil.copy(HEART, shots / "red heart" / "b.png")
    code, _, said = zeroshot(*command, "--method", "tip_adapter", "--shots", shots)
    assert code == 2
    assert "stands still" in said
    code, _, said = zeroshot(*command, "--method", "otter", "--prior", "0.5,0.5", "--json")
    assert code == 0, said
    code, found, _ = zeroshot(*command, "--compare", "ensemble,center")
    assert code == 0
    assert [row["method"] for row in found] == ["ensemble", "center"]


def test_clips_are_abstained_from(zeroshot, folder, tmp_path):
    """What is calibrated on clips judges clips, and what on pictures does not."""
    how = ("--labels", LABELS, "--models", "pocket")
    made = tmp_path / "made.json"
    code, _, said = zeroshot("video", "calibrate", folder, *how, "--out", made)
    assert code == 0
    assert said.endswith("3 videos")
    noise = tmp_path / "noise.mp4"
    shades = [Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)) for i in range(4)]
    write(noise, shades)
    command = ("video", "classify", folder, noise, *how, "--calibration", made, "--json")
    code, rows, said = zeroshot(*command, "--abstain", 0.9)
    assert code == 0, said
    assert rows[-1]["abstained"]
    assert not all(row["abstained"] for row in rows)
    assert zeroshot("calibrate", HEART, *how, "--out", tmp_path / "b.json")[0] == 0
    code, _, said = zeroshot(
        *("video", "classify", folder, *how, "--calibration", tmp_path / "b.json")
    )
    assert code == 2
    assert "calibration was made with models" in said


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_several_labels_of_a_clip(zeroshot, folder, pooling):
    command = ("video", "classify", folder / "turning.mp4", "--labels", LABELS)
    command = (*command, "--models", "pocket", "--json", "--pooling", pooling, "--multi")
    _, [row], _ = zeroshot(*command)
    assert row["scored"] == "cosine"
    assert [x["score"] for x in row["labels"]] == [x["cosine"] for x in row["labels"]]
    least = row["labels"][1]["score"]
    _, [chosen], _ = zeroshot(*command, "--threshold", least)
    assert {x["label"] for x in chosen["labels"]} == {"red heart", "blue star"}
    names = ("--labels", f"{LABELS},a green tree,a ring", "--templates", "none", "--top-k", 5)
    _, [bare], _ = zeroshot(*command, *names)
    logits = {
        x["label"]: x["cosine"] * resolve("pocket").encoder.logit_scale for x in bare["labels"]
    }
    _, [against], _ = zeroshot(
        *(*command, "--against", "a green tree", "--against", "a ring", "--templates", "none")
    )
    assert against["scored"] == "against"
    others = math.exp(logits["a green tree"]) + math.exp(logits["a ring"])
    for label in against["labels"]:
        own = math.exp(logits[label["label"]])
        assert label["score"] == pytest.approx(own / (own + others), rel=1e-3)


def test_a_folder_of_shards_is_filled_as_for_pictures(zeroshot, folder, tmp_path):
    """By shares, by processes, and on where it stopped; a failed clip is tried again."""
    broken = folder / "broken.mp4"
    broken.write_bytes(b"")
    command = ("video", "classify", folder, "--labels", LABELS, "--models", "pocket")
    command = (*command, "--batch-size", 1)  # on which the last digit may depend
    plain_rows = zeroshot(*command, "--json")[1]
    out = f"{tmp_path / 'out'}/"
    shards = (*command, "--out", out, "--shard-size", 1)
    codes = [zeroshot(*shards, "--shards", share)[0] for share in ("1/2", "2/2")]
    assert sorted(codes) == [0, 3]
    code, _, said = zeroshot(*shards)
    assert "resumed: 4 of 4" in said
    assert "pictures" not in said
    rows = [
        json.loads(line)
        for file in sorted((tmp_path / "out").glob("0*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert rows == plain_rows
    write(broken, [scene("red-heart")])
    code, _, said = zeroshot(*shards, "--retry-failed")
    assert code == 0
    assert "1 video in" in said
    code, _, said = zeroshot(*shards, "--frames", 4)
    assert code == 2
    assert "clips" in said
    code, _, said = zeroshot(*command, "--out", f"{tmp_path / 'two'}/", "--devices", "cpu,cpu")
    assert code == 0, said
    assert "4 videos in" in said


def test_a_file_of_rows_goes_on_and_tries_failed_clips_again(zeroshot, folder, tmp_path):
    broken = folder / "broken.mp4"
    broken.write_bytes(b"")
    out = tmp_path / "rows.jsonl"
    command = ("video", "caption", folder, "--models", "pocket", "--out", out)
    code, _, said = zeroshot(*command)
    assert code == 3
    assert "4 videos, 1 failed" in said
    assert "reading videos" in said or "slowest step" in said
    write(broken, [scene("red-heart")])
    code, _, said = zeroshot(*command, "--retry-failed")
    assert code == 0
    assert "resumed: 3 of 4" in said
    assert all("caption" in json.loads(line) for line in out.read_text().splitlines())


def test_what_is_said_is_of_clips(zeroshot, folder, tmp_path):
    (folder / "captions.jsonl").write_text("{}")
    command = ("--models", "pocket")
    _, _, said = zeroshot("video", "classify", folder, "--labels", LABELS, *command, "-v")
    assert "skipped 1 file that holds no video" in said
    assert "3 videos in" in said
    assert "videos/s" in said
    assert "3 videos encoded" in said
    _, _, said = zeroshot("video", "search", "x", folder, *command, "--min-score", 1)
    assert "no video for 'x'" in said
    code, _, said = zeroshot("video", "search", "a star")
    assert code == 2
    assert "search needs videos: zeroshot video search 'a star' DIR" in said
    code, _, said = zeroshot("video", "classify", folder)
    assert code == 2
    assert "one of --labels" in said


def test_a_clip_is_a_query_and_words_are_added(zeroshot, folder, tmp_path):
    star = folder / "blue-star.mp4"
    page = tmp_path / "page.html"
    command = ("video", "search", folder, "--models", "pocket", "--json")
    code, rows, said = zeroshot(*command, "--clip", star, "--html", page)
    assert code == 0, said
    assert (rows[0]["path"], rows[0]["score"]) == (str(star), pytest.approx(1, abs=1e-5))
    assert page.read_text().count("data:image/jpeg") == 3
    _, rows, _ = zeroshot(*command, "--clip", star, "--plus", folder / "red-heart.mp4")
    assert Path(rows[0]["path"]).name == "turning.mp4"


def test_clips_in_tar_files_and_captions_beside_clips(zeroshot, folder, tmp_path):
    """As pictures: members of a tar file are clips, and `a.txt` beside `a.mp4` is none."""
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for clip in sorted(folder.iterdir()):
            file.add(clip, clip.name)
        file.add(HEART, "heart.jpg")
    command = ("--labels", LABELS, "--models", "pocket", "--json")
    code, rows, said = zeroshot("video", "classify", tmp_path / "a.tar", *command)
    assert code == 0, said
    assert [row["labels"][0]["label"] for row in rows[:2]] == ["blue star", "red heart"]
    assert len(rows) == 3
    assert "skipped 1 file that holds no video" in said
    (folder / "red-heart.txt").write_text("a red heart")
    code, rows, said = zeroshot("video", "classify", folder, *command)
    assert (code, len(rows)) == (0, 3)
    assert "no video: red-heart.txt" in said
    import zeroshot as zs

    assert len(zs.video.embed(tmp_path / "a.tar", "pocket")) == 3


@pytest.mark.parametrize("verb", [["search", "a star"], ["caption"]])
def test_a_model_of_clips_only_labels(zeroshot, folder, verb):
    code, _, said = zeroshot("video", *verb, folder, "--model", "hf:microsoft/xclip-base-patch32")
    assert code == 2
    assert "video classify --model" in said
    assert "--encoder" in said


def test_a_model_of_clips_as_the_encoder_says_what_to_do(zeroshot, folder, tmp_path):
    from tests.models import tiny

    directory = tiny.xclip(tmp_path / "xclip")
    code, _, said = zeroshot("video", "search", "a star", folder, "--encoder", f"hf:{directory}")
    assert code == 2
    assert "video classify --model" in said


def test_from_python(folder):
    """The rows of the command line, and models of clips."""
    import zeroshot as zs

    [star, heart, turning] = zs.video.classify(folder, LABELS, "pocket", frames=4)
    assert (star.labels[0].label, heart.labels[0].label) == ("blue star", "red heart")
    assert star.models["clips"] == "clip-2/4-middles/mean"
    assert {x.label for x in turning.labels[:2]} == {"red heart", "blue star"}
    [attended] = zs.video.classify(
        folder / "turning.mp4", LABELS, "pocket", pooling="attention", multi=True, top_k=2
    )
    assert attended.method == "attention"
    assert len(attended.labels) == 2
    hits = zs.video.search(folder / "red-heart.mp4", folder, "pocket", top_k=1)
    assert (Path(hits[0].path).name, len(hits)) == ("red-heart.mp4", 1)
    captions = zs.video.caption(folder / "red-heart.mp4", "pocket", "magic", max_tokens=8)
    assert "heart" in captions[0].caption
    rows = zs.video.embed(folder, "pocket")
    assert all(math.hypot(*row.embedding) == pytest.approx(1, abs=1e-5) for row in rows)
    assert "data:image/jpeg" in rows._repr_html_()
    in_memory = zs.video.classify((folder / "red-heart.mp4").read_bytes(), LABELS, "pocket")
    assert in_memory[0].labels[0].label == "red heart"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"model": "x", "frames": 4}, "no --frames"),
        ({"pooling": "attention", "method": "center"}, "one embedding per video"),
        ({"threshold": 0.1}, "--multi"),
        ({"multi": True, "score": "softmax"}, "softmax sums to one"),
        ({"against": "a cat"}, "--multi"),
    ],
)
def test_what_does_not_fit_is_said(folder, how, message):
    import zeroshot as zs
    from zeroshot.errors import UserError

    with pytest.raises(UserError, match=message):
        zs.video.classify(folder, LABELS, "pocket", **how)
    with pytest.raises(UserError, match="one image"):
        zs.video.caption(folder, "pocket", "native", model="x")
