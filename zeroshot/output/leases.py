"""Claims on work that several processes share through a folder, also from several machines.

A claim on `00007` is the file `00007.0.lease`, which only one process can create. It names its
holder, who touches it while it lives. The claim of a dead holder is not removed but outbid:
whoever creates `00007.1.lease` has the work, and again only one can. A holder is dead when its
process is gone (seen on the same machine), or when the file was not touched for `STALE` seconds by
the clock of where it is: that of a file server, or of an object store, where touching is putting
the same object again.

A holder that was only asleep may wake and find itself outbid. So whoever commits asks `held`
first; the moment between remains, and what is committed must be the same whoever does it.
"""

import json
import os
import platform
import re
import secrets
import sys
import threading
import time
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from zeroshot.output.filesystem import Location

HEARTBEAT = 10.0
"""Seconds between signs of life."""
STALE = 120.0
"""Seconds without one after which a holder on another machine is taken for dead."""


@dataclass(frozen=True)
class Holder:
    """Who has claimed something."""

    host: str
    machine: str
    """Changes with the machine, its boot and the container, wherever process ids start anew."""
    pid: int
    born: str
    """When the process began, so that a process id given anew is another one; empty if unknown."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def here(self) -> bool:
        """Whether its process can be looked up."""
        return self.machine == _machine() and sys.platform != "win32"

    @property
    def gone(self) -> bool:
        """Whether the process is no more; only for one that is `here`."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _born(self.pid) != self.born


class Lease:
    """A claim that is held; it is kept alive until it is released or the process ends."""

    def __init__(self, folder: Location, name: str, generation: int) -> None:
        self.folder, self.name, self.generation = folder, name, generation
        self._let_go = False
        self._lock = threading.Lock()
        _heart.add(self)

    def held(self) -> bool:
        """Whether nobody has outbid it."""
        newest = _newest(self.folder, self.name)
        return newest is not None and newest == self.generation

    def release(self) -> None:
        """Let others claim it; the claims it outbid go first."""
        _heart.remove(self)
        with self._lock:  # a sign of life that came later would bring it back
            self._let_go = True
        for generation in range(self.generation + 1):
            self.folder.remove(_file(self.name, generation))

    def beat(self) -> None:
        """Give a sign of life, unless it was outbid: what is cleared away is not to come back."""
        with self._lock:
            if not self._let_go and self.held():
                self.folder.touch(_file(self.name, self.generation))


def claim(folder: Location, name: str) -> Lease | Holder | None:
    """The claim, or who has it; None if that changed while we looked.

    Raises:
        OSError: the folder cannot be written.
    """
    newest = _newest(folder, name)
    if newest is not None:
        file = _file(name, newest)
        holder = _read(folder, file)
        if not _dead(holder, folder, file):
            return holder
    generation = 0 if newest is None else newest + 1
    file = _file(name, generation)
    ours = {**asdict(_ourselves()), "token": secrets.token_hex(8)}
    if folder.publish(file, json.dumps(ours).encode()):
        return Lease(folder, name, generation)
    return _read(folder, file)


def live(folder: Location) -> list[Holder]:
    """Whoever holds a claim in this folder now."""
    names = {match[1] for match in _leases(folder)}
    found = []
    for name in sorted(names):
        file = _file(name, _newest(folder, name) or 0)
        holder = _read(folder, file)
        if holder is not None and not _dead(holder, folder, file):
            found.append(holder)
    return found


def _file(name: str, generation: int) -> str:
    return f".{name}.{generation}.lease"


def _leases(folder: Location) -> list[re.Match[str]]:
    matches = (re.fullmatch(r"\.(.+)\.(\d+)\.lease", name) for name in folder.names())
    return [match for match in matches if match]


def _newest(folder: Location, name: str) -> int | None:
    return max((int(m[2]) for m in _leases(folder) if m[1] == name), default=None)


def _read(folder: Location, file: str) -> Holder | None:
    try:
        said = json.loads(folder.read(file))
        return Holder(**{field.name: said[field.name] for field in fields(Holder)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _dead(holder: Holder | None, folder: Location, file: str) -> bool:
    if holder is not None and holder.here:
        return holder.gone
    try:
        return folder.age(file) > STALE
    except FileNotFoundError:
        return False


@cache
def _machine() -> str:
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.exists() and processes.exists()):
        return platform.node()
    return f"{platform.node()}/{boot.read_text().strip()}/{processes.stat().st_ino}"


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks; `dead` for one that only waits to be reaped."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if state in "ZX" else rest[18]


def _ourselves() -> Holder:
    return Holder(platform.node(), _machine(), os.getpid(), _born(os.getpid()))


class _Heart:
    """Touches the claims of this process."""

    def __init__(self) -> None:
        self._leases: set[Lease] = set()
        self._lock = threading.Lock()
        self._beating = False

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.add(lease)
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._beat, name="leases", daemon=True).start()

    def remove(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                leases = list(self._leases)
            for lease in leases:
                try:
                    lease.beat()
                except OSError:  # outbid and cleared away, or out of reach: `held` will tell
                    continue


_heart = _Heart()
