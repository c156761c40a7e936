"""Methods: one paper, one file; the file's name is the method's name.

A method is a frozen dataclass whose fields are its options. Three kinds exist, told apart by the
verb they have: a *scorer* (`scores`) turns embeddings into class scores, a *captioner*
(`caption`) turns image embeddings into texts, a *dense* one (`attend`) makes patches say what they
show. A scorer that learns from arrays (anchors, shots,
unlabelled images) has `fit`, which returns a NEW object; the names of `fit`'s parameters are the
names of the arrays in docs/embeddings.md, and learned fields end in `_`. Arrays that belong to the
rows of one call (views, the logits of an earlier method) are parameters of `scores`, by the same
names. A parameter without a default must be given; where `fit` has none such, the method works
unfitted.

A scorer may also say what it does to the texts (`refine`) or to the logits (`adjust`) of another:
`_pipeline` composes methods by these verbs.

A method meets `ops`, `caption_metrics` and its words (`treebank`), `decoding`, `trace` and
`models.base` only: never a model, a file or the
screen.
"""

import ast
import hashlib
import importlib
import inspect
import itertools
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from typing import (
    Any,
    ClassVar,
    Literal,
    Protocol,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from zeroshot.errors import UserError, unknown
from zeroshot.metrics.captioning import DocumentFrequency, document_frequency
from zeroshot.models.base import DualEncoder, LanguageModel
from zeroshot.trace import Trace

FREQUENCY_FROM = 20_000
"""Captions of a pool that its word frequencies are counted in."""

Output = Literal["similarity", "logit", "probability"]
"""What a scorer's numbers are: a *similarity* still wants the model's logit scale before a
softmax, a *logit* has it, a *probability* needs neither."""


@runtime_checkable
class Scorer(Protocol):
    """Embeddings to class scores, higher is better."""

    @property
    def transductive(self) -> bool:
        """Whether a row's score depends on the other rows; such a method is never split."""

    @property
    def output(self) -> Output:
        """What the numbers of `scores` are."""

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Score `n` unit image rows against `c` classes of up to `t` unit prompt rows each."""


@runtime_checkable
class Refiner(Scorer, Protocol):
    """A scorer whose work lies on the text side, so that another method can score by it."""

    def refine(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> tuple[Float[Tensor, "c u d"], Bool[Tensor, "c u"] | None]:
        """Unit prompt rows to score with instead, and which of them exist."""


@runtime_checkable
class Adjuster(Scorer, Protocol):
    """A scorer that corrects logits, whichever method they come from.

    Its own `scores` adjust the zero-shot logits, and `adjust` gives what `output` says.
    """

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Corrected logits; `bank` holds logits of the unlabelled rows it was fitted with."""


@runtime_checkable
class Coupling(Scorer, Protocol):
    """A scorer fitted on anchor pairs: it maps both sides into one space.

    There the dot product of an image row and a text row is the score, so that a coupled pair of
    unimodal encoders stands wherever a dual encoder stands.
    """

    def fit(
        self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]
    ) -> "Coupling":
        """A copy that knows these pairs; row i of both belongs together."""

    def add(self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> "Coupling":
        """A copy that knows these pairs too, behind the others."""

    def remove(self, index: Int[Tensor, " m"]) -> "Coupling":
        """A copy without the pairs at these places; the others keep their order."""

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Image embeddings in the joint space."""

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """Text embeddings in the joint space."""

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """As `scores`, with the joint rows of both sides at unit length."""

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """Cosines of joint image rows with `k` text embeddings each, for guided decoding."""


@dataclass(frozen=True)
class Explanation:
    """Anchors that carried a score: their places, largest share first, and what each gave.

    The shares of all anchors sum to `score`; those named here are the largest of them.
    """

    anchors: tuple[int, ...]
    shares: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class Caption:
    """One caption and the cosine of its embedding with the picture's."""

    text: str
    score: float
    tokens: tuple[int, ...] = ()
    trace: Trace | None = field(default=None, repr=False, compare=False)
    """Where one was asked for."""


@dataclass(frozen=True)
class Pool:
    """Captions to choose from, with their embeddings in the encoder's joint space."""

    texts: Sequence[str]
    embeddings: Float[Tensor, "m d"]

    @cached_property
    def distinct(self) -> "Pool":
        """Without captions that were there before."""
        first = {text: i for i, text in reversed(list(enumerate(self.texts)))}
        if len(first) == len(self.texts):
            return self
        places = sorted(first.values())
        return Pool([self.texts[i] for i in places], self.embeddings[places])

    @cached_property
    def frequency(self) -> DocumentFrequency:
        """Of how many captions an n-gram is part; of `FREQUENCY_FROM` where there are more.

        Which ones follows from the captions alone, not from their order.
        """
        texts = self.texts
        if len(texts) > FREQUENCY_FROM:
            by_hash = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
            texts = by_hash[:FREQUENCY_FROM]
        return document_frequency([[text] for text in texts])


@runtime_checkable
class Captioner(Protocol):
    """Image embeddings to captions."""

    needs: ClassVar[frozenset[str]]
    """Which of `language_model` and `pool` must be given."""

    takes: ClassVar[frozenset[str]]
    """Which of `prompts` and `trace` may be given."""

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
        prompts: Sequence[str] | None = None,
        trace: bool = False,
    ) -> list[Caption]:
        """One caption for each row of `images`, which are `encoder`'s unit image rows.

        `prompts`, one for each row, are beginnings or titles; `trace` keeps every choice.
        """


