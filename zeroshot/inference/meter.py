"""What a run did and where its time went.

Stages are times of the thread that runs the task, and follow one another. `thread_seconds` is the
time of other threads. It slows the run only if the run waits for them or shares their cores.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

STAGES = {
    "decoding": "reading images",
    "cache": "cache",
    "encoder": "encoder",
    "language model": "language model and its guide",
    "scoring": "scoring",
}


@dataclass
class Meter:
    """Counts and seconds of one run; tasks add to it while they run."""

    pictures: int = 0
    failed: int = 0
    images_encoded: int = 0
    images_cached: int = 0
    texts_encoded: int = 0
    texts_cached: int = 0
    skipped_existing: int = 0
    """Sidecar files that existed and were not replaced."""
    unwritten: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Number of sidecar files that were not written, and the first of them, by the reason."""
    skipped: int = 0
    """Members of tar files that hold no image, if each file is a shard."""
    shards: int = 0
    """Finished shards."""
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    thread_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to the stage called `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin

    def add_thread_seconds(self, name: str, seconds: float) -> None:
        """Add the time of another thread."""
        with self._lock:
            self.thread_seconds[name] += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, including loading models."""
        return time.perf_counter() - self.started

    @property
    def working(self) -> float:
        """Seconds spent on images and texts, without loading models."""
        return sum(self.seconds.values())

    @property
    def rate(self) -> float:
        """Images per second of working time."""
        return self.pictures / self.working if self.working else 0.0

    def add_unwritten(self, reason: str, name: str, count: int = 1) -> None:
        """Count a sidecar file that was not written."""
        before, first = self.unwritten.get(reason, (0, name))
        self.unwritten[reason] = before + count, first
        if not self.unwritten[reason][0]:
            del self.unwritten[reason]

    def counts(self) -> dict[str, Any]:
        """All counts, and the seconds of each stage, as JSON."""
        counts = {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}
        unwritten = {"unwritten": dict(self.unwritten)} if self.unwritten else {}
        return counts | unwritten | {"seconds": dict(self.seconds)}

    def add(self, counts: Mapping[str, Any], sign: int = 1) -> None:
        """Add the counts of another meter, maybe of another process; sign -1 subtracts them."""
        for name, count in counts.items():
            if name == "seconds":
                for stage, seconds in count.items():
                    self.seconds[stage] += sign * seconds
            elif name == "unwritten":
                for reason, (number, first) in count.items():
                    self.add_unwritten(reason, first, sign * number)
            else:
                setattr(self, name, getattr(self, name) + sign * count)

    def since(self, counts: Mapping[str, Any]) -> "Meter":
        """What was counted after `counts` was taken."""
        later = Meter(started=self.started)
        later.add(self.counts())
        later.add(counts, -1)
        return later

    def bottleneck(self, modality: str = "image") -> str:
        """The stage that took longest, in words."""
        stage = max(self.seconds, key=self.seconds.__getitem__, default="scoring")
        return STAGES[stage].replace("image", modality)
