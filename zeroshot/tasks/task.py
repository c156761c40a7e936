"""Jobs: all that decides the rows of a run, in a value that can be sent anywhere.

The command line and `zeroshot.classify` make a job. Whoever runs it opens it where it runs (this
process, one of `--devices`, an actor of Ray) and hands the worker pictures: one process over one
file and a fleet over shards run the same code. A job is a frozen dataclass of names, numbers and
paths; no model is in it, and it can be pickled. A new command on pictures is a new job.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import Embedded
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import Result

__all__ = ["Job", "Transductive", "Worker", "is_transductive"]


@runtime_checkable
class Worker(Protocol):
    """An opened job: holds the models, and turns pictures into results, as often as one likes."""

    @property
    def batch_size(self) -> int:
        """Pictures that are worked on together."""

    def settings(self) -> dict[str, Any]:
        """As JSON, whatever decides what a row says: canonical names of the models, options.

        Rows made under other settings do not belong in one output.
        """

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[Result]:
        """One result per picture, in order; a row does not depend on the other pictures.

        `sources` are walked once, in order and batch by batch, so that they may be lazy.
        """


@runtime_checkable
class Transductive(Worker, Protocol):
    """A worker that can embed and score apart, as it must where rows depend on all pictures."""

    @property
    def transductive(self) -> bool:
        """Whether a row depends on the other pictures."""

    @property
    def views(self) -> int:
        """How many views of each picture `embed` gives; 0 for rows alone."""

    def embed(self, sources: Iterable[Source], meter: Meter) -> Iterator[Embedded]:
        """What the scores are made of, batch by batch."""

    def score(self, everything: Embedded, meter: Meter) -> Iterator[Result]:
        """One result per picture of all there are."""


@runtime_checkable
class Job(Protocol):
    """What is to be done with pictures, as a frozen and picklable dataclass."""

    schema: ClassVar[str]
    """Names the rows: `zeroshot.caption/1`."""

    @property
    def models(self) -> ModelSet:
        """What runs; travels as names and paths, and is loaded where it is first needed."""

    def on(self, device: str) -> "Job":
        """The same job on another device: `cuda:1`."""

    def open(self, cache: EmbeddingCache, meter: Meter, batch_size: int) -> Worker:
        """Load the models and encode what all pictures share (prompts, shots).

        Raises:
            UserError: an unknown name or option, or options that do not fit each other.
            NotAvailableError: a model that is not here.
        """


def is_transductive(worker: Worker) -> bool:
    """Whether all pictures have to be embedded before the first can be scored."""
    return isinstance(worker, Transductive) and worker.transductive
