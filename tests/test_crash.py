"""`kill -9` at random moments: tools/crash.py does it at length, this a little."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture
def crash(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    spec = importlib.util.spec_from_file_location("crash", TOOLS / "crash.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "crash", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
@pytest.mark.parametrize(("name", "processes", "kills"), [("file.jsonl", 1, 2), ("two", 2, 3)])
def test_killed_runs_lose_nothing(crash, tmp_path, name, processes, kills):
    crash.draw(tmp_path / "pictures", 200)
    cache, more = tmp_path / "cache", ("--no-cache",)
    whole = crash.run(crash.command(tmp_path / "pictures", tmp_path / "whole", *more), cache)
    assert whole.returncode == 0, whole.stderr
    crash.killed(tmp_path / "pictures", tmp_path / name, kills, 6.0, cache, processes, more)
    found = crash.compare(name, tmp_path / name, crash.lines(tmp_path / "whole"), kills)
    assert (found.rows, found.twice, found.missing, found.same) == (200, 0, 0, True)
