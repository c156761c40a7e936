"""What a run does, what it did, and where its time went.

Stages are times of the thread that runs the task; a stage inside another one is no part of it.
`thread_seconds` is the time of other threads. It slows the run only if the run waits for them or
shares their cores. A phase is what a person who waits is told: what is done now, and how far it is.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")

LOADING, LISTING, CHOOSING = "loading", "listing", "choosing the coupling"
"""Stages that are not spent on images and texts: of libraries and models, of the inputs, and of a
coupled pair that the cache does not know."""
STAGES = {
    "decoding": "reading images",
    "cache": "cache",
    "encoder": "encoder",
    "language model": "language model and its guide",
    "scoring": "scoring",
}


@dataclass
class Phase:
    """A part of a run that may take long."""

    name: str
    total: int | None = None
    done: int = 0
    began: float = field(default_factory=time.perf_counter)
    counts: bool = True
    """Whether `done` means something."""

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.perf_counter() - self.began


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
    kept_texts: int = 0
    """Descriptions and alternative texts of others in XMP sidecars, which stayed."""
    unwritten: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Number of sidecar files that were not written, and the first of them, by the reason."""
    skipped: int = 0
    """Members of tar files that hold no image, if each file is a shard."""
    shards: int = 0
    """Finished shards."""
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    thread_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    phases: list[Phase] = field(default_factory=list, repr=False)
    """What is being done; the last one is part of those before it."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _in_stages: float = field(default=0.0, repr=False)
    """Time of all stages so far, to subtract it from a stage around them."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to the stage called `name`."""
        begin, before = time.perf_counter(), self._in_stages
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            self.seconds[name] += took - (self._in_stages - before)
            self._in_stages = before + took

    @contextmanager
    def phase(self, name: str, total: int | None = None, *, counts: bool = True) -> Iterator[Phase]:
        """A block that does something a person may have to wait for, `total` times if known."""
        phase = Phase(name, total, counts=counts)
        self.phases.append(phase)
        try:
            yield phase
        finally:
            self.phases.remove(phase)
            if len(self.phases) == 1 and not self.phases[0].counts:
                self.phases[0].name = "working"

    def add_thread_seconds(self, name: str, seconds: float) -> None:
        """Add the time of another thread."""
        with self._lock:
            self.thread_seconds[name] += seconds

    def track(
        self,
        name: str,
        items: Iterable[T],
        total: int | None,
        count: Callable[[T], int] = lambda item: 1,
    ) -> Iterator[T]:
        """The items, in a phase that counts them; `count` says how many things one stands for."""
        with self.phase(name, total) as phase:
            for item in items:
                yield item
                phase.done += count(item)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, including loading models."""
        return time.perf_counter() - self.started

    @property
    def working(self) -> float:
        """Seconds spent on images and texts, without loading models and listing inputs."""
        return sum(self._steps.values())

    @property
    def _steps(self) -> dict[str, float]:
        before = (LOADING, LISTING, CHOOSING)
        return {stage: seconds for stage, seconds in self.seconds.items() if stage not in before}

    def opened(self) -> None:
        """The models are loaded: all time until now that was no stage is the stage `loading`.

        Phases around this one begin now.
        """
        self.seconds[LOADING] = self.elapsed - self._in_stages
        for phase in self.phases:
            phase.began = time.perf_counter()

    def add_stages(self, other: "Meter") -> None:
        """Add the time of another meter of this thread, whose counts are not those of the run."""
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds
            self._in_stages += seconds

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
        """The step that took longest, in words; loading models and listing inputs are none."""
        stage = max(self._steps, key=self._steps.__getitem__, default="scoring")
        return STAGES[stage].replace("image", modality)
