"""The command line as a person types it: exit codes, rows, messages, the second run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache

DATA = Path(__file__).parent / "data"
MAGIC = DATA / "magic"
GOLDEN = json.loads((MAGIC / "golden.json").read_text())
MODELS = ["--encoder", f"hf:{MAGIC / 'clip'}", "--lm", f"hf:{MAGIC / 'lm'}"]
ENCODER = MODELS[:2]


@pytest.fixture
def mixed(tmp_path):
    """A folder with two good pictures, a truncated, an empty and a text file, and a manifest."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("b.png", "below/a.jpg"):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    whole = (folder / "below" / "a.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.webp").write_text("not a picture")
    (folder / "captions.jsonl").write_text("{}\n")
    return folder


def settings(run):
    names = ("k", "alpha", "beta")
    given = {name: run[name] for name in names} | {"max_tokens": run["decoding_len"] - 1}
    return [part for key, value in given.items() for part in ("-o", f"{key}={value}")]


UNTITLED = [run for run in GOLDEN["runs"] if run["text"] is not None]


@pytest.mark.parametrize("first", UNTITLED[::5], ids=lambda r: f"k={r['k']}-{r['decoding_len']}")
def test_caption_prints_the_authors_text(zeroshot, first):
    """All five pictures as one batch, and one of them alone."""
    runs = [r for r in UNTITLED if settings(r) == settings(first)]
    pictures = [MAGIC / run["image"] for run in runs]
    code, rows, _ = zeroshot("caption", *pictures, *MODELS, *settings(first), "--json")
    assert code == 0
    assert [row["caption"] for row in rows] == [run["text"] for run in runs]
    code, rows, _ = zeroshot("caption", pictures[2], *MODELS, *settings(first), "--json")
    assert [row["caption"] for row in rows] == [runs[2]["text"]]


def test_a_row_has_what_the_interface_promises(zeroshot):
    _, [row], err = zeroshot("caption", MAGIC / "image_0.png", *MODELS, "-o", "max_tokens=3")
    assert row["schema"] == "zeroshot.caption/1"
    assert row["path"] == str(MAGIC / "image_0.png")
    assert len(row["id"]) == 64
    assert row["method"] == "magic"
    assert set(row["models"]) == {"encoder", "language_model"}
    assert "images/s" in err


TITLED = [run for run in GOLDEN["runs"] if run["text"] is None]


def story(run):
    """The title of a titled run, and its options."""
    from zeroshot import models

    lm = models.load_language_model(f"hf:{MAGIC / 'lm'}")
    length = run["decoding_len"]
    new = run["token_ids"][len(run["prefix_ids"]) :]
    text = lm.decode(new[: new.index(lm.end)] if lm.end in new else new)
    given = {"k": run["k"], "alpha": run["alpha"], "beta": run["beta"]}
    given |= {"max_tokens": length, "max_length": length}
    options = [part for key, value in given.items() for part in ("-o", f"{key}={value}")]
    return lm.decode(run["prefix_ids"][:-1]), " ".join(text.split()), options


def test_stories_under_a_title_are_the_authors(zeroshot, tmp_path):
    """One title for all, and a file of titles; five sentences are more than these have."""
    run = TITLED[0]
    title, text, options = story(run)
    preset = ["--preset", "story", *options, "-o", "sentences=0"]
    code, [row], _ = zeroshot("caption", MAGIC / run["image"], *MODELS, *preset, "--prompt", title)
    assert code == 0
    assert (row["caption"], row["prompt"]) == (text, title)
    asked = tmp_path / "titles.jsonl"
    several = [r for r in TITLED if story(r)[2] == options]
    lines = [{"path": str(MAGIC / r["image"]), "prompt": story(r)[0]} for r in several]
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, rows, _ = zeroshot("caption", "--prompts", asked, *MODELS, *preset)
    assert [row["caption"] for row in rows] == [story(r)[1] for r in several]


