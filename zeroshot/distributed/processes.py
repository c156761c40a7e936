"""Run a task over a folder of shards, with one process per device of this machine."""

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

REPORT_SECONDS = 0.5
"""Time between a worker's reports."""


def read_devices(text: str) -> list[str]:
    """Device names: `0,1` gives `cuda:0` and `cuda:1`; other names stay unchanged.

    Raises:
        UserError: no device is named.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--devices: expected names such as 0,1 or cpu,cpu")
    return [f"cuda:{name}" if name.isdecimal() else name for name in names]


def run_on(
    spec: RunSpec,
    devices: Sequence[str],
    options: WorkerOptions,
    on_progress: Callable[[Meter], object] = bool,
) -> Meter:
    """Work until all shards of the share are finished; returns the counts of all processes.

    The processes claim shards one by one. If a process dies, the others take over its shard.

    Raises:
        ZeroshotError: the error of a process that could not start (the others are stopped), or
            all processes died.
    """
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    specs = [replace(spec, task=spec.task.on(device)) for device in devices]
    workers = [
        context.Process(target=_work, args=(one, options, number, reports), daemon=True)
        for number, one in enumerate(specs)
    ]
    started, counts = time.perf_counter(), dict[int, Mapping[str, Any]]()
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            _receive(reports, counts)
            on_progress(_total(counts, started))
        _receive(reports, counts)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    codes = [worker.exitcode for worker in workers]
    if all(codes):
        raise ZeroshotError(
            f"all processes failed (exit codes {codes}); finished shards are kept, and the same "
            "command continues"
        )
    return _total(counts, started)


def _receive(reports: "multiprocessing.Queue[Any]", counts: dict[int, Mapping[str, Any]]) -> None:
    """Read reports until none arrives for a moment; raises the error of a process."""
    while True:
        try:
            number, report = reports.get(timeout=0.1)
        except queue.Empty:
            return
        if isinstance(report, BaseException):
            raise report
        counts[number] = report


def _total(counts: Mapping[int, Mapping[str, Any]], started: float) -> Meter:
    total = Meter(started=started)
    for count in counts.values():
        total.add(count)
    return total


def _work(
    spec: RunSpec, options: WorkerOptions, number: int, reports: "multiprocessing.Queue[Any]"
) -> None:
    """The main function of each process."""
    meter, last = Meter(), time.monotonic()

    def on_result(result: Result) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_SECONDS:
            last = time.monotonic()
            reports.put((number, meter.counts()))

    try:
        with spec.open_cache() as cache:
            run(spec, cache, meter, replace(options, on_result=on_result))
        reports.put((number, meter.counts()))
    except ZeroshotError as error:
        reports.put((number, error))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
