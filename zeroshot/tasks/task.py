"""Tasks: all that decides the rows of a run, in a value that can be sent anywhere.

The command line and the functions of `zeroshot` make a task. Whoever runs it opens it where it
runs (this process, one of `--devices`, an actor of Ray) and gives the runner images: one process
that fills one file and many that fill shards run the same code. A task is a frozen dataclass of
names, numbers and paths; it holds no model and can be pickled.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.results.result import Result
from zeroshot.tasks import options as declared

O_co = TypeVar("O_co", covariant=True)
T_co = TypeVar("T_co", bound="Task[Any]", covariant=True)
T = TypeVar("T", bound="Task[Any]")


@dataclass(frozen=True, kw_only=True)
class Task(ABC, Generic[O_co]):
    """What to do with images: a model set, options, and what was read for them (labels, prompts).

    `schema` names the rows: `zeroshot.caption/1`.
    """

    models: ModelSet
    """Names and paths; a model is loaded where it is first needed."""
    options: O_co

    schema: ClassVar[str]

    @classmethod
    def from_options(cls: type[T], models: ModelSet, options: Any) -> T:
        """The task, with the files that the options name read.

        Raises:
            UserError: a file that cannot be read, or options that do not fit each other.
        """
        return cls(models=models, options=options)

    def on(self: T, device: str) -> T:
        """The same task on another device: `cuda:1`."""
        return replace(self, models=replace(self.models, device=device))

    def about(self) -> dict[str, Any]:
        """What was read for the task, as JSON: labels, templates. For the record of a run.

        It decides rows only by what `Runner.settings` has of it, and says differences in words.
        """
        return {}

    @abstractmethod
    def open(self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH) -> "Runner":
        """Load the models and encode what all images share (prompts, shots).

        Raises:
            UserError: an unknown name or option, or options that do not fit each other.
            NotAvailableError: a model that is not here.
        """


@runtime_checkable
class Runner(Protocol):
    """An opened task: holds the models, and turns images into results, as often as needed."""

    @property
    def batch_size(self) -> int:
        """Images in a batch."""

    def settings(self) -> dict[str, Any]:
        """All that decides what a row says, as JSON.

        Rows made under other settings do not belong in one output.
        """

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[Result]:
        """One result per image, in order; a row does not depend on the other images.

        `sources` are iterated once, in order and batch by batch, so they may be lazy.
        """


@runtime_checkable
class Transductive(Runner, Protocol):
    """A runner whose rows may depend on all images: it embeds and scores separately."""

    @property
    def transductive(self) -> bool:
        """Whether a row depends on the other images."""

    @property
    def views(self) -> int:
        """How many views of each image `embed` gives; 0 for the image alone."""

    def embed(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbeddingBatch]:
        """Embeddings, batch by batch."""

    def score(self, everything: EmbeddingBatch, meter: Meter) -> Iterator[Result]:
        """One result per image of a batch, which holds all images if the runner is transductive."""


@dataclass(frozen=True, kw_only=True)
class OpenedTask(ABC, Generic[T_co]):
    """What the runners of the package have in common."""

    task: T_co
    cache: EmbeddingCache
    batch_size: int

    def settings(self) -> dict[str, Any]:
        """See `Runner`."""
        return declared.settings(self.task.options, self.resolved())

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """Settings that only an opened task knows, as JSON: see `options.settings`."""


def is_transductive(runner: Runner) -> bool:
    """Whether all images have to be embedded before the first can be scored."""
    return isinstance(runner, Transductive) and runner.transductive
