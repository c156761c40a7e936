"""`zeroshot match`: pairs by cosines of the pocket set and by heads of tiny models."""

import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zeroshot
from tests.models import tiny, tiny_pairs
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.cli import run
from zeroshot.datasets.winoground import winoground_figures
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.model_set.model_set import resolve
from zeroshot.models.vlm.image_text_matching import TransformersPairScorer
from zeroshot.tasks.matching.match_options import MatchOptions
from zeroshot.tasks.matching.match_task import Match
from zeroshot.tasks.task import Task

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART, STAR, RING = (
    SCENES / name for name in ("1-red-heart.png", "2-blue-star.png", "3-green-ring.png")
)


@pytest.fixture(scope="module")
def itm(tmp_path_factory):
    return str(tiny_pairs.blip_itm(tmp_path_factory.mktemp("itm") / "blip_itm"))


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """The example scenes in a place of their own, with a cache."""
    shutil.copytree(SCENES, tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "scenes"


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


# Cosines


def test_a_score_is_the_cosine_of_the_encoder(tmp_path):
    encoder = resolve("pocket").encoder
    images = encoder.encode_images([Image.open(p).convert("RGB") for p in (HEART, STAR)])
    texts = encoder.encode_texts(["a red heart", "a blue star"])
    with EmbeddingCache(tmp_path) as cache:
        results = zeroshot.match(
            [HEART, STAR], ["a red heart", "a blue star"], "pocket", cache=cache
        )
    found = [[fit.score for fit in result.texts] for result in results]
    np.testing.assert_allclose(found, (images @ texts.T).tolist(), atol=1e-5)
    assert [r.scored for r in results] == ["cosine"] * 2


def test_pairs_of_pictures_and_texts():
    results = zeroshot.match(
        [(HEART, "a red heart"), (HEART, "a blue star"), (STAR, "a blue star")],
        models="pocket",
        cache=NullCache(),
    )
    scores = [r.texts[0].score for r in results]
    assert scores[0] > scores[1] < scores[2]
    with pytest.raises(UserError, match="an image and its text"):
        zeroshot.match([(HEART, "a", "b")], models="pocket", cache=NullCache())


def test_against_is_a_share_of_the_softmax_at_the_models_own_scale():
    plain = zeroshot.match(HEART, ["a red heart", "a blue star"], "pocket", cache=NullCache())
    weighed = zeroshot.match(
        HEART, "a red heart", "pocket", against="a blue star", cache=NullCache()
    )
    scale = resolve("pocket").encoder.logit_scale
    cosines = torch.tensor([fit.score for fit in plain[0].texts], dtype=torch.float64)
    assert weighed[0].texts[0].score == pytest.approx(
        (scale * cosines).softmax(0)[0].item(), abs=1e-5
    )
    assert weighed[0].scored == "softmax"


def test_a_sigmoid_is_that_of_the_model(tmp_path):
    siglip = tiny.siglip(tmp_path / "siglip")
    sets = resolve("pocket", encoder=str(siglip), device="cpu")
    how = {"models": sets, "cache": NullCache()}
    plain = zeroshot.match(HEART, ["a red heart", "two dogs"], **how)[0]
    told = zeroshot.match(HEART, ["a red heart", "two dogs"], score="sigmoid", **how)[0]
    logits = tiny.SCALE * torch.tensor([fit.score for fit in plain.texts]) + tiny.BIAS
    assert [fit.score for fit in told.texts] == pytest.approx(logits.sigmoid().tolist(), rel=1e-3)
    assert told.scored == "sigmoid"
    with pytest.raises(UserError, match="makes a softmax"):
        zeroshot.match(HEART, "a", score="sigmoid", against="b", **how)
    with pytest.raises(UserError, match="not trained with a sigmoid"):
        zeroshot.match(HEART, "a", "pocket", score="sigmoid", cache=NullCache())


def test_every_text_is_encoded_once(tmp_path):
    """200 pairs of 3 texts: 3 texts go to the encoder, and none the second time."""
    pairs = [(HEART, ["a red heart", "a blue star", "a ring"][i % 3]) for i in range(200)]
    task = Match.from_options(resolve("pocket"), MatchOptions())
    with EmbeddingCache(tmp_path) as cache:
        for texts, pictures in ((3, 1), (0, 0)):
            meter = Meter()
            runner = task.open(cache, meter, 256)
            from zeroshot.api import _pairs

            assert len(list(runner(_pairs(pairs), meter))) == 200
            assert meter.texts_encoded == texts
            assert meter.images_encoded <= max(pictures, 0) * 200


def test_a_table_of_pairs(scenes, capsys):
    pairs = table(
        scenes / "pairs.csv",
        [
            ("path", "caption"),
            ("1-red-heart.png", "a red heart"),
            ("missing.png", "a red heart"),
            ("2-blue-star.png", ""),
            ("1-red-heart.png", "a blue star"),
        ],
    )
    assert run(["match", pairs, "--models", "pocket"]) == 3
    rows = lines(capsys)
    assert [row.get("error", {}).get("type") for row in rows] == [
        None,
        "UnreadableImage",
        "NoText",
        None,
    ]
    assert rows[0]["schema"] == "zeroshot.match/1"
    assert rows[0]["texts"][0]["score"] > rows[3]["texts"][0]["score"]


def test_several_captions_of_a_picture_are_scored_each(scenes, capsys):
    row = {"path": "1-red-heart.png", "caption": ["a red heart", "a blue star"]}
    (scenes / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    assert run(["match", str(scenes / "pairs.jsonl"), "--models", "pocket"]) == 0
    (row,) = lines(capsys)
    assert [fit["text"] for fit in row["texts"]] == ["a red heart", "a blue star"]


def test_a_run_goes_on_where_it_stopped_and_other_captions_are_another_run(scenes, capsys):
    rows = [("path", "caption"), *[("1-red-heart.png", f"a {w} heart") for w in ("red", "blue")]]
    pairs = table(scenes / "pairs.csv", rows)
    line = ["match", pairs, "--models", "pocket", "--out", "rows.jsonl"]
    assert run(line) == 0
    assert run([*line]) == 0
    assert "resumed: 2 of 2" in capsys.readouterr().err
    written = [json.loads(text) for text in Path("rows.jsonl").read_text().splitlines()]
    assert [r["texts"][0]["text"] for r in written] == ["a red heart", "a blue heart"]
    assert run([*line, "--retry-failed"]) == 2
    table(scenes / "pairs.csv", [*rows[:2], ("1-red-heart.png", "a green heart")])
    assert run(line) == 2
    assert "captions are others" in capsys.readouterr().err


def test_a_coupled_pair_matches_too(scenes, capsys):
    line = ["match", "scenes", "--text", "a red heart", "--models", "pocket"]
    assert run([*line, "--encoder", "coupled"]) == 0
    rows = lines(capsys)
    scores = [row["texts"][0]["score"] for row in rows]
    assert rows[0]["path"].endswith("1-red-heart.png")
    assert max(scores) == scores[0]


# Thresholds


def test_thresholds_are_learned_and_used(scenes, capsys):
    wrong = {"1-red-heart.png": "a blue ring", "2-blue-star.png": "a red cross"}
    right = {"1-red-heart.png": "a red heart", "2-blue-star.png": "a blue star"}
    pairs = table(
        scenes / "pairs.csv",
        [
            ("path", "caption", "label"),
            *[(path, text, "yes") for path, text in right.items()],
            *[(path, text, "no") for path, text in wrong.items()],
        ],
    )
    learn = ["match", pairs, "--models", "pocket", "--learn-thresholds", "t.json"]
    assert run([*learn, "--order", "no,yes"]) == 0
    assert "balanced accuracy 1.000 on the 4 pairs" in capsys.readouterr().err
    assert run([*learn, "--order", "no,yes"]) == 2
    assert "exists" in capsys.readouterr().err
    assert run(["match", pairs, "--models", "pocket", "--thresholds", "t.json"]) == 0
    assert [row["texts"][0]["label"] for row in lines(capsys)] == ["yes", "yes", "no", "no"]
    other = ["match", pairs, "--models", "pocket", "--thresholds", "t.json", "--against", "a cat"]
    assert run(other) == 2
    assert "learn new ones with --learn-thresholds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--learn-thresholds", "t.json"], "needs --order"),
        (["--order", "a,b"], "--order is for nothing else"),
        (["--learn-thresholds", "a", "--thresholds", "b", "--order", "a,b"], "give one"),
        (["--learn-thresholds", "t.json", "--order", "a,b"], "has no label to learn from"),
        (["--learn-thresholds", "t", "--order", "a,b", "--out", "x.csv"], "a run of their own"),
        (["--form", "nlvr2", "--text", "a"], "has texts of its own"),
        (["--against", "a " * 99], "--against: 101 tokens, but the model reads"),
        (["--model", "simvlm"], "GIT, BLIP-2 and CoCa supersede it"),
    ],
)
def test_wrong_usage(more, message, scenes, capsys):
    pairs = table(scenes / "p.csv", [("path", "caption"), ("1-red-heart.png", "a red heart")])
    assert run(["match", pairs, "--models", "pocket", *more]) == (4 if "simvlm" in more else 2)
    assert message in capsys.readouterr().err


