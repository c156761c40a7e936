"""Streams of images whose state can be saved, and resumed by another process."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.output.atomic import whole


@runtime_checkable
class _Saved(Protocol):
    def tensors(self) -> dict[str, Tensor]:
        """The state, by name; `prototypes` among it."""


Stream = TypeVar("Stream", bound=_Saved)


def save_stream(
    path: Path | str, name: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Write the state of method `name` to a safetensors file, all of it or nothing."""
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with whole(Path(path)) as file:
        file.write(save(contiguous, metadata={f"zeroshot.{name}": json.dumps(dict(settings))}))


def load_stream(
    path: Path | str, name: str, empty: Callable[[Tensor, Mapping[str, Any]], Stream]
) -> Stream:
    """The stream that `save_stream` wrote: `empty`, of prototypes and settings, and then filled.

    Raises:
        UserError: no such file, or not a saved stream.
    """
    try:
        with safe_open(path, framework="pt") as file:
            settings: dict[str, Any] = json.loads((file.metadata() or {})[f"zeroshot.{name}"])
            scale = settings["logit_scale"]
            if not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"logit_scale is {scale}")
            stream = empty(file.get_tensor("prototypes"), settings)
            for key, tensor in stream.tensors().items():
                saved = file.get_tensor(key)
                if (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):
                    raise ValueError(
                        f"{key} is {list(saved.shape)} of {saved.dtype}, not {list(tensor.shape)} "
                        f"of {tensor.dtype}"
                    )
                if saved.isnan().any():
                    raise ValueError(f"{key} has NaN")
                tensor.copy_(saved)
        return stream
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'") from None
    except Exception as error:
        raise UserError(f"'{path}' is no saved {name} stream ({error})") from error
