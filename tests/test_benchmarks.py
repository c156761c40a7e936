"""Benchmarks run, in tiny shapes: a figure nobody can print again is none."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
OURS = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}


@pytest.fixture
def benchmark(monkeypatch, capsys):
    """Runs one by its name and arguments; gives what it prints."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = torch.get_num_threads()

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        importlib.import_module(name).main()
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(before)
    for name in OURS & set(sys.modules):
        del sys.modules[name]


def test_a_gpu_is_measured_in_one_command(benchmark, tmp_path):
    file = tmp_path / "gpu.json"
    out = benchmark("gpu", "--small", "--device", "cpu", "--json", file)
    found = json.loads(file.read_text())
    parts = {"same", "magic", "profile", "ways", "embed", "tensors", "classify"}
    assert set(found["tables"]) == parts
    assert not found["wrong"]
    assert all(row["same"] for row in found["tables"]["same"])
    assert 'batch 2: WAYS["cpu"] = Ways(' in out
    assert "memory ran out" not in out
    assert "left out" not in out


def test_what_does_not_fit_the_time_is_named(benchmark, tmp_path):
    file = tmp_path / "gpu.json"
    given = ("--small", "--device", "cpu", "--minutes", -1, "--only", "tensors", "classify")
    out = benchmark("gpu", *given)
    assert out.count("left out, 0 s of the time were left") == 2
    assert not file.exists()


def test_a_batch_is_halved_where_memory_runs_out(benchmark, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = importlib.import_module("gpu")
    tried = []

    def search(*given):
        tried.append(len(given[1]))
        if tried[-1] > 2000:
            raise torch.OutOfMemoryError("out of memory")
        return real(*given)

    real = gpu.topk_stream
    monkeypatch.setattr(gpu, "topk_stream", search)
    out = benchmark("gpu", "--small", "--device", "cpu", "--only", "tensors")
    assert "search: memory ran out at 5000, 2500 was tried" in out
    assert "search: memory ran out at 2500, 1250 was tried" in out
    assert "best of 1250 rows" in out


def test_an_answer_that_differs_ends_with_an_error(benchmark, monkeypatch):
    gpu = importlib.import_module("gpu")
    real = gpu.topk_stream

    def wrong(*given):
        values, index = real(*given)
        return values + 1e-3, index

    monkeypatch.setattr(gpu, "topk_stream", wrong)
    with pytest.raises(SystemExit, match="DIFFERENT from the CPU: best of 5000 rows"):
        benchmark("gpu", "--small", "--device", "cpu", "--only", "tensors")


def test_no_device_is_one_sentence(benchmark, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        benchmark("gpu")


def test_what_remembered_texts_save(benchmark):
    sizes = ("--photographs", 4, "--window", 2, "--after", 2, "--batch", 2)
    lines = benchmark("remembered", "pocket", *sizes).splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    new = [int(row[3]) for row in rows]
    assert len(rows) == 5
    assert new[3] == 0 < new[4] < new[2], "the same again; others with the texts in the cache"


def test_what_a_second_thread_could_gain(benchmark):
    sizes = ("--small", "--balance", "--images", 2, "--batches", 2, "--steps", 3)
    assert "| all |" in benchmark("magic", *sizes)


def test_words_against_captions(benchmark, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 8))
    owner = np.arange(12) % 4
    file = tmp_path / "rows.npz"
    np.savez(file, images=images, texts=images[owner], image_of_text=owner)
    out = benchmark("explain", "--recorded", file)
    assert "| the mean of the captions | 1.000 | 1.000 | 1.0 | 1.000 |" in out


def test_the_pipeline_equals_its_parts(benchmark):
    out = benchmark("pipeline", "--small", "--images", 4, "--labels", 12, "--repeats", 1)
    assert "classify beside transformers' pipeline: largest difference" in out
