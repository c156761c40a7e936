import pytest
import torch

from zeroshot.errors import UserError
from zeroshot.models.devices import precision_name, resolve_device, resolve_precision


@pytest.fixture
def machine(monkeypatch):
    """A pretended machine."""

    def pretend(cuda=0, mps=False, bf16=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("parts", "device", "expected"),
    [
        ({}, "auto", "cpu"),
        ({"cuda": 1}, "auto", "cuda"),
        ({"cuda": 1}, "cpu", "cpu"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
        ({"mps": True}, "auto", "mps"),
        ({"mps": True}, "mps", "mps"),
    ],
)
def test_devices(parts, device, expected, machine):
    machine(**parts)
    assert resolve_device(device) == torch.device(expected)


@pytest.mark.parametrize(
    ("parts", "device", "message"),
    [
        ({}, "cuda", "no cuda device here; available: cpu"),
        ({"cuda": 1}, "cuda:1", "no device cuda:1; this machine has 1"),
        ({"cuda": 1}, "mps", "no mps device here; available: cuda, cpu"),
        ({}, "gpu", "unknown device 'gpu'"),
        ({}, "cuda:x", "unknown device 'cuda:x'"),
    ],
)
def test_devices_that_are_not_there(parts, device, message, machine):
    machine(**parts)
    with pytest.raises(UserError, match=message):
        resolve_device(device)


@pytest.mark.parametrize(
    ("bf16", "device", "precision", "expected"),
    [
        (True, "cuda", "auto", torch.bfloat16),
        (False, "cuda", "auto", torch.float16),
        (True, "cpu", "auto", torch.float32),
        (True, "mps", "auto", torch.float32),
        (True, "cuda", "fp32", torch.float32),
        (True, "cpu", "fp16", torch.float16),
    ],
)
def test_precisions(bf16, device, precision, expected, machine):
    machine(cuda=1, bf16=bf16)
    assert resolve_precision(precision, torch.device(device)) == expected


def test_an_unknown_precision():
    with pytest.raises(UserError, match=r"unknown precision 'half'; .*auto, bf16, fp16, fp32"):
        resolve_precision("half", torch.device("cpu"))


def test_names_of_precisions():
    assert [precision_name(d) for d in (torch.float32, torch.bfloat16)] == ["fp32", "bf16"]
