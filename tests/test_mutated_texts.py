"""Damaged text files of every kind: each is read, or refused in one sentence; never a traceback.

A thousand files, always the same ones. `READERS` of `test_text_files` are mutated as values (a cell
becomes a list, a number endless, a key repeated) and as bytes (cut off, another encoding, marks and
quotation marks in between).
"""

import json
import random
import time
from pathlib import Path

import pytest

from tests.test_text_files import READERS, labels_of, templates_of
from zeroshot import cli
from zeroshot.errors import ZeroshotError
from zeroshot.model_set.spec import find_set

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
MANIFEST = """name = "x"
[image_encoder]
model = "hf:org/model"
[text_encoder]
model = "hf:org/text"
[coupling]
method = "asif"
anchors = "a.safetensors"
k = 10
[caption]
method = "magic"
"""
MORE = {
    "manifest": ("models.toml", MANIFEST, lambda path: find_set(str(path))),
    "id2label": ("x.json", '{"id2label": {"0": "cat", "1": "dog"}}', labels_of),
    "labels in lines": ("x", 'cat\n"bus, coach"\n', labels_of),
    "prompts by class": ("x.json", '{"cat": ["a {}"], "dog": ["b"]}', templates_of),
}
READ = {**READERS, **MORE}
VALUES = (
    *(None, True, 0, -1, 2.5, 1e308, float("nan"), float("inf"), 10**400, 10**4200),
    *("", " ", "\ud83d", "a\0b", "x" * 3000, "0", "a.png", "../../a.png", "/etc/passwd", "{}"),
    *([], {}, [[]], [None], {"a": {"b": {}}}, ["a", 3], ("9" * 5000)),
)
PIECES = (
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\r", b"\n", b"\r\n", b" ", b"\t", b",", b";", b"|"),
    *(b'"', b"'", b"\\", b"\\ud83d", b"\xe9", b"\xed\xa0\xbd", b"#", b"=", b"-", b"{}", b"{c}"),
    *(b"[", b"]", b"{", b"}", b"null", b"NaN", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000),
    *(b"sep=;\n", b"version https://git-lfs.github.com/spec/v1\n", b"\x1f\x8b\x08", b"PK\x03\x04"),
)
CODES = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")


def other_value(source):
    if source.random() < 0.1:
        value = "x"
        for _ in range(source.choice([20, 300, 900, 980])):
            value = [value]
        return value
    return source.choice(VALUES)


def mutated_value(source, value):
    """A JSON value that differs in one place."""
    if not isinstance(value, dict | list) or not value or source.random() < 0.2:
        return other_value(source)
    if isinstance(value, list):
        place, new = source.randrange(len(value)), list(value)
        match source.randrange(6):
            case 0:
                new.pop(place)
            case 1:
                new.append(new[place])
            case _:
                new[place] = mutated_value(source, value[place])
        return new
    key, new = source.choice(list(value)), dict(value)
    match source.randrange(6):
        case 0:
            new.pop(key)
        case 1:
            new[source.choice(["", " ", "0", f"{key} ", key.upper()])] = new.pop(key)
        case _:
            new[key] = mutated_value(source, value[key])
    return new


def as_json(value):
    try:
        return json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError):
        return "9" * 5000


def mutated_rows(source, name, text):
    """The text of a JSON file or of JSON lines after a change of one value."""
    if not name.endswith((".json", ".jsonl")) or source.random() < 0.5:
        return text
    if name.endswith(".json"):
        return as_json(mutated_value(source, json.loads(text)))
    rows = [json.loads(line) for line in text.split("\n") if line]
    rows[source.randrange(len(rows))] = mutated_value(source, source.choice(rows))
    if source.random() < 0.1:
        return as_json(rows)
    return "".join(as_json(row) + "\n" for row in rows)


def mutated_bytes(source, data):
    for _ in range(source.randrange(1, 4)):
        at = source.randrange(len(data) + 1)
        match source.randrange(10):
            case 0 | 1 | 2 | 3 | 4:
                data = data[:at] + source.choice(PIECES) + data[at:]
            case 5 | 6:
                data = data[:at] + data[at + source.randrange(1, 20) :]
            case 7:
                data = data[:at]
            case _:
                data = data[:at] + bytes([source.randrange(256)]) + data[at + 1 :]
    return data


def mutated(source, name, text):
    """The bytes of a file after a few changes."""
    text = mutated_rows(source, name, text)
    chance = source.random()
    if chance < 0.1:
        return text.encode(source.choice(CODES), "replace")
    data = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(source, data) if chance < 0.7 else data


def refusal(read, path):
    """The error of a reader; None if it returns."""
    try:
        read(path)
    except ZeroshotError as error:
        return error
    return None


def is_a_sentence(text):
    return "\n" not in text and len(text) < 2000 and text == text.encode().decode()


@pytest.mark.parametrize("name", READ)
def test_a_reader_returns_or_refuses(tmp_path, name):
    file, text, read = READ[name]
    source, refused = random.Random(name), 0
    for _ in range(1000 // len(READ) + 1):
        data = mutated(source, file, text)
        (tmp_path / file).write_bytes(data)
        start = time.monotonic()
        if (error := refusal(read, tmp_path / file)) is not None:
            refused += 1
            assert error.exit_code in (2, 4), data
            assert is_a_sentence(str(error)), data
        assert time.monotonic() - start < 10, data
    assert refused


RUNS = {
    "labels.txt": ("red heart\nblue star\n", "classify {scene} --labels {file}"),
    "labels.json": ('{"0": "red heart", "1": "blue star"}', "classify {scene} --labels {file}"),
    "templates.json": (
        '{"heart": ["a {}", "b"], "star": ["c"]}',
        "classify {scene} --labels heart,star --templates {file}",
    ),
    "pairs.csv": (
        'path,caption,label\n1-red-heart.png,"a heart, red",x\n2-blue-star.png,a star,y\n',
        "match {file} --image-root {scenes}",
    ),
    "pairs.tsv": (
        "path\tcaption\n1-red-heart.png\ta heart\n",
        "filter {file} --image-root {scenes} --min-score -1",
    ),
    "pairs.jsonl": (
        '{"path": "1-red-heart.png", "caption": ["a", "b"], "label": 3}\n{"path": "gone.png"}\n',
        "embed {file} --image-root {scenes}",
    ),
    "queries.jsonl": (
        '{"text": "a heart", "plus": ["red"]}\n{"text": "a star", "minus": ["blue"]}\n',
        "search --queries {file} {scene}",
    ),
    "models.toml": (MANIFEST, "classify {scene} --labels heart,star --models {folder}"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_as_documented(tmp_path, capsys, name):
    text, line = RUNS[name]
    source, words = random.Random(name), {"scenes": SCENES, "scene": SCENES / "1-red-heart.png"}
    words |= {"file": tmp_path / name, "folder": tmp_path}
    command = [*(part.format(**words) for part in line.split()), "--quiet", "--json"]
    command += [] if "--models" in command else ["--models", "pocket"]
    (tmp_path / name).write_text(text)
    for number in range(5):
        if number:
            (tmp_path / name).write_bytes(mutated(source, name, text))
        code = cli.run(command)
        out, said = capsys.readouterr()
        assert code in ((0, 2, 3, 4) if number or name == "models.toml" else (0, 3)), said
        assert code in (0, 3) or (said.startswith("error: ") and said.count("\n") == 1), said
        assert all(isinstance(json.loads(row), dict) for row in out.splitlines()), out
