"""What every test starts from: one thread (the run has two workers) and a cache of its own."""

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test meets the user's cache, settings or network."""
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def pytest_collection_finish():
    """The collected tests and all libraries stay: no garbage is looked for among them.

    hypothesis is imported first, as it looks for who refers to what it is given.
    """
    import hypothesis  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture
def printed(capsys):
    """Run a command; its exit code, standard output, and standard error in one line."""
    from zeroshot import cli

    def run(*arguments):
        capsys.readouterr()
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, " ".join(err.split())

    return run


@pytest.fixture
def zeroshot(printed):
    """Run a command; its exit code, the JSON rows of standard output, and standard error."""

    def run(*arguments):
        code, out, err = printed(*arguments)
        return code, [json.loads(line) for line in out.splitlines() if line.startswith("{")], err

    return run


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A server of the example scenes and its client; starts with the first test that asks."""
    from tests.serving import SCENES, running

    with running(SCENES, tmp_path_factory.mktemp("served")) as both:
        yield both


def pytest_make_parametrize_id(config, val):
    """Bytes name a test by their size: what is in them may differ between two workers (times)."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`p` with the images a.png to d.png, where files beside images are written."""
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    for name, scene in zip("abcd", SCENES, strict=False):
        shutil.copy(scene, f"p/{name}.png")
    return Path("p")
