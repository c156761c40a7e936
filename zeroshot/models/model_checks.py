"""What libraries make of a model's folder: one sentence for whatever is wrong.

They raise errors of every type, and load files that do not belong together.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zeroshot.errors import UserError, ZeroshotError
from zeroshot.models.files.model_faults import MAX_SIDE

__all__ = [
    "check_expected_size",
    "check_image_sides",
    "check_numbers",
    "check_vocabulary",
    "model_errors",
]

MAX_AREA = 1 << 25
"""Pixels, for preprocessing that is told numbers of pixels instead of sides."""
SPARE_ELEMENTS = 50_000_000
"""Elements of a model that may be without weights, for example its buffers."""


@contextmanager
def model_errors(name: object) -> Iterator[None]:
    """Whatever the libraries raise for a model's files, as a UserError of one sentence.

    Not for want of memory on a GPU, nor for interruptions.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except torch.OutOfMemoryError:
        raise
    except ZeroshotError as error:
        said = _one_line(error)
        if said == str(error) and error.exit_code != ZeroshotError.exit_code:
            raise
        raise (UserError if type(error) is ZeroshotError else type(error))(said) from error
    except BaseException as error:
        # The tokenizers' library panics with an exception of its own, beside all others.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        kind = type(error).__name__
        raise UserError(f"{name} cannot be used: {kind}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return said if len(said) <= 500 else f"{said[:500]}..."


def check_numbers(scores: torch.Tensor) -> None:
    """UserError for scores of a model that are no numbers."""
    if scores.isnan().any() or scores.isposinf().any():
        raise UserError(
            "the model's scores are not finite: its weights are damaged, or half precision is too "
            "little for it; fp32 may help"
        )


def check_expected_size(name: object, network: torch.nn.Module, weights: Iterable[Path]) -> None:
    """UserError for a network on the meta device that is far larger than its weights.

    What is not in the weights would be made up, in memory.
    """
    elements = sum(math.prod(p.shape) for p in (*network.parameters(), *network.buffers()))
    size = sum(path.stat().st_size for path in weights)
    if elements > 2 * size + SPARE_ELEMENTS:  # 4-bit weights have two to a byte
        raise UserError(
            f"{name}: its configuration describes a model of {elements} numbers, but its weights "
            f"are {size} bytes"
        )


def check_image_sides(name: object, processor: Any) -> None:
    """UserError for a preprocessing that would make huge images of all."""
    module = sys.modules[type(processor).__module__]
    by_area = hasattr(module, "smart_resize")  # edges are numbers of pixels, as in Qwen2-VL
    for setting in ("size", "crop_size", "pad_size"):
        sides = dict(getattr(processor, setting, None) or {})
        if not by_area and sides.get("shortest_edge"):
            sides.pop("longest_edge", None)  # which only limits the other
        for side, length in sides.items():
            most = MAX_AREA if by_area and side.endswith("edge") else MAX_SIDE
            if length is not None and length > most:
                raise UserError(
                    f"{name}: its preprocessing makes images of {side} {length}; at most {most} "
                    "are possible"
                )


def check_vocabulary(name: object, tokenizer: Any, network: torch.nn.Module) -> None:
    """UserError for a tokenizer with ids that the network has no embeddings for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    tables = (m for m in network.modules() if isinstance(m, torch.nn.Embedding))
    rows = max((table.num_embeddings for table in tables), default=0)
    largest = max(backend.get_vocab(with_added_tokens=False).values(), default=0)
    if 0 < rows <= largest:
        raise UserError(
            f"{name}: its tokenizer has ids up to {largest}, its network {rows} embeddings; they "
            "are of different models"
        )
