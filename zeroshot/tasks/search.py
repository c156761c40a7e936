"""Images that answer a query: words, an image, or sums and differences of both."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
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
from zeroshot.inputs.source import Source
from zeroshot.inputs.text_files import read_lines, read_records, suffix_of
from zeroshot.methods.auto import explain
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.ops import normalize
from zeroshot.ranking import faiss_index
from zeroshot.ranking.exact import (
    Change,
    Correction,
    Gallery,
    Hits,
    correction,
    search as rank,
)
from zeroshot.results.result import AnchorContribution, SearchResult
from zeroshot.tasks.search_options import SearchOptions

CANCELLED = 1e-4
"""A sum of unit rows shorter than this has no direction to search in."""


@dataclass(frozen=True)
class Term:
    """One part of a query: words or an image, added or taken away."""

    text: str | None = None
    picture: Source | None = None
    sign: Literal[1, -1] = 1

    @property
    def label(self) -> str:
        """The words, or `image:` and the image's path."""
        if self.picture is None:
            return self.text or ""
        return f"image:{self.picture.path or 'in memory'}"


@dataclass(frozen=True)
class Query:
    """The direction of the sum of its terms' unit rows."""

    terms: tuple[Term, ...]

    @property
    def label(self) -> str:
        """`a red heart + image:a.png - blue`; its first term is always added."""
        first, *others = self.terms
        signed = [f" {'+' if term.sign > 0 else '-'} {term.label}" for term in others]
        return first.label + "".join(signed)

    @property
    def words(self) -> str | None:
        """The query where it is nothing but words."""
        return self.terms[0].text if len(self.terms) == 1 else None


def term(given: str, sign: Literal[1, -1] = 1) -> Term:
    """`image:PATH`, `text:WORDS`, else an image where a file of that name exists, else words.

    Raises:
        UserError: no words, or no such file behind `image:`.
    """
    kind, colon, rest = given.partition(":")
    if colon and kind == "image":
        if not Path(rest).is_file():
            raise UserError(f"'{given}': there is no such file")
        return Term(picture=Source(rest), sign=sign)
    words = rest if colon and kind == "text" else given
    if not words.strip():
        raise UserError("a query without words; give some, or an image")
    if words is given and os.path.isfile(given):
        return Term(picture=Source(given), sign=sign)
    return Term(text=words, sign=sign)


def query(first: Term, plus: Sequence[str] = (), minus: Sequence[str] = ()) -> Query:
    """A query of its first term and of what is added and taken away."""
    added, removed = (term(given) for given in plus), (term(given, -1) for given in minus)
    return Query((first, *added, *removed))


def read_queries(path: Path) -> list[Query]:
    """Queries of a file: one a line, or of a .jsonl file objects with text or image, plus, minus.

    Raises:
        UserError: naming the line.
    """
    suffix = suffix_of(path.name)
    if suffix in (".csv", ".tsv", ".json", ".parquet"):
        raise UserError(f"'{path}': queries are a .jsonl file, or a text file with one a line")
    if suffix != ".jsonl":
        queries = [Query((Term(line),)) for _, line in read_lines(path)]
        if not queries:
            raise UserError(f"'{path}' has no queries; write one a line")
        return queries
    queries = []
    for where, row in read_records(path):
        try:
            queries.append(_query_of(row))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return queries


def _query_of(given: dict[str, Any]) -> Query:
    if given.keys() - {"text", "image", "plus", "minus"} or ("text" in given) == ("image" in given):
        raise UserError('expected {"text": "words"} or {"image": "path"}, also "plus" and "minus"')
    lists = [given.get(key, []) for key in ("plus", "minus")]
    if not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists):
        raise UserError('"plus" and "minus" are lists of texts')
    kind = "text" if "text" in given else "image"
    if not isinstance(given[kind], str):
        raise UserError(f'"{kind}" is a text')
    return query(term(f"{kind}:{given[kind]}"), *lists)


def embed_queries(
    queries: Sequence[Query], encoder: DualEncoder, cache: EmbeddingCache, meter: Meter
) -> Float[Tensor, "q m"]:
    """Unit rows of queries in the space that the encoder's images and texts share.

    Raises:
        UserError: a text too long, an image that cannot be read, terms that cancel each other.
    """
    terms = [term for query in queries for term in query.terms]
    texts = list(dict.fromkeys(t.text for t in terms if t.text is not None))
    pictures = [t.picture for t in terms if t.picture is not None]
    rows: dict[object, Tensor] = {}
    if texts:
        check_lengths(texts, text_encoder_of(encoder), "a query")
        held = embed_texts(texts, text_encoder_of(encoder), cache, meter)
        rows |= dict(zip(texts, project_texts(encoder, held), strict=True))
    if pictures:
        held = embed_all(pictures, image_encoder_of(encoder), cache, meter)
        rows |= dict(zip(map(id, pictures), project_images(encoder, held), strict=True))
    sums = []
    for asked in queries:
        parts = [t.sign * rows[id(t.picture) if t.text is None else t.text] for t in asked.terms]
        total = torch.stack(parts).sum(0)
        if total.norm() < CANCELLED:
            raise UserError(f"the terms of '{asked.label}' cancel each other: nothing is left")
        sums.append(total)
    return normalize(torch.stack(sums))


