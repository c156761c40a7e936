"""Which noisy image-text pairs to keep: by the cosine of image and caption (CLIP score).

    LAION     cosine >= 0.3 (400M), >= 0.28 (5B, ViT-B/32, English)      `above`
    DataComp  the best fraction p of all pairs, 0.3 with ViT-L/14         `best_share`

Schuhmann et al. 2021, arXiv:2111.02114, and 2022, arXiv:2210.08402; Gadre et al. 2023,
arXiv:2304.14108, code: mlfoundations/datacomp (MIT).

Departure from DataComp's code: it takes the cosine after the best `int(p n)` as a threshold, and so
keeps that pair too, and all pairs with the same cosine. Here exactly `floor(p n)` pairs are kept,
of equal cosines the first ones. `above` with `threshold` is their rule.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.coupled_models import SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    concat_batches,
    embed_all,
    embed_images,
    embed_texts,
    image_encoder_of,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder, TextEncoder
from zeroshot.ranking.pair_scores import negclip, normsim
from zeroshot.results.result import Failure, FilterResult
from zeroshot.tasks.duplicates.best_copies import first_copies
from zeroshot.tasks.filter_options import FilterOptions
from zeroshot.tasks.task import OpenedTask, Task

# Which pairs to keep


def pair_cosines(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The cosine of each image and its text, summed in float64: no batch changes a digit."""
    return (images.double() * texts.double()).sum(1).float()


def above(scores: Float[Tensor, " n"], threshold: float) -> Bool[Tensor, " n"]:
    """LAION's rule: which scores are at least `threshold`, both in float32."""
    _check_finite(scores)
    return scores >= torch.tensor(threshold, dtype=scores.dtype)


def best_share(scores: Float[Tensor, " n"], share: float) -> Bool[Tensor, " n"]:
    """DataComp's rule except for ties: the `floor(share n)` largest, of equal ones the first.

    Raises:
        UserError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"a share of {share}: expected a number between 0 and 1")
    _check_finite(scores)
    count = math.floor(share * len(scores) + 1e-9)  # 0.29 * 100 is slightly below 29
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.sort(descending=True, stable=True).indices[:count]] = True
    return kept


def threshold(scores: Float[Tensor, " n"], share: float) -> float | None:
    """DataComp's threshold: the cosine after the best `int(share n)`; None if there is none."""
    count = math.floor(share * len(scores) + 1e-9)
    ordered = scores.sort(descending=True).values
    return float(ordered[count]) if count < len(ordered) else None


def _check_finite(scores: Float[Tensor, " n"]) -> None:
    if not scores.isfinite().all():
        index = int((~scores.isfinite()).nonzero()[0])
        raise UserError(f"the cosine of pair {index} is not finite")


# Pairs to cosines


def score_pairs(
    sources: Iterable[Source],
    encoder: DualEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int = AUTO_BATCH,
    truncate: bool = True,
    with_images: bool = False,
    measure: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[EmbeddingBatch]:
    """Batches with the cosines of images and their captions `[n, 1]` in place of embeddings.

    Or with what `measure` makes of the unit rows of both. `with_images` puts the embeddings of the
    images behind them.

    A pair without a caption fails. So does a caption longer than the encoder reads, unless
    `truncate` allows to cut it.
    """
    texts = text_encoder_of(encoder)
    for batch in embed_images(sources, image_encoder_of(encoder), cache, meter, batch_size):
        failures = list(batch.failures)
        for i in batch.readable:
            source = batch.sources[i]
            failures[i] = caption_failure(source)
            if not truncate:
                failures[i] = failures[i] or _long_caption(source, texts)
        meter.failed += sum(map(bool, failures)) - sum(map(bool, batch.failures))
        good = [i for i, failure in enumerate(failures) if failure is None]
        # where no pair can be measured, what it would have made is widened later
        found = torch.zeros(len(failures), 1 if measure is None or with_images else 0)
        if good:
            captions = [caption_of(batch.sources[i]) for i in good]
            embeddings = project_texts(encoder, embed_texts(captions, texts, cache, meter))
            with meter.stage("scoring"):
                images = project_images(encoder, batch.embeddings[good])
                if measure is None:
                    made = pair_cosines(images, embeddings)[:, None]
                else:
                    made = measure(images, embeddings).float()
                found = made.new_zeros(len(failures), made.shape[1])
                found[good] = made
        if with_images:
            width = batch.embeddings.shape[1]  # 0 if every image failed
            found = torch.cat([found if width else found[:, :0], batch.embeddings], dim=1)
        yield replace(batch, embeddings=found, failures=failures)


def caption_of(source: Source) -> str:
    """The text that came with an image; empty unless it was one."""
    return source.captions[0] if len(source.captions) == 1 else ""


def is_cut(caption: str, encoder: TextEncoder) -> bool:
    """Whether the encoder reads only the beginning of a caption."""
    limit = encoder.context_length
    return limit is not None and encoder.count_tokens([caption])[0] > limit


def caption_failure(source: Source) -> Failure | None:
    """Why an image is no pair with one caption."""
    if len(source.captions) > 1:
        count = len(source.captions)
        return Failure("SeveralCaptions", f"{count} captions; a pair is an image and one caption")
    if not caption_of(source).strip():
        return Failure("NoCaption", "the pair has no caption")
    return None


def _long_caption(source: Source, encoder: TextEncoder) -> Failure | None:
    if is_cut(caption_of(source), encoder):
        return Failure("LongCaption", f"a caption of more than {encoder.context_length} tokens")
    return None


# The task


@dataclass(frozen=True, kw_only=True)
class Filter(Task[FilterOptions]):
    """Image-text pairs by the cosine of image and caption."""

    targets: tuple[Source, ...] = ()

    schema: ClassVar[str] = FilterResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: FilterOptions) -> "Filter":
        """See `Task`; UserError unless there is one rule, and a possible one."""
        if (options.min_score is None) == (options.keep is None):
            raise UserError(
                "give --min-score, the lowest cosine, or --keep, a fraction of the pairs"
            )
        if options.keep is not None and not 0 <= options.keep <= 1:
            raise UserError(f"--keep {options.keep}: a fraction between 0 and 1 is needed")
        if options.dedupe and options.score == "negclip":
            raise UserError(
                "--dedupe and --score negclip are two runs: --dedupe on the pairs that the first "
                "one --kept, or the other way round"
            )
        targets = find(options.targets).sources
        if bool(targets) != (options.score == "normsim"):
            raise UserError(
                "--score normsim and --targets go together: the score is the likeness to images of "
                "the kind that is wanted"
            )
        return cls(models=models, options=options, targets=tuple(targets))

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "FilterRunner":
        """Load the encoder."""
        self.models.require(language_model=False)
        encoder = with_coupling_for_task(
            self.models, self.options.coupling, SENTENCES, cache, meter
        ).encoder
        targets = None
        if self.targets:
            rows = embed_all(self.targets, image_encoder_of(encoder), cache, meter)
            targets = project_images(encoder, rows)
        return FilterRunner(
            task=self, encoder=encoder, targets=targets, cache=cache, batch_size=batch_size
        )


