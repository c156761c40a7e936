"""Every option that a message names is one that its reader can give."""

import ast
import re
import shutil
import sqlite3
from functools import cache
from pathlib import Path

import pytest
import typer

import zeroshot as package
from zeroshot import cli

SCENE = next((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
QUOTED = re.compile(r"'zeroshot ([^']*)'((?:(?: with| and) --[a-z-]+)*)")
"""A whole command in a message: its options are of that command, and not of the running one."""
POCKET = ("--models", "pocket")
LONG = "word " * 200


@cache
def options():
    """The options of each command, by the words that call it."""
    found = {}

    def walk(command, *words):
        names = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        found[" ".join(words)] = names | {"--help"}
        for name, below in getattr(command, "commands", {}).items():
            walk(below, *words, name)

    walk(typer.main.get_command(cli.app))
    return found


def command_of(words):
    """The command that words begin with."""
    return next((c for n in (2, 1, 0) if (c := " ".join(words[:n])) in options()), "")


def wrong(message, words):
    """Options in a message that its reader, who gave these words, cannot give."""
    quoted = [" ".join(parts) for parts in QUOTED.findall(message)]
    parts = [(words, QUOTED.sub("", message)), *((one.split(), one) for one in quoted)]
    return [
        (command_of(given), option)
        for given, text in parts
        for option in OPTION.findall(text)
        if option not in options()[command_of(given)]
    ]


def texts(tree):
    """The texts of a module that are no docstrings, each with its line."""
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in documents:
            yield node.lineno, str(node.value)


def test_the_texts_of_the_package_name_options_that_exist():
    there, found = set().union(*options().values()), 0
    for file in sorted(Path(package.__file__).parent.rglob("*.py")):
        for line, text in texts(ast.parse(file.read_text(encoding="utf-8"))):
            for option in OPTION.findall(text):
                found += 1
                assert option in there, f"{file}:{line} names {option}"
    assert found > 300


def test_what_counts_as_wrong():
    assert wrong("give --labels, or --nothing", ["classify"]) == [("classify", "--nothing")]
    assert wrong("see 'zeroshot classify --labels'", ["search"]) == []
    assert wrong("see 'zeroshot cache prune --labels'", []) == [("cache prune", "--labels")]
    assert wrong("take 'zeroshot classify' with --views and --no", []) == [("classify", "--no")]
    assert wrong("a--b and -o k=4", ["search"]) == []


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "classes/red heart/a.png", "classes/blue star/a.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCENE, name)
    for name in ("splits/train/cat/a.png", "splits/test/cat/a.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCENE, name)
    Path("two.csv").write_text("image,path,caption,label\na.png,a.png,x,x\n")
    Path("none.csv").write_text("foo,bar\n1,2\n")
    Path("out.csv").write_text("path,caption,label\n/etc/passwd,x,x\n")
    Path("url.csv").write_text("path,caption,label\nhttp://127.0.0.1:9/x.png,x,x\n")
    return tmp_path


LABELS = ("--labels", "red heart,blue star")
CALIBRATE = ("calibrate", "a.png", *LABELS, "--out", "c.json")
TOO_LONG = [
    ("search", LONG, "a.png"),
    ("search", "a heart", "a.png", "--plus", LONG),
    ("search", "a heart", "a.png", "--method", "dis", "--bank", LONG),
    ("classify", "a.png", "--labels", f"heart,{LONG}"),
    ("calibrate", "a.png", "--labels", f"heart,{LONG}", "--out", "c.json"),
    ("tune", "a.png", "--labels", f"red heart,{LONG}", "--shots", "classes"),
    ("eval", "classes", "--task", "classify", "--labels", f"red heart,{LONG}"),
    ("detect", "a.png", "--labels", LONG),
    ("segment", "a.png", "--labels", f"heart,{LONG}"),
    ("ask", "a.png", LONG, "--among", "heart,star"),
    ("match", "a.png", "--text", LONG),
    ("video", "search", LONG, "a.png"),
]
METHODS = [
    (*command, "--method", method)
    for method in ("tip_adapter", "chils", "mta", "dis", "otter")
    for command in (
        ("classify", "a.png", *LABELS),
        CALIBRATE,
        ("eval", "classes", "--task", "classify"),
        ("video", *CALIBRATE),
    )
]
TABLES = [
    words
    for table in ("two.csv", "none.csv", "out.csv", "url.csv")
    for words in (
        ("anchors", "build", table, "--out", "o.safetensors"),
        ("filter", table, "--min-score", "0"),
        ("classify", "a.png", *LABELS, "--method", "tip_adapter", "--shots", table),
        ("tune", "a.png", *LABELS, "--shots", table),
        ("eval", table, "--task", "retrieve"),
        (*CALIBRATE[:1], "--truth", table, *CALIBRATE[2:]),
        ("search", "a heart", table),
    )
]
FOLDERS = [
    words
    for folder in ("splits", "classes")
    for words in (
        ("eval", folder),
        ("eval", folder, "--task", "caption"),
        ("eval", folder, "--task", "multilabel"),
        ("tune", "a.png", *LABELS, "--shots", folder),
        ("anchors", "build", folder, "--out", "o.safetensors"),
        ("classify", "a.png", *LABELS, "--method", "ncm", "--shots", folder),
    )
]


@pytest.mark.parametrize("words", [*TOO_LONG, *METHODS, *TABLES, *FOLDERS], ids=" ".join)
def test_a_command_names_its_own_options(here, zeroshot, words):
    code, rows, said = zeroshot(*words, *POCKET)
    assert code in (0, 2, 3, 4), said
    assert "no such option" not in said.lower(), said
    messages = [said, *(row["error"]["message"] for row in rows if row.get("error"))]
    assert [each for message in messages for each in wrong(message, list(words))] == []


@pytest.mark.parametrize("words", ["info", "verify", "export x.npy", "prune --max-mb 1"])
@pytest.mark.parametrize("fault", ["damaged", "of another version", "a file"])
def test_commands_of_the_cache_cannot_do_without_it(tmp_path, zeroshot, monkeypatch, words, fault):
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    if fault == "a file":
        Path("cache").write_text("x")
    else:
        Path("cache").mkdir()
        Path("cache/index.sqlite").write_text("no index" * 99 if fault == "damaged" else "")
    if fault == "of another version":
        with sqlite3.connect("cache/index.sqlite") as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
    code, _, said = zeroshot("cache", *words.split())
    assert code == 2
    assert "ZEROSHOT_CACHE" in said
    assert wrong(said, ["cache", *words.split()]) == []
    code, _, said = zeroshot("embed", SCENE, *POCKET)
    assert "use --no-cache" in said or fault == "of another version"
