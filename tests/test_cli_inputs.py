"""Inputs other than files, as a person types them: rows, the second run, going on, exit codes."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console

from tests.test_url_inputs import Handler, server  # noqa: F401
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.commands.console import _line
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.source import Source
from zeroshot.model_set.spec import POCKET
from zeroshot.models.files.model_files import TRANSFORMERS, present, read_by_loading
from zeroshot.models.names import parse
from zeroshot.results.result import EmbedResult, Failure

pytestmark = pytest.mark.usefixtures("folder")


def scene(colour):
    data = io.BytesIO()
    PIL.Image.new("RGB", (40, 40), colour).save(data, "PNG")
    return data.getvalue()


COLOURS = ["red", "lime", "blue", "white"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`a.tar` with four pictures and a link, and a table that names two files."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open("a.tar", "w") as tar:
        for colour in COLOURS:
            info = tarfile.TarInfo(f"{colour}.png")
            info.size = len(scene(colour))
            tar.addfile(info, io.BytesIO(scene(colour)))
            (tmp_path / f"{colour}.png").write_bytes(scene(colour))
    (tmp_path / "pairs.csv").write_text("what,said\nred.png,a cat\n../b.png,x\n")
    return tmp_path


@pytest.fixture
def zeroshot(zeroshot, monkeypatch):
    """Its commands with the pocket set."""
    monkeypatch.setenv("ZEROSHOT_MODELS", "pocket")
    return zeroshot


def test_a_tar_is_as_its_pictures(zeroshot):
    code, rows, _ = zeroshot("embed", "a.tar")
    _, files, _ = zeroshot("embed", *(f"{colour}.png" for colour in COLOURS))
    assert code == 0
    assert [row["path"] for row in rows] == [f"a.tar/{colour}.png" for colour in COLOURS]
    for row, file in zip(rows, files, strict=True):
        assert (row["id"], row["embedding"]) == (file["id"], file["embedding"])


def test_a_table(zeroshot):
    code, rows, _ = zeroshot("embed", "pairs.csv", "--image-column", "what")
    assert code == 3
    assert [(row["path"], "error" in row) for row in rows] == [
        ("red.png", False),
        ("pairs.csv#1", True),
    ]
    code, _, err = zeroshot("embed", "pairs.csv")
    assert code == 2
    assert (
        "'what', 'said'; none of these names is known for images. Choose one with --image-column"
        in err
    )
    code, rows, _ = zeroshot("embed", "pairs.csv", "--image-column", "what", "--image-root", "/")
    assert [row["path"] for row in rows] == ["/red.png", "/../b.png"]


def test_what_was_read_is_not_read_again(zeroshot, monkeypatch):
    """By the cache's memory of stamps, once the tar file is old enough to be trusted."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + (10 << 30))
    first = zeroshot("embed", "a.tar")
    monkeypatch.setattr(fsspec_files, "read_range", lambda *place: 1 / 0)
    second = zeroshot("embed", "a.tar", "--verbose")
    assert second[1] == first[1]
    assert "0 images encoded, 4 from the cache" in second[2]
    os.utime("a.tar", (1, 1))
    monkeypatch.setattr(fsspec_files, "read_range", lambda *place: b"")
    assert zeroshot("embed", "a.tar")[0] == 3


def test_pruning_forgets_what_lies_in_files_that_are_gone(zeroshot, monkeypatch):
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + (10 << 30))
    zeroshot("embed", "a.tar", "red.png")
    with EmbeddingCache() as cache:
        cache.remember_blob("s3://bucket/x.png\0\0etag", "0" * 64)
    model = len(read_by_loading(present(parse(f"hf:{POCKET}/clip"), TRANSFORMERS), TRANSFORMERS))
    with EmbeddingCache() as cache:
        cache.prune()
        assert cache.info().files == model + 6
        os.remove("a.tar")
        cache.prune()
        assert cache.info().files == model + 2
        assert cache.blob_id("s3://bucket/x.png\0\0etag") == "0" * 64
        assert cache.blob_id("s3://bucket/x.png\0\0other") is None


def test_a_run_goes_on_inside_a_tar(zeroshot):
    assert zeroshot("embed", "a.tar", "--limit", 2, "--out", "rows.jsonl")[0] == 0
    code, _, err = zeroshot("embed", "a.tar", "--out", "rows.jsonl")
    assert (code, "resumed: 2 of 4 were done already" in err) == (0, True)
    code, _, err = zeroshot("embed", "a.tar", "--out", "rows.jsonl", "--no-cache")
    assert "resumed: 4 of 4" in err


def test_urls(zeroshot, server):  # noqa: F811
    url = f"{server.url}/good"
    code, rows, _ = zeroshot("embed", url)
    assert code == 3
    assert "no public address; --allow-private-urls" in rows[0]["error"]["message"]
    given = ["embed", url, f"{server.url}/gone", "--allow-private-urls", "--out", "rows.jsonl"]
    code, _, err = zeroshot(*given)
    assert (code, "2 images, 1 failed" in err) == (3, True)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [url, f"{server.url}/gone"]
    assert rows[1]["error"] == {"type": "UnreadableImage", "message": "HTTP 404 Not Found"}
    asked = len(server.asked)
    code, _, err = zeroshot(*given)
    assert (code, len(server.asked)) == (0, asked)  # a URL that has a row is not fetched again
    assert "resumed: 2 of 2" in err
    zeroshot(*given, "--retry-failed")
    assert [path for path, _ in server.asked[asked:]] == ["/gone"]
    code, rows, _ = zeroshot("embed", url, "--offline", "--allow-private-urls")
    assert "needs the network" in rows[0]["error"]["message"]


def test_size_and_time_limits(zeroshot, server):  # noqa: F811
    _, rows, _ = zeroshot(
        *("embed", f"{server.url}/large", f"{server.url}/silent", "--allow-private-urls"),
        *("--url-max-mb", 1, "--url-timeout", 0.5),
    )
    server.stop.set()
    messages = [row["error"]["message"] for row in rows]
    assert messages[0] == "larger than 1 MiB (--url-max-mb)"
    assert "not there after 0.5 s" in messages[1]


def test_names_that_would_steer_a_terminal(folder):
    """In a process of its own, since only there standard output refuses what is no UTF-8."""
    name = os.fsdecode(b"caf\xe9 \x1b[31m.png")
    Path(name).write_bytes(b"no picture")
    command = [sys.executable, "-m", "zeroshot", "embed", name, "--models", "pocket", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout)["path"] == name
    assert b"\x1b" not in done.stdout + done.stderr


def test_a_line_of_the_table_is_plain():
    source = Source("a\x1b[2J\udce9\n.png")
    result = EmbedResult(source=source, id=None, error=Failure("UnreadableImage", "\x1b]0;x\x07"))
    console = Console(file=io.StringIO(), width=80)
    console.print(_line(result))
    shown = console.file.getvalue()
    assert "\\x1b[2J\\udce9" in shown
    assert "\\x1b]0;x\\x07" in shown
    assert "\x1b" not in shown
