"""A wrong path is found before any model is loaded, with one sentence, and nothing is written."""

import json
import os
import shlex
from pathlib import Path

import pytest
from PIL import Image

from zeroshot import models
from zeroshot.errors import NoSuchPathError, UserError, near
from zeroshot.inputs.resolve import find, resolve_inputs
from zeroshot.models import loading


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of images, videos and files about them."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.png", "photos/cats/c.png", "clips/a.gif", "query.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30)).save(name)
    Path("labels.txt").write_text("cat\ndog\n")
    Path("queries.txt").write_text("a cat\n")
    Path("pairs.csv").write_text("path,caption\nphotos/a.png,a cat\n")
    Path("truth.csv").write_text("path,label\nphotos/a.png,cat\n")
    Path("results").mkdir()
    Path("results/ensemble.rows.jsonl").write_text("")
    Path("a.html").write_text("")
    return tmp_path


@pytest.fixture
def no_models(monkeypatch):
    """Loading a model ends the test."""

    def load(*_, **__):
        raise AssertionError("a model is loaded")

    for name in dir(loading):
        if name.startswith("load_"):
            for owner in (models, loading):
                monkeypatch.setattr(owner, name, load)


def files():
    return sorted(p for p in Path().rglob("*") if not p.is_dir())


PHOTOS = "did you mean 'photos'?"
CASES = [
    # a name that leads to nothing
    ("classify photo --labels cat,dog", f"no such folder 'photo'; {PHOTOS}"),
    ("classify photos/ fotos/ --labels cat,dog", "no such folder 'fotos/'"),
    ("caption Photo", f"no such folder 'Photo'; {PHOTOS}"),
    (
        "embed photos/cat/c.png",
        "no such file 'photos/cat/c.png'; did you mean 'photos/cats/c.png'?",
    ),
    ("embed phots/cats/z.png", f"no such file 'phots/cats/z.png'; {PHOTOS}"),
    ("embed gone.png", "no such file 'gone.png'"),
    (
        "embed 'phots/*.png'",
        f"no images found in pattern 'phots/*.png': no such folder 'phots'; {PHOTOS}",
    ),
    ("embed photos/a.pgn", "no such file 'photos/a.pgn'; did you mean 'photos/a.png'?"),
    ("embed photos/a.jpeg", "no such file 'photos/a.jpeg'; did you mean 'photos/a.png'?"),
    ("embed file:///nowhere", "no such folder '/nowhere'"),
    ("embed memory://bucket/nowhere/", "no such folder 'memory://bucket/nowhere/'"),
    ("embed memory://bucket/2024/gone.png", "no such file 'memory://bucket/2024/gone.png'"),
    ("embed '{gone,lost}.tar'", "no such file 'gone.tar'"),
    ("read photo", f"no such folder 'photo'; {PHOTOS}"),
    ("segment photo --labels cat", f"no such folder 'photo'; {PHOTOS}"),
    ("detect photo --labels cat", f"no such folder 'photo'; {PHOTOS}"),
    ("match pair.csv", "no such file 'pair.csv'; did you mean 'pairs.csv'?"),
    ("filter pair.csv --min-score 0", "no such file 'pair.csv'; did you mean 'pairs.csv'?"),
    ("ask photo 'Is it day?'", f"no such folder 'photo'; {PHOTOS}"),
    ("search 'a cat' photo", f"no such folder 'photo'; {PHOTOS}"),
    ("calibrate photo --labels cat,dog --out new.json", f"no such folder 'photo'; {PHOTOS}"),
    ("eval photo --task classify", f"no such folder 'photo'; {PHOTOS}"),
    ("eval truht.csv --task classify", "no such file 'truht.csv'; did you mean 'truth.csv'?"),
    ("anchors build photo --out new.safetensors", f"no such folder 'photo'; {PHOTOS}"),
    ("anchors add pocket pair.csv --out new.safetensors", "no such file 'pair.csv'"),
    ("anchors info gone.safetensors", "no such file 'gone.safetensors'"),
    ("report gone", "no such file 'gone'"),
    ("video classify clip --labels cat", "no such folder 'clip'; did you mean 'clips'?"),
    ("video embed clip", "no such folder 'clip'; did you mean 'clips'?"),
    ("video caption clips/b.mp4", "no such file 'clips/b.mp4'"),
    # files that an option names
    (
        "classify photos --labels lables.txt",
        "no such file 'lables.txt'; did you mean 'labels.txt'?",
    ),
    ("classify photos --labels a,b --templates gone.txt", "no such file 'gone.txt'"),
    ("classify photos --labels a,b --shots shot", "no such folder 'shot'"),
    ("classify photos --labels a,b --bank photo", f"no such folder 'photo'; {PHOTOS}"),
    ("classify photos --labels a,b --calibration gone.json", "no such file 'gone.json'"),
    ("classify pairs.csv --labels a,b --image-root photo", f"no such folder 'photo'; {PHOTOS}"),
    ("caption photos --prompts gone.jsonl", "no such file 'gone.jsonl'"),
    ("ask photos 'a?' --answers gone.txt", "no such file 'gone.txt'"),
    ("search photos --image querry.png", "no such file 'querry.png'; did you mean 'query.png'?"),
    ("search photos --queries query.txt", "no such file 'query.txt'"),
    ("search cat photos --plus gone.png", "'text:gone.png' searches for these words"),
    ("eval photos --task caption --truth gone.jsonl", "no such file 'gone.jsonl'"),
    ("anchors import gone.npz --out new.safetensors", "no such file 'gone.npz'"),
    # swapped
    (
        "search photos 'a red cat'",
        "'photos' is there, but was given as the query: are the two swapped?",
    ),
    ("video search clips 'a red cat'", "'clips' is there, but was given as the query"),
    ("ask 'Is it day?' photos", "'photos' is there, but was given as the question"),
    ("ask photos query.png", "the question 'query.png' is a path"),
    ("match 'a cat' --text photos", "'photos' is there, but was given as --text"),
    ("classify cat,dog --labels labels.txt", "'labels.txt' is there, but was given as --labels"),
    ("search query.png photos", "the query 'query.png' is a file: --image query.png"),
    ("search queries.txt photos", "the query 'queries.txt' is a file: --queries queries.txt"),
    ("video search clips/a.gif clips", "the query 'clips/a.gif' is a file: --clip clips/a.gif"),
    # an unset variable of the shell; pathlib takes it for the current folder
    ("classify photos --labels a,b --out ''", "--out is empty; it needs a path"),
    ("classify photos --labels a,b --into=", "--into is empty; it needs a path"),
    ("report results --out ''", "--out is empty; it needs a path"),
    # where nothing can be written
    ("classify photos --labels a,b --out pairs.csv/rows.csv", "pairs.csv' is no folder"),
    ("embed photos --out pairs.csv/rows/", "pairs.csv' is no folder"),
    ("embed photos --out rows.pdf", "unknown output format 'pdf'"),
    ("caption photos --trace pairs.csv/t.jsonl", "pairs.csv' is no folder"),
    ("segment photos --labels cat --masks pairs.csv", "pairs.csv' is no folder"),
    ("detect photos --labels cat --draw pairs.csv/new", "pairs.csv' is no folder"),
    ("detect photos --labels cat --coco pairs.csv/a.json", "pairs.csv' is no folder"),
    ("filter pairs.csv --min-score 0 --kept pairs.csv/a.csv", "pairs.csv' is no folder"),
    ("search cat photos --out rows.pdf", "unknown output format 'pdf'"),
    ("search cat photos --html a.html", "'a.html' exists; --overwrite replaces it"),
    ("search cat photos --html new.pdf", "a page is an .html file"),
    ("anchors build pairs.csv --out pairs.csv/a.safetensors", "pairs.csv' is no folder"),
    ("anchors build pairs.csv --out a.npz", "anchors are a .safetensors file"),
    ("cache export pairs.csv/a.npy", "pairs.csv' is no folder"),
    ("report results --out a.html", "'a.html' exists; --overwrite replaces it"),
    ("eval truth.csv --task classify --out pairs.csv", "--out 'pairs.csv' is a file"),
    ("eval truth.csv --task classify --out results", "ensemble.rows.jsonl' exists; --overwrite"),
    (
        "eval truth.csv --task classify --compare center,ensemble --out results",
        "ensemble.rows.jsonl'",
    ),
]
NO_MODELS = ("anchors add", "anchors info", "anchors import", "report", "cache")


