"""Linear layers on a CPU, with weights in the memory layout of oneDNN.

torch multiplies float32 rows with MKL, which reads weights as they are stored. oneDNN, also part of
torch, arranges them once for the processor's registers. Then some eighty rows take five sixths of
the time; two or three rows, which only wait for the weights, take less than half
(docs/performance.md). The numbers differ in the last digits, as they do between batch sizes.

A layer's weights are packed on its first use, and replace the stored ones.
"""

import platform
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PackedLinear", "pack"]

SMALLEST = 1 << 18
"""Smallest weight, in numbers, for which the kernel makes up for its call, 12 us longer."""
ROWS = 6
"""Rows of a kernel's tile. Zeros fill up the last tile: one row takes as long as six, and for each
number of rows oneDNN makes and keeps code of up to half a megabyte."""


class PackedLinear(nn.Module):
    """The function of an `nn.Linear`, or of a layer that stores its weight transposed.

    `weight` is the layer's own; after packing it is unpacked at each access. `forward` never needs
    that.
    """

    def __init__(self, layer: Any, transposed: bool = False, shared: bool = False) -> None:
        """`shared`: other modules have the same weight, which then stays as it is."""
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self._transposed = transposed
        self._shared = shared
        self._blocks: Tensor | None = None
        """The weight in oneDNN's layout."""

    def forward(self, rows: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """`rows @ weight + bias`."""
        weight = self.weight if self._shared else self._blocks
        if weight is None:
            weight = self._blocks = self._packed()
            del self.weight
        flat = rows.reshape(-1, rows.shape[-1])
        missing = 0 if self._shared else -len(flat) % ROWS
        full = nn.functional.pad(flat, (0, 0, 0, missing)) if missing else flat
        out: Tensor = torch.ops.mkldnn._linear_pointwise(full, weight, self.bias, "none", [], "")
        return out[: len(flat)].view(*rows.shape[:-1], out.shape[-1])

    def _packed(self) -> Tensor:
        weight = self.weight.detach()
        if self._transposed:
            weight = weight.t().contiguous()
        blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return blocks

    def __getattr__(self, name: str) -> Any:
        blocks = self.__dict__.get("_blocks")
        if name != "weight" or blocks is None:
            return super().__getattr__(name)
        return blocks.to_dense().t() if self._transposed else blocks.to_dense()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._blocks is not None:
            weight, self._blocks = self.weight.contiguous(), None
            self.weight = nn.Parameter(weight, requires_grad=False)
        super()._load_from_state_dict(*args, **kwargs)


def pack(model: nn.Module, transposed: tuple[type, ...] = ()) -> nn.Module:
    """Replace those layers of `model` that are faster when packed.

    Args:
        model: On its device, in its precision; changed in place.
        transposed: classes of layers that compute `rows @ weight + bias`.
    """
    if not _has_kernels():
        return model
    uses = Counter(map(id, (p for _, p in model.named_parameters(remove_duplicate=False))))
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not (type(layer) is nn.Linear or type(layer) in transposed) or not _fits(layer):
                continue
            flipped, shared = type(layer) is not nn.Linear, uses[id(layer.weight)] > 1
            if not (flipped and shared):
                setattr(parent, name, PackedLinear(layer, flipped, shared))
    return model


def _fits(layer: Any) -> bool:
    weight = layer.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.numel() >= SMALLEST and not weight.requires_grad


def _has_kernels() -> bool:
    """Whether this torch has the operators, which it keeps for its own compiler."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
