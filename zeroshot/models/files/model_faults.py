"""A model's folder is input: what its files may say.

The libraries that read such files build a model of the size that its configuration names, however
small the weights are, and fetch code that a configuration names.
"""

import codecs
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from zeroshot.errors import UserError

__all__ = [
    "check_settings",
    "check_weights",
    "read_settings",
]

Amounts = Sequence[tuple[re.Pattern[str], float]]

MAX_SETTINGS = 16 << 20
"""Bytes of a configuration."""
MAX_HEADER = 100 << 20
"""Bytes of the header of a safetensors file, as in its library."""
VOCABULARIES = ("tokenizer.json", "vocab.json")
"""Files whose content only the tokenizer reads."""
LFS = b"version https://git-lfs"

MAX_LAYERS = 1000
MAX_LABELS = 1_000_000
MAX_BEAMS = 64
MAX_SIDE = 4096
MAX_SETTING = 1 << 16
"""Other numbers of a preprocessing, such as patches or frames."""

AMOUNTS: Amounts = (
    (re.compile(r".*(layers?|depths?|blocks?)"), MAX_LAYERS),
    (re.compile(r"num_(labels|classes)"), MAX_LABELS),
    (re.compile(r"num_(beams|beam_groups|return_sequences)"), MAX_BEAMS),
    (re.compile(r"size|crop_size|pad_size|size_divisor|image_size"), MAX_SIDE),
    (re.compile(r".*length.*"), math.inf),  # 10**30 stands for no limit
    (re.compile(r".*", re.DOTALL), (1 << 63) - 1),
)
"""The largest numbers that a configuration may state, by its keys; the first that fits counts."""
PREPROCESSING: Amounts = (
    (re.compile(r"height|width"), MAX_SIDE),
    *AMOUNTS[:4],
    (re.compile(r".*(pixels|edge|token|ids?$|seed|length|std|mean|fps).*"), (1 << 63) - 1),
    (re.compile(r".*", re.DOTALL), MAX_SETTING),
)


# Files


def read_settings(path: Path) -> Any:
    """The value in a JSON file of a model; UserError if it is none."""
    with _faults(path):
        if path.stat().st_size > MAX_SETTINGS:
            raise ValueError(f"has more than {MAX_SETTINGS >> 20} MiB")
        data = path.read_bytes()
        _check_start(data)
        return json.loads(data.decode("utf-8"))


def check_settings(files: Iterable[Path]) -> None:
    """UserError for a JSON file that says too much: code to fetch, or amounts beyond all models.

    Of vocabularies only the first bytes are read, as of all other files.
    """
    for path in files:
        if path.suffix == ".json" and path.name not in VOCABULARIES:
            value = read_settings(path)
            amounts = PREPROCESSING if "processor" in path.name else AMOUNTS
            with _faults(path):
                _check_values(value, amounts)
        else:
            with _faults(path), path.open("rb") as file:
                _check_start(file.read(len(LFS)), path.suffix in (".json", ".txt", ".jinja"))


def _check_values(value: Any, amounts: Amounts) -> None:
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            below = key if "implementation" in key else ""
            left += [(below or str(name).lower(), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner) for inner in value]
            if key in ("depths", "layers") and all(type(inner) is int for inner in value):
                _check_amount(key, sum(value), amounts)
        elif isinstance(value, str) and "implementation" in key and "/" in value:
            raise ValueError(f"names code of the hub, {key} {value!r:.80}, which is never fetched")
        elif type(value) is int:
            _check_amount(key, value, amounts)


def _check_amount(key: str, value: int, amounts: Amounts) -> None:
    most = next(most for pattern, most in amounts if pattern.fullmatch(key))
    if value > most:
        raise ValueError(f"says {key} {value!r:.40}; at most {most} are possible")


def check_weights(files: Iterable[Path]) -> None:
    """UserError for weights that are a pointer, cut off, or packed."""
    for path in files:
        with _faults(path), path.open("rb") as file:
            head = file.read(len(LFS))
            _check_start(head, is_text=False)
            size = path.stat().st_size
            if path.suffix == ".safetensors":
                file.seek(0)
                _check_safetensors(file, size)
            elif zipfile.is_zipfile(path):
                _check_archive(path, size)


def _check_safetensors(file: BinaryIO, size: int) -> None:
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise ValueError(
            "is no safetensors file, or cut off in its header: copy or download it again"
        )
    header = json.loads(file.read(length))
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    end = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    if 8 + length + end > size:
        raise ValueError(
            f"is cut off: {size} of {8 + length + end} bytes are there; copy or download it again"
        )


def _check_archive(path: Path, size: int) -> None:
    """torch's own files are zip archives whose members are not packed."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise ValueError("is a packed archive, which may unpack to anything")


def _check_start(data: bytes, is_text: bool = True) -> None:
    if data.startswith(LFS):
        raise ValueError("is a Git LFS pointer (fetch it with 'git lfs pull')")
    if is_text and data.startswith(codecs.BOM_UTF8):
        raise ValueError("begins with a byte-order mark; save it as UTF-8 without one")
    if is_text and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("is UTF-16; save it as UTF-8")


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """What is wrong with a file, as a UserError with its name."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not JSON at character {error.pos + 1}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise UserError(f"'{path}' is nested too deeply") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, AttributeError, LookupError, TypeError, OverflowError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from error
    except ValueError as error:
        raise UserError(f"'{path}' {error}") from error
