"""Files that appear whole or not at all."""

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class WholeFile:
    """Written under another name, which it changes for its own once all of it is synced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._new = path.with_name(f".{path.name}.{os.getpid()}.new")

    def __enter__(self) -> BinaryIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._new, "wb")
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if kind is None:
            os.replace(self._new, self._path)
        else:
            self._new.unlink()
