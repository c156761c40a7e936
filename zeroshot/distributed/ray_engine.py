"""A job over a folder of shards, by a Ray cluster (https://docs.ray.io/en/latest/data/data.html).

Ray Data gives shards to a pool of actors that hold the model, one to a GPU, else to a CPU; each
calls `process_shard`, as any other worker does. The processors that are left decode: actors of
their own read pictures ahead, a few batches for each model and no more, so that a slow model holds
them back. All nodes must see the pictures and the output folder under the same paths.

An actor or a node that dies takes its shard in flight with it, and nothing else: Ray begins the
actor anew where there is room, and it goes on behind the shard's finished batches. Decoders claim
no processor of Ray's, so that there is room. One that does not answer is done without: the model's
actor reads that batch itself.
"""

import logging
import os
import pickle
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice
from typing import Any

from zeroshot import images
from zeroshot.distributed.folder import Folder
from zeroshot.distributed.local import RunSpec
from zeroshot.distributed.sharding import FileRefusedError, planned
from zeroshot.distributed.transductive import EmbeddingPass, embedded, transduce
from zeroshot.distributed.worker import WorkerOptions, process_shard
from zeroshot.errors import NotAvailableError, UserError, ZeroshotError
from zeroshot.inference.meter import Meter
from zeroshot.inputs import containers
from zeroshot.inputs.source import Picture, Source
from zeroshot.packaging.extras import how_to_install
from zeroshot.tasks.task import Runner, Transductive, is_transductive

READ_TOGETHER = 16
"""Pictures in a message from a decoder to a model."""
AHEAD = 4
"""Such messages under way for each model."""
PATIENCE = 30.0
"""Seconds to wait for a decoder before doing without it."""
SCORE = -1
"""Instead of a shard's number: score what was embedded."""


def ray() -> Any:
    """The library; NotAvailableError says how to get it."""
    try:
        import ray as library
        import ray.data
    except ImportError:
        raise NotAvailableError(
            f"--engine ray needs Ray: {how_to_install('ray')}; or run the same command several "
            "times at once, with or without --shards K/N"
        ) from None
    return library


