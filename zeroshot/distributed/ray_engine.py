"""Run a task over a folder of shards on a Ray cluster.

Ray Data (https://docs.ray.io/en/latest/data/data.html) gives shards to a pool of actors with the
model, one per GPU, or per CPU if there is no GPU. Each calls `process_shard`, as every other
process does. Other actors decode images on the remaining CPUs, a few batches ahead of each model
and no more. All nodes must see the images and the output folder under the same paths.

If an actor or a node dies, only its current shard is affected: Ray starts the actor again where
there is room, and it continues after the shard's last complete batch. Decoders reserve no CPU of
Ray's, so that there is room. If a decoder does not answer, the model's actor reads that batch.
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
from zeroshot.distributed.sharding import FileRefusedError, make_plan
from zeroshot.distributed.transductive import EmbeddingPass, transduce
from zeroshot.distributed.worker import WorkerOptions, process_shard
from zeroshot.errors import NotAvailableError, UserError, ZeroshotError
from zeroshot.inference.meter import Meter
from zeroshot.inputs import containers
from zeroshot.inputs.source import Picture, Source
from zeroshot.packaging.extras import how_to_install
from zeroshot.tasks.task import Runner, Transductive, is_transductive

READ_TOGETHER = 16
"""Images in a message from a decoder to a model."""
AHEAD = 4
"""Messages in flight for each model."""
DECODER_TIMEOUT = 30.0
"""Seconds to wait for a decoder before it is not used any more."""
SCORE = -1
"""Takes the place of a shard number: score all embeddings."""


def ray() -> Any:
    """Import Ray; NotAvailableError says how to install it."""
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
class ClusterSize:
    """Number of actors that a cluster has room for."""

    models: int
    decoders: int
    gpus: bool

    @classmethod
    def from_resources(cls, resources: dict[str, float]) -> "ClusterSize":
        """A model per GPU and a decoder per CPU; without GPUs each gets half of the CPUs."""
        cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        models = gpus or max(1, cpus // 2)
        return cls(models, cpus if gpus else cpus - models, bool(gpus))


def run_on_ray(
    spec: RunSpec, options: WorkerOptions, on_progress: Callable[[Meter], object] = bool
) -> Meter:
    """Work until all shards of the share are finished; returns the counts of all actors.

    Uses the cluster that this process is connected to, else that of `RAY_ADDRESS`; if there is
    none, Ray starts one on this machine.

    Raises:
        ZeroshotError: the error of an actor.
    """
    library = ray()
    if not library.is_initialized():
        library.init(log_to_driver=False, logging_level="WARNING", include_dashboard=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    size = ClusterSize.from_resources(library.available_resources())
    context = library.data.DataContext.get_current()
    context.enable_progress_bars = False
    decode = library.remote(Decoder).options(
        num_cpus=0, max_restarts=-1, scheduling_strategy="SPREAD"
    )
    decoders = [decode.remote(os.getcwd()) for _ in range(size.decoders)]
    try:
        return _Driver(library, size, spec, options, decoders, on_progress).run()
    finally:
        for decoder in decoders:
            library.kill(decoder)


@dataclass
class _Driver:
    """Gives shards to the actors and adds up their counts."""

    library: Any
    size: ClusterSize
    spec: RunSpec
    options: WorkerOptions
    decoders: list[Any]
    on_progress: Callable[[Meter], object]

    def run(self) -> Meter:
        self.meter = Meter()
        self.shared = [self.library.put((self.spec, self.options))]
        transductive = self._finish(_pending(self.spec, self.options))
        if transductive and self.options.share is None:
            self._finish([SCORE])
        return self.meter

    def _finish(self, shards: Sequence[int]) -> bool:
        """Let the actors finish shards; returns whether these are embedded but not scored."""
        transductive = False
        refused: list[str] = []
        for outcome in self._outcomes(shards) if shards else ():
            if isinstance(outcome, FileRefusedError):
                refused += outcome.args
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            counts, embedded_only = outcome
            transductive |= embedded_only
            self.meter.add(counts)
            self.on_progress(self.meter)
        if refused:
            raise FileRefusedError(*refused)
        return transductive

    def _outcomes(self, shards: Sequence[int]) -> Iterator[Any]:
        """The counts or the error of each shard, in the order in which they finish."""
        data = self.library.data
        models = max(1, min(self.size.models, len(shards)))
        done = data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        ).map(
            ScoringActor,
            fn_constructor_args=(self.shared, self.decoders, os.getcwd()),
            compute=data.ActorPoolStrategy(
                min_size=1, initial_size=models, max_size=models, max_tasks_in_flight_per_actor=1
            ),
            num_gpus=1 if self.size.gpus else 0,
            num_cpus=0 if self.size.gpus else 1,
        )
        for row in done.iter_rows():
            yield pickle.loads(row["outcome"])  # from our own actors, not from a file


def _pending(spec: RunSpec, options: WorkerOptions) -> list[int]:
    folder = spec.output.peek(spec.sources, spec.task.schema)
    plan = folder.plan if folder else make_plan(spec.sources, spec.output.shard_size)
    marks = folder.marks() if folder else {}
    return [
        n
        for n in range(plan.count)
        if (options.share is None or options.share.has(n))
        and (n not in marks or (options.retry_failed and marks[n].failed))
    ]


class ScoringActor:
    """An actor with the model; opens the task when its first shard comes."""

    def __init__(self, shared: list[Any], decoders: list[Any], working_folder: str) -> None:
        self.working_folder = working_folder
        self.spec, options = ray().get(shared[0])
        self.options = replace(options, read=ReadAhead(decoders) if decoders else iter)
        self.meter = Meter()

    @cached_property
    def opened(self) -> tuple[Runner, Folder]:
        """The runner and the output folder."""
        _change_folder(self.working_folder)
        spec = self.spec
        runner = spec.task.open(spec.open_cache(), self.meter, spec.batch_size)
        settings = runner.settings()
        return runner, spec.output.open(spec.sources, spec.task.schema, settings, spec.about)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Finish a shard; returns the counts and whether it is only embedded, or the error."""
        before = self.meter.counts()
        try:
            transductive = self._finish(item["shard"])
            outcome: Any = (self.meter.since(before).counts(), transductive)
        except ZeroshotError as error:
            outcome = error.with_traceback(None)
        except Exception:  # an internal error, with its traceback as text
            outcome = RuntimeError(traceback.format_exc())
        return {"outcome": pickle.dumps(outcome)}

    def _finish(self, shard: int) -> bool:
        runner, folder = self.opened
        transductive = is_transductive(runner)
        if shard == SCORE and isinstance(runner, Transductive):
            transduce(runner, folder, self.meter, self.options)
            return True
        if transductive and isinstance(runner, Transductive):
            runner, folder = EmbeddingPass(runner), folder.embeddings()
        while process_shard(runner, folder, shard, self.meter, self.options) is None:
            time.sleep(1)
        return transductive


