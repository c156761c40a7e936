"""The door of the Python functions: what they take, and the sentence for what they do not."""

import dataclasses
import functools
import inspect
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import zeroshot
from tests.test_options import FUNCTIONS
from zeroshot import api, video
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.tasks.options import option_of
from zeroshot.tasks.search_options import SearchOptions

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART, STAR = SCENES / "1-red-heart.png", SCENES / "2-blue-star.png"
LABELS = ["red heart", "blue star"]


@pytest.fixture(scope="module")
def pocket():
    return zeroshot.load("pocket", device="cpu")


def function(name):
    return getattr(video if name.startswith("video.") else api, name.rpartition(".")[2])


NEEDED = {
    "images": str(HEART),
    "clips": str(HEART),
    "pairs": str(HEART),
    "labels": LABELS,
    "query": "a heart",
    "question": "is there a heart?",
    "data": "nothing",
    "name": "pocket",
}


def call(name, /, **given):
    """The function with what it needs, and `given`."""
    parameters = inspect.signature(function(name)).parameters
    needed = {n: v for n, v in NEEDED.items() if n in parameters}
    return function(name)(**needed | given)


class Unseekable(io.RawIOBase):
    """As what comes from a network: it is read once, a few bytes at a time."""

    def __init__(self, data):
        self.data = data

    def readable(self):
        return True

    def seekable(self):
        return False

    def read(self, size=-1):
        part, self.data = self.data[:100], self.data[100:]
        return part


class Broken(io.BytesIO):
    def read(self, size=-1):
        raise OSError(5, "Input/output error")


class OnlyRead:
    """An object of another library, with one method."""

    def __init__(self, data):
        self.read = io.BytesIO(data).read


