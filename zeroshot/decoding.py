"""Guided decoding: the one loop that turns a language model and a guide into text.

Of the `k` most likely next tokens the one with the best

    score(v) = (1 - alpha) p(v) - alpha penalty(v) + guide(v)

is appended. `p` is the model's probability and `penalty` the largest cosine between the hidden
state `v` would have and those of the text so far (contrastive search, Su et al. 2022). The last
term belongs to a guide; without one this is contrastive search.

The penalty is at most 1, and being the largest of some cosines it is at least their mean, which
is no less than `-|m|`, `m` the mean of the text's unit states. So only candidates within
`alpha (1 + |m|)` of the best `(1 - alpha) p + guide` can win, and only those *contenders* are fed
to the language model to learn their hidden state. That is exact, not an approximation. A lone
contender has won: it is fed only if the text goes on after it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import KeyValueCache, LanguageModel, LanguageModelOutput, LogitCorrection
from zeroshot.ops import normalize

AT_ONCE = 64
"""Texts whose likelihood is asked for in one pass: all their positions meet the vocabulary."""
ROUNDING = 1e-5
"""A float32 cosine may leave [-1, 1] by less than this."""


@runtime_checkable
class Guide(Protocol):
    """The part of the score that knows what the text should be about."""

    def __call__(
        self,
        rows: Sequence[int],
        generated: Sequence[Sequence[int]],
        candidates: Int[Tensor, "b k"],
    ) -> Float[Tensor, "b k"]:
        """Score each candidate as the next token after each text.

        `rows` are indices into the prefixes given to `generate`; `generated` are the tokens
        chosen so far for those rows, prefix excluded.
        """


@dataclass(frozen=True)
class Choice:
    """What the loop knew when it chose one token for each of `b` rows."""

    rows: tuple[int, ...]
    candidates: Int[Tensor, "b k"]
    probability: Float[Tensor, "b k"]
    penalty: Float[Tensor, "b k"]
    guide: Float[Tensor, "b k"]
    total: Float[Tensor, "b k"]
    chosen: Int[Tensor, " b"]
    """Index into `candidates`."""


def generate(
    language_model: LanguageModel,
    prefixes: Sequence[Sequence[int]],
    guide: Guide | None = None,
    *,
    k: int,
    alpha: float,
    max_tokens: int,
    max_length: int | None = None,
    observe: Callable[[Choice], None] | None = None,
    adjust: LogitCorrection | None = None,
) -> list[list[int]]:
    """The tokens that follow each prefix, up to and without the end token: all of `stream`."""
    generated: list[list[int]] = [[] for _ in prefixes]
    settings: Any = {"k": k, "alpha": alpha, "max_tokens": max_tokens, "max_length": max_length}
    settings |= {"observe": observe, "adjust": adjust}
    for row, token in stream(language_model, prefixes, guide, **settings):
        generated[row].append(token)
    return generated


def stream(
    language_model: LanguageModel,
    prefixes: Sequence[Sequence[int]],
    guide: Guide | None = None,
    *,
    k: int,
    alpha: float,
    max_tokens: int,
    max_length: int | None = None,
    observe: Callable[[Choice], None] | None = None,
    adjust: LogitCorrection | None = None,
) -> Iterator[tuple[int, int]]:
    """Each token when it is chosen, with the index of the prefix that it follows.

    At most `max_tokens` a prefix, and no more than `max_length` together with it; the end token is
    left out. Rows with prefixes of one length decode together; none is padded. `observe` is called
    after every choice and makes the loop look ahead on all candidates instead of the contenders.
    `adjust` replaces the model's logits before anything else is computed.

    Raises:
        UserError: an empty prefix, an option out of range, or more tokens than the language
            model has positions for.
    """
    _check(language_model, prefixes, k, alpha, max_tokens, max_length)
    by_length = defaultdict(list)
    for row, prefix in enumerate(prefixes):
        by_length[len(prefix)].append(row)
    generated: list[list[int]] = [[] for _ in prefixes]
    for length, rows in by_length.items():
        steps = max_tokens if max_length is None else min(max_tokens, max_length - length)
        tokens = torch.tensor([list(prefixes[row]) for row in rows])
        group = _Group(rows, language_model.forward(tokens))
        for left in reversed(range(steps)):
            logits = language_model.logits(group.step.hidden[:, -1])
            if adjust is not None:
                logits = adjust(group.rows, [generated[row] for row in group.rows], logits)
            probability, candidates = logits.softmax(-1).topk(min(k, logits.shape[-1]))  # [b, k]
            guidance = torch.zeros_like(probability)
            if guide is not None:
                guidance = guide(group.rows, [generated[row] for row in group.rows], candidates)
            base = (1 - alpha) * probability + guidance
            goes_on = candidates != language_model.end if left else torch.zeros_like(base).bool()
            can_win, fed = contenders(base, alpha, group.context, goes_on)
            if observe is not None:
                fed = torch.ones_like(fed)
            ahead = look_ahead(language_model, group.step, candidates, fed)
            penalty = degeneration_penalty(ahead.hidden, group.context)
            total = base - alpha * penalty
            chosen = total.masked_fill(~can_win, -torch.inf).argmax(1)
            if observe is not None:
                terms = (probability, penalty, guidance, total)
                observe(Choice(tuple(group.rows), candidates, *terms, chosen))
            token = candidates.gather(1, chosen[:, None])[:, 0].tolist()
            alive = [i for i, t in enumerate(token) if t != language_model.end]
            for i in alive:
                generated[group.rows[i]].append(token[i])
            yield from ((group.rows[i], token[i]) for i in alive)
            if not alive or not left:
                break
            group = group.advance(language_model, ahead, chosen, alive)


def mean_log_probability(
    language_model: LanguageModel, texts: Sequence[Sequence[int]]
) -> list[float]:
    """The mean log-probability of each text's tokens and its end, after the start token."""
    by_length = defaultdict(list)
    for row, text in enumerate(texts):
        by_length[len(text)].append(row)
    means = [0.0] * len(texts)
    for length, rows in by_length.items():
        for begin in range(0, len(rows), AT_ONCE):
            part = rows[begin : begin + AT_ONCE]
            tokens = torch.tensor(
                [[language_model.start, *texts[row], language_model.end] for row in part]
            )
            hidden = language_model.forward(tokens[:, :-1]).hidden
            likely = language_model.logits(hidden.flatten(0, 1)).log_softmax(-1)
            asked = tokens[:, 1:].reshape(-1, 1).to(likely.device)
            mean = likely.gather(1, asked).view(len(part), length + 1).mean(1)
            for row, value in zip(part, mean.tolist(), strict=True):
                means[row] = value
    return means


