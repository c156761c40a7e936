"""The device that a model runs on, its precision, and what spares waits for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from zeroshot.errors import UserError, unknown

__all__ = [
    "PRECISIONS",
    "WAYS",
    "Ways",
    "on_device",
    "out_of_memory",
    "precision_name",
    "read",
    "resolve_device",
    "resolve_precision",
    "sent",
    "ways_of",
]


@dataclass(frozen=True)
class Ways:
    """How guided decoding spares the host's waits for a device; none changes what is computed."""

    one_read: bool = False
    """A chosen token stays on the device until the next candidates are read, together with them."""
    columns: int = 0
    """Candidates a row that are looked ahead on, without asking the device which of them can win;
    if more of them could have, the step is done again. 0 asks."""
    static: bool = False
    """The text tower runs in buckets of shapes; on CUDA each is captured once, as a graph."""


WAYS = {"cpu": Ways(), "cuda": Ways(one_read=True, columns=8)}
"""By type of device, the last line of `benchmarks/gpu.py`; others as the CPU."""


def ways_of(device: torch.device) -> Ways:
    """What is worth doing on this device."""
    return WAYS.get(device.type, WAYS["cpu"])


def sent(values: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU from pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=device.type == "cuda")


def read(values: Tensor) -> np.ndarray:
    """The values on the host, which waits for all that the device has to do before."""
    return values.cpu().numpy()


def on_device(device: torch.device, *arrays: Sequence[int] | np.ndarray) -> list[Int[Tensor, "_"]]:
    """Integers as flat tensors, by one copy to the device, for which the host does not wait."""
    flat = [np.asarray(array, np.int64).ravel() for array in arrays]
    packed = sent(torch.from_numpy(np.concatenate(flat)), device)
    return list(torch.split(packed, [len(part) for part in flat]))


PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(device: str = "auto") -> torch.device:
    """The device called `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    `auto` is the first CUDA device, else Apple's, else the CPU. UserError for a device that this
    machine does not have.
    """
    if device == "auto":
        return torch.device(_available()[0])
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise unknown("device", device, ["auto", "cpu", "cuda", "cuda:1", "mps"])
    if kind not in _available():
        raise UserError(f"no {kind} device here; available: {', '.join(_available())}")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"no device {device}; this machine has {torch.cuda.device_count()}")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """`auto`, `fp32`, `fp16` or `bf16` as a dtype.

    `auto` on CUDA is bf16 where the hardware has it and fp16 elsewhere; on the CPU and on Apple's
    devices, where half precision is slow or incomplete, fp32.
    """
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if precision not in PRECISIONS:
        raise unknown("precision", precision, ["auto", *PRECISIONS])
    return PRECISIONS[precision]


def precision_name(dtype: torch.dtype) -> str:
    """`fp32` for `torch.float32`, and so on."""
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def _available() -> list[str]:
    cuda = ["cuda"] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, "cpu"]


def out_of_memory(error: Exception) -> bool:
    """Of CUDA and MPS the class or the message says so, of the CPU allocator only the message."""
    known = (MemoryError, torch.OutOfMemoryError)
    message = str(error).lower()
    return isinstance(error, known) or "out of memory" in message or "can't allocate" in message
