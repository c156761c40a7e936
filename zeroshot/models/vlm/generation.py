"""Texts that a frozen model writes about images, by `generate` of transformers.

Decoding is greedy, or by beams if more than one text is wanted. An answer's score is the model's
probability of exactly its tokens, the end token included; a caption, which is longer, has the
geometric mean of its tokens' probabilities.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Answer, Guidance, LogitCorrection
from zeroshot.models.hf.checkpoint import quiet
from zeroshot.models.model_checks import check_numbers
from zeroshot.models.vlm.image_text_inputs import ModelRow, UnpaddedTexts, same_shape_batches

__all__ = ["TextGenerator", "generate_texts"]

ANSWER_TOKENS = 20
"""Maximum number of new tokens of an answer."""
CAPTION_TOKENS = 50
"""Maximum number of new tokens of a caption."""


class TextGenerator(UnpaddedTexts):
    """A model whose texts come from its own `generate`."""

    scored = "probability"
    guidance: Guidance | None = None

    @property
    def end_tokens(self) -> int | Iterable[int] | None:
        """The tokens that end a text, as a configuration gives them: none, one or several."""
        raise NotImplementedError

    @property
    def positions(self) -> int | None:
        """The decoder's positions for prompt and text; None for no limit."""
        config = self.model.config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)

    def guided_by(self, guidance: Guidance) -> "TextGenerator":
        """As `base.GuidedWriter`."""
        guided = copy.copy(self)
        guided.guidance = guidance
        return guided

    def generate(
        self, rows: Sequence[ModelRow], max_new_tokens: int, top_k: int = 1, *, mean: bool = False
    ) -> list[tuple[Answer, ...]]:
        """See `generate_texts`."""
        ends = self.end_tokens
        return generate_texts(
            self.model.generate,
            rows,
            lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            [ends] if isinstance(ends, int) else set(ends or ()),
            max_new_tokens=max_new_tokens,
            positions=self.positions,
            top_k=top_k,
            mean=mean,
            guidance=self.guidance,
        )


@torch.inference_mode()
def generate_texts(
    generate: Callable[..., Any],
    rows: Sequence[ModelRow],
    decode: Callable[[Sequence[int]], str],
    ends: Collection[int],
    *,
    max_new_tokens: int,
    positions: int | None = None,
    top_k: int = 1,
    mean: bool = False,
    guidance: Guidance | None = None,
    **options: Any,
) -> list[tuple[Answer, ...]]:
    """The `top_k` most probable texts of each row, best first.

    `generate` is the model's own. `decode` turns the new tokens, end and padding included, into
    text; `ends` are the tokens that end one. Prompt and text share the decoder's `positions`.
    `mean` scores a text by the mean probability of its tokens. `guidance` corrects the logits by
    which tokens are chosen, not those of the score. `options` are those of `generate`.

    UserError for a row whose prompt leaves no position for a text.
    """
    options = {"do_sample": False} | options
    if top_k > 1:
        options |= {"num_beams": max(top_k, options.get("num_beams", 1))}
        options |= {"num_return_sequences": top_k}
    correct = None if guidance is None else guidance(decode, ends)
    answers: dict[int, tuple[Answer, ...]] = {}
    for indices, batch in same_shape_batches(rows):
        room = max_new_tokens
        if positions is not None:
            room = min(room, positions - prompt_length(batch))
        if room < 1:
            raise UserError(
                f"a text of {prompt_length(batch)} tokens leaves no room for an answer: the model "
                f"has {positions} positions; shorten it"
            )
        if correct is not None:
            options |= {"logits_processor": [_Corrected(correct, indices)]}
        with quiet():
            output = generate(
                **batch,
                **options,
                max_new_tokens=room,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens, probabilities = new_tokens(output, ends, mean)
        texts = [
            Answer(decode(ids), probability)
            for ids, probability in zip(tokens.tolist(), probabilities.tolist(), strict=True)
        ]
        for number, index in enumerate(indices):
            answers[index] = unique_answers(texts[number * top_k : (number + 1) * top_k])
    return [answers[index] for index in range(len(rows))]


class _Corrected:
    """A correction of logits as `generate` calls it, with the prompt before the new tokens."""

    def __init__(self, correct: LogitCorrection, rows: Sequence[int]) -> None:
        self._correct, self._rows = correct, rows
        self._prompt: int | None = None

    def __call__(self, ids: Int[Tensor, "b s"], logits: Float[Tensor, "b v"]) -> Tensor:
        if self._prompt is None:
            self._prompt = ids.shape[1]
        return self._correct(self._rows, ids[:, self._prompt :].tolist(), logits)


def prompt_length(batch: ModelRow) -> int:
    """The decoder's positions that the prompt takes."""
    prompt = batch.get("input_ids", batch.get("inputs_embeds"))
    return 1 if prompt is None else prompt.shape[1]


def unique_answers(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Best first; among answers with the same text, the most probable."""
    best: dict[str, Answer] = {}
    for answer in sorted(answers, key=lambda answer: -(answer.score or 0.0)):
        best.setdefault(answer.text, answer)
    return tuple(best.values())


def new_tokens(
    output: Any, ends: Collection[int], mean: bool = False
) -> tuple[Int[Tensor, "r s"], Float[Tensor, " r"]]:
    """The tokens after the prompt, and the (mean) probability of each row.

    In some models the sequences contain the prompt and in others not, so the new tokens are counted
    from the end: one for each step; with beams, as many as the longest returned text has.
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
        log_probability = logits.log_softmax(-1).gather(1, tokens[:, step, None])[:, 0]
        total += log_probability.masked_fill(padding[:, step], 0)
    count = (~padding).sum(1) if mean else 1
    check_numbers(total)
    return tokens, (total / count).exp().cpu()
