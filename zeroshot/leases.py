"""Claims on work that several processes share through a folder, also from several machines.

A claim on `00007` is the file `00007.0.lease`, which only one process can create. It names its
holder, who touches it while it lives. The claim of a dead holder is not removed but outbid:
whoever creates `00007.1.lease` has the work, and again only one can. A holder is dead when its
process is gone (seen on the same machine), or when the file was not touched for `STALE` seconds.

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
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from zeroshot import durable

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

    def __init__(self, folder: Path, name: str, generation: int) -> None:
        self.folder, self.name, self.generation = folder, name, generation
        self.path = _file(folder, name, generation)
        _heart.add(self.path)

    def held(self) -> bool:
        """Whether nobody has outbid it."""
        newest = _newest(self.folder, self.name)
        return newest is not None and newest == self.generation

    def release(self) -> None:
        """Let others claim it; the claims it outbid go first."""
        _heart.remove(self.path)
        for generation in range(self.generation + 1):
            _file(self.folder, self.name, generation).unlink(missing_ok=True)


def claim(folder: Path, name: str) -> Lease | Holder | None:
    """The claim, or who has it; None if that changed while we looked.

    Raises:
        OSError: the folder cannot be written.
    """
    newest = _newest(folder, name)
    if newest is not None:
        path = _file(folder, name, newest)
        holder = _read(path)
        if not _dead(holder, path):
            return holder
    generation = 0 if newest is None else newest + 1
    path = _file(folder, name, generation)
    if durable.publish(path, json.dumps(asdict(_ourselves())).encode()):
        return Lease(folder, name, generation)
    return _read(path)


def live(folder: Path) -> list[Holder]:
    """Whoever holds a claim in this folder now."""
    names = {match[1] for match in _leases(folder)}
    found = []
    for name in sorted(names):
        path = _file(folder, name, _newest(folder, name) or 0)
        holder = _read(path)
        if holder is not None and not _dead(holder, path):
            found.append(holder)
    return found


def _file(folder: Path, name: str, generation: int) -> Path:
    return folder / f".{name}.{generation}.lease"


def _leases(folder: Path) -> list[re.Match[str]]:
    matches = (re.fullmatch(r"\.(.+)\.(\d+)\.lease", name) for name in os.listdir(folder))
    return [match for match in matches if match]


def _newest(folder: Path, name: str) -> int | None:
    return max((int(m[2]) for m in _leases(folder) if m[1] == name), default=None)


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _dead(holder: Holder | None, path: Path) -> bool:
    if holder is not None and holder.here:
        return holder.gone
    try:
        return _clock(path.parent) - path.stat().st_mtime > STALE
    except FileNotFoundError:
        return False


def _clock(folder: Path) -> float:
    """The time as the file system tells it, which on a network is not this machine's."""
    probe = folder / f".{secrets.token_hex(8)}.clock"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


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
        self._paths: set[Path] = set()
        self._lock = threading.Lock()
        self._beating = False

    def add(self, path: Path) -> None:
        with self._lock:
            self._paths.add(path)
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._beat, name="leases", daemon=True).start()

    def remove(self, path: Path) -> None:
        with self._lock:
            self._paths.discard(path)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                paths = list(self._paths)
            for path in paths:
                try:
                    os.utime(path)
                except OSError:  # outbid and cleared away: `held` will tell
                    continue


_heart = _Heart()
