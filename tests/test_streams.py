"""Standard input, output and error as a unix tool has them; Ctrl-C, once and again."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zeroshot import cli
from zeroshot.commands.terminal import interrupts
from zeroshot.errors import UserError
from zeroshot.inputs.local_files import names_on

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
THREE = list(map(str, sorted(SCENES.glob("[123]-*.png"))))
CLASSIFY = ["classify", *THREE, "--labels", "red heart,coração,青い星", "--models", "pocket", "-q"]


@pytest.fixture
def run(monkeypatch, capsys):
    """The exit code and the messages of a command that writes to other streams."""

    def call(*arguments, **streams):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            for name, stream in streams.items():
                patch.setattr(sys, name, stream)
            code = cli.run(list(arguments))
        return code, capsys.readouterr().err

    return call


def pipe(encoding):
    """What is written, in an encoding, as Python opens standard output."""
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding)


# Characters that an encoding lacks


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "shift_jis", "utf-8"])
def test_rows_are_json_in_every_encoding(run, tmp_path, encoding):
    image = tmp_path / "中文 é 😀.png"
    image.write_bytes(Path(THREE[0]).read_bytes())
    out = pipe(encoding)
    code, _ = run(CLASSIFY[0], str(image), *CLASSIFY[4:], stdout=out)
    assert code == 0
    [line] = out.buffer.getvalue().decode("utf-8").splitlines()
    row = json.loads(line)
    assert row["path"] == str(image)
    assert {x["label"] for x in row["labels"]} == {"red heart", "coração", "青い星"}
    assert line.isascii() == (encoding != "utf-8")


@pytest.mark.parametrize("arguments", [["methods"], ["models", "list"], ["methods", "gda"]])
def test_tables_and_pages_are_written_in_every_encoding(run, arguments):
    out = pipe("ascii")
    code, _ = run(*arguments, stdout=out)
    assert code == 0
    assert out.buffer.getvalue().decode("ascii")


def test_messages_are_written_in_every_encoding(run):
    errors = pipe("ascii")
    code, _ = run("classify", "中文/", "--labels", "a", "--models", "pocket", stderr=errors)
    assert code == 2
    assert "\\u4e2d\\u6587" in errors.buffer.getvalue().decode("ascii")


# Streams that cannot be written

COMMANDS = {
    "rows": CLASSIFY,
    "hits": ["search", "red heart", *THREE, "--models", "pocket", "-q"],
    "methods": ["methods"],
    "a method": ["methods", "asif"],
    "sets": ["models", "list"],
    "parts": ["models", "show", "pocket"],
    "anchors": ["anchors", "info", "pocket", "--no-choose"],
    "help": ["--help"],
    "help of a command": ["classify", "--help"],
    "version": ["--version"],
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_full_disk_under_standard_output(run, arguments):
    with open("/dev/full", "w") as full:
        code, said = run(*arguments, stdout=full)
    assert said == "error: cannot write to standard output: No space left on device\n"
    assert code == 4


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_reader_that_is_gone(run, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out:
        code, said = run(*arguments, stdout=out)
    assert (code, said) == (141, "")


@pytest.mark.parametrize("arguments", [CLASSIFY, ["methods"], ["--version"]])
def test_standard_output_that_was_closed(run, arguments):
    code, said = run(*arguments, stdout=None)
    assert (code, said) == (4, "error: cannot write to standard output: it is closed\n")


def test_standard_output_that_is_open_for_reading(run):
    with open(os.devnull) as wrong:
        code, said = run(
            "methods", stdout=io.TextIOWrapper(io.FileIO(wrong.fileno(), closefd=False))
        )
    assert code == 4
    assert said.startswith("error: cannot write to standard output: ")


def test_rows_of_a_file_need_no_standard_output(run, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert run(*CLASSIFY, "--out", str(out), stdout=None) == (0, "")
    assert len(out.read_text().splitlines()) == 3


def test_a_reader_that_goes_leaves_the_rows_of_a_file(run, tmp_path):
    rows, (reader, writer) = tmp_path / "rows.jsonl", os.pipe()
    os.close(reader)
    with open(writer, "w") as out:
        code, _ = run(*CLASSIFY, "--json", "--out", str(rows), stdout=out)
    assert code == 141
    assert run(*CLASSIFY, "--out", str(rows))[0] == 0
    assert [json.loads(line)["path"] for line in rows.read_text().splitlines()] == THREE


@pytest.mark.parametrize("errors", ["closed", "full", "gone"])
def test_messages_that_cannot_be_written_end_no_run(run, errors):
    out = pipe("utf-8")
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, open(writer, "w") as gone:
        stream = {"closed": None, "full": full, "gone": gone}[errors]
        arguments = [*CLASSIFY[:-1], "--verbose", "nowhere.png"]
        code, _ = run(*arguments, stdout=out, stderr=stream)
    assert code == 3
    rows = [json.loads(line) for line in out.buffer.getvalue().splitlines()]
    assert [row["path"] for row in rows] == [*THREE, "nowhere.png"]


def test_a_closed_pipe_within_a_command_is_a_fault(run, monkeypatch):
    """Typer would end the process without a word."""

    def lose(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("zeroshot.methods.names", lose)
    code, said = run("methods")
    assert code == 1
    assert "internal error, please report it: RuntimeError: BrokenPipeError" in said


def test_the_end_of_a_file_within_a_command_is_a_fault(run, monkeypatch):
    def end(*_):
        raise EOFError("no more")

    monkeypatch.setattr("zeroshot.methods.names", end)
    code, said = run("methods")
    assert code == 1
    assert "internal error, please report it: RuntimeError: EOFError: no more" in said
    assert "Abort" not in said


def shell(script, cwd):
    done = subprocess.run(
        ["bash", "-c", script.replace("zeroshot", f"{sys.executable} -m zeroshot")],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(SCENES.parent.parent)},
    )
    return done.stdout, done.stderr


def test_a_process_of_its_own(tmp_path):
    """What only a process has: the descriptors, and what the interpreter writes at its end."""
    out, said = shell("zeroshot methods | (exec <&-; sleep 9); echo ${PIPESTATUS[0]}", tmp_path)
    assert (out, said) == ("141\n", "")
    out, said = shell("zeroshot methods > /dev/full; echo $?", tmp_path)
    assert (out, said.count("\n")) == ("4\n", 1)
    out, said = shell("zeroshot methods >&- <&-; echo $?", tmp_path)
    assert (out, said) == ("4\n", "error: cannot write to standard output: it is closed\n")
    out, said = shell("zeroshot methods 2>&- | wc -l; echo ${PIPESTATUS[0]}", tmp_path)
    assert out.split()[1:] == ["0"]


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = (
        "import os, sys\nfrom zeroshot.commands.terminal import streams\n"
        "streams.fill_descriptors()\nfile = open(sys.argv[1], 'w')\nassert file.fileno() > 2\n"
        "os.write(2, b'a complaint of a library')\nfile.write('row')"
    )
    out = tmp_path / "rows"
    command = f'{sys.executable} -c "$CODE" {out} <&- >&- 2>&-'
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"CODE": code, "PYTHONPATH": "."}
    )
    assert done.returncode == 0
    assert out.read_text() == "row"


# Names on standard input


class Input(io.TextIOWrapper):
    """Standard input with these bytes."""

    def __init__(self, data, encoding="ascii"):
        super().__init__(io.BytesIO(data), encoding=encoding)


@pytest.mark.parametrize(
    ("data", "null", "names"),
    [
        (b"a.png\nb c.png\n", False, ["a.png", "b c.png"]),
        (b"a.png\r\n\r\nb.png", False, ["a.png", "b.png"]),
        (b"\xef\xbb\xbfa.png\n", False, ["a.png"]),
        ("\ufeffé.png\r\nb.png\r\n".encode("utf-16-le"), False, ["é.png", "b.png"]),
        (b"caf\xe9.png\n", False, ["caf\udce9.png"]),
        ("中文.png\n".encode(), False, ["中文.png"]),
        (b"a\nb.png\0c.png\0", True, ["a\nb.png", "c.png"]),
        (b"a.png\0\0b\r.png", True, ["a.png", "b\r.png"]),
        (b"\xff\xfe.png\0", True, ["\udcff\udcfe.png"]),
        (b"a.png", True, ["a.png"]),
        (b"x" * 100_000 + b"\n" + b"y" * 70_000, False, ["x" * 100_000, "y" * 70_000]),
    ],
)
def test_names_on_standard_input(monkeypatch, data, null, names):
    monkeypatch.setattr(sys, "stdin", Input(data))
    assert list(names_on(None, null)) == names


@pytest.mark.parametrize(
    ("data", "null", "message"),
    [
        (b"a.png\0b.png\0", False, "give -0"),
        (b"a.png\nb.png\n", True, "no name does"),
        (b"", False, "one per line, but there were none"),
        (b"\n\r\n", False, "there were none"),
        (b"\0", True, "each before a null character, but there were none"),
    ],
)
def test_names_that_end_otherwise(monkeypatch, data, null, message):
    monkeypatch.setattr(sys, "stdin", Input(data))
    with pytest.raises(UserError, match=message):
        list(names_on(None, null))


def test_standard_input_that_cannot_be_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="closed"):
        list(names_on())
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as wrong:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Unreadable(wrong))))
        with pytest.raises(UserError, match="standard input cannot be read: it hurts"):
            list(names_on())


class Unreadable(io.RawIOBase):
    def __init__(self, _):
        super().__init__()

    def readable(self):
        return True

    def readinto(self, _):
        raise OSError(5, "it hurts")


def test_names_that_end_in_null_characters_are_images(run, tmp_path):
    names = [tmp_path / "two\nlines.png", tmp_path / "ends in\r.png", tmp_path / "plain.png"]
    for name, image in zip(names, THREE, strict=True):
        name.write_bytes(Path(image).read_bytes())
    out = pipe("utf-8")
    data = b"\0".join(os.fsencode(name) for name in names)
    arguments = ["embed", "-", "--models", "pocket", "-q"]
    assert run(*arguments, "-0", stdin=Input(data), stdout=out)[0] == 0
    rows = [json.loads(line) for line in out.buffer.getvalue().splitlines()]
    assert [row["path"] for row in rows] == list(map(str, names))
    code, said = run("embed", THREE[0], "--null", "--models", "pocket")
    assert code == 2
    assert "-0 is for names on standard input" in said


# Ctrl-C


def test_a_second_interrupt_within_a_moment_is_the_first(monkeypatch):
    ended = []
    monkeypatch.setattr(interrupts, "at_once", lambda: ended.append(True))
    handler = interrupts._Interrupts()
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    handler(signal.SIGINT, None)
    assert not ended
    handler.first -= 2
    handler(signal.SIGINT, None)
    assert ended


def test_interrupts_that_are_ignored_stay_so(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.install()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("pauses", [[0.05, 0.05], [1.3, 0.0]])
def test_repeated_interrupts_end_a_run_in_order(tmp_path, pauses):
    """What was written stays, the process says one thing, and the same command continues."""
    out = tmp_path / "rows.jsonl"
    images = tmp_path / "images"
    images.mkdir()
    for i in range(300):
        (images / f"{i:03}.png").write_bytes(
            Path(THREE[i % 3]).read_bytes() + bytes([i % 256, i // 256])
        )
    command = ["caption", str(images), "--models", "pocket", "--no-cache", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN if pauses[0] > 1 else PLAIN, *command, "--batch-size", "1"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    for pause in pauses:
        time.sleep(pause)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), said  # a shell calls both 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert all(json.loads(line)["caption"] for line in out.read_text().splitlines())


PLAIN = "from zeroshot.__main__ import main; main()"
STUBBORN = """
import time
from zeroshot.output.resumable import ResumableFile
close = ResumableFile.close
def slow(self, *given, **more):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.1)
    close(self, *given, **more)
ResumableFile.close = slow
from zeroshot.__main__ import main
main()
"""
"""A run that does not come to its end by itself."""