def test_other_prompts_do_not_go_on_in_one_file(zeroshot, tmp_path):
    asked, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    line = {"path": str(MAGIC / "image_0.png"), "prompt": "a"}
    arguments = ["caption", "--prompts", asked, *MODELS, "-o", "max_tokens=2", "--out", out]
    asked.write_text(json.dumps(line))
    assert zeroshot(*arguments)[0] == 0
    assert zeroshot(*arguments)[0] == 0
    asked.write_text(json.dumps(line | {"prompt": "b"}))
    code, _, err = zeroshot(*arguments)
    assert code == 2
    assert "prompts" in err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no rows"),
        ("nothing", "line 1: not JSON at character 1"),
        ('{"path": "a.png"}', "line 1, column 'prompt': expected a text, got no such column"),
        ('{"path": "a", "prompt": "b"}\n{"path": "a", "prompt": "c"}', "a second prompt for 'a'"),
        ('{"path": "other.png", "prompt": "b"}', "no prompt for 1 image:"),
    ],
)
def test_a_file_of_prompts_that_is_wrong(zeroshot, tmp_path, lines, message):
    (tmp_path / "p.jsonl").write_text(lines)
    code, rows, err = zeroshot(
        "caption", MAGIC / "image_0.png", "--prompts", tmp_path / "p.jsonl", *MODELS
    )
    assert (code, rows) == (2, [])
    assert message in err


def test_prompts_presets_and_traces_that_do_not_fit(zeroshot, tmp_path):
    image = MAGIC / "image_0.png"
    for arguments, message in [
        (["--prompt", "a", "--prompts", tmp_path], "give one"),
        (["--preset", "stories"], "did you mean 'story'"),
        (["--method", "retrieve", "--preset", "story"], "unknown preset of retrieve 'story'"),
        (["--method", "retrieve", "--prompt", "a"], "takes no prompts"),
        (["--method", "retrieve", "--trace", tmp_path / "t.jsonl"], "takes no trace"),
    ]:
        code, _, err = zeroshot("caption", image, *MODELS, *arguments)
        assert code == 2
        assert message in err
    code, _, err = zeroshot("caption", *MODELS)
    assert code == 2
    assert "caption needs images" in err


def test_a_trace_has_a_line_for_each_caption(zeroshot, mixed, tmp_path):
    file = tmp_path / "traces" / "t.jsonl"
    arguments = ["caption", mixed, *MODELS, "-o", "max_tokens=4", "-o", "k=6", "--trace", file]
    code, rows, _ = zeroshot(*arguments)
    assert code == 3
    traces = [json.loads(line) for line in file.read_text().splitlines()]
    good = [row for row in rows if "error" not in row]
    assert [t["id"] for t in traces] == [row["id"] for row in good]
    for trace, row in zip(traces, good, strict=True):
        assert trace["schema"] == "zeroshot.trace/1"
        assert trace["caption"] == row["caption"]
        assert all(len(step["candidates"]) == 6 for step in trace["steps"])
    code, _, err = zeroshot(*arguments)
    assert code == 2
    assert "exists; --overwrite replaces it" in err
    code, _, _ = zeroshot(*arguments, "--overwrite")
    assert code == 3


def test_a_resumed_run_adds_to_its_trace(zeroshot, tmp_path):
    out, file = tmp_path / "o.jsonl", tmp_path / "t.jsonl"
    images = [MAGIC / f"image_{i}.png" for i in range(3)]
    more = [*MODELS, "-o", "max_tokens=2", "--out", out, "--trace", file]
    assert zeroshot("caption", *images[:2], *more)[0] == 0
    assert zeroshot("caption", *images, *more)[0] == 0
    paths = [json.loads(line)["path"] for line in file.read_text().splitlines()]
    assert paths == [str(image) for image in images]


def test_one_row_for_every_file_and_nothing_lost(zeroshot, mixed):
    code, rows, err = zeroshot(
        "classify", mixed, *ENCODER, "--labels", "cat,dog", "--templates", "none", "--json"
    )
    assert code == 3
    by_name = {Path(row["path"]).name: row for row in rows}
    assert list(by_name) == ["b.png", "a.jpg", "broken.jpg", "empty.png", "notes.webp"]
    assert {name for name, row in by_name.items() if "error" in row} == {
        "broken.jpg",
        "empty.png",
        "notes.webp",
    }
    assert {row["error"]["type"] for row in rows if "error" in row} == {"UnreadableImage"}
    assert "skipped 1 file that holds no image: captions.jsonl" in err
    assert "5 images, 3 failed" in err


def test_classify_scores_and_cosines(zeroshot):
    arguments = ["classify", MAGIC / "image_1.png", *ENCODER, "--labels", "ing,ed,a to"]
    _, [row], _ = zeroshot(*arguments, "--templates", "none", "-k", "3")
    labels = row["labels"]
    assert [x["score"] for x in labels] == sorted((x["score"] for x in labels), reverse=True)
    assert sum(x["score"] for x in labels) == pytest.approx(1, abs=1e-5)
    logits = 100 * np.array([x["cosine"] for x in labels])
    softmax = np.exp(logits - logits.max())
    np.testing.assert_allclose(
        [x["score"] for x in labels], softmax / softmax.sum(), rtol=1e-3, atol=1e-6
    )
    _, [cosine], _ = zeroshot(*arguments, "--templates", "none", "--score", "cosine", "-k", "1")
    assert cosine["labels"][0]["score"] == labels[0]["cosine"]
    assert cosine["scored"] == "cosine"