@pytest.mark.parametrize(("line", "message"), CASES, ids=[case[0] for case in CASES])
def test_a_wrong_path(here, no_models, zeroshot, line, message):
    before = files()
    pocket = () if line.startswith(NO_MODELS) else ("--models", "pocket")
    code, rows, said = zeroshot(*shlex.split(line), *pocket)
    assert (code, rows) == (2, []), said
    assert message in said
    assert said.count("error: ") == 1
    assert files() == before


def test_the_search_for_words_that_are_the_name_of_a_file(here, zeroshot):
    """A folder of that name is no reason to doubt words."""
    os.mkdir("a cat")
    for query in ("text:query.png", "a cat"):
        code, rows, _ = zeroshot("search", query, "photos", "--models", "pocket")
        assert code == 0
        assert {row["query"] for row in rows} == {query.removeprefix("text:")}


def test_one_of_several_images_may_be_missing(here):
    found = resolve_inputs(["gone.png", "photos/a.png", "lost.tar"])
    found.check_found()
    assert found.missing == ("gone.png", "lost.tar")
    with pytest.raises(NoSuchPathError, match=r"no such file 'gone\.png'"):
        resolve_inputs(["gone.png", "lost.tar"]).check_found()


def test_a_list_of_names_may_be_older_than_the_files(here):
    """Those on standard input are no words that a person has typed."""
    found = resolve_inputs("-", ["gone", "lost.png"])
    found.check_found()
    assert [source.path for source in found.items] == ["gone", "lost.png"]


