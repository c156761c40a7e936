"""Models compute in a state of torch of their own, one thread at a time.

What a caller sets for its own networks (`torch.autocast`, a default dtype or device, a lower
precision of matrix products, `torch.inference_mode`) would change embeddings, which are cached as
float32 and read again without it. And models are stateful where one does not see it: a tokenizer
keeps the padding and truncation of its last call, a layer is packed on its first.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import torch

from zeroshot.errors import UserError
from zeroshot.models.devices import out_of_memory
from zeroshot.models.model_checks import model_errors

__all__ = ["LOADING", "FrozenModel", "SharedChange", "loads", "once", "own_state"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

LOADING = threading.RLock()
"""Held while a model is loaded: transformers changes torch's defaults meanwhile."""
DECODES = "decode"
"""The method that works on tokens alone: `own_state` would take twice its time."""
READS_AHEAD = "pixels"
"""The method that threads call while the network runs; it has no state."""


class SharedChange:
    """A change of the process that several threads want: the first makes it, the last undoes it."""

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        """`change` makes it, and returns what undoes it."""
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The block with the change."""
        with self._lock:
            if not self._inside:
                self._undo = self._change()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._undo()


_UNITS: list[Any] = [torch.backends.mkldnn, torch.backends.cuda]
PRECISIONS: list[Any] = [
    getattr(unit, kind)
    for unit in _UNITS
    for kind in ("matmul", "conv")
    if hasattr(getattr(unit, kind, None), "fp32_precision")
]
"""Where the precision of float32 products is set; empty before torch 2.9."""


def _float32() -> Callable[[], None]:
    """float32 as the default dtype, and at full precision in matrix products."""
    undo = ExitStack()
    if (dtype := torch.get_default_dtype()) != torch.float32:
        undo.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
    for place in PRECISIONS:
        if (precision := place.fp32_precision) not in ("ieee", "none"):
            undo.callback(setattr, place, "fp32_precision", precision)
            place.fp32_precision = "ieee"
    if not PRECISIONS and (precision := torch.get_float32_matmul_precision()) != "highest":
        undo.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
    return undo.close


_process_state = SharedChange(_float32)


class _Here(threading.local):
    inside = False


_here = _Here()


@contextmanager
def own_state() -> Iterator[None]:
    """torch as it is when a process starts: no autocast, float32, tensors on the CPU.

    The default dtype and the precision are the whole process's, and others see them meanwhile.
    `torch.use_deterministic_algorithms` stays as it is, since it lowers no precision.
    """
    if _here.inside:
        yield
        return
    with _process_state(), ExitStack() as stack:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        _here.inside = True
        try:
            yield
        finally:
            _here.inside = False


class FrozenModel:
    """A model whose public methods run in `own_state`, and of which one runs at a time."""

    files_of: object = None
    """The name of a model that somebody else made: whatever a method raises is its files' fault."""
    _turn: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """The model, with its lock."""
        model = super().__new__(cls)
        model._turn = threading.RLock()
        return model

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the public methods that the class defines."""
        super().__init_subclass__(**kwargs)
        for name, method in list(vars(cls).items()):
            if inspect.isfunction(method) and not name.startswith("_"):
                isolated = _isolated(method, name != READS_AHEAD, name != DECODES)
                setattr(cls, name, isolated)

    @contextmanager
    def own_turn(self) -> Iterator[None]:
        """`own_state`, while no other thread runs the model: for functions that are handed out."""
        with self._turn, own_state():
            yield


@contextmanager
def _faults_of(name: object) -> Iterator[None]:
    """Errors of a model's files as `model_errors`; want of memory stays what it is."""
    if name is None:
        yield
        return
    try:
        with model_errors(name):
            yield
    except UserError as error:
        if isinstance(error.__cause__, Exception) and out_of_memory(error.__cause__):
            raise error.__cause__ from None
        raise


def _isolated(method: F, in_turn: bool, computes: bool) -> F:
    @functools.wraps(method)
    def run(self: FrozenModel, *args: Any, **kwargs: Any) -> Any:
        turn = self._turn if in_turn else nullcontext()
        with turn, own_state() if computes else nullcontext(), _faults_of(self.files_of):
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def loads(function: F) -> F:
    """A function that loads a model: in `own_state`, one at a time."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with LOADING, own_state():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


class once(Generic[T]):  # noqa: N801
    """As `functools.cached_property`, for what takes long: several threads compute it once."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, holder: Any, owner: type | None = None) -> T:
        with LOADING, own_state():
            if self.name not in vars(holder):
                vars(holder)[self.name] = self.function(holder)
            found: T = vars(holder)[self.name]
            return found
