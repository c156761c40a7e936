"""A terminal for tests: what a command writes to it, and what a person then sees."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import time

TERM = "xterm-256color"
_PIECE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|[\r\n]|[^\x1b\r\n]")


class Screen:
    """The lines of a terminal, of any height."""

    def __init__(self, columns=160):
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0

    def write(self, text):
        for piece in _PIECE.finditer(text):
            self._piece(piece)

    def _piece(self, piece):
        text = piece[0]
        if text == "\r":
            self.column = 0
        elif text == "\n":
            self._down()
        elif piece[2] == "A":
            self.row = max(0, self.row - int(piece[1] or 1))
        elif piece[2] == "K":
            whole = piece[1] == "2"
            self.lines[self.row] = "" if whole else self.lines[self.row][: self.column]
        elif piece[2] is None and not text.startswith("\x1b"):
            if self.column == self.columns:
                self._down()
                self.column = 0
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + text + line[self.column + 1 :]
            self.column += 1

    def _down(self):
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    @property
    def shown(self):
        """The lines that are not blank, without the space at their end."""
        return [line.rstrip() for line in self.lines if line.strip()]


class Terminal:
    """A pseudo-terminal as standard output and standard error of commands of this process."""

    def __init__(self, columns=160):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.screen = Screen(columns)
        self.seen = set()
        """Every line that was on the screen at any time."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            try:
                data = os.read(self.master, 4096)
            except OSError:
                return
            for piece in re.split(r"(?<=[\r\n])|(?=\x1b\[)", data.decode(errors="replace")):
                self.screen.write(piece)
                self.seen.update(self.screen.shown)

    def close(self):
        """Read what is left, and close it."""
        time.sleep(0.1)
        os.close(self.slave)
        self._reader.join(5)
        os.close(self.master)

    def stream(self, encoding="utf-8"):
        """A text stream that writes to it."""
        return open(self.slave, "w", encoding=encoding, closefd=False)


def run(monkeypatch, *arguments, stdout=None, columns=160):
    """The exit code of a command, its terminal, whose standard output may be elsewhere."""
    from zeroshot import cli

    terminal = Terminal(columns)
    monkeypatch.setenv("TERM", TERM)
    monkeypatch.setenv("COLUMNS", str(columns))  # rich asks the descriptors of this process
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as patch:
        errors = terminal.stream()
        patch.setattr(sys, "stdout", terminal.stream() if stdout is None else stdout)
        patch.setattr(sys, "stderr", errors)
        code = cli.run([str(argument) for argument in arguments])
        sys.stdout.flush()
        errors.flush()
    terminal.close()
    return code, terminal