# Heads


def test_a_head_scores_through_python_and_the_command(itm, scenes, capsys):
    pairs = table(
        scenes / "pairs.csv",
        [
            ("path", "caption"),
            ("1-red-heart.png", "a red heart"),
            ("2-blue-star.png", "a star " * 30),
            ("3-green-ring.png", "ring"),
        ],
    )
    assert run(["match", pairs, "--model", itm, "--device", "cpu"]) == 3
    rows = lines(capsys)
    assert rows[1]["error"]["type"] == "LongText"
    assert rows[0]["models"]["scorer"].startswith("hf:blip_itm@")
    assert rows[0]["scored"] == "probability"
    alone = zeroshot.match([(RING, "ring")], model=itm, cache=NullCache())
    assert alone[0].texts[0].score == pytest.approx(rows[2]["texts"][0]["score"], abs=1e-6)


def test_a_pair_that_was_scored_is_not_scored_again(itm, tmp_path, monkeypatch):
    asked = []
    score = TransformersPairScorer.score_pairs

    def counted(self, pictures, texts):
        asked.append(len(texts))
        return score(self, pictures, texts)

    monkeypatch.setattr(TransformersPairScorer, "score_pairs", counted)
    with EmbeddingCache(tmp_path) as cache:
        first = zeroshot.match([HEART, STAR], ["a", "b"], model=itm, cache=cache, batch_size=3)
        assert asked == [3, 1]
    with EmbeddingCache(tmp_path) as cache:
        again = zeroshot.match([STAR, HEART], ["b", "c"], model=itm, cache=cache)
        assert asked == [3, 1, 2]
    assert again[0].texts[0].score == pytest.approx(first[1].texts[1].score)


