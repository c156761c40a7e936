"""What is in the cache is answered without models, and what is listed without torch."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache, erase
from zeroshot.cache.notes import LARGEST, OLD, notes_in
from zeroshot.errors import UserError
from zeroshot.inference.coupled_models import LABELS, SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import embed_texts
from zeroshot.inference.meter import Meter
from zeroshot.inference.remembered_coupling import CouplingFacts, RememberedCoupling
from zeroshot.inference.remembered_models import remembered
from zeroshot.methods.auto import Auto
from zeroshot.methods.procrustes import Procrustes
from zeroshot.model_set.model_set import resolve
from zeroshot.model_set.spec import POCKET
from zeroshot.models.deferred import Deferred, deferred, facts_of

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
IMPORTS = """
import sys
from zeroshot import cli
code = cli.run(sys.argv[1:])
print("IMPORTED", *(n for n in ("torch", "transformers", "scipy", "numpy") if n in sys.modules))
sys.exit(code)
"""


def imported(*arguments):
    """Which of the heavy libraries a command imports."""
    command = [sys.executable, "-c", IMPORTS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


# Imports


@pytest.mark.parametrize(
    "command",
    [
        ("classify", SCENES, "--labels", "red,blue", "--models", "pocket"),
        ("classify", SCENES, "--labels", "red,blue", "--models", "pocket", "--encoder", "coupled"),
        ("search", "a red heart", SCENES, "--models", "pocket"),
        ("embed", SCENES, "--models", "pocket"),
        ("dedupe", SCENES, "--models", "pocket"),
    ],
)
def test_a_run_that_finds_all_in_the_cache_loads_no_model(command):
    assert "transformers" in imported(*command)
    sparse = {"scipy"} if "coupled" in command else set()  # of asif's own scores
    assert imported(*command) == {"torch", "numpy"} | sparse


@pytest.mark.parametrize("command", [("methods",), ("methods", "stata"), ("models", "list")])
def test_lists_need_no_torch(command):
    assert imported(*command) <= {"numpy"}


def test_what_is_new_is_encoded_and_nothing_else(zeroshot, tmp_path):
    how = ("--labels", "red,blue", "--models", "pocket", "--json", "--encoder", "coupled")
    _, first, _ = zeroshot("classify", SCENES, *how)
    files = sorted(SCENES.glob("*.png"))
    new = tmp_path / "new.png"
    new.write_bytes(files[0].read_bytes() + b"\0")  # other bytes, the same image
    code, rows, said = zeroshot("classify", *files, new, *how)
    assert code == 0
    assert rows[:-1] == first
    assert rows[-1]["labels"] == first[0]["labels"]
    assert f"{len(files)} from the cache" in said
    _, alone, _ = zeroshot("classify", *files, new, *how, "--no-cache")
    for row, other in zip(rows, alone, strict=True):
        assert [x["label"] for x in row["labels"]] == [x["label"] for x in other["labels"]]
        assert row["models"] == other["models"]


# Encoders that wait


@pytest.fixture
def pocket():
    return resolve("pocket", offline=True)


@pytest.fixture
def coupled():
    return resolve("pocket", encoder="coupled", offline=True)


def loads(monkeypatch):
    """Names of the loaders of models, as they are called."""
    from zeroshot import models

    called = []
    for role in ("dual", "image", "text"):
        name = f"load_{role}_encoder"
        load = getattr(models, name)

        def counted(*given, load=load, role=role, **options):
            called.append(role)
            return load(*given, **options)

        monkeypatch.setattr(models, name, counted)
    return called


@pytest.mark.parametrize(
    ("of", "part"),
    [(None, "encoder"), ("coupled", "image_encoder"), ("coupled", "text_encoder")],
)
def test_facts_are_those_of_the_encoder(of, part):
    encoder = getattr(resolve("pocket", encoder=of, offline=True), part)
    assert json.loads(json.dumps(facts_of(encoder))) == facts_of(encoder)
    for _ in range(2):  # the first writes the note
        with EmbeddingCache() as cache:
            known = remembered(resolve("pocket", encoder=of, offline=True), cache, Meter())
            waits = getattr(known, part)
        assert isinstance(waits, Deferred)
        for name in type(waits).FACTS:
            assert getattr(waits, name) == getattr(encoder, name), name


def test_a_loaded_encoder_is_asked_for_once(coupled):
    asked = []
    encoder = coupled.text_encoder
    waits = deferred(facts_of(encoder), lambda: asked.append(1) or encoder, list, list)
    for _ in range(3):
        assert waits.load() is encoder
    assert asked == [1]


def test_a_second_run_loads_when_something_is_new(monkeypatch, pocket):
    called = loads(monkeypatch)
    with EmbeddingCache() as cache:
        first = remembered(pocket, cache, Meter()).encoder
        rows = embed_texts(["red", "blue"], first, cache, Meter())
    assert called == ["dual"]
    with EmbeddingCache() as cache:
        again = resolve("pocket", offline=True)
        encoder = remembered(again, cache, Meter()).encoder
        assert encoder.count_tokens([]) == []
        called.clear()
        assert torch.equal(embed_texts(["blue", "red"], encoder, cache, Meter()), rows.flip(0))
        assert torch.equal(encoder.encode_texts(["red"]), rows[:1])
        assert encoder.count_tokens(["red"]) == again.encoder.count_tokens(["red"])
        assert called == ["dual"]  # by the line above, for the comparison
        assert len(encoder.encode_texts(["green"])) == 1
        assert called == ["dual"]


def test_a_text_that_is_too_long_is_refused_without_a_model_too(monkeypatch, printed):
    command = ("classify", SCENES, "--labels", f"red,{'blue ' * 90}", "--models", "pocket")
    said = {printed(*command) for _ in range(2)}
    (refusal,) = said
    assert refusal[0] == 2
    assert "tokens" in refusal[2]


def test_a_model_with_other_files_is_another_model(monkeypatch, tmp_path):
    import shutil

    shutil.copytree(POCKET, tmp_path / "set")
    called = loads(monkeypatch)
    for expected in (["dual"], [], ["dual"], []):
        called.clear()
        with EmbeddingCache() as cache:
            name = remembered(resolve(str(tmp_path / "set"), offline=True), cache, Meter()).encoder
        assert isinstance(name, Deferred)
        assert called == expected
        if called == []:
            config = tmp_path / "set" / "clip" / "config.json"
            config.write_text(config.read_text("utf-8") + "\n", "utf-8")


@pytest.mark.parametrize("cache", [NullCache()])
def test_without_a_cache_nothing_waits(cache, pocket):
    assert remembered(pocket, cache, Meter()) is pocket


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        {"role": "judge", "name": "x"},
        {"role": "text encoder", "name": "x"},
        {"role": "text encoder", "name": 3, "context_length": 77},
        {"role": "image encoder", "name": "x", "shortcuts": None, "draft_side": 3},
        {
            "role": "dual encoder",
            "name": "x",
            "shortcuts": "",
            "draft_side": None,
            "context_length": 77,
            "logit_scale": float("nan"),
            "logit_bias": None,
            "trained_scale": True,
        },
    ],
)
def test_facts_of_a_stranger_are_none(facts):
    assert deferred(facts, list, list, list) is None


# Couplings that wait


def test_a_coupling_is_fitted_when_a_row_is_new(monkeypatch, coupled):
    calls = []
    with EmbeddingCache() as cache:
        pair = with_coupling_for_task(coupled, "csa", LABELS, cache, Meter()).coupled
        images, texts = (
            torch.randn(4, side.shape[1])
            for side in (coupled.anchors.images, coupled.anchors.texts)
        )
        mapped = pair.project_images(images), pair.project_texts(texts)
    for new, fits in ((images[:2], 0), (torch.randn(1, images.shape[1]), 1)):
        with EmbeddingCache() as cache:
            again = resolve("pocket", encoder="coupled", offline=True)
            other = with_coupling_for_task(again, "csa", LABELS, cache, Meter()).coupled
            assert (repr(other.coupling), other.logit_scale, other.name) == (
                repr(pair.coupling),
                pair.logit_scale,
                pair.name,
            )
            fit = other.coupling._fit
            other.coupling._fit = lambda fit=fit: calls.append(1) or fit()
            assert torch.equal(other.project_texts(texts), mapped[1])
            shown = other.project_images(new)
            assert len(calls) == fits
            if fits:
                assert torch.allclose(shown, pair.project_images(new), atol=1e-6)
            else:
                assert torch.allclose(shown, mapped[0][:2], atol=1e-7)


def test_another_weight_makes_no_other_choice(monkeypatch, tmp_path):
    toml = tmp_path / "models.toml"
    toml.write_text(
        f'[image_encoder]\nmodel = "hf:{POCKET}/image_encoder"\n'
        f'[text_encoder]\nmodel = "hf:{POCKET}/text_encoder"\n'
        f'[coupling]\nmethod = "asif"\nanchors = "{POCKET}/anchors.safetensors"\n'
    )
    choices = []
    choose = Auto.choose
    monkeypatch.setattr(Auto, "choose", lambda *given: choices.append(1) or choose(*given))
    names = []
    for weight, made in ((LABELS, 1), (LABELS, 1), (SENTENCES, 1)):
        with EmbeddingCache() as cache:
            models = resolve(str(toml), offline=True)
            names.append(with_coupling_for_task(models, None, weight, cache, Meter()).coupled.name)
        assert len(choices) == made
    alone = with_coupling_for_task(models, None, SENTENCES, NullCache(), Meter()).coupled
    assert alone.name == names[-1]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "nothing"},
        {"method": "stata"},
        {"options": []},
        {"options": {"k": "many"}},
        {"logit_scale": float("inf")},
        {"classes": 0},
        {"logit_scale": "1"},
        {"text": None},
        {"more": 1},
    ],
)
def test_a_note_that_is_no_coupling_is_none(change):
    stored = {
        "method": "asif",
        "options": {},
        "classes": False,
        "text": "ASIF()",
        "logit_scale": 1.0,
        "anchors": "0123",
    }
    assert CouplingFacts.read(stored).written() == stored
    assert CouplingFacts.read(stored | change) is None
    assert CouplingFacts.read(list(stored)) is None


def test_rows_beyond_the_room_are_computed(tmp_path):
    fitted = Procrustes().fit(torch.randn(20, 8), torch.randn(20, 6))
    with EmbeddingCache(tmp_path) as cache:
        coupling = RememberedCoupling("p", lambda: fitted, cache, "space")
        coupling._room["joint images"] = 3
        for count, left in ((2, 1), (2, 1), (1, 0), (1, 0)):
            rows = torch.randn(count, 8)
            assert torch.equal(coupling.map_images(rows), fitted.map_images(rows))
            assert coupling._room["joint images"] == left
        assert cache.info().spaces[0].rows == 3


# Notes


def test_notes_are_read_by_their_key_alone(tmp_path):
    with EmbeddingCache(tmp_path) as cache:
        cache.write_note({"a": [1, None]}, "one", 2)
        assert cache.note("one", 2) == {"a": [1, None]}
        assert cache.note("one", 3) is cache.note("one") is None
        (path,) = notes_in(tmp_path)
        content = path.read_bytes()
        for damaged in (b"", content[:-3], b"[" * 100_000, b"[]", b'{"of": "x", "value": 1}'):
            path.write_bytes(damaged)
            assert cache.note("one", 2) is None
        path.write_bytes(content + b" " * LARGEST)
        assert cache.note("one", 2) is None
        cache.write_note("x" * LARGEST, "large")
        assert cache.note("large") is None


def test_notes_go_with_the_cache_and_old_ones_with_leftovers(tmp_path):
    import os
    import time

    with EmbeddingCache(tmp_path) as cache:
        for name in ("young", "old"):
            cache.write_note(1, name)
        old = min(notes_in(tmp_path))
        then = time.time() - OLD - 10
        os.utime(old, (then, then))
        stranger = tmp_path / "notes" / "mine.json"
        stranger.write_text("{}")
        cache.prune()
        assert len(list(notes_in(tmp_path))) == 1
    erase(tmp_path)
    assert list((tmp_path / "notes").iterdir()) == [stranger]


def test_a_cache_that_cannot_be_written_has_no_notes(tmp_path):
    (tmp_path / "notes").write_text("no folder")
    with EmbeddingCache(tmp_path) as cache:
        cache.write_note(1, "a")
        assert cache.note("a") is None


# Descriptions


def kind_of(hint):
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if type(None) in get_args(hint):
        return f"{kind_of(next(k for k in get_args(hint) if k is not type(None)))}|none"
    return hint.__name__


@pytest.mark.parametrize("name", methods.names())
def test_a_description_is_that_of_the_class(name):
    """Read from the source, against what Python makes of it."""
    found, method = methods.describe(name), methods.get(name)
    hints = get_type_hints(method)
    options = [(n, kind_of(hints[n]), f.default) for n, f in methods.options(method).items()]
    assert [(o.name, o.kind, o.default) for o in found.options] == options
    verbs = {"scores": "classify", "caption": "caption", "attend": "segment"}
    verbs["decompose"] = "explain"
    assert found.does == tuple(does for verb, does in verbs.items() if hasattr(method, verb))
    assert found.about == inspect.getdoc(inspect.getmodule(method))


def test_an_unknown_method_has_no_description():
    with pytest.raises(UserError, match="stata"):
        methods.describe("statta")


# The end of the process


@pytest.mark.parametrize("code", [0, 3])
def test_the_process_ends_with_its_output_and_what_waits_for_its_end(code):
    script = f"""
import atexit, sys
from zeroshot.commands.terminal import process
atexit.register(print, "at the end")
sys.stdout.write("a row without an end ")
process.end({code})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "a row without an end at the end\n")


def test_a_thread_that_works_is_waited_for():
    script = """
import sys, threading, time
from zeroshot.commands.terminal import process
threading.Thread(target=lambda: (time.sleep(0.5), print("done"))).start()
process.end(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")
