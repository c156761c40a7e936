"""Several methods on the same images or arrays, in one table."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods import as_logits
from zeroshot.tasks.classification.arrays import score_arrays
from zeroshot.tasks.classification.classifier import Classifier, embed_batches


@dataclass(frozen=True)
class MethodComparison:
    """One method on all images, beside the first method."""

    method: str
    confidence: float
    """Mean of the best scores."""
    agreement: float
    """Fraction of the images whose best class is the same as the first method's."""
    cpu_ms: float
    """CPU milliseconds per image, without encoding."""


def compare(
    names: Sequence[str],
    options: Mapping[str, Any],
    score: Callable[[str, dict[str, Any]], Callable[[], Float[Tensor, "n c"]]],
) -> Iterator[MethodComparison]:
    """One result per method.

    Args:
        names: methods or pipelines; the others are compared with the first.
        options: each with the name of its method, as `center.lam`.
        score: prepares a method; the function that it returns is timed.
    """
    first: Tensor | None = None
    for name, own in options_of_each(names, options).items():
        run = score(name, own)
        start = time.process_time()
        scores = run()
        seconds = time.process_time() - start
        best = scores.argmax(1)
        first = best if first is None else first
        yield MethodComparison(
            name,
            float(scores.amax(1).mean()),
            float((best == first).double().mean()),
            1000 * seconds / max(1, len(scores)),
        )


def options_of_each(names: Sequence[str], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of each method; those of a pipeline keep the name of their stage."""
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in options.items():
        stage, _, option = key.rpartition(".")
        methods_with_stage = [name for name in names if stage in name.split("+")]
        if not methods_with_stage:
            raise UserError(
                f"-o {key}: with --compare an option names its method, as in -o center.lam=0.3; "
                f"the methods are {', '.join(names)}"
            )
        for name in methods_with_stage:
            own[name][key if "+" in name else option] = value
    return own


def compare_images(
    names: Sequence[str],
    options: Mapping[str, Any],
    make: Callable[[str | None, dict[str, Any]], Classifier],
    sources: Sequence[Source],
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
) -> Iterator[MethodComparison]:
    """Methods on images, encoded once; images that cannot be read are skipped.

    Raises:
        UserError: no image can be read.
    """

    def score(name: str, own: dict[str, Any]) -> Callable[[], Tensor]:
        ready = make(name, own)
        embedded = embed_batches(sources, ready, cache, meter, batch_size)
        batches = list(meter.track("images", embedded, len(sources), lambda b: len(b.sources)))
        kept = [(b.embeddings[b.readable], b.views, b.readable) for b in batches if b.readable]
        if not kept:
            raise UserError("none of the images can be read")
        return lambda: torch.cat(
            [ready(rows, None if v is None else v[good])[0] for rows, v, good in kept]
        )

    return compare(names, options, score)


def compare_arrays(
    arrays: Mapping[str, npt.NDArray[Any]], names: Sequence[str], options: Mapping[str, Any]
) -> Iterator[MethodComparison]:
    """Methods on arrays; scores become softmax probabilities, so that they can be compared."""
    scale = float(arrays.get("logit_scale", 100.0))

    def score(name: str, own: dict[str, Any]) -> Callable[[], Tensor]:
        output = methods.configure(name, own).output

        def run() -> Tensor:
            scores = torch.from_numpy(score_arrays(arrays, name, own)["scores"])
            if output == "probability":
                return scores
            return as_logits(scores, output, scale).softmax(1)

        return run

    return compare(names, options, score)