@dataclass(frozen=True)
class Searched:
    """The rows of an answer, and for each query how many there are and the best score."""

    results: Sequence[SearchResult]
    counts: Sequence[int]
    best: Sequence[float | None]


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
) -> Searched:
    """The `top_k` best images for each query, then the images that could not be read.

    Args:
        options: all but the files of queries, `plus` and `minus`, which are in `queries`.
        bank: other queries, for a method that re-ranks.
        seen: called with the number of images that are done.

    Raises:
        UserError: a query that is too long or cancels itself, options that do not fit each other,
            an encoder that cannot explain its scores.
    """
    method = correction_of(options, bank)
    models.require(language_model=False)
    encoder, index = models.encoder, options.index
    if options.explain and not _explains(encoder):
        raise UserError("--explain names anchors; this encoder has none (asif, csa, csa_asif do)")
    if method is not None and index != "exact":
        raise UserError(f"--index {index} searches by plain cosines: leave the method out")
    asked = embed_queries(queries, encoder, cache, meter)
    known = embed_queries(bank, encoder, cache, meter) if bank else None
    gathered = embedding_matrix(
        sources,
        image_encoder_of(encoder),
        cache,
        meter,
        batch_size=batch_size,
        half=options.half,
        seen=seen,
    )
    with meter.stage("scoring"):
        gallery = Gallery.of(gathered.embeddings, _joined(encoder))
        if index == "exact":
            hits = rank(asked, gallery, options.top_k, method, known)
        else:
            hits = faiss_index.search(asked, gallery, options.top_k, index)
        answers = list(
            _answers(queries, hits, gathered, models, method, cache, meter, options.explain)
        )
    lowest = -math.inf if options.min_score is None else float(np.float32(options.min_score))
    kept = [r for r in answers if r.score >= lowest]
    counts = [sum(r.query_number == q for r in kept) for q in range(len(queries))]
    best = [float(row[0]) if len(row) else None for row in hits.scores]
    failures = [SearchResult(source=f.source, id=f.id, error=f.failure) for f in gathered.failed]
    return Searched([*kept, *failures], counts, best)


def _answers(
    queries: Sequence[Query],
    hits: Hits,
    gathered: EmbeddingMatrix,
    models: ModelSet,
    method: Correction | None,
    cache: EmbeddingCache,
    meter: Meter,
    explained: int,
) -> Iterator[SearchResult]:
    used = canonical_names(models.encoder)
    name = "cosine" if method is None else methods.name_of(method)
    for q, asked in enumerate(queries):
        columns = zip(
            hits.index[q].tolist(),
            hits.scores[q].tolist(),
            hits.cosines[q].tolist(),
            strict=True,
        )
        row = None
        if explained and asked.words is not None:
            row = embed_texts([asked.words], text_encoder_of(models.encoder), cache, meter)
        for number, (place, score, cosine) in enumerate(columns, 1):
            if place < 0:  # an index found no more
                break
            yield SearchResult(
                source=gathered.sources[place],
                id=gathered.ids[place],
                models=used,
                method=name,
                query=asked.label,
                query_number=q,
                rank=number,
                score=score,
                cosine=cosine,
                explanation=()
                if row is None
                else _explanation(
                    models, gathered.embeddings[place].float(), row, cosine, explained
                ),
            )


def _explanation(
    models: ModelSet,
    picture: Float[Tensor, " d"],
    text: Float[Tensor, "1 e"],
    cosine: float,
    count: int,
) -> tuple[AnchorContribution, ...]:
    """The anchors that contribute to a hit, their shares scaled to its cosine."""
    found = explain(models.coupled.coupling, picture, text, count)
    scale = cosine / found.score if found.score else 0.0
    return tuple(
        AnchorContribution(entry.id, share * scale, entry.captions, entry.path)
        for place, share in zip(found.anchors, found.shares, strict=True)
        for entry in [models.anchors.entries[place]]
    )


def _explains(encoder: DualEncoder) -> bool:
    return isinstance(encoder, CoupledEncoder) and hasattr(encoder.coupling, "explain")


def _joined(encoder: DualEncoder) -> Change | None:
    """What brings a gallery's rows into the joint space, block by block, where there is one."""
    if not isinstance(encoder, CoupledEncoder):
        return None
    return lambda rows, _: encoder.project_images(rows)


def correction_of(options: SearchOptions, bank: Sequence[Query]) -> Correction | None:
    """The method that re-ranks; None for plain cosines.

    Raises:
        UserError: a method without a bank, or options or a bank without a method.
    """
    if options.method is None:
        if bank:
            raise UserError("a bank of queries is for a method that re-ranks: give --method too")
        if options.options:
            raise UserError("-o is an option of a method that re-ranks; give --method and --bank")
        return None
    if not bank:
        raise UserError("--method re-ranks with a bank of other queries: give --bank too")
    return correction(options.method, dict(options.options))


def settings(
    queries: Sequence[Query], models: ModelSet, options: SearchOptions, bank: Sequence[Query]
) -> dict[str, Any]:
    """What decides the rows, but for the images."""
    method = correction_of(options, bank)
    return {
        "models": canonical_names(models.encoder),
        "queries": [query.label for query in queries],
        "method": "cosine" if method is None else methods.name_of(method),
        "options": {} if method is None else methods.values(method),
        "bank": [query.label for query in bank],
        "k": options.top_k,
        "index": options.index,
        "half": options.half,
    }