@dataclass(frozen=True)
class Size:
    """How many actors a cluster has room for."""

    models: int
    decoders: int
    gpus: bool

    @classmethod
    def of(cls, resources: dict[str, float]) -> "Size":
        """A model to each GPU and a decoder to each CPU; without GPUs they halve the CPUs."""
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        models = gpus or max(1, cpus // 2)
        return cls(models, cpus if gpus else cpus - models, bool(gpus))


def run_on_ray(spec: RunSpec, how: WorkerOptions, tell: Callable[[Meter], object] = bool) -> Meter:
    """Work until all shards of the share are finished; what all actors counted together.

    On the cluster of `RAY_ADDRESS`, or one that this process is connected to; else Ray begins one
    on this machine.

    Raises:
        UserError or another of ours, as an actor met it.
    """
    library = ray()
    if not library.is_initialized():
        library.init(log_to_driver=False, logging_level="WARNING", include_dashboard=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    size = Size.of(library.available_resources())
    context = library.data.DataContext.get_current()
    context.enable_progress_bars = False
    decode = library.remote(Decoder).options(
        num_cpus=0, max_restarts=-1, scheduling_strategy="SPREAD"
    )
    decoders = [decode.remote(os.getcwd()) for _ in range(size.decoders)]
    try:
        return _Driver(library, size, spec, how, decoders, tell).run()
    finally:
        for decoder in decoders:
            library.kill(decoder)


@dataclass
class _Driver:
    """Gives out shards, and counts what comes back."""

    library: Any
    size: Size
    spec: RunSpec
    how: WorkerOptions
    decoders: list[Any]
    tell: Callable[[Meter], object]

    def run(self) -> Meter:
        self.meter = Meter()
        self.sent = [self.library.put((self.spec, self.how))]
        transductive = self._finish(_pending(self.spec, self.how))
        if transductive and self.how.share is None:
            self._finish([SCORE])
        return self.meter

    def _finish(self, shards: Sequence[int]) -> bool:
        """Have shards finished; whether that means embedded."""
        transductive = False
        refused: list[str] = []
        for said in self._said(shards) if shards else ():
            if isinstance(said, FileRefusedError):
                refused += said.args
                continue
            if isinstance(said, BaseException):
                raise said
            counts, embedded_only = said
            transductive |= embedded_only
            self.meter.add(counts)
            self.tell(self.meter)
        if refused:
            raise FileRefusedError(*refused)
        return transductive

    def _said(self, shards: Sequence[int]) -> Iterator[Any]:
        """What the actors say of each shard, as they come to its end."""
        data = self.library.data
        models = max(1, min(self.size.models, len(shards)))
        done = data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        ).map(
            ScoringActor,
            fn_constructor_args=(self.sent, self.decoders, os.getcwd()),
            compute=data.ActorPoolStrategy(
                min_size=1, initial_size=models, max_size=models, max_tasks_in_flight_per_actor=1
            ),
            num_gpus=1 if self.size.gpus else 0,
            num_cpus=0 if self.size.gpus else 1,
        )
        for row in done.iter_rows():
            yield pickle.loads(row["said"])  # of our own actors, not of a file


def _pending(spec: RunSpec, how: WorkerOptions) -> list[int]:
    folder = spec.output.peek(spec.sources, spec.task.schema)
    plan = folder.plan if folder else planned(spec.sources, spec.output.shard_size)
    marks = folder.marks() if folder else {}
    return [
        n
        for n in range(plan.count)
        if (how.share is None or how.share.has(n))
        and (n not in marks or (how.retry_failed and marks[n].failed))
    ]


class ScoringActor:
    """An actor with the model; opens the job when its first shard comes."""

    def __init__(self, sent: list[Any], decoders: list[Any], folder: str) -> None:
        self.home = folder
        self.spec, self.how = ray().get(sent[0])
        self.how = replace(self.how, read=ReadAhead(decoders) if decoders else iter)
        self.meter = Meter()

    @cached_property
    def opened(self) -> tuple[Runner, Folder]:
        """The worker and the folder."""
        _go_to(self.home)
        spec = self.spec
        runner = spec.task.open(spec.open_cache(), self.meter, spec.batch_size)
        return runner, spec.output.open(spec.sources, spec.task.schema, runner.settings())

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """See that a shard is finished; what was counted and whether it is embedded only."""
        before = self.meter.counts()
        try:
            transductive = self._finish(item["shard"])
            said: Any = (self.meter.since(before).counts(), transductive)
        except ZeroshotError as error:
            said = error.with_traceback(None)
        except Exception:  # a fault of ours, with where it was
            said = RuntimeError(traceback.format_exc())
        return {"said": pickle.dumps(said)}

    def _finish(self, shard: int) -> bool:
        runner, folder = self.opened
        transductive = is_transductive(runner)
        if shard == SCORE and isinstance(runner, Transductive):
            transduce(runner, folder, self.meter, self.how)
            return True
        if transductive and isinstance(runner, Transductive):
            runner, folder = EmbeddingPass(runner), embedded(folder)
        while process_shard(runner, folder, shard, self.meter, self.how) is None:
            time.sleep(1)
        return transductive


class Decoder:
    """An actor that reads pictures."""

    def __init__(self, folder: str) -> None:
        _go_to(folder)

    def decode(self, sources: Sequence[Source]) -> list[Source]:
        """The same sources with their pictures; those without one are left to the worker."""
        read = images.read_ahead(sources, workers=1)
        return [
            replace(source, content=found) if isinstance(found, Picture) else source
            for source, found in zip(sources, read, strict=True)
        ]


class ReadAhead:
    """Gives a worker pictures that decoders have read, in order."""

    def __init__(self, decoders: Sequence[Any]) -> None:
        self.decoders = list(decoders)
        self.turn = count(os.getpid())

    def __call__(self, sources: Sequence[Source]) -> Iterator[Source]:
        """The sources as they come from the decoders."""
        rest = iter(sources)
        waiting: deque[tuple[Any, Any, list[Source]]] = deque()
        while batch := list(islice(rest, READ_TOGETHER)):
            waiting.append(self._ask(batch))
            if len(waiting) == AHEAD:
                yield from self._take(*waiting.popleft())
        while waiting:
            yield from self._take(*waiting.popleft())

    def _ask(self, batch: list[Source]) -> tuple[Any, Any, list[Source]]:
        """A decoder, what it promised, and the batch; the worker reads it where none is left."""
        if not self.decoders:
            return None, None, batch
        decoder = self.decoders[next(self.turn) % len(self.decoders)]
        sent = [containers.with_bytes(source) for source in batch]
        return decoder, decoder.decode.remote(sent), batch

    def _take(self, decoder: Any, promised: Any, batch: list[Source]) -> list[Source]:
        """The promised pictures. A decoder that breaks its promise is not asked again."""
        if decoder not in self.decoders:
            return batch
        library = ray()
        try:
            decoded: list[Source] = library.get(promised, timeout=PATIENCE)
        except (library.exceptions.RayError, TimeoutError):
            self.decoders.remove(decoder)
            return batch
        return decoded


def _go_to(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"a node of the cluster has no folder '{folder}' ({error.strerror}): all nodes must "
            "see pictures and output under the same paths"
        ) from error