def test_a_head_does_not_weigh(itm, capsys):
    line = ["match", str(HEART), "--text", "a", "--against", "b", "--model", itm]
    assert run(line) == 2
    assert "scores each pair by itself" in capsys.readouterr().err


def test_three_labels_of_entailment(tmp_path):
    head = str(tiny_pairs.vilt_entailment(tmp_path / "vilt"))
    (result,) = zeroshot.match([(HEART, "a red heart")], model=head, cache=NullCache())
    (fit,) = result.texts
    assert fit.scores is not None
    assert set(fit.scores) == {"entailment", "neutral", "contradiction"}
    assert fit.score == fit.scores["entailment"]
    assert set(result.row()["texts"][0]) == {"text", "score", "scores"}


# Forms


def test_nlvr2_reads_two_pictures(scenes, tmp_path, capsys):
    head = str(tiny_pairs.vilt_nlvr2(tmp_path / "vilt"))
    rows = [
        {"left": "1-red-heart.png", "right": "2-blue-star.png", "sentence": "one is red"},
        {"left": "2-blue-star.png", "right": "1-red-heart.png", "sentence": "one is red"},
        {"left": "1-red-heart.png", "right": "missing.png", "sentence": "one is red"},
    ]
    (scenes / "n.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    line = ["match", str(scenes / "n.jsonl"), "--form", "nlvr2", "--model", head]
    assert run([*line, "--device", "cpu"]) == 3
    found = lines(capsys)
    assert found[0]["second"].endswith("2-blue-star.png")
    assert found[0]["texts"][0]["score"] != found[1]["texts"][0]["score"]
    assert "missing.png" in found[2]["error"]["message"]
    assert run(["match", str(HEART), "--text", "a", "--model", head, "--device", "cpu"]) == 3
    assert lines(capsys)[0]["error"]["type"] == "OnePicture"


def test_winoground_says_its_three_figures(scenes, capsys):
    rows = [
        {
            "image_0": "1-red-heart.png",
            "image_1": "2-blue-star.png",
            "caption_0": "a red heart",
            "caption_1": "a blue star",
        },
        {
            "image_0": "3-green-ring.png",
            "image_1": "2-blue-star.png",
            "caption_0": "a blue star",
            "caption_1": "a green ring",
        },
    ]
    (scenes / "w.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    line = ["match", str(scenes / "w.jsonl"), "--form", "winoground", "--models", "pocket"]
    assert run([*line, "--out", "w.csv"]) == 0
    assert "text 0.5000, image 0.5000, group 0.5000 of 2 examples" in capsys.readouterr().err
    assert run([*line, "--out", "w.csv"]) == 0
    captured = capsys.readouterr().err
    assert "resumed: 4 of 4" in captured
    assert "text 0" not in captured
    assert run([*line, "--out", "folder/"]) == 2


def test_winoground_by_hand():
    """Right; texts right but pictures not; failed."""
    scores = [[0.9, 0.1], [0.2, 0.8], [0.9, 0.8], [0.1, 0.2], [], [0.1, 0.2]]
    assert "text 0.6667, image 0.3333, group 0.3333 of 3" in winoground_figures(scores)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 1: not JSON at character 2"),
        ('{"left": 1}', "line 1, column 'left': expected a text, got 1"),
        ('{"left": "../a.png", "right": "b.png", "sentence": "c"}', "outside the folder of images"),
    ],
)
def test_wrong_forms(row, message, scenes, capsys):
    (scenes / "n.jsonl").write_text(row)
    assert run(["match", str(scenes / "n.jsonl"), "--form", "nlvr2", "--models", "pocket"]) == 2
    assert message in capsys.readouterr().err


def test_the_task_travels():
    task = Match.from_options(resolve("pocket"), MatchOptions(texts=("a",), against=("b",)))
    assert isinstance(task, Task)
    assert pickle.loads(pickle.dumps(task)) == task
    assert task.on("cpu").models.device == "cpu"
