"""Images that fit a query: a text, an image, or sums and differences of both."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnsupportedError, UserError, no_such
from zeroshot.inference.captioned_gallery import with_captions
from zeroshot.inference.coupled_models import SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    canonical_names,
    check_lengths,
    embed_all,
    embed_texts,
    image_encoder_of,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.embedding_matrix import EmbeddingMatrix, embedding_matrix
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import CLIPS, PICTURES, Source
from zeroshot.inputs.text_files import read_lines, read_records, suffix_of, whole_text
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.frame_encoder import ClipModels
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.ops import normalize
from zeroshot.ranking import faiss_index
from zeroshot.ranking.composed import search_by_product
from zeroshot.ranking.exact import (
    Change,
    Correction,
    Gallery,
    Hits,
    correction,
    search as rank,
)
from zeroshot.ranking.modality_means import QueryTerms
from zeroshot.results.result import AnchorContribution, SearchResult
from zeroshot.tasks.classification.classifier import explain_cosine
from zeroshot.tasks.duplicates.best_copies import first_copies
from zeroshot.tasks.search_options import SearchOptions
from zeroshot.tasks.tuning.recipe import Recipe, check_beside_recipe, recipe_of

PLAIN_SEARCH = "cosine"
"""The method of hits that nothing re-ranks."""
CANCELLED = 1e-4
"""A sum of unit embeddings that is shorter than this has no direction."""


@dataclass(frozen=True)
class Term:
    """One part of a query: a text or an image, added or subtracted."""

    text: str | None = None
    image: Source | None = None
    sign: Literal[1, -1] = 1

    @property
    def label(self) -> str:
        """The text, or `image:` and the image's path."""
        if self.image is None:
            return self.text or ""
        return f"image:{self.image.path or 'in memory'}"


@dataclass(frozen=True)
class Query:
    """Terms; the query is the direction of the sum of their unit embeddings."""

    terms: tuple[Term, ...]

    @property
    def label(self) -> str:
        """`a red heart + image:a.png - blue`; its first term is always added."""
        first, *others = self.terms
        signed = [f" {'+' if term.sign > 0 else '-'} {term.label}" for term in others]
        return first.label + "".join(signed)

    @property
    def only_text(self) -> str | None:
        """The text of a query that has no other term."""
        return self.terms[0].text if len(self.terms) == 1 else None


