"""`--help`: headings, examples that run, and no environment variables."""

import csv
import inspect
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.moving import write
from zeroshot.cli import app, run
from zeroshot.commands.command import OWN_PANELS, PANEL_OF, PANELS, examples_of

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
NOT_RUN = ("zeroshot serve", "zeroshot mcp", "zeroshot read", "zeroshot models pull")
"""These do not end, or download."""
WITHOUT_OPTIONS = {"info", "verify", "list"}


def commands(of=app, name="zeroshot"):
    for info in of.registered_commands:
        yield f"{name} {info.name or info.callback.__name__}", info.callback
    for group in of.registered_groups:
        yield from commands(group.typer_instance, f"{name} {group.name}")


COMMANDS = dict(commands())
EXAMPLES = [line for function in COMMANDS.values() for line in examples_of(function)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the names that the examples have."""
    folder = tmp_path_factory.mktemp("help")
    scenes = sorted(SCENES.glob("*.png"))
    rows = [json.loads(line) for line in (SCENES / "captions.jsonl").read_text().splitlines()]
    captions = {row["path"]: row["caption"] for row in rows}
    (folder / "photos").mkdir()
    (folder / "clips").mkdir()
    for scene in scenes:
        shutil.copy(scene, folder / "photos")
    shutil.copy(scenes[0], folder / "a.png")
    for number, label in enumerate(("cat", "dog", "cat", "dog")):
        (folder / "labelled" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes[number], folder / "labelled" / label)
    for name in ("a.mp4", "clips/b.mp4"):
        write(folder / name, [Image.open(scene) for scene in scenes[:2]])
    Image.open(scenes[0]).convert("RGB").save(folder / "photos" / "17.jpg")
    captions["17.jpg"] = captions[scenes[0].name]
    for name in ("pairs.csv", "more.csv"):
        with (folder / name).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "caption"])
            table.writerows((f"photos/{path}", text) for path, text in captions.items())
    lines = [json.dumps({"path": p, "references": [t]}) for p, t in captions.items()]
    (folder / "truth.jsonl").write_text("\n".join(lines) + "\n")
    shutil.copy(SCENES / "captions.jsonl", folder / "photos" / "captions.jsonl")
    lines = [json.dumps({"id": p, "captions": [t]}) for p, t in captions.items()]
    (folder / "lines.jsonl").write_text("\n".join(lines[:8]) + "\n")
    random = np.random.default_rng(0)
    np.savez(
        folder / "arrays.npz",
        images=random.normal(size=(8, 6)).astype("f4"),
        texts=random.normal(size=(8, 5)).astype("f4"),
    )
    return folder


BUILD = "zeroshot anchors build pairs.csv --models pocket --out"
FIRST = {
    "report": [
        "zeroshot eval photos/ --task caption --truth truth.jsonl --out results/",
        "zeroshot caption photos/ --out captions.jsonl",
    ],
    "anchors": [f"{BUILD} mine/anchors.safetensors"],
    "anchors merge": [f"{BUILD} a.safetensors", f"{BUILD} b.safetensors"],
    "cache": ["zeroshot embed photos/"],
    "undo": ["zeroshot classify photos/ --labels cat,dog --into sorted/"],
    "export": ["zeroshot detect photos/ --labels cat,dog --out boxes.jsonl"],
    "models": [f"{BUILD} mine/anchors.safetensors"],
}
"""What has to be there for the examples of a command."""


@pytest.mark.parametrize("line", [x for x in EXAMPLES if not x.startswith(NOT_RUN)])
def test_an_example_runs(line, files, tmp_path, monkeypatch, capsys):
    shutil.copytree(files, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("ZEROSHOT_MODELS", "pocket")
    cache = tmp_path if line.startswith("zeroshot cache") else files.parent
    monkeypatch.setenv("ZEROSHOT_CACHE", str(cache / "help-cache"))
    monkeypatch.setenv("ZEROSHOT_OFFLINE", "1")
    words = shlex.split(line)
    before = [*FIRST.get(words[1], []), *FIRST.get(" ".join(words[1:3]), [])]
    for command in [*(x for x in before if x != line), line]:
        assert run(shlex.split(command)[1:]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_and_no_variables(name, printed):
    code, out, _ = printed(*name.split()[1:], "--help")
    assert code == 0
    assert "env var" not in out
    examples = examples_of(COMMANDS[name])
    assert len(examples) == 2 or (len(examples) == 1 and name.split()[-1] in WITHOUT_OPTIONS)
    shown = " ".join(out.split())
    for example in examples:
        assert example.startswith(f"{name} ") or example == name
        assert example in shown


def test_help_has_headings(printed):
    _, out, _ = printed("--help")
    assert "Commands" not in out
    assert "Describe images" in out
    _, out, _ = printed("classify", "--help")
    places = [out.index(f"─ {panel} ─") for panel in ("Options", "Method", "Scores", "Models")]
    assert places == sorted(places)


def test_a_heading_is_for_options_that_exist():
    """The headings name options by themselves, so that one that is gone would stay there."""
    offered = {
        parameter.name
        for function in COMMANDS.values()
        for parameter in inspect.signature(function).parameters.values()
    }
    assert PANEL_OF.keys() <= offered
    assert len(PANEL_OF) == sum(len(n.split()) for p in (PANELS, OWN_PANELS) for n in p.values())