@dataclass(frozen=True)
class _LookAhead:
    """Hidden states of the contenders, in place, and the cache that holds all of them."""

    hidden: Float[Tensor, "b k e"]
    cache: KeyValueCache
    position: Int[Tensor, "b k"]
    """Row of `cache` that belongs to each contender."""


class _Group:
    """Rows of equal length that still decode: their cache and the unit hidden states so far."""

    def __init__(
        self,
        rows: list[int],
        step: LanguageModelOutput,
        context: Float[Tensor, "b s e"] | None = None,
    ) -> None:
        self.rows = rows
        self.step = step
        state = normalize(step.hidden.float())
        self.context = state if context is None else torch.cat([context, state], dim=1)

    def advance(
        self,
        language_model: LanguageModel,
        ahead: _LookAhead,
        chosen: Int[Tensor, " b"],
        alive: list[int],
    ) -> "_Group":
        """The group after its choice: the look-ahead of each winner becomes its state."""
        keep = torch.tensor(alive, device=chosen.device)
        winner = chosen[keep]
        step = LanguageModelOutput(
            hidden=ahead.hidden[keep, winner][:, None],
            cache=language_model.select(ahead.cache, ahead.position[keep, winner]),
        )
        return _Group([self.rows[i] for i in alive], step, self.context[keep])


def contenders(
    base: Float[Tensor, "b k"],
    alpha: float,
    context: Float[Tensor, "b s e"],
    goes_on: Bool[Tensor, "b k"],
) -> tuple[Bool[Tensor, "b k"], Bool[Tensor, "b k"]]:
    """Which candidates can win, and which of these to feed.

    `base` is the score without the penalty, `goes_on` whether the text goes on after a candidate.
    """
    reach = alpha * (1 + context.mean(1).norm(dim=1, keepdim=True))
    can_win = base >= base.amax(1, keepdim=True) - reach - ROUNDING
    fed = can_win & ((can_win.sum(1, keepdim=True) > 1) | goes_on)
    return can_win, fed


def look_ahead(
    language_model: LanguageModel,
    step: LanguageModelOutput,
    candidates: Int[Tensor, "b k"],
    fed: Bool[Tensor, "b k"],
) -> _LookAhead:
    """Feed what is marked after its own row of `step`; the others' states stay zero."""
    row, column = fed.nonzero(as_tuple=True)
    hidden = step.hidden.new_zeros(*candidates.shape, step.hidden.shape[-1])
    position = torch.zeros_like(candidates)
    if not len(row):
        return _LookAhead(hidden, step.cache, position)
    after = language_model.forward(
        candidates[row, column][:, None], language_model.select(step.cache, row)
    )
    hidden[row, column] = after.hidden[:, 0]
    position[row, column] = torch.arange(len(row), device=row.device)
    return _LookAhead(hidden, after.cache, position)


def degeneration_penalty(
    hidden: Float[Tensor, "b k e"], context: Float[Tensor, "b s e"]
) -> Float[Tensor, "b k"]:
    """Largest cosine of each candidate's state with the unit states of its row's context."""
    return (normalize(hidden.float()) @ context.transpose(1, 2)).amax(-1)


def _check(
    language_model: LanguageModel,
    prefixes: Sequence[Sequence[int]],
    k: int,
    alpha: float,
    max_tokens: int,
    max_length: int | None,
) -> None:
    if k < 1 or max_tokens < 1 or not 0 <= alpha <= 1:
        raise UserError(
            f"k={k}, max_tokens={max_tokens}, alpha={alpha}: k and max_tokens must be at least 1 "
            "and alpha within [0, 1]"
        )
    longest = max((len(prefix) for prefix in prefixes), default=1)
    if not all(len(prefix) for prefix in prefixes):
        raise UserError("an empty prefix: a text starts with at least the start token")
    if max_length is not None and longest >= max_length:
        raise UserError(f"a prefix of {longest} tokens leaves nothing of max_length={max_length}")
    needed = min(longest + max_tokens, max_length or longest + max_tokens)
    if needed > language_model.context_length:
        raise UserError(
            f"a prefix of {longest} tokens and max_tokens={max_tokens} need {needed} positions; "
            f"{language_model.name} has {language_model.context_length}"
        )
