"""The examples run as they stand: in this process; one notebook in a kernel of its own too."""

import json
import os
import runpy
import sys
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
JOBS = ["ask", "caption", "classify", "couple", "results", "search", "tune"]
OTHER_IMAGES = {"search", "tune"}
"""These do not name the first scene."""


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_each_job_has_a_script_and_a_notebook():
    assert sorted(p.stem for p in EXAMPLES.glob("*.py")) == sorted([*JOBS, "client"])
    assert sorted(p.stem for p in EXAMPLES.glob("*.ipynb")) == JOBS


@pytest.mark.parametrize("job", JOBS)
def test_script(job, monkeypatch, capsys, tmp_path):
    """That of `tune` on leaves of one's own, which are fewer; the notebook takes its leaves."""
    given = []
    if job == "tune":
        given = runpy.run_path(str(EXAMPLES / "tune.py"))["draw_leaves"](tmp_path, 4, 4)
    monkeypatch.setattr(sys, "argv", [f"{job}.py", *map(str, given)])
    runpy.run_path(str(EXAMPLES / f"{job}.py"), run_name="__main__")
    assert "1-red-heart.png" in capsys.readouterr().out or job in OTHER_IMAGES


def test_client(capsys):
    """Asks a server that it starts, and one that runs."""
    import zeroshot

    client = runpy.run_path(str(EXAMPLES / "client.py"))
    client["main"]()
    own = capsys.readouterr().out
    assert own.startswith("1-red-heart.png: a large red heart")
    assert "label: red heart 1.0" in own
    with zeroshot.serve(EXAMPLES / "scenes", "pocket") as server:
        server.wait_until_indexed()
        client["main"](server.page, str(EXAMPLES / "scenes" / "2-blue-star.png"))
    assert "label: blue star" in capsys.readouterr().out


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """IPython as a notebook has it, in this process."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    from IPython.core.interactiveshell import InteractiveShell

    for name in ("excepthook", "displayhook", "ps1", "ps2", "ps3", "last_traceback"):
        if hasattr(sys, name):
            monkeypatch.setattr(sys, name, getattr(sys, name))
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("job", [job for job in JOBS if job != "results"])
@pytest.mark.filterwarnings("ignore")  # of IPython
def test_notebook(job, shell, monkeypatch):
    from IPython.utils.capture import capture_output

    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES)
    for cell in nbformat.read(EXAMPLES / f"{job}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            with capture_output() as made:
                done = shell.run_cell(cell.source)
            done.raise_error()
            assert made.stdout or made.outputs or done.result is not None, cell.source


@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
def test_a_notebook_in_a_kernel_of_its_own(monkeypatch, tmp_path):
    """The one that shows figures."""
    from nbclient import NotebookClient

    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(EXAMPLES / "results.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=120,
        resources={"metadata": {"path": str(EXAMPLES)}},
        kernel_name="python3",
    )
    client.execute()
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize(("job", "most"), [("tune", 50_000), ("results", 200_000)])
def test_a_notebook_that_keeps_its_outputs_is_what_the_tool_writes(job, most):
    """`python tools/tune_notebook.py`, `python tools/results_notebook.py`."""
    tool = runpy.run_path(str(EXAMPLES.parent / "tools" / f"{job}_notebook.py"))
    notebook = nbformat.read(EXAMPLES / f"{job}.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells] == [c.source for c in tool["cells"]()]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    assert (EXAMPLES / f"{job}.ipynb").stat().st_size < most


def test_the_scenes_are_what_the_captions_name():
    lines = (EXAMPLES / "scenes" / "captions.jsonl").read_text("utf-8").splitlines()
    named = [json.loads(line)["path"] for line in lines]
    assert named == sorted(p.name for p in (EXAMPLES / "scenes").glob("*.png"))
