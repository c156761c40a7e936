"""Linear layers on a CPU, their weights laid out in blocks once.

torch multiplies float32 rows with MKL, which reads weights as they are stored. oneDNN, in the same
torch, lays them out for the processor's registers once; then some eighty rows take five sixths of
the time, and two or three rows, which only wait for the weights, less than half
(docs/performance.md). The numbers differ in the last digits, as they do between batch sizes.

Weights are laid out when a layer is first used, in place of the stored ones.
"""

import platform
from collections import Counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PackedLinear", "pack"]

SMALLEST = 1 << 18
"""Numbers in a weight from which on the kernel makes up for a call that costs 12 us more."""
ROWS = 6
"""Of a kernel's tile. Others are filled up with zeros: one row takes no less time than six, and for
each number of rows oneDNN makes and keeps code of up to half a megabyte."""


class PackedLinear(nn.Module):
    """What an `nn.Linear`, or a layer that keeps its weight transposed, computes.

    `weight` is what the layer had; once it is packed, it is unpacked for whoever asks, which the
    layer itself never does.
    """

    def __init__(self, layer: Any, transposed: bool = False, shared: bool = False) -> None:
        """`shared`: other modules hold the weight, which then stays as it is stored."""
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self._transposed = transposed
        self._shared = shared
        self._blocks: Tensor | None = None
        """oneDNN's layout."""

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
    """Give `model` packed layers wherever they are faster and nothing else holds their parts.

    Args:
        model: on its device, in its precision; changed in place.
        transposed: Classes of layers that compute `rows @ weight + bias`.
    """
    if not _has_kernels():
        return model
    holders = Counter(map(id, (p for _, p in model.named_parameters(remove_duplicate=False))))
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not (type(layer) is nn.Linear or type(layer) in transposed) or not _fits(layer):
                continue
            flipped, shared = type(layer) is not nn.Linear, holders[id(layer.weight)] > 1
            if not (flipped and shared):
                setattr(parent, name, PackedLinear(layer, flipped, shared))
    return model


def _fits(layer: Any) -> bool:
    weight = layer.weight
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and weight.numel() >= SMALLEST and not weight.requires_grad


def _has_kernels() -> bool:
    """These are operators of torch's own compiler: where they are absent, all stays as it is."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
