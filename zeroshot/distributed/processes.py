"""A job over a folder of shards, by one process for each device of this machine."""

import multiprocessing
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zeroshot.distributed.local import RunSpec, run
from zeroshot.distributed.worker import WorkerOptions
from zeroshot.errors import UserError, ZeroshotError
from zeroshot.inference.meter import Meter
from zeroshot.results.result import Result

TELL = 0.5
"""Seconds between a worker's reports."""


def read_devices(text: str) -> list[str]:
    """`0,1` as `cuda:0, cuda:1`; other names as they are.

    Raises:
        UserError: nothing is named.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--devices: expected names such as 0,1 or cpu,cpu")
    return [f"cuda:{name}" if name.isdecimal() else name for name in names]


def run_on(
    spec: RunSpec,
    devices: Sequence[str],
    how: WorkerOptions,
    tell: Callable[[Meter], object] = bool,
) -> Meter:
    """Work until all shards of the share are finished; what all processes counted together.

    The processes share the shards by their claims. One that dies leaves its shard to the others.

    Raises:
        UserError or another of ours: a process could not begin; the others are ended.
        ZeroshotError: all died.
    """
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    workers = [
        context.Process(target=_work, args=(_on(spec, device), how, number, told), daemon=True)
        for number, device in enumerate(devices)
    ]
    started, counts = time.perf_counter(), dict[int, Mapping[str, Any]]()
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            _listen(told, counts)
            tell(_total(counts, started))
        _listen(told, counts)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    codes = [worker.exitcode for worker in workers]
    if all(codes):
        raise ZeroshotError(
            f"no process got to the end (exit codes {codes}); what is finished stays, and the "
            "same command goes on"
        )
    return _total(counts, started)


def _on(spec: RunSpec, device: str) -> RunSpec:
    return replace(spec, task=spec.task.on(device))


def _listen(told: "multiprocessing.Queue[Any]", counts: dict[int, Mapping[str, Any]]) -> None:
    """Take in reports until there is none for a moment."""
    while True:
        try:
            number, said = told.get(timeout=0.1)
        except queue.Empty:
            return
        if isinstance(said, BaseException):
            raise said
        counts[number] = said


def _total(counts: Mapping[int, Mapping[str, Any]], started: float) -> Meter:
    total = Meter(started=started)
    for held in counts.values():
        total.add(held)
    return total


def _work(
    spec: RunSpec, how: WorkerOptions, number: int, told: "multiprocessing.Queue[Any]"
) -> None:
    """What each process does."""
    meter, last = Meter(), time.monotonic()

    def seen(result: Result) -> None:
        nonlocal last
        if time.monotonic() - last > TELL:
            last = time.monotonic()
            told.put((number, meter.counts()))

    try:
        with spec.open_cache() as cache:
            run(spec, cache, meter, replace(how, seen=seen))
        told.put((number, meter.counts()))
    except ZeroshotError as error:
        told.put((number, error))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
