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
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError, ZeroshotError
from zeroshot.models.base import KeyValueCache, LanguageModel, LanguageModelOutput, LogitCorrection
from zeroshot.models.devices import on_device, read, sent, ways_of
from zeroshot.ops import normalize

AT_ONCE = 64
"""Texts whose likelihood is asked for in one pass: all their positions meet the vocabulary."""
UNSURE, BROKEN = 1, 2
"""Flags of a choice: more candidates could have won than were looked ahead on; a score is NaN."""
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
        """Score each candidate as the next token after each text, on any device.

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

    def most_likely(group: _Group) -> _Likely:
        logits = language_model.logits(group.hidden)
        if adjust is not None:
            logits = adjust(group.rows, [generated[row] for row in group.rows], logits)
        probability, candidates = logits.softmax(-1).topk(min(k, logits.shape[-1]))
        return _Likely(probability, candidates, candidates)

    for length, rows in by_length.items():
        steps = max_tokens if max_length is None else min(max_tokens, max_length - length)
        tokens = torch.tensor([list(prefixes[row]) for row in rows])
        group = _Group.started(rows, language_model.forward(tokens))
        ways = ways_of(group.hidden.device)
        columns = 0 if observe else ways.columns
        one_read = ways.one_read and adjust is None  # which has to know the texts
        likely = most_likely(group)
        for left in reversed(range(steps)):
            probability, candidates = likely.probability, likely.candidates
            guidance = torch.zeros_like(probability)
            if guide is not None:
                texts = [generated[row] for row in group.rows]
                guidance = sent(guide(group.rows, texts, likely.listed), guidance.device)
            base = (1 - alpha) * probability + guidance
            goes_on = candidates != language_model.end if left else torch.zeros_like(base).bool()
            choose = partial(_choose, language_model, group, candidates, base, goes_on, alpha)
            chosen = choose(columns, observe is not None)
            if observe is not None:
                terms = (probability, chosen.penalty, guidance, chosen.total)
                observe(Choice(tuple(group.rows), candidates, *terms, chosen.column))
            while True:
                following = one_read and left
                after = group.advance(chosen) if following else None
                likely_after = most_likely(after) if after else None
                sure, token, listed = _read(chosen, likely_after)
                if sure:
                    break
                columns *= 2
                chosen = choose(columns, False)
            alive = [i for i, t in enumerate(token) if t != language_model.end]
            for i in alive:
                generated[group.rows[i]].append(token[i])
            yield from ((group.rows[i], token[i]) for i in alive)
            if not alive or not left:
                break
            every, kept = len(alive) == len(group.rows), None
            group = group.advance(chosen) if after is None else after
            if not every:
                [kept] = on_device(candidates.device, alive)
                group, listed = group.only(alive, kept), listed[alive]
            likely = likely_after.only(kept, listed) if likely_after else most_likely(group)


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


@dataclass(frozen=True)
class _Chosen:
    """One of a step's candidates for each row, or of those that were looked ahead on."""

    ahead: _LookAhead
    column: Int[Tensor, " b"]
    token: Int[Tensor, " b"]
    penalty: Float[Tensor, "b k"]
    total: Float[Tensor, "b k"]
    flags: Int[Tensor, ""]
    """0 if it is right, `UNSURE` and `BROKEN`."""


@dataclass(frozen=True)
class _Likely:
    """The most likely next tokens of a group's rows."""

    probability: Float[Tensor, "b k"]
    candidates: Int[Tensor, "b k"]
    listed: Int[Tensor, "b k"]
    """The candidates, on the host if they were read."""

    def only(self, kept: Int[Tensor, " r"] | None, listed: np.ndarray) -> "_Likely":
        """Some of the rows, or all, with their candidates on the host."""
        probability, candidates = self.probability, self.candidates
        if kept is not None:
            probability, candidates = probability[kept], candidates[kept]
        return _Likely(probability, candidates, torch.from_numpy(listed))