def test_what_cannot_be_known_to_be_missing_is_a_row(here):
    os.symlink("nothing", "link")
    assert [source.path for source in find(["link", "a\0b"]).sources] == ["link", "a\0b"]


def test_python_refuses_it_too(here, no_models):
    import zeroshot as zs

    with pytest.raises(UserError, match=r"no such folder 'photo'; did you mean 'photos'\?"):
        zs.classify("photo", ["cat", "dog"], models="pocket")
    with pytest.raises(UserError, match=r"no such folder 'photo'; did you mean 'photos'\?"):
        find(Path("photo"))


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ("photo", "photos"),
        ("PHOTOS", "photos"),
        ("photos/b.png", None),
        ("phtos/cats/", "photos/cats"),
        ("photos/cat/d.png", "photos/cats"),
        ("label.text", "labels.txt"),
        ("entirely/else", None),
        ("", None),
        ("s3://bucket/photo", None),
    ],
)
def test_what_is_near_a_path(here, given, there):
    assert near(given) == there


def test_the_share_of_a_worker_and_the_folder(here, zeroshot):
    for i in range(5):
        Image.new("RGB", (30, 30), (i, 0, 0)).save(f"photos/{i}.png")
    command = ["embed", "photos", "--models", "pocket", "--out", "rows/", "--shard-size", 2]
    _, _, said = zeroshot(*command, "--shards", "1/2")
    assert "rows, share 1/2: 2 of 2 shards are finished, 4 of 4 rows" in said
    assert "rows: 2 of 4 shards are finished, 4 of 7 rows" in said
    _, _, said = zeroshot(*command, "--shards", "2/2")
    assert "rows, share 2/2: 2 of 2 shards are finished, 3 of 3 rows" in said
    assert "rows: 4 of 4 shards are finished, 7 of 7 rows" in said
    _, _, said = zeroshot(*command)
    assert "share" not in said
    assert json.loads(Path("rows/run.json").read_text())["shard_size"] == 2