# What is refused


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        # a number of another type, or out of range
        ("classify", {"batch_size": 0}, "batch_size is 0, and has to be between 1 and"),
        ("caption", {"batch_size": -1}, "batch_size is -1, and has to be between 1 and"),
        ("embed", {"batch_size": "8"}, "batch_size is '8', and has to be a whole number"),
        ("embed", {"batch_size": 10**30}, "and has to be between 1 and 1000000000"),
        ("segment", {"batch_size": 2.0}, "batch_size is 2.0, and has to be a whole number"),
        ("match", {"batch_size": True}, "batch_size is True, and has to be a whole number"),
        ("ask", {"batch_size": None}, "batch_size is None, and has to be a whole number"),
        ("video.embed", {"batch_size": 0}, "batch_size is 0, and"),
        ("video.search", {"batch_size": 0}, "batch_size is 0, and"),
        ("classify", {"top_k": 0}, "top_k is 0, and has to be at least 1"),
        ("search", {"top_k": -1}, "top_k is -1, and has to be at least 1"),
        ("ask", {"top_k": 51}, "top_k is 51, and has to be between 1 and 50"),
        ("classify", {"top_k": "5"}, "top_k is '5', and has to be a whole number or None"),
        ("classify", {"abstain": 1.5}, "abstain is 1.5, and has to be between 0 and 1"),
        ("search", {"min_score": float("nan")}, "min_score is nan, and has to be a finite number"),
        ("classify", {"threshold": float("inf")}, "threshold is inf, and has to be a finite"),
        ("search", {"min_score": 10**400}, "min_score is inf, and has to be a finite number"),
        ("detect", {"overlap": np.float32("nan")}, "overlap is nan, and has to be a finite"),
        ("detect", {"threshold": True}, "threshold is True, and has to be a number or None"),
        ("video.caption", {"frames": 0}, "frames is 0, and has to be between 1 and 256"),
        ("video.search", {"frames": 257}, "frames is 257, and has to be between 1 and 256"),
        ("evaluate", {"draws": 1}, "draws is 1, and has to be between 2 and"),
        ("evaluate", {"confidence": 1.0}, "confidence is 1.0, and has to be between 0.5 and"),
        # a choice that there is not
        ("classify", {"score": "probability"}, "score is 'probability', and has to be 'auto', "),
        ("classify", {"long_text": "cut"}, "long_text is 'cut', and has to be 'error' or 'trun"),
        ("search", {"index": "hnsw"}, "index is 'hnsw', and has to be 'exact', 'ivf' or 'ivfpq'"),
        ("evaluate", {"task": "detect"}, "task is 'detect', and has to be 'classify', "),
        ("load", {"precision": "fp8"}, "precision is 'fp8', and has to be 'auto', 'fp32', "),
        # True and False are no words and no numbers
        ("classify", {"multi": "no"}, "multi is 'no', and has to be True or False"),
        ("search", {"half": 1}, "half is 1, and has to be True or False"),
        ("segment", {"overwrite": "False"}, "overwrite is 'False', and has to be True or False"),
        ("load", {"offline": None}, "offline is None, and has to be True or False"),
        # one where several are meant, and the reverse
        ("classify", {"labels": {"cat": "a cat"}}, "labels is {'cat': 'a cat'}, and has to be a"),
        ("classify", {"labels": {"cat", "dog"}}, "and has to be a text, a path or a list of texts"),
        ("classify", {"labels": [1, 2]}, "labels[0] is 1, and has to be a text"),
        ("classify", {"labels": ["a", None]}, "labels[1] is None, and has to be a text"),
        ("classify", {"labels": None}, "labels is None, and has to be a text, a path or a list"),
        ("classify", {"labels": []}, "one of --labels"),
        ("classify", {"labels": ["a", "b", "a"]}, "labels more than once: 'a'"),
        ("classify", {"labels": [["a"], ["b"]]}, "labels[0] is ['a'], and has to be a text"),
        ("classify", {"templates": 7}, "templates is 7, and has to be a text, a path, a list of"),
        ("classify", {"templates": []}, "the list of templates has no templates"),
        ("classify", {"templates": ["a cat"]}, "template 'a cat' has no {} where the label goes"),
        ("classify", {"prior": [0.5, "x"]}, "prior[1] is 'x', and has to be a number"),
        ("classify", {"method": "otter", "prior": [1.0]}, "expected 2 numbers, one for each"),
        ("classify", {"method": "otter", "prior": [2.0, -1.0]}, "none negative"),
        (
            "classify",
            {"method": ["zpe"]},
            "method is ['zpe'], and has to be a text, a Scorer or",
        ),
        ("ask", {"question": {"a.png": "what?"}}, "question['a.png'] is 'what?', and has to be a"),
        ("ask", {"question": []}, "there is no question"),
        ("caption", {"prompt": {1: "a"}}, "a key of prompt is 1, and has to be a text"),
        ("caption", {"prompt": ["a", "b"]}, "2 prompts for 1 image"),
        ("caption", {"prompt": {"b.png": "a"}}, "there is no prompt for 1 of 1 image, first for"),
        ("search", {"query": []}, "query is an empty list"),
        ("search", {"query": ["a", 1]}, "query[1]: an image is a path"),
        ("evaluate", {"methods": ["zpe", "zpe"]}, "each of them is measured once"),
        ("evaluate", {"protocol": "clip/imagenet", "labels": "a,b"}, "fixes labels, templates"),
        ("detect", {"sentence": ["a cat"]}, "sentence is ['a cat'], and has to be a text or None"),
        ("match", {"texts": 3}, "texts is 3, and has to be a text or a list of texts"),
        ("read", {"model": None}, "model is None, and has to be a text"),
        # what is no image
        ("classify", {"images": None}, "images: an image is a path, bytes, a file opened for by"),
        ("embed", {"images": 3}, "images: an image is a path"),
        ("embed", {"images": [str(HEART), 3]}, "images[1]: an image is a path"),
        ("embed", {"images": {"a": 1}}, "images: an image is a path"),
        ("embed", {"images": {str(HEART)}}, "images: an image is a path"),
        ("embed", {"images": pd.DataFrame({"path": ["a.png"]})}, "list(table['path'])"),
        ("embed", {"images": np.zeros((4, 5, 3), np.uint8)}, "(uint8, shape (4, 5, 3))"),
        ("embed", {"images": [np.zeros((4, 5))]}, "images[0]: an array (float64, shape (4, 5))"),
        ("embed", {"images": torch.zeros(2, 3, 4, 4)}, "(torch.float32, shape (2, 3, 4, 4))"),
        ("match", {"pairs": [(str(HEART),)], "texts": "a"}, "a pair is an image and its text"),
        ("video.embed", {"clips": None}, "clips: an image is a path"),
        ("classify", {"bank": 1, "method": "center"}, "bank: an image is a path"),
        ("embed", {"images": io.StringIO("abc")}, "images: a file has to be open, and for bytes"),
        ("embed", {"images": [io.StringIO("abc")]}, "images[0]: a file has to be open"),
        ("embed", {"images": "\ud83d.png"}, "has half of a character"),
        # files, models, caches
        ("classify", {"labels": Path("nothing.txt")}, "labels: there is no file 'nothing.txt'"),
        ("classify", {"templates": Path("no.json")}, "templates: there is no file 'no.json'"),
        ("classify", {"shots": 3}, "shots is 3, and has to be a text, a path or None"),
        ("classify", {"models": None}, "models is None, and has to be a text, a path or a Model"),
        ("classify", {"models": "\0"}, "models: '\\x00' has a null character"),
        ("classify", {"labels": ["a\ud800"]}, "labels[0]: 'a\\ud800' has half of a character"),
        ("embed", {"cache": "folder"}, "cache is 'folder', and has to be an EmbeddingCache, True"),
        ("embed", {"cache": 0}, "cache is 0, and has to be an EmbeddingCache, True, False or None"),
        ("evaluate", {"judge": "pocket"}, "judge is 'pocket', and has to be a DualEncoder or None"),
        ("load", {"name": 3}, "name is 3, and has to be a text or a path"),
        # arguments that there are not
        ("match", {"long_text": "truncate"}, "unknown argument of match 'long_text'"),
        ("detect", {"overlaps": 0.5}, "did you mean 'overlap'?"),
        ("load", {"role": "encoder"}, "unknown argument of load 'role'"),
        ("classify", {"long_txt": "error"}, "unknown option of ensemble 'long_txt'"),
    ],
)
def test_the_sentence_names_the_argument(name, given, said, pocket):
    more = {} if "models" in given or name in ("load", "read") else {"models": pocket}
    with pytest.raises(UserError) as raised:
        call(name, **given | more)
    message = str(raised.value)
    assert said in message
    assert "\n" not in message


