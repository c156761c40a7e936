"""Texts that a frozen model writes about pictures: `generate` of transformers, asked one way.

Rows whose tensors have the same shapes run together, so that nothing is ever padded: a row says
the same alone and in a batch, whatever the model makes of padding (BLIP's question decoder sees
it). Decoding is greedy, or by beams where more than one text is wanted. An answer's score is the
probability that the model gives to exactly its tokens, its end included; the longer texts of
captions have the geometric mean of their tokens' probabilities.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Answer
from zeroshot.models.hf import common

__all__ = ["Row", "grouped", "written"]

Row = Mapping[str, Tensor]
"""What the model reads of one picture and its text: tensors `[1 ...]`."""

ROWS_AT_ONCE = 32


def grouped(
    rows: Sequence[Row], at_once: int = ROWS_AT_ONCE
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of rows of equal shapes, each with the places of its rows."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in row.items())
        alike.setdefault(shape, []).append(place)
    for places in alike.values():
        for start in range(0, len(places), at_once):
            batch = places[start : start + at_once]
            names = rows[batch[0]].keys()
            yield batch, {name: torch.cat([rows[i][name] for i in batch]) for name in names}


@torch.inference_mode()
def written(
    generate: Callable[..., Any],
    rows: Sequence[Row],
    decode: Callable[[list[int]], str],
    ends: Collection[int],
    *,
    max_new_tokens: int,
    positions: int | None = None,
    top_k: int = 1,
    mean: bool = False,
    **more: Any,
) -> list[tuple[Answer, ...]]:
    """The `top_k` most probable texts found for each row, best first.

    `generate` is the model's own; `decode` turns the new tokens, end and padding included, into
    text; `ends` are the tokens that end one. A text ends where the decoder has no more
    `positions` for what it read and wrote. `mean` scores a text by its mean token. `more` goes to
    `generate` as it is.

    UserError for a row that leaves no room to write.
    """
    options = {"do_sample": False} | more
    if top_k > 1:
        options |= {"num_beams": max(top_k, options.get("num_beams", 1))}
        options |= {"num_return_sequences": top_k}
    found: dict[int, tuple[Answer, ...]] = {}
    for places, batch in grouped(rows):
        room = max_new_tokens
        if positions is not None:
            room = min(room, positions - length(batch))
        if room < 1:
            raise UserError(
                f"a text of {length(batch)} tokens leaves no room for an answer: the model has "
                f"{positions} positions"
            )
        with common.quiet():
            output = generate(
                **batch,
                **options,
                max_new_tokens=room,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens, chances = new_tokens(output, ends, mean)
        texts = [
            Answer(decode(row), chance)
            for row, chance in zip(tokens.tolist(), chances.tolist(), strict=True)
        ]
        for number, place in enumerate(places):
            found[place] = distinct(texts[number * top_k : (number + 1) * top_k])
    return [found[place] for place in range(len(rows))]


def length(batch: Row) -> int:
    """Positions of the decoder that the prompt takes."""
    read = batch.get("input_ids", batch.get("inputs_embeds"))
    return 1 if read is None else read.shape[1]


def distinct(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Best first; of answers that read the same, the more probable."""
    best: dict[str, Answer] = {}
    for answer in sorted(answers, key=lambda answer: -(answer.score or 0.0)):
        best.setdefault(answer.text, answer)
    return tuple(best.values())


def new_tokens(
    output: Any, ends: Collection[int], mean: bool = False
) -> tuple[Int[Tensor, "r s"], Float[Tensor, " r"]]:
    """Tokens that were written after the prompt, and the (mean) probability of each row.

    Whether the prompt is part of the sequences differs from model to model, so the new ones are
    counted from the end: one for each step; of beams, as many as the longest that came back has.
    """
    beams = getattr(output, "beam_indices", None)
    if beams is None:
        rows = len(output.sequences)
        beams = torch.arange(rows, device=output.sequences.device)[:, None]
        beams = beams.expand(rows, len(output.logits))
    beams = beams[:, : int((beams >= 0).sum(1).max())]
    tokens = output.sequences[:, output.sequences.shape[1] - beams.shape[1] :]
    end = torch.isin(tokens, torch.tensor(sorted(ends), device=tokens.device))
    padding = (end.cumsum(1) - end.long() > 0) | (beams < 0)
    total = torch.zeros(len(tokens), device=tokens.device)
    for step in range(beams.shape[1]):
        logits = output.logits[step][beams[:, step].clamp_min(0)].float()
        chance = logits.log_softmax(-1).gather(1, tokens[:, step, None])[:, 0]
        total += chance.masked_fill(padding[:, step], 0)
    count = (~padding).sum(1) if mean else 1
    return tokens, (total / count).exp().cpu()