@runtime_checkable
class Dense(Protocol):
    """Another attention in a vision transformer's last block: a row for each patch."""

    @property
    def whole_block(self) -> bool:
        """Whether the last block keeps its residual connections and its feed-forward part."""

    @property
    def scale(self) -> float:
        """What multiplies the cosines of patches and labels before the softmax."""

    def attend(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "b h s d"]:
        """As `base.Attend`."""


def names() -> list[str]:
    """Every method there is, found by listing this folder; nothing is imported."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> type[Any]:
    """The method called `name`: the class in its file whose lower-case name equals the file's."""
    if name not in names():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    wanted = name.replace("_", "")
    return next(c for n, c in vars(module).items() if isinstance(c, type) and n.lower() == wanted)


def pipeline(*stages: Any) -> Any:
    """Methods as one, read from left to right: `pipeline(ZPE(), StatA())` is `zpe+stata`.

    Raises:
        UserError: stages that cannot follow one another.
    """
    from zeroshot.methods._pipeline import Pipeline

    return Pipeline(stages)


def parameters(method: Any, verb: str) -> dict[str, bool]:
    """Arrays that `fit` or `scores` of a method takes, and whether each must be given."""
    if hasattr(method, "parameters"):
        taken: dict[str, bool] = method.parameters(verb)
        return taken
    if not hasattr(method, verb):
        return {}
    signature = inspect.signature(getattr(method, verb))
    return {
        name: p.default is p.empty for name, p in signature.parameters.items() if name != "self"
    }


def values(method: Any) -> dict[str, Any]:
    """The options of a configured method as they are: `{"k": 800}`, in a pipeline `"asif.k"`."""
    if hasattr(method, "stages"):
        return {
            f"{name_of(stage)}.{key}": value
            for stage in method.stages
            for key, value in values(stage).items()
        }
    return {name: getattr(method, name) for name in options(type(method))}


def as_logits(
    scores: Float[Tensor, "n c"], output: Output, logit_scale: float
) -> Float[Tensor, "n c"]:
    """Scores of any kind as logits; the logarithm of a probability is one."""
    if output == "similarity":
        return scores * logit_scale
    if output == "logit":
        return scores
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def name_of(method: object) -> str:
    """The name of a method's class or object: its file's; a pipeline's is `zpe+stata`."""
    if hasattr(method, "stages"):
        return "+".join(map(name_of, method.stages))
    kind = method if isinstance(method, type) else type(method)
    return kind.__module__.rpartition(".")[2]


def options(method: type[Any]) -> dict[str, Field[Any]]:
    """The options of a method: its dataclass fields but the learned ones."""
    return {f.name: f for f in fields(method) if not f.name.endswith("_")}


@dataclass(frozen=True)
class Option:
    """One option of a method: its default and the possible values or type, in words."""

    name: str
    kind: str
    default: Any
    about: str


@dataclass(frozen=True)
class Description:
    """A method as `zeroshot methods` shows it."""

    name: str
    title: str
    """First line of the file's docstring."""
    about: str
    """The whole of it: source, equation, departures."""
    does: tuple[str, ...]
    """`classify`, `caption`, `segment`."""
    options: tuple[Option, ...]


def describe(name: str) -> Description:
    """Everything a person may want to know of the method called `name`.

    An option's own words are the text literal below it in the class.
    """
    method = get(name)
    about = inspect.cleandoc(inspect.getmodule(method).__doc__ or "")
    does = [
        task
        for verb, task in (("scores", "classify"), ("caption", "caption"), ("attend", "segment"))
        if hasattr(method, verb)
    ]
    hints, said = get_type_hints(method), _said(method)
    return Description(
        name,
        about.partition("\n")[0],
        about,
        tuple(does),
        tuple(
            Option(key, _kind(hints[key]), f.default, said.get(key, ""))
            for key, f in options(method).items()
        ),
    )


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    if type(None) in get_args(hint):
        return f"{_kind(_present(hint))}|none"
    return str(hint.__name__)


def _present(hint: Any) -> Any:
    """`int` of `int | None`; any other hint as it is."""
    kinds = get_args(hint)
    return next(k for k in kinds if k is not type(None)) if type(None) in kinds else hint


def _said(method: type[Any]) -> dict[str, str]:
    """The text below each field of a class: Python drops it, the source has it."""
    tree = ast.parse(inspect.getsource(method)).body[0]
    assert isinstance(tree, ast.ClassDef)
    said = {}
    for above, text in itertools.pairwise(tree.body):
        match above, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                said[name] = inspect.cleandoc(words)
    return said


def configure(name: str, given: Mapping[str, Any]) -> Any:
    """The method called `name` with these options; texts are read as the option's type.

    `name` may be a pipeline, `zpe+stata`, whose options are `stata.alpha`, or `alpha` where one
    stage alone has it.

    Raises:
        UserError: an unknown method or option, or a value that is not of the option's type.
    """
    if "+" in name:
        from zeroshot.methods._pipeline import Pipeline

        return Pipeline.configure(name, given)
    method = get(name)
    known = options(method)
    hints = get_type_hints(method)
    for key in given:
        if key not in known:
            raise unknown(f"option of {name}", key, known)
    return method(**{key: _typed(name, key, value, hints[key]) for key, value in given.items()})


def _typed(method: str, key: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` (int, float, bool, str or a Literal of texts, or None) asks."""
    if type(None) in get_args(hint):
        if value is None or str(value).lower() == "none":
            return None
        hint = _present(hint)
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise UserError(f"{method}: {key}={value}; possible: {', '.join(get_args(hint))}")
    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if hint is int and float(value) != int(float(value)):
            raise ValueError
        return hint(float(value)) if hint is int else hint(value)
    except (ValueError, KeyError, OverflowError):
        raise UserError(f"{method}: {key}={value}; {key} is of type {hint.__name__}") from None