def test_a_closed_file_and_one_open_for_text_are_refused(pocket, tmp_path):
    closed = io.BytesIO(HEART.read_bytes())
    closed.close()
    with pytest.raises(UserError, match="I/O operation on closed file"):
        zeroshot.embed(closed, models=pocket)
    (tmp_path / "a.txt").write_text("text")
    with (
        (tmp_path / "a.txt").open(encoding="utf-8") as file,
        pytest.raises(UserError, match="for bytes"),
    ):
        zeroshot.embed(file, models=pocket)


def test_too_many_and_too_few_arguments():
    with pytest.raises(UserError, match="embed: missing a required argument: 'images'"):
        zeroshot.embed()
    with pytest.raises(UserError, match="embed: too many positional arguments"):
        zeroshot.embed("a.png", "pocket", True)


@pytest.mark.parametrize("name", [*FUNCTIONS, "load", "video.search", "video.caption"])
def test_no_function_is_without_a_door(name):
    assert "batch_size" not in NEEDED
    with pytest.raises(UserError, match=r"(models|model|name) is 3"):
        call(name, **{"read": {"model": 3}, "load": {"name": 3}}.get(name, {"models": 3}))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ranges_are_those_of_the_declared_options(name):
    """One step out of every range that the options of the command line have."""
    parameters, tried = inspect.signature(function(name)).parameters, 0
    for field in dataclasses.fields(FUNCTIONS[name]):
        known = option_of(field)
        for limit, step in ((known.min, -1), (known.max, 1)):
            if limit is not None and field.name in parameters:
                with pytest.raises(UserError, match=f"^{field.name} is {limit + step}"):
                    call(name, **{field.name: limit + step})
                tried += 1
    assert tried or not any(
        option_of(f).min is not None or option_of(f).max is not None
        for f in dataclasses.fields(FUNCTIONS[name])
        if f.name in parameters
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "asif", "k": None}, "asif: k=None; k is of type int"),
        ({"method": "asif", "k": [5]}, "asif: k=[5]; k is of type int"),
        ({"method": "asif", "k": True}, "asif: k=True; k is of type int"),
        ({"method": "asif", "k": 5.5}, "asif: k=5.5; k is of type int"),
        ({"method": "asif", "p": float("nan")}, "asif: p=nan; p is a finite number"),
        ({"method": "asif", "p": "inf"}, "asif: p=inf; p is a finite number"),
        ({"method": "asif", "p": {}}, "asif: p={}; p is a finite number"),
        ({"method": "asif", "p": np.zeros((2, 2))}, "asif: p=[[0. 0.] [0. 0.]]; p is a"),
        ({"method": "asif", "center": "maybe"}, "asif: center=maybe; center is of type bool"),
        ({"method": "ensemble", "mode": ["max"]}, "ensemble: mode=['max']; possible: embed"),
        ({"method": "ensemble", "mode": None}, "ensemble: mode=None; possible: embed"),
    ],
)
def test_options_of_a_method_have_types(options, said, pocket):
    with pytest.raises(UserError) as raised:
        zeroshot.classify(HEART, LABELS, models=pocket, **options)
    assert said in str(raised.value)


