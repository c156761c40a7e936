"""Processes that have claimed work or write a file, and whether they are still alive."""

import hashlib
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Holder", "has_exited", "ourselves"]


@dataclass(frozen=True)
class Holder:
    """A process."""

    host: str
    machine: str
    """Changes with the machine, its boot and the container, because process ids start again."""
    pid: int
    born: str
    """When the process started, to detect that its id was reused; empty if unknown."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_local(self) -> bool:
        """Whether its process can be looked up on this machine."""
        return self.machine == _machine() and sys.platform != "win32"

    @property
    def has_exited(self) -> bool:
        """Whether the process has exited; only valid if it `is_local`."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _born(self.pid) != self.born

    @property
    def mark(self) -> str:
        """A short form, for file names: `1f4a90c2-4711-85239`."""
        return f"{_short(self.machine)}-{self.pid}-{self.born}"


def has_exited(mark: str) -> bool | None:
    """Whether the process with this `Holder.mark` has exited; None if it is another machine's."""
    parts = re.fullmatch(r"([0-9a-f]{8})-(\d{1,18})-(\w*)", mark)
    ours = ourselves()
    if parts is None or parts[1] != _short(ours.machine) or not ours.is_local:
        return None
    return Holder(ours.host, ours.machine, int(parts[2]), parts[3]).has_exited


def ourselves() -> Holder:
    """This process."""
    return Holder(platform.node(), _machine(), os.getpid(), _born(os.getpid()))


@cache
def _machine() -> str:
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not (boot.exists() and processes.exists()):
        return platform.node()
    return f"{platform.node()}/{boot.read_text().strip()}/{processes.stat().st_ino}"


def _short(machine: str) -> str:
    return hashlib.sha256(machine.encode("utf-8", "backslashreplace")).hexdigest()[:8]


def _born(pid: int) -> str:
    """When a process started, in kernel ticks; `dead` for one that exited but was not reaped."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if state in "ZX" else rest[18]
