"""Passwords and signatures of addresses, and what would control a terminal, are shown nowhere."""

import contextlib
import csv
import io
import json
import re
import warnings

import pytest

from zeroshot import cli
from zeroshot.commands import console
from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.reading import fetch
from zeroshot.inputs.remote import fsspec_files
from zeroshot.inputs.remote.fetch import Fetch
from zeroshot.inputs.remote.public_names import public
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import InputOptions
from zeroshot.results.result import Failure, SearchResult

SECRET = "s3cr3tS1gnature"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://a.b/c.jpg", "https://a.b/c.jpg"),
        ("https://a.b/c.jpg?w=640&h=480", "https://a.b/c.jpg?w=640&h=480"),
        (f"https://me:{SECRET}@a.b/c.jpg", "https://***@a.b/c.jpg"),
        (f"https://{SECRET}@a.b/c.jpg", "https://***@a.b/c.jpg"),
        (f"HTTPS://me:{SECRET}@x@a.b/c", "HTTPS://***@a.b/c"),
        (f"ftp://me:{SECRET}@a.b/c.tar", "ftp://me:***@a.b/c.tar"),
        ("sftp://me@a.b/c.tar", "sftp://me@a.b/c.tar"),
        ("hf://datasets/org/set@main/c.tar", "hf://datasets/org/set@main/c.tar"),
        (
            f"https://a/c?X-Amz-Credential=AK%2F1&X-Amz-Date=2&X-Amz-Signature={SECRET}&x=1",
            "https://a/c?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=***&x=1",
        ),
        (f"https://a/c?sv=2&sig={SECRET}%3D&se=3", "https://a/c?sv=2&sig=***&se=3"),
        (f"https://a/c?AWSAccessKeyId={SECRET}&Expires=1", "https://a/c?AWSAccessKeyId=***&Expires=1"),
        (f"https://a/c?GoogleAccessId=x&Signature={SECRET}", "https://a/c?GoogleAccessId=***&Signature=***"),
        (f"https://a/c?Policy=x&Key-Pair-Id={SECRET}", "https://a/c?Policy=***&Key-Pair-Id=***"),
        (f"https://a/c#access_token={SECRET}", "https://a/c#access_token=***"),
        (f"no host 'a' (https://a/c?Token={SECRET}&x=1)", "no host 'a' (https://a/c?Token=***13a0ff41&x=1)"),
        ("a text; with = and ? in it", "a text; with = and ? in it"),
        ("design=x&assign=y", "design=x&assign=y"),
    ],
)  # fmt: skip
def test_what_is_shown_of_an_address(address, shown):
    assert re.sub(r"\*\*\*[0-9a-f]{8}", "***#", public(address)) == re.sub(
        r"\*\*\*[0-9a-f]{8}", "***#", shown
    )
    assert SECRET not in public(address)
    assert public(public(address)) == public(address)


def test_keys_that_may_name_an_image_stay_apart():
    one, two = (public(f"https://a/get?key={name}") for name in ("a.jpg", "b.jpg"))
    assert one != two
    assert "a.jpg" not in one
    assert re.fullmatch(r"https://a/get\?key=\*\*\*[0-9a-f]{8}", one)


