"""What models that read an image and a text together have in common.

Rows whose tensors have the same shapes run together, so that nothing is padded: a row gives the
same result alone and in a batch, whatever the model does with padding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.models.base import Answer
from zeroshot.models.hf import model_inputs
from zeroshot.models.isolation import FrozenModel
from zeroshot.models.model_checks import check_numbers

__all__ = [
    "ModelBatch",
    "ModelRow",
    "UnpaddedTexts",
    "best_answers",
    "same_shape_batches",
    "score_rows",
]

ModelRow = Mapping[str, Tensor]
"""The model's inputs for one image and its text: tensors `[1 ...]`."""

ModelBatch = Mapping[str, Tensor]
"""The same for several: tensors `[b ...]`."""

ROWS_AT_ONCE = 32


class UnpaddedTexts(FrozenModel):
    """Base of `base.ImageTextModel`: texts are tokenized one by one, never cut off or padded."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        text_config = getattr(model.config, "text_config", None) or model.config
        self.context_length: int | None = model_inputs.context_length(tokenizer, text_config)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.ImageTextModel`."""
        return model_inputs.count_tokens(self.tokenizer, texts)

    def check_length(self, texts: Sequence[str]) -> None:
        """UserError for a text of more tokens than the model reads."""
        if self.context_length is not None:
            model_inputs.check_length(texts, self.count_tokens(texts), self.context_length)

    def tokens(self, text: str) -> dict[str, Tensor]:
        """The model's inputs for one text, tensors `[1 s]`."""
        return dict(self.tokenizer([text], return_tensors="pt").to(self.model.device))


def same_shape_batches(
    rows: Sequence[ModelRow], batch_size: int = ROWS_AT_ONCE
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of rows of equal shapes, each with the indices of its rows."""
    by_shape: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(rows):
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in row.items())
        by_shape.setdefault(shape, []).append(index)
    for indices in by_shape.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            names = rows[batch[0]].keys()
            yield batch, {name: torch.cat([rows[i][name] for i in batch]) for name in names}


def score_rows(
    rows: Sequence[ModelRow], columns: int, score: Callable[[ModelBatch], Tensor]
) -> Float[Tensor, "n k"]:
    """Scores of all rows, on the CPU; `score` gives those of a batch of equal shapes."""
    scores = torch.zeros(len(rows), columns)
    with torch.inference_mode():
        for indices, batch in same_shape_batches(rows):
            scores[indices] = score(batch).cpu()
    check_numbers(scores)
    return scores


def best_answers(scores: Tensor, names: Sequence[str], top_k: int) -> list[tuple[Answer, ...]]:
    """The `top_k` best columns of each row `[n a]`, best first."""
    values, columns = scores.float().cpu().topk(min(top_k, scores.shape[1]), dim=1)
    return [
        tuple(Answer(names[i], value) for i, value in zip(*row, strict=True))
        for row in zip(columns.tolist(), values.tolist(), strict=True)
    ]
