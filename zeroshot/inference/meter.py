"""What a run did and where its time went.

Stages are times of the thread that runs the task and follow one another. Threads work beside it:
`beside` is their time, which costs the run only as far as it waits for them, or shares its cores.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

STAGES = {
    "decoding": "waiting for pictures to be read and decoded",
    "cache": "in the cache",
    "encoder": "in the encoder",
    "language model": "in the language model and its guide",
    "scoring": "scoring",
}


@dataclass
class Meter:
    """Counts and seconds of one run; tasks write to it as they go."""

    pictures: int = 0
    failed: int = 0
    images_encoded: int = 0
    images_cached: int = 0
    texts_encoded: int = 0
    texts_cached: int = 0
    left_alone: int = 0
    """Files that were there and were not written over."""
    left_out: int = 0
    """Members of tar files that hold no picture, of shards that are a file each."""
    shards: int = 0
    """That were finished."""
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    beside: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to the stage called `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin

    def add_beside(self, name: str, seconds: float) -> None:
        """Add the time of a thread that works beside the task."""
        with self._lock:
            self.beside[name] += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, loading of models included."""
        return time.perf_counter() - self.started

    @property
    def working(self) -> float:
        """Seconds spent on pictures and texts, loading of models left out."""
        return sum(self.seconds.values())

    @property
    def rate(self) -> float:
        """Pictures a second of working time."""
        return self.pictures / self.working if self.working else 0.0

    def counts(self) -> dict[str, Any]:
        """All counts, and the seconds of each stage, as JSON."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}
        return held | {"seconds": dict(self.seconds)}

    def add(self, counts: Mapping[str, Any], sign: int = 1) -> None:
        """Add what another meter, maybe of another process, counted; or subtract it."""
        for name, count in counts.items():
            if name == "seconds":
                for stage, seconds in count.items():
                    self.seconds[stage] += sign * seconds
            else:
                setattr(self, name, getattr(self, name) + sign * count)

    def since(self, counts: Mapping[str, Any]) -> "Meter":
        """What came after `counts` was taken."""
        later = Meter(started=self.started)
        later.add(self.counts())
        later.add(counts, -1)
        return later

    def bound_by(self, things: str = "pictures") -> str:
        """Where the task was for longest, in words that follow "most of it"."""
        stage = max(self.seconds, key=self.seconds.__getitem__, default="scoring")
        return STAGES[stage].replace("pictures", things)
