"""The one thread that owns the models: takes requests of one kind together, and runs the batch.

The first request of a kind waits for others of its kind, at most `wait` seconds and until there
are `most`. Work in the background (indexing) is done when nothing else waits, or when it has waited
`PATIENCE` seconds, so that neither stops the other.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from zeroshot.errors import ZeroshotError

WAIT = 0.004
"""Seconds that the first request of a batch waits for others."""
MOST = 32
"""Requests in a batch."""
PATIENCE = 0.5
"""Seconds after which work in the background counts as a request."""

Work = Callable[[Sequence[Any]], Sequence[Any]]
"""Takes the items of a batch and gives an answer, or an exception, for each."""


class BusyError(ZeroshotError):
    """The queue is full; a client may ask again."""


class AbandonedError(ZeroshotError):
    """All clients of a batch have left: it need not be finished."""


class StoppingError(ZeroshotError):
    """The server takes no more requests."""


@dataclass(eq=False)
class _Job:
    item: Any
    work: Work
    future: "Future[Any]"
    since: float
    """When it counts as waiting, by `time.monotonic`."""


@dataclass
class Counts:
    """What the thread did since it began."""

    batches: int = 0
    items: int = 0
    refused: int = 0
    cancelled: int = 0
    busy_seconds: float = 0.0
    by_size: dict[int, int] = field(default_factory=dict)
    """How many batches had each number of requests."""


class Batcher:
    """A bounded queue and the thread that empties it."""

    def __init__(self, capacity: int = 256, most: int = MOST, wait: float = WAIT) -> None:
        self.capacity = capacity
        self.most = most
        self.wait = wait
        self.counts = Counts()
        self._queues: dict[Hashable, deque[_Job]] = {}
        self._waiting = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    def submit(
        self, kind: Hashable, work: Work, item: Any, *, background: bool = False
    ) -> "Future[Any]":
        """The answer to come. Items of equal `kind` are answered by one call of `work`.

        Raises:
            BusyError: the queue is full.
            StoppingError: the server stops.
        """
        future: Future[Any] = Future()
        job = _Job(item, work, future, time.monotonic() + (PATIENCE if background else 0))
        with self._changed:
            if self._stopping:
                raise StoppingError("the server is stopping; ask again when it is back")
            if self._waiting >= self.capacity and not background:
                self.counts.refused += 1
                raise BusyError(f"{self._waiting} requests are waiting; ask again in a second")
            self._queues.setdefault(kind, deque()).append(job)
            self._waiting += 1
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[_Job]:
        """The next batch, when one is due; empty at the end."""
        with self._changed:
            while True:
                now = time.monotonic()
                due = {kind: self._due(jobs) for kind, jobs in self._queues.items()}
                kind = min(due, key=due.__getitem__, default=None)
                if kind is None:
                    if self._stopping:
                        return []
                    self._changed.wait()
                elif due[kind] <= now or self._stopping or self._only_background(now):
                    return self._take(kind)
                else:
                    self._changed.wait(due[kind] - now)

    def _due(self, jobs: "deque[_Job]") -> float:
        """When a queue's first batch is due: at once if it is full."""
        return jobs[0].since + (0.0 if len(jobs) >= self.most else self.wait)

    def _only_background(self, now: float) -> bool:
        return all(jobs[0].since > now for jobs in self._queues.values())

    def _take(self, kind: Hashable) -> list[_Job]:
        jobs = self._queues[kind]
        batch = [jobs.popleft() for _ in range(min(self.most, len(jobs)))]
        if not jobs:
            del self._queues[kind]
        self._waiting -= len(batch)
        return batch

    def _answer(self, batch: list[_Job]) -> None:
        """Run a batch without those who left; if it fails, each of its items alone."""
        alive = [job for job in batch if job.future.set_running_or_notify_cancel()]
        self.counts.cancelled += len(batch) - len(alive)
        if not alive:
            return
        begin = time.perf_counter()
        try:
            answers = self._run_work(alive)
        finally:
            self.counts.busy_seconds += time.perf_counter() - begin
            self.counts.batches += 1
            self.counts.items += len(alive)
            size = len(alive)
            self.counts.by_size[size] = self.counts.by_size.get(size, 0) + 1
        for job, answer in zip(alive, answers, strict=True):
            if isinstance(answer, BaseException):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)

    def _run_work(self, jobs: list[_Job]) -> Sequence[Any]:
        """The answers; one faulty request may not fail the others of its batch."""
        try:
            answers = jobs[0].work([job.item for job in jobs])
        except Exception as error:
            if len(jobs) == 1 or isinstance(error, AbandonedError):
                return [error] * len(jobs)
            return [answer for job in jobs for answer in self._run_work([job])]
        if len(answers) != len(jobs):
            return [RuntimeError(f"{len(answers)} answers to {len(jobs)} requests")] * len(jobs)
        return answers