@dataclass(frozen=True, kw_only=True)
class FilterRunner(OpenedTask[Filter]):
    """A set with its encoder loaded."""

    encoder: DualEncoder
    targets: Tensor | None = None

    @property
    def transductive(self) -> bool:
        """Whether a pair's result depends on the other pairs, as it does if a fraction is kept."""
        return self.task.options.needs_all

    @property
    def views(self) -> int:
        """No views."""
        return 0

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        found: dict[str, Any] = {
            "models": canonical_names(self.encoder),
            "truncate": self.task.options.long_text == "truncate",
        }
        if self.task.targets:
            found["targets"] = [source.path for source in self.task.targets]
        return found

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[FilterResult]:
        """One result per pair, in order; to keep a fraction, all pairs are read first."""
        batches = self.embed(sources, meter)
        if self.transductive:
            total = len(sources) if isinstance(sources, Sized) else None
            batches = iter([concat_batches(batches, meter, total)])
        for batch in batches:
            yield from self.score(batch, meter)

    def embed(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbeddingBatch]:
        """Cosines, batch by batch; or what the scores are made of, and what copies are found by."""
        measure: Callable[[Tensor, Tensor], Tensor] | None = None
        if self.targets is not None:
            targets = self.targets
            measure = lambda images, _: normsim(images, targets)[:, None]  # noqa: E731
        elif self.task.options.score == "negclip":
            measure = lambda images, texts: torch.cat([images, texts], 1)  # noqa: E731
        return score_pairs(
            sources,
            self.encoder,
            self.cache,
            meter,
            batch_size=self.batch_size,
            truncate=self.task.options.long_text == "truncate",
            with_images=self.task.options.dedupe,
            measure=measure,
        )

    def score(self, everything: EmbeddingBatch, meter: Meter) -> Iterator[FilterResult]:
        """One result per pair."""
        options, good = self.task.options, everything.readable
        rows = everything.embeddings[good]
        with meter.stage("scoring"), meter.phase("scoring", counts=False):
            if options.score == "negclip" and good:
                captions = [caption_of(everything.sources[i]) for i in good]
                number = {text: n for n, text in enumerate(dict.fromkeys(captions))}
                same = torch.tensor([number[text] for text in captions])
                scale = self.encoder.logit_scale
                images, texts = rows.chunk(2, dim=1)
                scores = negclip(images, texts, same, 1 / scale).float()
            else:
                scores = rows[:, :1].reshape(-1)
            if options.keep is None:
                passed = above(scores, options.min_score or 0.0)
            else:
                passed = best_share(scores, options.keep)
        kept = torch.zeros(len(everything.sources), dtype=torch.bool)
        kept[good] = passed
        copies = self._copies(everything, kept, meter) if options.dedupe else {}
        kept[list(copies)] = False
        shown = dict(zip(good, scores.tolist(), strict=True))
        encoder = text_encoder_of(self.encoder)
        used = canonical_names(self.encoder)
        for i, source in enumerate(everything.sources):
            failure, caption = everything.failures[i], caption_of(source)
            yield FilterResult(
                source=source,
                id=everything.ids[i],
                error=failure,
                models=used,
                method="clip score" if options.score == "cosine" else options.score,
                caption=caption,
                score=shown.get(i, 0.0),
                kept=bool(kept[i]),
                truncated=failure is None and is_cut(caption, encoder),
                copy_of=copies.get(i),
            )

    def _copies(
        self, everything: EmbeddingBatch, kept: Bool[Tensor, " n"], meter: Meter
    ) -> dict[int, str]:
        """Pairs that pass, but with a copy of an image that passes with a higher score: of which.

        Of equal scores the first pair is kept.
        """
        if not kept.any():
            return {}
        scores = everything.embeddings[:, 0]
        places = kept.nonzero()[:, 0]
        order = places[scores[places].sort(descending=True, stable=True).indices]
        with meter.stage("scoring"), meter.phase("looking for copies", counts=False):
            first = first_copies(
                [everything.sources[i] for i in order.tolist()],
                [everything.ids[i] for i in order.tolist()],
                everything.embeddings[order, 1:],
            )
        return {
            int(order[place]): everything.sources[int(order[head])].path or "an image in memory"
            for place, head in enumerate(first)
            if head != place
        }