def term(spec: str, sign: Literal[1, -1] = 1) -> Term:
    """`image:PATH` or `text:TEXT`; else an image if a file has that name, else a text.

    Raises:
        UserError: an empty text, or no such file after `image:` or of a name such as `a.png`.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "image":
        if not os.path.isfile(rest):
            raise no_such(rest)
        return Term(image=Source(rest), sign=sign)
    text = rest if colon and kind == "text" else spec
    if not text.strip():
        raise UserError("the query is empty; give a text or an image")
    if text is spec and os.path.isfile(spec):
        return Term(image=Source(spec), sign=sign)
    suffix = os.path.splitext(spec)[1]
    if text is spec and (PICTURES.fullmatch(suffix) or CLIPS.fullmatch(suffix)):
        raise UserError(f"{no_such(spec)}; 'text:{spec}' searches for these words")
    return Term(text=whole_text(text, "the query"), sign=sign)


def query(first: Term, plus: Sequence[str] = (), minus: Sequence[str] = ()) -> Query:
    """A query of a first term and of the terms that are added and subtracted."""
    return Query((first, *(term(spec) for spec in plus), *(term(spec, -1) for spec in minus)))


def read_queries(path: Path) -> list[Query]:
    """The queries of a file: a text per line, or JSON lines with text or image, plus and minus.

    Raises:
        UserError: a fault in the file; it names the line.
    """
    suffix = suffix_of(path.name)
    if suffix in (".csv", ".tsv", ".json", ".parquet"):
        raise UserError(f"'{path}': queries are a .jsonl file, or a text file with one per line")
    if suffix != ".jsonl":
        queries = [Query((Term(line),)) for _, line in read_lines(path)]
        if not queries:
            raise UserError(f"'{path}' has no queries; write one per line")
        return queries
    queries = []
    for where, row in read_records(path):
        try:
            queries.append(_query_from_row(row))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return queries


def _query_from_row(row: dict[str, Any]) -> Query:
    if row.keys() - {"text", "image", "plus", "minus"} or ("text" in row) == ("image" in row):
        raise UserError('expected {"text": "words"} or {"image": "path"}, also "plus" and "minus"')
    lists = [row.get(key, []) for key in ("plus", "minus")]
    if not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists):
        raise UserError('"plus" and "minus" are lists of texts')
    kind = "text" if "text" in row else "image"
    if not isinstance(row[kind], str):
        raise UserError(f'"{kind}" is a text')
    return query(term(f"{kind}:{row[kind]}"), *lists)


def embed_queries(
    queries: Sequence[Query], encoder: DualEncoder, cache: EmbeddingCache, meter: Meter
) -> QueryTerms:
    """Sums of the queries' unit embeddings in the space that images and texts share, by modality.

    Raises:
        UserError: a text too long, an image that cannot be read, terms that cancel each other.
    """
    parts = [term for query in queries for term in query.terms]
    texts = list(dict.fromkeys(t.text for t in parts if t.text is not None))
    images = [t.image for t in parts if t.image is not None]
    embeddings: dict[object, Tensor] = {}
    if texts:
        check_lengths(texts, text_encoder_of(encoder), "a query")
        encoded = embed_texts(texts, text_encoder_of(encoder), cache, meter)
        embeddings |= dict(zip(texts, project_texts(encoder, encoded), strict=True))
    if images:
        encoded = embed_all(images, image_encoder_of(encoder), cache, meter)
        embeddings |= dict(zip(map(id, images), project_images(encoder, encoded), strict=True))
    width = len(next(iter(embeddings.values())))
    sums = torch.zeros(2, len(queries), width)  # of images, of texts
    signs = torch.zeros(len(queries), 2)
    totals = []
    for q, query in enumerate(queries):
        rows = [t.sign * embeddings[id(t.image) if t.text is None else t.text] for t in query.terms]
        for t, row in zip(query.terms, rows, strict=True):
            kind = int(t.image is None)
            sums[kind, q] += row
            signs[q, kind] += t.sign
        totals.append(torch.stack(rows).sum(0))
    terms = QueryTerms(sums[0], sums[1], signs, torch.stack(totals))
    _unit(terms.total, queries)
    return terms


def _unit(sums: Float[Tensor, "q m"], queries: Sequence[Query]) -> Float[Tensor, "q m"]:
    """Sums of terms at unit length; UserError if nothing is left of one."""
    for total, query in zip(sums, queries, strict=True):
        if total.norm() < CANCELLED:
            raise UserError(f"the terms of '{query.label}' cancel each other: nothing is left")
    return normalize(sums)


def by_recipe(
    options: SearchOptions, bank: Sequence[Query]
) -> tuple[SearchOptions, Sequence[Query]]:
    """The options and the bank, with what their recipe decides, if they have one.

    Raises:
        UserError: not a recipe for a search, or options that it decides.
    """
    if options.recipe is None:
        return options, bank
    recipe = recipe_of(options.recipe, "search")
    check_beside_recipe(options, ("method", "options", "coupling", "bank"))
    (member,) = recipe.members
    options = replace(
        options,
        recipe=recipe,
        method=None if member.method == PLAIN_SEARCH else member.method,
        options=dict(member.options),
        coupling=member.coupling or None,
    )
    return options, [Query((Term(text),)) for text in recipe.bank]


@dataclass(frozen=True)
class SearchAnswer:
    """The hits and the failed images; for each query the number of hits and the best score."""

    results: Sequence[SearchResult]
    counts: Sequence[int]
    best: Sequence[float | None]
    """Of all images, whatever `min_score` is."""
    settings: Mapping[str, Any]
    """What decides the rows, except the images."""


def search(
    queries: Sequence[Query],
    sources: Sequence[Source],
    models: ModelSet,
    options: SearchOptions,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    bank: Sequence[Query] = (),
    batch_size: int = AUTO_BATCH,
    seen: Callable[[int], None] = lambda count: None,
) -> SearchAnswer:
    """The `top_k` best images for each query, then the images that could not be read.

    Args:
        options: as `by_recipe` returns them; `queries` and `bank` take the place of the files,
            `plus` and `minus` in them.
        bank: other queries, for a method that re-ranks.
        seen: called with the number of images that are done since the last call.

    Raises:
        UserError: a query that is too long or cancels itself, options that do not fit each other,
            an encoder that cannot explain its scores.
    """
    models = with_coupling_for_task(models, options.coupling, SENTENCES, cache, meter)
    if isinstance(options.recipe, Recipe):
        options.recipe.check_models(canonical_names(models.encoder))
    asked = prepare(queries, models, options, cache, meter, bank)
    matrix = embedding_matrix(
        sources,
        image_encoder_of(models.encoder),
        cache,
        meter,
        batch_size=batch_size,
        half=options.half,
        seen=seen,
    )
    return answer(asked, matrix, models, options, cache, meter)


@dataclass(frozen=True)
class PreparedQueries:
    """Queries and the bank, checked and encoded, and the method that re-ranks."""

    queries: Sequence[Query]
    terms: QueryTerms
    method: Correction | None
    bank: QueryTerms | None
    bank_queries: Sequence[Query] = ()


def prepare(
    queries: Sequence[Query],
    models: ModelSet,
    options: SearchOptions,
    cache: EmbeddingCache,
    meter: Meter,
    bank: Sequence[Query] = (),
) -> PreparedQueries:
    """The queries, ready to be answered; as for `search`, of models with their coupling."""
    method = correction_of(options, bool(bank))
    if options.hide_duplicates and isinstance(models, ClipModels):
        raise UserError("copies of videos are not looked for: leave hide_duplicates out")
    models.require(language_model=False)
    encoder, index = models.encoder, options.index
    if options.explain and not _explains(encoder):
        raise UnsupportedError(
            "--explain names anchors, of which this encoder's scores are no sum; with a coupled "
            "pair --coupling asif, csa or csa_asif names them"
        )
    if method is not None and index != "exact":
        raise UserError(f"--index {index} searches by plain cosines: leave --method out")
    _check_composed(queries, options)
    terms = embed_queries(queries, encoder, cache, meter)
    bank_terms = embed_queries(bank, encoder, cache, meter) if bank else None
    return PreparedQueries(queries, terms, method, bank_terms, bank)


def _check_composed(queries: Sequence[Query], options: SearchOptions) -> None:
    """UserError for options that do not go with a product, or with captions."""
    if options.explain and options.caption_weight is not None:
        raise UserError("--explain names anchors of an image's cosine: leave --caption-weight out")
    if options.compose == "sum":
        return
    if options.method is not None or options.index != "exact":
        raise UserError("--compose product ranks by itself: leave --method and --index out")
    for query in queries:
        kinds = {term.image is None for term in query.terms}
        if len(kinds) == 1:
            has = "words" if kinds == {True} else "images"
            raise UserError(
                f"--compose product multiplies the similarity to images by that to words, and "
                f"'{query.label}' has only {has}: add the other kind with --plus, or leave "
                "--compose out"
            )


def answer(
    asked: PreparedQueries,
    matrix: EmbeddingMatrix,
    models: ModelSet,
    options: SearchOptions,
    cache: EmbeddingCache,
    meter: Meter,
    gallery: Gallery | None = None,
) -> SearchAnswer:
    """The hits among the images of a matrix, and the images that it says failed.

    `gallery` is that of the matrix, if it is there already.
    """
    queries, method = asked.queries, asked.method
    with meter.stage("scoring"), meter.phase("ranking", counts=False):
        gallery = gallery or gallery_of(matrix, models)
        terms, bank = asked.terms, asked.bank
        if options.caption_weight is not None and len(gallery):
            gallery, means = with_captions(
                gallery, matrix, models.encoder, options.caption_weight, cache, meter
            )
            terms, bank = terms.centred(means), bank and bank.centred(means)
        others = None if bank is None else _unit(bank.total, asked.bank_queries)
        threshold = -math.inf if options.min_score is None else options.min_score
        threshold = float(np.float32(threshold))

        def ranked(count: int) -> Hits:
            if options.compose == "product":
                both = _unit(terms.images, queries), _unit(terms.texts, queries)
                return search_by_product(*both, gallery, count)
            if options.index == "exact":
                return rank(_unit(terms.total, queries), gallery, count, method, others)
            return faiss_index.search(_unit(terms.total, queries), gallery, count, options.index)

        hits, hidden = ranked(options.top_k), None
        if options.hide_duplicates:
            hits, hidden = _distinct(ranked, options.top_k, threshold, matrix)
        results = _results(queries, hits, hidden, matrix, models, options, cache, meter)
        above = [r for r in results if r.score >= threshold]
    counts = [sum(r.query_number == q for r in above) for q in range(len(queries))]
    best = [float(scores[0]) if len(scores) else None for scores in hits.scores]
    failures = [SearchResult(source=f.source, id=f.id, error=f.failure) for f in matrix.failed]
    decided = settings(queries, models, options, asked.bank_queries)
    return SearchAnswer([*above, *failures], counts, best, decided)


def _distinct(
    ranked: Callable[[int], Hits], top_k: int, threshold: float, matrix: EmbeddingMatrix
) -> tuple[Hits, Int[Tensor, "q k"]]:
    """The first `top_k` hits that are no copies of better ones, and how many each of them hides.

    Hidden are the copies that would have come before the last of these hits, or all of them if
    there are fewer hits. More and more hits are compared, until there are enough.
    """
    count = 2 * top_k
    while True:
        hits = ranked(count)
        picked = [
            _without_copies(index, scores, top_k, threshold, matrix)
            for index, scores in zip(hits.index, hits.scores, strict=True)
        ]
        if count >= len(matrix.sources) or all(enough for *_, enough in picked):
            break
        count *= 2
    most = max((len(places) for places, *_ in picked), default=0)
    index, scores, cosines, hidden = (
        torch.full((len(picked), most), -1, dtype=kind)
        for kind in (torch.long, torch.float, torch.float, torch.long)
    )
    for q, (places, copies, _) in enumerate(picked):
        for to, of in ((index, hits.index), (scores, hits.scores), (cosines, hits.cosines)):
            to[q, : len(places)] = of[q, places]
        hidden[q, : len(places)] = torch.tensor(copies, dtype=torch.long)
    return Hits(index, scores, cosines), hidden


def _without_copies(
    index: Int[Tensor, " k"],
    scores: Float[Tensor, " k"],
    top_k: int,
    threshold: float,
    matrix: EmbeddingMatrix,
) -> tuple[list[int], list[int], bool]:
    """Places of one query's hits that are shown, how many each hides, and whether these are all."""
    good = int(((index >= 0) & (scores >= threshold)).sum())
    order = index[:good].tolist()
    first = first_copies(
        [matrix.sources[i] for i in order], [matrix.ids[i] for i in order], matrix.embeddings[order]
    )
    shown = [place for place, head in enumerate(first) if head == place][:top_k]
    full = len(shown) == top_k
    last = shown[-1] if full else good
    hides = Counter(head for place, head in enumerate(first[:last]) if head != place)
    return shown, [hides[place] for place in shown], full or good < len(index)


