"""What every test starts from: one thread (the run has two workers) and a cache of its own."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test meets the user's cache, settings or network."""
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def pytest_make_parametrize_id(config, val):
    """Bytes name a test by their size: what is in them may differ between two workers (times)."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None
