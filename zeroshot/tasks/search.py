"""Pictures that answer a query: words, a picture, or sums and differences of both."""

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
    embed_all,
    embed_texts,
    image_side,
    join_images,
    join_texts,
    refuse_long,
    text_side,
)
from zeroshot.inference.embedding_matrix import Gathered, gather
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.inputs.text_files import read_lines, read_records, suffix_of
from zeroshot.methods.auto import explain
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.ops import normalize
from zeroshot.ranking import faiss_index
from zeroshot.ranking.exact import Change, Correction, Gallery, Hits, search as rank
from zeroshot.results.result import Reason, SearchResult

CANCELLED = 1e-4
"""A sum of unit rows shorter than this has no direction to search in."""


@dataclass(frozen=True)
class Term:
    """One part of a query: words or a picture, added or taken away."""

    text: str | None = None
    picture: Source | None = None
    sign: Literal[1, -1] = 1

    @property
    def label(self) -> str:
        """The words, or `image:` and the picture's path."""
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
    """`image:PATH`, `text:WORDS`, else a picture where a file of that name exists, else words.

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
        raise UserError("a query without words; give some, or a picture")
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
        UserError: a text too long, a picture that cannot be read, terms that cancel each other.
    """
    terms = [term for query in queries for term in query.terms]
    texts = list(dict.fromkeys(t.text for t in terms if t.text is not None))
    pictures = [t.picture for t in terms if t.picture is not None]
    rows: dict[object, Tensor] = {}
    if texts:
        refuse_long(texts, text_side(encoder), "a query")
        held = embed_texts(texts, text_side(encoder), cache, meter)
        rows |= dict(zip(texts, join_texts(encoder, held), strict=True))
    if pictures:
        held = embed_all(pictures, image_side(encoder), cache, meter)
        rows |= dict(zip(map(id, pictures), join_images(encoder, held), strict=True))
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
    cache: EmbeddingCache,
    meter: Meter,
    *,
    k: int = 10,
    min_score: float | None = None,
    method: Correction | None = None,
    bank: Sequence[Query] = (),
    explained: int = 0,
    index: Literal["exact", "ivf", "ivfpq"] = "exact",
    half: bool = False,
    batch_size: int = AUTO_BATCH,
    seen: Callable[[int], None] = lambda count: None,
) -> Searched:
    """The `k` best pictures for each query, then the pictures that could not be read.

    Args:
        min_score: leave out what scores less.
        method: re-ranks, by the queries of `bank`.
        explained: anchors to name for each hit of a query of words alone (couplings).
        index: how to search; all but `exact` are approximate, and take no method.
        half: keep the rows in float16 while they are searched; scores are float32 all the same.
        seen: told how many pictures are done, as they are.

    Raises:
        UserError: a query that cannot be asked, an encoder that cannot explain itself.
    """
    models.require(language_model=False)
    encoder = models.encoder
    if explained and not _explains(encoder):
        raise UserError("--explain names anchors; this encoder has none (asif, csa, csa_asif do)")
    if method is not None and index != "exact":
        raise UserError(f"--index {index} searches by plain cosines: leave the method out")
    asked = embed_queries(queries, encoder, cache, meter)
    known = embed_queries(bank, encoder, cache, meter) if bank else None
    gathered = gather(
        sources, image_side(encoder), cache, meter, batch_size=batch_size, half=half, seen=seen
    )
    with meter.stage("scoring"):
        gallery = Gallery.of(gathered.rows, _joined(encoder))
        if index == "exact":
            hits = rank(asked, gallery, k, method, known)
        else:
            hits = faiss_index.search(asked, gallery, k, index)
        answers = list(_answers(queries, hits, gathered, models, method, cache, meter, explained))
    least = -math.inf if min_score is None else float(np.float32(min_score))
    kept = [r for r in answers if r.score >= least]
    counts = [sum(r.query_number == q for r in kept) for q in range(len(queries))]
    best = [float(row[0]) if len(row) else None for row in hits.scores]
    failures = [SearchResult(source=f.source, id=f.id, error=f.failure) for f in gathered.failed]
    return Searched([*kept, *failures], counts, best)


def _answers(
    queries: Sequence[Query],
    hits: Hits,
    gathered: Gathered,
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
            row = embed_texts([asked.words], text_side(models.encoder), cache, meter)
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
                because=()
                if row is None
                else _because(models, gathered.rows[place].float(), row, cosine, explained),
            )


def _because(
    models: ModelSet,
    picture: Float[Tensor, " d"],
    text: Float[Tensor, "1 e"],
    cosine: float,
    count: int,
) -> tuple[Reason, ...]:
    """The anchors that carried a hit, their shares scaled to its cosine."""
    found = explain(models.coupled.coupling, picture, text, count)
    scale = cosine / found.score if found.score else 0.0
    return tuple(
        Reason(entry.id, share * scale, entry.captions, entry.path)
        for place, share in zip(found.anchors, found.shares, strict=True)
        for entry in [models.anchors.entries[place]]
    )


def _explains(encoder: DualEncoder) -> bool:
    return isinstance(encoder, CoupledEncoder) and hasattr(encoder.coupling, "explain")


def _joined(encoder: DualEncoder) -> Change | None:
    """What brings a gallery's rows into the joint space, block by block, where there is one."""
    if not isinstance(encoder, CoupledEncoder):
        return None
    return lambda rows, _: encoder.join_images(rows)


def settings(
    queries: Sequence[Query],
    models: ModelSet,
    method: Correction | None,
    bank: Sequence[Query],
    **more: Any,
) -> dict[str, Any]:
    """What decides the rows, but for the pictures."""
    return {
        "models": canonical_names(models.encoder),
        "queries": [asked.label for asked in queries],
        "method": "cosine" if method is None else methods.name_of(method),
        "options": {} if method is None else methods.values(method),
        "bank": [asked.label for asked in bank],
        **more,
    }