class Decoder:
    """An actor that decodes images."""

    def __init__(self, working_folder: str) -> None:
        _change_folder(working_folder)

    def decode(self, sources: Sequence[Source]) -> list[Source]:
        """The sources with their decoded images; a source that fails stays unchanged."""
        decoded = images.read_ahead(sources, workers=1)
        return [
            replace(source, content=image) if isinstance(image, Picture) else source
            for source, image in zip(sources, decoded, strict=True)
        ]


class ReadAhead:
    """Passes images that the decoders have read to a runner, in order."""

    def __init__(self, decoders: Sequence[Any]) -> None:
        self.decoders = list(decoders)
        self.turn = count(os.getpid())

    def __call__(self, sources: Sequence[Source]) -> Iterator[Source]:
        """The sources as they come from the decoders."""
        rest = iter(sources)
        waiting: deque[tuple[Any, Any, list[Source]]] = deque()
        while batch := list(islice(rest, READ_TOGETHER)):
            waiting.append(self._request(batch))
            if len(waiting) == AHEAD:
                yield from self._receive(*waiting.popleft())
        while waiting:
            yield from self._receive(*waiting.popleft())

    def _request(self, batch: list[Source]) -> tuple[Any, Any, list[Source]]:
        """A decoder, its future result, and the batch; no decoder if none is left."""
        if not self.decoders:
            return None, None, batch
        decoder = self.decoders[next(self.turn) % len(self.decoders)]
        with_bytes = [containers.with_bytes(source) for source in batch]
        return decoder, decoder.decode.remote(with_bytes), batch

    def _receive(self, decoder: Any, future: Any, batch: list[Source]) -> list[Source]:
        """The decoded images, else the batch. A decoder that fails is not used again."""
        if decoder not in self.decoders:
            return batch
        library = ray()
        try:
            decoded: list[Source] = library.get(future, timeout=DECODER_TIMEOUT)
        except (library.exceptions.RayError, TimeoutError):
            self.decoders.remove(decoder)
            return batch
        return decoded


def _change_folder(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"a node of the cluster has no folder '{folder}' ({error.strerror}): all nodes must "
            "see the images and the output under the same paths"
        ) from error
