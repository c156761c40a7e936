"""Claims on work that processes on one or several machines share through a folder.

A claim on `00007` is the file `.00007.0.lease`, which only one process can create. It names its
holder, which touches the file while it is alive. If the holder dies, its claim is not removed but
superseded: the process that creates `.00007.1.lease` has the work. A holder is dead if its process
has exited (checked on the same machine), or if the file was not touched for `STALE` seconds. The
time is that of the file server or the object store; an object is touched by putting it again.

A suspended holder may resume and find its claim superseded. So it calls `is_current` before it
writes. A short gap remains, so every process must write the same bytes, or to a file of its own.
"""

import json
import re
import secrets
import threading
from dataclasses import asdict, fields

from zeroshot.output.filesystem import Location
from zeroshot.output.holders import Holder, ourselves

HEARTBEAT = 10.0
"""Seconds between touches of a claim."""
STALE = 120.0
"""Seconds without a touch after which a holder on another machine counts as dead."""


class Lease:
    """A claim of this process, which is touched until it is released or the process ends."""

    def __init__(self, folder: Location, name: str, generation: int, content: bytes) -> None:
        self.folder, self.name, self.generation = folder, name, generation
        self._content = content
        self._released = False
        self._lock = threading.Lock()
        _heart.add(self)

    def is_current(self) -> bool:
        """Whether no other process has superseded it, or has done so and released the work.

        A claim that supersedes it has the next number. The number may be used again after that, but
        not the content.
        """
        own, next = (_file(self.name, self.generation + more) for more in (0, 1))
        return self.folder.read_all([own, next]) == {own: self._content}

    def release(self) -> None:
        """Remove the claim, after those that it superseded, so that others can claim the work.

        A claim of the same number that another process made since then stays.
        """
        _heart.remove(self)
        with self._lock:  # a later touch would create the file again
            self._released = True
        own = _file(self.name, self.generation)
        if self.folder.read_all([own]) == {own: self._content}:
            for generation in range(self.generation + 1):
                self.folder.remove(_file(self.name, generation))

    def touch(self) -> None:
        """Touch the file unless the claim was superseded, as its file may have been removed."""
        with self._lock:
            if not self._released and self.is_current():
                self.folder.touch(_file(self.name, self.generation))


def claim(folder: Location, name: str) -> Lease | Holder | None:
    """Claim the work, or return its holder; None if the holder changed meanwhile.

    Raises:
        OSError: the folder is not writable.
    """
    newest = _newest(folder, name)
    if newest is not None:
        file = _file(name, newest)
        holder = _read(folder, file)
        if not _dead(holder, folder, file):
            return holder
    generation = 0 if newest is None else newest + 1
    file = _file(name, generation)
    ours = json.dumps({**asdict(ourselves()), "token": secrets.token_hex(8)}).encode()
    if not folder.publish(file, ours):
        return _read(folder, file)
    if generation and not folder.read_all([_file(name, generation - 1)]):
        folder.remove(file)  # meanwhile another process superseded that claim, and released it
        return None
    return Lease(folder, name, generation, ours)


def live_holders(folder: Location) -> list[Holder]:
    """The processes that have a claim in this folder and are alive."""
    holders = []
    for name in sorted({match[1] for match in _leases(folder)}):
        file = _file(name, _newest(folder, name) or 0)
        holder = _read(folder, file)
        if holder is not None and not _dead(holder, folder, file):
            holders.append(holder)
    return holders


def _file(name: str, generation: int) -> str:
    return f".{name}.{generation}.lease"


def _leases(folder: Location) -> list[re.Match[str]]:
    matches = (re.fullmatch(r"\.(.+)\.(\d+)\.lease", name) for name in folder.names())
    return [match for match in matches if match]


def _newest(folder: Location, name: str) -> int | None:
    return max((int(m[2]) for m in _leases(folder) if m[1] == name), default=None)


def _read(folder: Location, file: str) -> Holder | None:
    try:
        lease = json.loads(folder.read(file))
        return Holder(**{field.name: lease[field.name] for field in fields(Holder)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _dead(holder: Holder | None, folder: Location, file: str) -> bool:
    if holder is not None and holder.is_local:
        return holder.has_exited
    try:
        return folder.age(file) > STALE
    except FileNotFoundError:
        return False


class _Heart:
    """Touches the claims of this process, in a thread that ends with the last one."""

    def __init__(self) -> None:
        self._leases: set[Lease] = set()
        self._changed = threading.Condition()
        self._beating = False

    def add(self, lease: Lease) -> None:
        with self._changed:
            self._leases.add(lease)
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._beat, name="leases", daemon=True).start()

    def remove(self, lease: Lease) -> None:
        with self._changed:
            self._leases.discard(lease)
            self._changed.notify()

    def _beat(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: not self._leases, HEARTBEAT):
                    self._beating = False
                    return
                leases = list(self._leases)
            for lease in leases:
                try:
                    lease.touch()
                except OSError:  # removed or unreachable: `is_current` will tell
                    continue


_heart = _Heart()
