"""`zeroshot ask`, `read` and native captions: by matching on pocket, and by tiny models."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import zeroshot
from tests.models import tiny_pairs
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.cli import run
from zeroshot.datasets.region_features import read_regions
from zeroshot.errors import UserError
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks.captioning.caption_options import CaptionOptions, ReadOptions
from zeroshot.tasks.captioning.trained import NativeCaption, Read
from zeroshot.tasks.task import Task
from zeroshot.tasks.vqa.ask_options import AskOptions
from zeroshot.tasks.vqa.ask_task import Ask
from zeroshot.tasks.vqa.statements import covered, parse, singular, statements

ROOT = Path(__file__).parent.parent
SCENES = ROOT / "examples" / "scenes"
HEART, STAR = SCENES / "1-red-heart.png", SCENES / "2-blue-star.png"


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    built = {}

    def build(name):
        if name not in built:
            built[name] = str(tiny_pairs.ALL[name](tmp_path_factory.mktemp("tiny") / name))
        return built[name]

    return build


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    shutil.copytree(SCENES, tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "scenes"


@pytest.fixture(scope="module")
def pocket_questions():
    """`tools/pocket/questions.py`, whose figures docs/questions.md has."""
    sys.path.insert(0, str(ROOT / "tools" / "pocket"))
    try:
        import questions
    finally:
        sys.path.pop(0)
    return questions


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def said(row):
    return [question["answers"][0]["answer"] for question in row["questions"]]


# Questions and their statements


@pytest.mark.parametrize(
    ("text", "form", "what"),
    [
        ("How many cats are there?", "count", "cats"),
        ("how many red hearts are there in the picture", "count", "red hearts"),
        ("How many people do you see?", "count", "people"),
        ("How many dogs?", "count", "dogs"),
        ("How many remotes are in the image?", "count", "remotes"),
        ("Is there a red heart?", "there", "red heart"),
        ("Are there any cats in this photo?", "there", "cats"),
        ("Can you see the sea ?", "there", "sea"),
        ("Does the picture show a dog?", "there", "dog"),
        ("What is the man holding?", "open", ""),
        ("Is the cat asleep?", "open", ""),
    ],
)
def test_forms_of_questions(text, form, what):
    question = parse(text)
    assert (question.form, question.what) == (form, what)


@pytest.mark.parametrize(
    ("many", "one"),
    [
        ("red hearts", "red heart"),
        ("crosses", "cross"),
        ("cross", "cross"),
        ("boxes", "box"),
        ("cherries", "cherry"),
        ("people", "person"),
        ("buses", "bus"),
        ("bus", "bus"),
        ("tennis", "tennis"),
    ],
)
def test_singulars(many, one):
    assert singular(many) == one


def test_statements_of_each_form():
    assert list(statements(parse("Is there a cat?"))) == ["yes", "no"]
    counts = statements(parse("How many cats are there?"))
    assert list(counts) == [str(n) for n in range(11)]
    assert counts["1"] == ("a photo of one cat", "one cat")
    assert counts["2"] == ("a photo of two cats", "two cats")
    named = statements(parse("What colour is it?"), ("red", "blue"))
    assert named["red"][0] == "question: What colour is it? answer: red"
    with pytest.raises(UserError, match="--answers"):
        statements(parse("What colour is it?"))


def test_names_that_a_question_covers():
    among = ["red heart", "red cross", "blue heart"]
    assert covered("red shapes", among) == [0, 1]
    assert covered("hearts", among) == [0, 2]
    assert covered("red crosses", among) == [1]
    assert covered("things", among) == [0, 1, 2]
    with pytest.raises(UserError, match="nothing among the 3 names is 'green hearts'"):
        covered("green hearts", among)


# By matching, on pocket


def test_questions_about_pocket_scenes_are_mostly_answered_rightly(pocket_questions):
    """Hard pairs: what is not there shares colour or shape with what is. 500 scenes: the docs."""
    scenes, pictures = map(list, zip(*pocket_questions.held_out(60), strict=True))
    among = {"among": pocket_questions.labels()}
    assert np.mean(pocket_questions.yes_or_no(scenes, pictures, **among)) >= 0.9
    assert np.mean(pocket_questions.by_threshold(scenes, pictures)) >= 0.9
    assert np.mean(pocket_questions.counted(scenes, pictures, **among)) >= 0.7
    assert np.mean(pocket_questions.counted_by_colour(scenes, pictures, **among)) >= 0.8


def test_matching_answers_alone_as_in_a_batch():
    among = ["red heart", "blue star", "green ring", "red square", "blue circle"]
    pictures = sorted(SCENES.glob("*.png"))
    questions = ["Is there a red heart?", "How many red things are there?"]
    how = {"among": among, "cache": NullCache()}
    together = zeroshot.ask(pictures, questions, "pocket", **how)
    for picture, result in zip(pictures, together, strict=True):
        (alone,) = zeroshot.ask(picture, questions, "pocket", **how)
        for a, b in zip(alone.questions, result.questions, strict=True):
            assert a.answers[0].text == b.answers[0].text
            assert a.answers[0].score == pytest.approx(b.answers[0].score, abs=1e-5)
    assert said(together[0].row()) == ["yes", "1"]
    assert together[0].scored == "presence"


def test_answers_to_choose_from():
    (result,) = zeroshot.ask(
        HEART, "red or blue?", "pocket", answers="red heart,blue star", top_k=2, cache=NullCache()
    )
    answers = result.questions[0].answers
    assert [a.text for a in answers] == ["red heart", "blue star"]
    assert sum(a.score or 0 for a in answers) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"question": "What is it?"}, "neither whether something is there"),
        ({"question": "What is it?", "among": "cat,dog"}, "neither whether something is there"),
        ({"question": "Is there a cat?", "among": "red,blue"}, "nothing among the 2 names"),
        ({"question": "a?", "among": "a,b", "answers": "a,b"}, "give one of them"),
        ({"question": "Is there a cat?", "among": "cat", "present": 0.0}, "between 0 and 1"),
        ({"question": ()}, "there is no question"),
        ({"question": "Is there a " + "red " * 99 + "cat?"}, "a statement of .* the encoder reads"),
        ({"question": "a?", "regions": "x.npz"}, "LXMERT and VisualBERT"),
    ],
)
def test_wrong_questions_for_matching(how, message):
    with pytest.raises(UserError, match=message):
        zeroshot.ask(HEART, models="pocket", cache=NullCache(), **how)


# By models, through Python and the command


@pytest.mark.parametrize("name", tiny_pairs.ANSWERERS)
def test_every_answerer_through_the_command(name, model_of, scenes, capsys):
    (scenes / "broken.png").write_bytes(b"no picture")
    line = ["ask", str(HEART), "scenes/broken.png", str(STAR), "is it?", "--model", model_of(name)]
    assert run([*line, "--top-k", "2", "--device", "cpu"]) == 3
    rows = lines(capsys)
    assert [row["path"] for row in rows] == [str(HEART), "scenes/broken.png", str(STAR)]
    assert rows[1]["error"]["type"] == "UnreadableImage"
    assert rows[0]["schema"] == "zeroshot.ask/1"
    (question,) = rows[0]["questions"]
    assert question["question"] == "is it?"
    assert len(question["answers"]) == 2
    (result,) = zeroshot.ask(HEART, "is it?", model=model_of(name), top_k=2, cache=NullCache())
    assert [a.text for a in result.questions[0].answers] == [
        a["answer"] for a in question["answers"]
    ]


def test_a_file_of_questions(model_of, scenes, capsys):
    asked = [
        {"path": "1-red-heart.png", "question": "is it?"},
        {"path": "2-blue-star.png", "question": "who?"},
        {"path": "1-red-heart.png", "question": "how many?"},
    ]
    (scenes / "q.jsonl").write_text("\n".join(json.dumps(row) for row in asked))
    line = ["ask", "--questions", "scenes/q.jsonl", "--model", model_of("vilt_vqa")]
    assert run([*line, "--device", "cpu", "--out", "a.csv"]) == 0
    assert run([*line, "--device", "cpu"]) == 0
    rows = lines(capsys)
    assert [[q["question"] for q in row["questions"]] for row in rows] == [
        ["is it?", "how many?"],
        ["who?"],
    ]
    assert run([*line, "scenes/3-green-ring.png", "--device", "cpu"]) == 3
    assert lines(capsys)[0]["error"]["type"] == "NoQuestion"
    (scenes / "q.jsonl").write_text(json.dumps(asked[0]))
    assert run([*line, "--device", "cpu", "--out", "a.csv"]) == 2
    assert "questions are others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("{", "line 1: not JSON at character 2"),
        ('{"path": "a"}', "line 1, column 'question': expected a text"),
        ('{"path": "a", "question": "b"}\n{"path": "a", "question": "b"}', "twice"),
    ],
)
def test_wrong_files_of_questions(text, message, scenes, capsys):
    (scenes / "q.jsonl").write_text(text)
    assert run(["ask", "--questions", "scenes/q.jsonl", "--models", "pocket"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["ask"], "needs images and a question"),
        (["ask", "scenes"], "needs images and a question"),
        (["ask", "scenes", "--question", "a?", "--questions", "scenes/q.jsonl"], "give one"),
        (["ask", "scenes", "a?", "--model", "M", "--among", "a,b"], "--among is for answers by"),
        (["ask", "scenes", "a?", "--model", "M", "--answers", "a,b"], "has its own answers"),
        (["caption", "scenes", "--method", "native"], "belong together"),
        (["caption", "scenes", "--model", "M"], "belong together"),
        (["caption", "scenes", "--model", "pocket"], "for a model set: --models pocket"),
        (["caption", "scenes", "--method", "native", "--model", "M", "-o", "k=1"], "has no -o"),
    ],
)
def test_wrong_usage(line, message, model_of, scenes, capsys):
    (scenes / "q.jsonl").write_text('{"path": "1-red-heart.png", "question": "b"}')
    line = [model_of("vilt_vqa") if word == "M" else word for word in line]
    assert run([*line, "--models", "pocket"]) == 2
    assert message in capsys.readouterr().err


def test_a_question_that_is_too_long_fails_its_row(model_of, capsys):
    line = ["ask", str(HEART), "a " * 60, "--model", model_of("vilt_vqa"), "--device", "cpu"]
    assert run(line) == 3
    assert lines(capsys)[0]["error"]["type"] == "LongText"


# Regions


def arrays(count=2, width=12):
    draw = np.random.default_rng(0)
    corners = np.sort(draw.random((count, 3, 2, 2)), axis=2)
    return {
        "paths": np.array(["1-red-heart.png", "2-blue-star.png"][:count]),
        "features": draw.standard_normal((count, 3, width)).astype(np.float32),
        "boxes": corners.reshape(count, 3, 4).astype(np.float32),
    }


@pytest.mark.parametrize("name", tiny_pairs.REGIONS)
def test_regions_through_the_command(name, model_of, scenes, capsys):
    np.savez(scenes / "r.npz", **arrays(), counts=np.array([3, 2]))
    line = ["ask", "scenes/1-red-heart.png", "scenes/2-blue-star.png", "scenes/3-green-ring.png"]
    line += ["is it?", "--model", model_of(name), "--regions", "scenes/r.npz", "--device", "cpu"]
    assert run(line) == 3
    rows = lines(capsys)
    assert rows[2]["error"]["type"] == "NoRegions"
    assert rows[0]["questions"][0]["answers"][0]["answer"] in tiny_pairs.ANSWERS
    (scenes / "answers.txt").write_text("a\nb\nc\nd\ne\n")
    assert run([*line[:2], *line[4:], "--answers", "scenes/answers.txt"]) == 0
    assert said(lines(capsys)[0])[0] in "abcde"


def test_counts_leave_padding_out(tmp_path):
    held = arrays()
    np.savez(tmp_path / "r.npz", **held, counts=np.array([3, 2]))
    found = read_regions(tmp_path / "r.npz", 12, boxed=True)
    second = found[str(tmp_path / "2-blue-star.png")]
    assert second.features.shape == (2, 12)
    np.testing.assert_array_equal(second.boxes, held["boxes"][1, :2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": None}, "lacks the array 'paths'"),
        ({"more": np.zeros(1)}, "unknown array 'more'"),
        ({"paths": np.array([1, 2])}, "paths must be texts"),
        ({"paths": np.array(["a", "a"])}, "more than once"),
        ({"features": np.zeros((2, 3, 5))}, r"features must be numbers \[2, r, 12\]"),
        ({"features": np.zeros((2, 3, 12), int)}, "not int64"),
        ({"features": np.full((2, 3, 12), np.nan)}, "not finite"),
        ({"boxes": None}, "has no boxes"),
        ({"boxes": np.full((2, 3, 4), 7.0)}, r"in 0..1, not 7..7"),
        ({"boxes": np.tile([0.5, 0.5, 0.2, 0.9], (2, 3, 1))}, "ends before it begins"),
        ({"boxes": np.zeros((2, 2, 4))}, "boxes must be numbers"),
        ({"counts": np.array([0, 3])}, r"in 1..3"),
        ({"counts": np.array([1.5, 3])}, "whole numbers"),
    ],
)
def test_wrong_regions_are_refused(change, message, tmp_path):
    held = {k: v for k, v in (arrays() | change).items() if v is not None}
    np.savez(tmp_path / "r.npz", **held)
    with pytest.raises(UserError, match=message):
        read_regions(tmp_path / "r.npz", 12, boxed=True)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no zip", pickle.dumps({"a": 1})])
def test_what_is_no_npz_is_refused(data, tmp_path):
    (tmp_path / "r.npz").write_bytes(data)
    with pytest.raises(UserError, match="cannot read regions"):
        read_regions(tmp_path / "r.npz", 12, boxed=True)


def test_objects_in_an_npz_are_not_loaded(tmp_path):
    np.savez(tmp_path / "r.npz", **(arrays() | {"paths": np.array([{}, {}])}))
    with pytest.raises(UserError, match="cannot read regions"):
        read_regions(tmp_path / "r.npz", 12, boxed=True)


# Writing


@pytest.mark.parametrize("name", tiny_pairs.WRITERS)
def test_every_captioner_through_the_command(name, model_of, scenes, capsys):
    (scenes / "broken.png").write_bytes(b"no picture")
    line = ["caption", str(HEART), "scenes/broken.png", str(STAR), "--method", "native"]
    assert run([*line, "--model", model_of(name), "--device", "cpu"]) == 3
    rows = lines(capsys)
    assert rows[1]["error"]["type"] == "UnreadableImage"
    assert (rows[0]["schema"], rows[0]["method"]) == ("zeroshot.caption/1", "native")
    assert rows[0]["scored"] == "probability"
    (result,) = zeroshot.caption(STAR, method="native", model=model_of(name), cache=NullCache())
    assert result.caption == rows[2]["caption"]


def test_native_captions_begin_with_their_prompts(model_of, scenes, capsys):
    line = ["caption", "scenes/1-red-heart.png", "--method", "native", "--device", "cpu"]
    line += ["--model", model_of("git")]
    assert run([*line, "--prompt", "a photo of"]) == 0
    (row,) = lines(capsys)
    assert row["caption"].startswith("a photo of ")
    assert row["prompt"] == "a photo of"


def test_reading_through_the_command(model_of, scenes, capsys):
    reader = model_of("encoder_decoder")
    assert run(["read", "scenes", "--model", reader, "--device", "cpu", "--out", "r.csv"]) == 0
    assert run(["read", "scenes", "--model", reader, "--device", "cpu"]) == 0
    rows = lines(capsys)
    assert rows[0]["schema"] == "zeroshot.read/1"
    results = zeroshot.read(scenes, reader)
    assert [r.text for r in results] == [row["text"] for row in rows]


def test_tasks_travel():
    models = resolve("pocket")
    tasks = [
        Ask.from_options(models, AskOptions(), "a?"),
        Ask.from_options(models, AskOptions(), {"a.png": ("b?",)}),
        NativeCaption.from_options(models, CaptionOptions("native", model="m", prompt="p")),
        Read.from_options(models, ReadOptions("m")),
    ]
    for task in tasks:
        assert isinstance(task, Task)
        assert pickle.loads(pickle.dumps(task)) == task
        assert task.on("cpu").models.device == "cpu"