ADDRESSES = [
    f"https://me:{SECRET}@localhost:9/a.jpg",
    f"https://localhost:9/a.jpg?X-Amz-Signature={SECRET}",
    f"http://localhost:x/a.jpg?token={SECRET}",
    f"http://me:{SECRET}@[::1/a.jpg",
    f"http://me:{SECRET} x@localhost/a.jpg",
]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rows_messages_and_records_have_no_secrets(suffix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with open("table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["url"], *([a] for a in ADDRESSES)])
    given = [*ADDRESSES, "table.csv", "--models", "pocket", "--quiet"]
    out = ["--out", f"rows.{suffix}"] if suffix != "parquet" else ["--out", "shards/"]
    assert cli.run(["embed", *given, *out]) == 3
    assert cli.run(["embed", *given, "--json"]) == 3
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert len(rows) == 2 * len(ADDRESSES)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "table.csv"]
    assert written
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path
    record = next(path for path in written if path.name.endswith("run.json"))
    (command,) = json.loads(record.read_text())["about"]["commands"]
    assert command.startswith("zeroshot embed 'https://***@localhost:9/a.jpg' ")
    assert cli.run(["embed", *given, *out]) in (0, 3)  # all rows are known by their names


def test_the_address_itself_is_asked_with_its_signature():
    (source,) = find(f"https://a.b/c.jpg?sig={SECRET}").sources
    assert source.path == "https://a.b/c.jpg?sig=***"
    assert source.content.url.endswith(f"sig={SECRET}")
    with pytest.raises(UnreadableImageError) as caught:
        fetch(
            find(
                f"http://a/b?sig={SECRET}", options=InputOptions(fetch=Fetch(offline=True))
            ).sources[0]
        )
    assert SECRET not in str(caught.value)  # fmt: skip


@pytest.mark.parametrize(
    "name", [f"ftp://me:{SECRET}@host/x.tar", f"abfs://box/x.tar?sv=1&sig={SECRET}"]
)
def test_names_of_other_file_systems_have_none(name):
    for act in (fsspec_files.connect, find):
        with pytest.raises(UserError, match="has a password or a signature in its name") as caught:
            act(name)
        assert SECRET not in str(caught.value)


def test_a_drivers_message_shows_none():
    error = UnreadableImageError(
        f"403 for https://s/b?X-Amz-Signature={SECRET} and s3://k:{SECRET}@b"
    )
    assert SECRET not in Failure.from_error(error).message


# Terminals


EVIL = "\x1b]0;owned\x07\x1b[31m \x9b2J [red]x[/red] \u202e \r\x08 \ud800"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A function that gives what a terminal gets while it is called."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")

    def shown(act, *given):
        with contextlib.redirect_stdout(Terminal()) as screen, contextlib.redirect_stderr(screen):
            act(*given)
        return screen.getvalue()

    return shown


def controls(text):
    """What remains of a terminal's input after the styles that rich makes."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return [c for c in text if not c.isprintable() and c != "\n"]


def test_no_table_passes_anything_on(terminal):
    hit = SearchResult(Source(EVIL), None, query=EVIL, query_number=0, rank=1, score=0.5)
    interval = {"sampling": {"confidence": 0.95}, "method": EVIL, "dataset": EVIL, "metrics": {}}
    label = {"pictures": 1, "average_precision": 0.5, "interval": None}
    for act, *given in [
        (console.print_table, ("encoder", "kind"), [(EVIL, 7), ("b", EVIL)]),
        (console.show_hits, [hit]),
        (console.show_figures, interval | {"intervals": {}, "labels": {EVIL: label}}),
        (console.show_differences, {"methods": {EVIL: {}}, "first": EVIL}),
    ]:
        shown = terminal(act, *given)
        assert controls(shown) == []
        assert shown.count(r"\x1b]0;owned\x07") >= 2
        assert shown.count("[red]x[/red]") >= 2


def test_json_on_a_terminal_says_the_same_and_controls_nothing(terminal):
    row = {"query": EVIL.replace("\ud800", ""), "é": "ñ\xa0—"}
    shown = terminal(console.print_json, row)
    assert json.loads(shown) == row
    assert controls(shown.replace("\xa0", " ")) == []
    assert "ñ" in shown


def test_messages_and_warnings_control_nothing(terminal):
    def warn():
        warnings.showwarning = lambda message, *_, **__: print(message)
        with console.show_warnings():
            warnings.simplefilter("always")
            warnings.warn(EVIL, stacklevel=1)

    for act, *given in [(console.log, EVIL), (warn,)]:
        shown = terminal(act, *given)
        assert "owned" in shown
        assert controls(shown) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "show", EVIL.replace("\ud800", "")],
        ["classify", "x.png", "--models", "\x1b[31mred", "--labels", "a,b"],
        ["classify", "\x1b[31mx.png", "--labels", "a,b", "--models", "pocket", "-q"],
        ["search", "\x1b[31m", "gone/", "--models", "pocket", "-q"],
        ["cache", "export", "x.npy", "--encoder", "\x1b[31m"],
    ],
)
def test_names_that_are_wrong_control_nothing(arguments, terminal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = terminal(cli.run, arguments)
    assert "error" in shown or "[31m" in shown
    for own in ("\r", "\x1b[1A", "\x1b[2K"):  # of the line of progress, which is taken away
        shown = shown.replace(own, "")
    assert controls(shown) == [], shown