# What is accepted


def test_files_and_bytes_are_images(pocket, tmp_path):
    data = HEART.read_bytes()
    written = io.BytesIO()
    written.write(data)  # its place is the end
    [expected] = zeroshot.embed(HEART, models=pocket)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("heart.png", data)
    with (
        HEART.open("rb") as opened,
        HEART.open("rb", buffering=0) as raw,
        zipfile.ZipFile(tmp_path / "a.zip") as archive,
        archive.open("heart.png") as member,
    ):
        files = [written, opened, raw, member, Unseekable(data), OnlyRead(data)]
        alone = [zeroshot.embed(file, models=pocket) for file in files]
        assert [len(results) for results in alone] == [1] * 6
        assert {results[0].embedding for results in alone} == {expected.embedding}
    many = [bytearray(data), memoryview(data), io.BytesIO(data), data, HEART]
    found = zeroshot.embed((image for image in many), models=pocket)
    assert {result.id for result in found} == {expected.id}
    assert [result.path for result in found] == [None] * 4 + [str(HEART)]


def test_a_file_object_that_cannot_be_read_is_a_failed_row(pocket):
    found = zeroshot.embed([Broken(), io.BytesIO(), io.BytesIO(b"GIF89a?")], models=pocket)
    assert [result.error.type for result in found] == ["UnreadableImage"] * 3
    assert found[0].error.message == "cannot be read (Input/output error)"
    [query] = zeroshot.search(io.BytesIO(HEART.read_bytes()), HEART, models=pocket)
    assert query.score > 0.99


def test_files_are_clips_and_pairs_too(pocket):
    image = io.BytesIO(HEART.read_bytes())
    [matched] = zeroshot.match([(image, "a red heart")], models=pocket)
    [expected] = zeroshot.match([(HEART, "a red heart")], models=pocket)
    assert matched.texts == expected.texts
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:], duration=100)
    [clip] = zeroshot.video.embed(animation, models=pocket, frames=2)
    assert clip.error is None


def test_an_unread_image_with_texts_is_a_row(pocket):
    """In a batch in which none can be read."""
    found = zeroshot.match(["nothing.png"], ["a", "b"], models=pocket)
    assert [result.error.message for result in found] == ["no such file"]


def test_what_means_the_same_gives_the_same_rows(pocket, tmp_path):
    (tmp_path / "labels.txt").write_text("red heart\nblue star\n", "utf-8")
    (tmp_path / "templates.txt").write_text("a {}\nthe {} here\n", "utf-8")
    images = [HEART, STAR]
    rows = functools.partial(zeroshot.classify, models=pocket)

    def answers(found):
        return [[(x.label, x.score) for x in result.labels] for result in found]

    expected = answers(rows(images, LABELS))
    for labels in (
        tmp_path / "labels.txt",
        np.array(LABELS),
        (label for label in LABELS),
        dict.fromkeys(LABELS).keys(),
        tuple(LABELS),
    ):
        assert answers(rows(images, labels)) == expected
    by_file = answers(rows(images, LABELS, templates=tmp_path / "templates.txt"))
    assert by_file != expected
    assert answers(rows(images, LABELS, templates=["a {}", "the {} here"])) == by_file
    [one], [other] = (
        answers(rows(HEART, LABELS, top_k=top_k, batch_size=np.int64(1)))
        for top_k in (1, np.int64(1))
    )
    assert one == other
    assert len(one) == 1
    for prior in ([1, 3], np.array([0.25, 0.75]), torch.tensor([0.25, 0.75]), "1,3"):
        weighted = answers(rows(images, LABELS, method="otter", prior=prior))
        assert weighted == answers(rows(images, LABELS, method="otter", prior=[0.25, 0.75]))
    names = np.array([str(HEART), str(STAR)])
    assert answers(rows(names, LABELS)) == expected


