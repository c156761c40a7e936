"""Streams of images whose state can be saved, and resumed by another process."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.output.atomic import whole

Stream = TypeVar("Stream")


def save_stream(
    path: Path | str, name: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Write the state of method `name` to a safetensors file, all of it or nothing."""
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    with whole(Path(path)) as file:
        file.write(save(contiguous, metadata={f"zeroshot.{name}": json.dumps(dict(settings))}))


def load_stream(
    path: Path | str, name: str, made: Callable[[dict[str, Tensor], dict[str, Any]], Stream]
) -> Stream:
    """What `made` makes of the tensors and settings that `save_stream` wrote.

    Raises:
        UserError: no such file, or not a saved stream.
    """
    try:
        with safe_open(path, framework="pt") as file:
            settings: dict[str, Any] = json.loads((file.metadata() or {})[f"zeroshot.{name}"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return made(tensors, settings)
    except FileNotFoundError:
        raise UserError(f"no such file: '{path}'") from None
    except Exception as error:
        raise UserError(f"'{path}' is no saved {name} stream ({error})") from error