@dataclass(frozen=True)
class _Group:
    """Rows of equal length that still decode, and the unit hidden states so far."""

    rows: list[int]
    hidden: Float[Tensor, "b e"]
    """Each row's last state."""
    cache: KeyValueCache
    at: Int[Tensor, " b"]
    """Row of `cache` that belongs to each row: it is copied when it is fed, and not before."""
    context: Float[Tensor, "b s e"]

    @classmethod
    def started(cls, rows: list[int], step: LanguageModelOutput) -> "_Group":
        """A group whose states so far are those of `step`."""
        at = torch.arange(len(rows), device=step.hidden.device)
        return cls(rows, step.hidden[:, -1], step.cache, at, normalize(step.hidden.float()))

    def advance(self, chosen: _Chosen) -> "_Group":
        """The group after a choice: the look-ahead of each winner becomes its state."""
        ahead, column = chosen.ahead, chosen.column
        every = torch.arange(len(column), device=column.device)
        hidden = ahead.hidden[every, column]
        context = torch.cat([self.context, normalize(hidden.float())[:, None]], dim=1)
        return _Group(self.rows, hidden, ahead.cache, ahead.position[every, column], context)

    def only(self, alive: list[int], kept: Int[Tensor, " r"]) -> "_Group":
        """Some of the rows; `kept` is `alive` on the device."""
        rows = [self.rows[i] for i in alive]
        return _Group(rows, self.hidden[kept], self.cache, self.at[kept], self.context[kept])


def _choose(
    language_model: LanguageModel,
    group: _Group,
    candidates: Int[Tensor, "b k"],
    base: Float[Tensor, "b k"],
    goes_on: Bool[Tensor, "b k"],
    alpha: float,
    columns: int,
    every: bool,
) -> _Chosen:
    """The best candidate of each row; `columns` as in `Ways`, `every` looks ahead on all."""
    can_win, fed = contenders(base, alpha, group.context, goes_on)
    broken = base.isnan().any()
    flags = BROKEN * broken.long()
    if 0 < columns < base.shape[1]:
        flags = flags + UNSURE * (can_win.sum(1) > columns).any().long()
        best = base.topk(columns).indices.sort(1).values  # sorted: equal scores as without
        candidates, base, can_win = (v.gather(1, best) for v in (candidates, base, can_win))
    whole = every or columns > 0
    ahead = look_ahead(language_model, group, candidates, None if whole else fed)
    penalty = degeneration_penalty(ahead.hidden, group.context)
    total = base - alpha * penalty
    column = total.masked_fill(~can_win, -torch.inf).argmax(1)
    token = candidates.gather(1, column[:, None])[:, 0]
    return _Chosen(ahead, column, token, penalty, total, flags)


def _read(chosen: _Chosen, likely: _Likely | None) -> tuple[bool, list[int], np.ndarray]:
    """Whether a choice is right, its tokens, and the candidates after them: one read."""
    flags = chosen.flags.expand(len(chosen.token), 1)
    after = [] if likely is None else [likely.candidates]
    values = read(torch.cat([flags, chosen.token[:, None], *after], dim=1))
    if values[0, 0] & BROKEN:
        raise ZeroshotError(
            "a candidate's score is not a number: an embedding is zero or not finite; in half "
            "precision, fp32 may help"
        )
    return not values[0, 0] & UNSURE, values[:, 1].tolist(), values[:, 2:]


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
    group: _Group,
    candidates: Int[Tensor, "b k"],
    fed: Bool[Tensor, "b k"] | None,
) -> _LookAhead:
    """Feed what is marked, or all, after its own row; the others' states stay zero."""
    if fed is None:
        count = torch.arange(candidates.numel(), device=candidates.device)
        cache = language_model.select(group.cache, group.at[count // candidates.shape[1]])
        after = language_model.forward(candidates.reshape(-1, 1), cache)
        hidden = after.hidden.view(*candidates.shape, -1)
        return _LookAhead(hidden, after.cache, count.view(candidates.shape))
    row, column = fed.nonzero(as_tuple=True)
    hidden = group.hidden.new_zeros(*candidates.shape, group.hidden.shape[-1])
    position = torch.zeros_like(candidates)
    if not len(row):
        return _LookAhead(hidden, group.cache, position)
    after = language_model.forward(
        candidates[row, column][:, None], language_model.select(group.cache, group.at[row])
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