def test_options_of_a_method_may_be_of_numpy_or_text(pocket):
    coupled = zeroshot.load("pocket", device="cpu", encoder="coupled")
    rows = functools.partial(zeroshot.classify, HEART, LABELS, models=coupled, method="asif")
    [expected] = rows(k=20, p=2.0, center=True)
    for k, p, center in (("20", "2", "true"), (np.int64(20), np.float32(2), np.bool_(True))):
        [found] = rows(k=k, p=p, center=center)
        assert found.labels == expected.labels


def test_false_is_no_cache(pocket, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))
    [one] = zeroshot.embed(HEART, models=pocket, cache=False)
    assert not (tmp_path / "cache").exists()
    [other] = zeroshot.embed(HEART, models=pocket, cache=True)
    with EmbeddingCache() as cache:
        assert [space.rows for space in cache.info().spaces] == [1]
        assert zeroshot.embed(HEART, models=pocket, cache=cache)[0].embedding == one.embedding
        assert cache.file_id(HEART) == one.id  # it is open still
    assert one.embedding == other.embedding


def test_a_set_is_named_by_a_path(tmp_path):
    (tmp_path / "models.toml").write_text('encoder = "nothing"\n')
    for models in (tmp_path, str(tmp_path)):
        with pytest.raises(UserError) as raised:
            zeroshot.embed(HEART, models=models)
        assert "models.toml" in str(raised.value)
    loaded = zeroshot.load("pocket", encoder="coupled", device="cpu")
    assert loaded.spec.encoder is None


def test_one_query_of_a_bank(pocket):
    one, other = (
        zeroshot.search("a heart", [HEART, STAR], models=pocket, method="nnn", k=1, bank=bank)
        for bank in ("a star", ["a star"])
    )
    assert [hit.score for hit in one] == [hit.score for hit in other]


def test_settings_are_as_of_the_command_line(pocket, monkeypatch):
    """A number of numpy, or an int for a float, leaves the record of a run the same."""
    seen = []

    def search(queries, sources, models, options, *args, **more):
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(api.searching, "search", search)
    for given in (
        {"top_k": np.int32(3), "min_score": 1, "half": np.bool_(True), "plus": ["x"]},
        {"top_k": 3, "min_score": 1.0, "half": True, "plus": ("x",)},
    ):
        with pytest.raises(KeyboardInterrupt):
            zeroshot.search("a", HEART, models=pocket, **given)
    assert seen[0] == seen[1] == SearchOptions(plus=("x",), top_k=3, min_score=1.0, half=True)
    assert json.dumps(dataclasses.asdict(seen[0])) == json.dumps(dataclasses.asdict(seen[1]))


# The command line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["search", "a", HEART, "--min-score", "nan"], "--min-score is nan, and has to be a fini"),
        (["filter", HEART, "--min-score", "-inf"], "--min-score is -inf, and has to be a finite"),
        (["classify", HEART, "--labels", "a", "--multi", "--threshold", "inf"], "--threshold is i"),
        (["embed", HEART, "--url-timeout", "inf"], "--url-timeout is inf, and has to be a finite"),
        (["embed", HEART, "--batch-size", "9" * 5000], "--batch-size 999999"),
        (["classify", HEART, "--labels", "a,b", "--method", "asif", "-o", "p=nan"], "asif: p=nan"),
    ],
)
def test_the_command_line_takes_no_nan(line, said, printed):
    code, _, err = printed(*line, "--models", "pocket")
    assert code == 2
    assert said in err