def test_a_second_run_makes_no_encoder_call(zeroshot, mixed, monkeypatch):
    arguments = ["classify", mixed, *ENCODER, "--labels", "cat,dog", "--json", "--verbose"]
    _, first, err = zeroshot(*arguments)
    assert "2 images encoded, 0 from the cache; 14 texts encoded" in err

    from zeroshot.models import loading
    from zeroshot.models.hf.dual_encoder import TransformersDualEncoder

    def never(*_):
        raise AssertionError("the encoder was called")

    monkeypatch.setattr(loading, "_try_out", lambda *_: None)  # a grey image and two texts
    monkeypatch.setattr(TransformersDualEncoder, "encode_images", never)
    monkeypatch.setattr(TransformersDualEncoder, "encode_texts", never)
    _, second, err = zeroshot(*arguments)
    assert second == first
    assert "no encoder call was made" in err


def test_the_same_picture_under_another_name_is_a_hit(zeroshot, tmp_path):
    picture = tmp_path / "other name.png"
    picture.write_bytes((MAGIC / "image_0.png").read_bytes())
    zeroshot("embed", MAGIC / "image_0.png", *ENCODER)
    _, [row], err = zeroshot("embed", picture, *ENCODER, "--verbose")
    assert "0 images encoded, 1 from the cache" in err
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-5)


def test_paths_on_standard_input(zeroshot, monkeypatch, tmp_path):
    paths = [str(MAGIC / f"image_{i}.png") for i in (3, 1)]
    listing = tmp_path / "paths"
    listing.write_text("\n".join(paths) + "\n")
    with listing.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, rows, _ = zeroshot("embed", "-", *ENCODER)
    assert code == 0
    assert [row["path"] for row in rows] == paths


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_output_goes_on_where_it_stopped(zeroshot, mixed, tmp_path, suffix):
    out = tmp_path / f"labels.{suffix}"
    arguments = ["classify", mixed, *ENCODER, "--labels", "cat,dog", "--out", out]
    code, rows, err = zeroshot(*arguments, "--limit", "2")
    assert (code, rows) == (0, [])
    code, _, err = zeroshot(*arguments)
    assert code == 3
    assert "resumed: 2 of 5" in err
    written = out.read_text()
    assert all(name in written for name in ("b.png", "a.jpg", "broken.jpg", "notes.webp"))
    code, _, err = zeroshot(*arguments)
    assert "resumed: 5 of 5" in err
    assert out.read_text() == written
    code, _, err = zeroshot(*arguments, "--labels", "cat,cow")
    assert code == 2
    assert "--overwrite" in err
    assert out.read_text() == written
    run = json.loads(Path(f"{out}.run.json").read_text())
    assert run["settings"]["method"] == "ensemble"