def _results(
    queries: Sequence[Query],
    hits: Hits,
    hidden: Int[Tensor, "q k"] | None,
    matrix: EmbeddingMatrix,
    models: ModelSet,
    options: SearchOptions,
    cache: EmbeddingCache,
    meter: Meter,
) -> Iterator[SearchResult]:
    used, num_explanations = canonical_names(models.encoder), options.explain
    name = options.method or (PLAIN_SEARCH if options.compose == "sum" else options.compose)
    for q, query in enumerate(queries):
        columns = zip(
            hits.index[q].tolist(),
            hits.scores[q].tolist(),
            hits.cosines[q].tolist(),
            strict=True,
        )
        text = None
        if num_explanations and query.only_text is not None:
            text = embed_texts([query.only_text], text_encoder_of(models.encoder), cache, meter)
        for number, (index, score, cosine) in enumerate(columns, 1):
            if index < 0:  # faiss found no more
                break
            explanation: tuple[AnchorContribution, ...] = ()
            if text is not None:
                explanation = explain_cosine(
                    models.coupled.coupling,
                    matrix.embeddings[index].float(),
                    text,
                    models.anchors,
                    cosine,
                    num_explanations,
                )
            yield SearchResult(
                source=matrix.sources[index],
                id=matrix.ids[index],
                models=used,
                method=name,
                query=query.label,
                query_number=q,
                rank=number,
                score=score,
                cosine=cosine,
                hidden=None if hidden is None else int(hidden[q, number - 1]),
                explanation=explanation,
            )


