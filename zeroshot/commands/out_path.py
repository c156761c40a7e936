"""What --out names: a file, a folder, or a folder in an object store.

As `cli`, nothing heavy is imported here.
"""

import os
import re
from pathlib import Path

from zeroshot.errors import UserError

SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""As `inputs.source.SCHEME`, which is not imported for this."""
FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|txt|npz|npy|safetensors|toml|html?)", re.IGNORECASE)
"""Suffixes of a single file."""


class FolderPath(type(Path())):  # type: ignore[misc]
    """A path that was given with a slash at its end."""


class RemotePath(FolderPath):
    """What --out names with a scheme: no path of this machine, and nobody may take it for one."""

    address = ""

    def __str__(self) -> str:
        return self.address

    def see_to(self, allowed: bool, offline: bool) -> None:
        """UserError unless it is a folder of a store, for a command that may write there."""
        if not allowed:
            raise UserError(f"--out {self.address}: this command writes on this machine only")
        if FILE.fullmatch(self.suffix) and not self.address.endswith("/"):
            raise UserError(
                f"--out {self.address}: an object store takes a folder of shards, since nothing "
                f"can be added to a file there; --out {self.address.removesuffix(self.suffix)}/"
            )
        from zeroshot.output.object_store import Bucket

        if Bucket(self.address).shared and offline:
            raise UserError(f"--out {self.address}: the network is not to be asked (--offline)")

    def __fspath__(self) -> str:
        raise UserError(f"--out {self.address}: this is written on this machine only")


def out_path(given: str) -> Path:
    """The path; a `FolderPath` where a slash says so, a `RemotePath` where a scheme does."""
    if not SCHEME.match(given):
        return FolderPath(given) if given.endswith(("/", os.sep)) else Path(given)
    remote = RemotePath(given)
    remote.address = given
    return remote
