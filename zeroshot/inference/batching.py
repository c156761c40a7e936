"""Batches that shrink when memory runs out."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from zeroshot.models.devices import out_of_memory


@runtime_checkable
class Sliceable(Protocol):
    """A sequence or a tensor."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> Any: ...


Items = TypeVar("Items", bound=Sliceable)
Answer = TypeVar("Answer")


def batched_with_oom_retry(
    work: Callable[[Items], Answer], items: Items, size: int
) -> Iterator[tuple[Items, Answer]]:
    """`work` on slices of at most `size` items. If memory runs out, the size is halved.

    Raises:
        The error of `work`, if a single item does not fit either.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            answer = work(batch)
        except (MemoryError, RuntimeError) as error:
            if len(batch) == 1 or not out_of_memory(error):
                raise
            size = max(1, len(batch) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield batch, answer
        start += len(batch)