def _explains(encoder: DualEncoder) -> bool:
    return isinstance(encoder, CoupledEncoder) and hasattr(encoder.coupling, "explain")


def gallery_of(matrix: EmbeddingMatrix, models: ModelSet) -> Gallery:
    """What queries are compared with: the images in the space that they share with texts."""
    return Gallery.of(matrix.embeddings, _projection(models.encoder))


def _projection(encoder: DualEncoder) -> Change | None:
    """The projection of a coupled encoder's images into the joint space, for each block."""
    if not isinstance(encoder, CoupledEncoder):
        return None
    return lambda rows, _: encoder.project_images(rows)


def correction_of(options: SearchOptions, bank: bool) -> Correction | None:
    """The method that re-ranks; None for plain cosines.

    Raises:
        UserError: a method without a bank, or options or a bank without a method.
    """
    if options.method is None:
        if bank:
            raise UserError("--bank is for a method that re-ranks: give --method too")
        if options.options:
            raise UserError("-o is an option of a method that re-ranks; give --method and --bank")
        return None
    if not bank:
        raise UserError("--method re-ranks with a bank of other queries: give --bank too")
    return correction(options.method, dict(options.options))


def settings(
    queries: Sequence[Query], models: ModelSet, options: SearchOptions, bank: Sequence[Query]
) -> dict[str, Any]:
    """The settings that decide the rows, except the images; `models` have their coupling."""
    method = correction_of(options, bool(bank))
    return {
        "models": canonical_names(models.encoder),
        "queries": [query.label for query in queries],
        "method": PLAIN_SEARCH if method is None else methods.name_of(method),
        **({} if options.compose == "sum" else {"compose": options.compose}),
        **({} if options.caption_weight is None else {"caption_weight": options.caption_weight}),
        "options": {} if method is None else methods.values(method),
        "bank": [query.label for query in bank],
        "k": options.top_k,
        "index": options.index,
        "half": options.half,
        **({"hide_duplicates": True} if options.hide_duplicates else {}),
    }
