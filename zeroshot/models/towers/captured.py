"""Many small kernels as one launch: a function of tensors of fixed shapes, captured on CUDA."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured", "bucket"]


def bucket(count: int, least: int = 64) -> int:
    """The next of 64, 96, 128, 192, 256, ...: at most a third of a bucket is padding."""
    size = least
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


class Captured:
    """A function of one tensor: a CUDA graph for each shape of it; elsewhere, just called.

    A graph works on the addresses that it was captured with: whatever else the function reads has
    to stay where it is. What comes out is overwritten by the next call.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self.shapes: dict[torch.Size, Any] = {}
        """What was captured, by shape."""

    def __call__(self, given: Tensor) -> Tensor:
        """What the function gives."""
        if given.shape not in self.shapes:
            self.shapes[given.shape] = self._capture(given) if given.is_cuda else None
        if not given.is_cuda:
            return self._function(given)
        graph, place, output = self.shapes[given.shape]
        place.copy_(given, non_blocking=True)
        graph.replay()
        captured: Tensor = output
        return captured

    def _capture(self, given: Tensor) -> tuple[Any, Tensor, Tensor]:
        """The graph, where it reads and where it writes."""
        place = given.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set up what may not be captured
            self._function(place)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._function(place)
        return graph, place, output