def test_retrying_what_failed(zeroshot, mixed, tmp_path):
    out = tmp_path / "labels.jsonl"
    arguments = ["classify", mixed, *ENCODER, "--labels", "cat,dog", "--out", out]
    zeroshot(*arguments)
    (mixed / "empty.png").write_bytes((MAGIC / "image_0.png").read_bytes())
    code, _, _ = zeroshot(*arguments, "--retry-failed")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 5
    assert [Path(r["path"]).name for r in rows if "error" in r] == ["broken.jpg", "notes.webp"]
    assert code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["caption", "x.png", "--method", "magik"], 2, "did you mean 'magic'?"),
        (
            ["caption", "x.png", "--method", "ensemble"],
            2,
            "these do: consensus, dlc, lmcap, magic",
        ),
        (["caption", "x.png", "-o", "K=3"], 2, "unknown option of magic 'K'"),
        (["caption", "x.png", "-o", "k=many"], 2, "k is of type int"),
        (["caption", "x.png", "-o", "k"], 2, "KEY=VALUE"),
        (["caption", "x.png", "--models", "pokcet"], 2, "did you mean 'pocket'?"),
        (["caption", "x.png"], 4, "--models pocket"),
        (["caption", "nothing/*.png", "--models", "pocket"], 2, "nothing/*.png"),
        (["caption", "x.png", "--batch-size", "0", "--models", "pocket"], 2, "--batch-size is 0"),
        (["classify", "x.png", "--models", "pocket"], 2, "one of --labels"),
        (["classify", "x.png", "--labels", "a,a", "--models", "pocket"], 2, "more than once"),
        (["classify", "--embeddings", "x.npz"], 2, "--out FILE.npz"),
        (["classify", "--embeddings", "x.npz", "--out", "y.npz"], 2, "no such file"),
        (["caption"], 2, "caption needs images"),
        (["captoin", "x.png"], 2, "No such command"),
        (["methods", "asf"], 2, "did you mean 'asif'?"),
        (["cache", "prune"], 2, "say what to prune"),
    ],
)
def test_wrong_usage_is_one_clear_message(
    zeroshot, arguments, code, message, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    Image.new("RGB", (8, 8)).save("x.png")
    got, rows, err = zeroshot(*arguments)
    assert got == code, err
    assert message in err
    assert rows == []
    assert "Traceback" not in err


def test_a_missing_picture_is_a_row(zeroshot):
    code, [_, row], _ = zeroshot("embed", MAGIC / "image_0.png", "nowhere.png", *ENCODER)
    assert code == 3
    assert row["error"] == {"type": "UnreadableImage", "message": "no such file"}


def test_options_come_from_the_environment(zeroshot, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_ENCODER", ENCODER[1])
    monkeypatch.setenv("ZEROSHOT_LABELS", "cat,dog")
    code, [row], _ = zeroshot("classify", MAGIC / "image_0.png")
    assert code == 0
    assert len(row["labels"]) == 2


def test_methods_models_and_cache(zeroshot):
    _, rows, _ = zeroshot("methods")
    assert [row["method"] for row in rows] == methods.names()
    _, [asif], _ = zeroshot("methods", "asif", "--json")
    assert {o["name"]: o["default"] for o in asif["options"]} == {
        "k": 800,
        "p": 8.0,
        "center": False,
        "templates": "mean",
        "index": "exact",
    }
    assert all(option["about"] for option in asif["options"])
    _, rows, _ = zeroshot("models", "list")
    assert [row["set"] for row in rows] == ["pocket", "base", "fast", "best"]
    assert rows[0]["on disk"] == "yes"
    _, rows, _ = zeroshot("models", "show", "pocket")
    assert {row["part"] for row in rows} >= {"encoder", "language_model"}
    zeroshot("embed", MAGIC / "image_0.png", *ENCODER)
    _, [space], err = zeroshot("cache", "info")
    assert (space["rows"], space["dim"]) == (1, 24)
    _, _, err = zeroshot("cache", "prune", "--all")
    assert "empty" in err
    assert zeroshot("cache", "info")[1] == []


def test_help_needs_no_torch():
    """`--help` and its imports, in a process of its own."""
    code = (
        "import sys\nfrom zeroshot import cli\n"
        "assert cli.run(['--help']) == 0\nassert cli.run(['caption', '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'PIL', 'zeroshot.packaging.version'}\n"
        "heavy &= sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "--labels"
        in subprocess.run(
            [sys.executable, "-m", "zeroshot", "classify", "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        ).stdout
    )


def test_an_interrupted_run_keeps_what_it_wrote(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(400):
        os.link(MAGIC / f"image_{i % 5}.png", folder / f"{i:03}.png") if i < 5 else (
            folder / f"{i:03}.png"
        ).write_bytes((MAGIC / f"image_{i % 5}.png").read_bytes())
    out = tmp_path / "out.jsonl"
    arguments = ["caption", folder, *MODELS, "--batch-size", "1", "--out", out, "--no-cache"]
    command = [sys.executable, "-m", "zeroshot", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # a run in the background may have been told to ignore the interrupt
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out.exists() and out.read_text().count("\n") > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert 3 <= len(rows) < 400
    assert [Path(row["path"]).name for row in rows] == [f"{i:03}.png" for i in range(len(rows))]


def test_ids_are_asked_for_once_for_each_picture(zeroshot, mixed, tmp_path, monkeypatch):
    """Those of pictures that a file has rows of already, together; the others by who reads them."""
    asked = []
    of_many = EmbeddingCache.file_ids

    def counted(self, paths):
        asked.append(sum("models" not in Path(path).parts for path in paths))
        return of_many(self, paths)

    monkeypatch.setattr(EmbeddingCache, "file_ids", counted)
    command = ("embed", mixed, "--models", "pocket", "--out", tmp_path / "rows.jsonl")
    assert zeroshot(*command)[0] == 3
    assert [n for n in asked if n] == [5]
    asked.clear()
    Image.new("RGB", (30, 30)).save(mixed / "z.png")
    assert zeroshot(*command)[0] == 0
    assert [n for n in asked if n] == [5, 1]
