"""Rows of every command are those recorded, byte for byte.

They are on a machine whose numbers have the digits of the recording one (`recording.machine`); on
another every text, path and whole number is equal, and floats are within rounding. After a change
that is meant, `python -m tests.recording` records anew.
"""

import json

import pytest

from tests.recording import ROWS, commands, differences, done, rows, same_machine

FAIL = {"caption-failed": 3, "classify-failed": 3}


def recorded(name):
    return (ROWS / f"{name}.txt").read_bytes().decode()


def test_every_command_is_recorded():
    assert {file.stem for file in ROWS.iterdir()} == commands().keys()


@pytest.mark.parametrize("name", commands())
def test_rows_are_those_recorded(name):
    now = rows(done(name))
    assert differences(recorded(name), now) == []
    assert now == recorded(name) or not same_machine()


@pytest.mark.parametrize("name", commands())
def test_standard_output_is_the_file(name):
    """`--json` with `--out` writes every row twice, the same bytes."""
    did = done(name)
    assert did.code == FAIL.get(name, 0), did.err
    if "rows.jsonl" in did.files:
        written = did.files["rows.jsonl"].decode()
        if written.isascii():
            assert did.out == written
        else:  # standard output is not UTF-8 here, so that it has escapes
            assert list(map(json.loads, did.out.splitlines())) == list(
                map(json.loads, written.splitlines())
            )


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('{"score": 0.5}', '{"score": 0.5004}', True),
        ('{"score": 0.5}', '{"score": 0.501}', False),
        ('{"score": 1e-08}', '{"score": 0.0}', True),
        ('{"score": 1.0}', '{"score": 1}', False),
        ('{"rank": 100000}', '{"rank": 100001}', False),
        ('{"id": "12e45c"}', '{"id": "12e46c"}', False),
        ("a\nb", "a", False),
    ],
)
def test_what_counts_as_rounding(old, new, same):
    assert (differences(old, new) == []) is same
