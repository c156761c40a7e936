"""Requests to answers: the tasks, rows, cache and errors of the command line, many at a time.

Requests that differ only in their image, or their text, are one kind: the `Batcher` gives them to
one call of the task's runner. Runners (encoded labels, loaded models) are kept for the next request
of their kind. All of it runs in the thread that owns the models.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnsupportedError, UserError
from zeroshot.inference.coupled_models import SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import (
    canonical_names,
    check_lengths,
    embed_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inference.remembered_coupling import fitted_coupling
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet
from zeroshot.ops import BLOCK
from zeroshot.ranking.exact import Gallery
from zeroshot.results.result import CaptionResult, ClassifyResult, Result, SearchResult
from zeroshot.serving.batcher import AbandonedError, Batcher
from zeroshot.serving.folders import Snapshot
from zeroshot.serving.indexing import Indexing
from zeroshot.serving.operations import OPERATIONS, Asked, check_candidates, read_request
from zeroshot.tasks import search as searching
from zeroshot.tasks.captioning import captioner
from zeroshot.tasks.captioning.caption_task import CaptionRunner
from zeroshot.tasks.search import Query, Term
from zeroshot.tasks.search_options import SearchOptions
from zeroshot.tasks.task import Runner, is_transductive

OPENED = 32
"""Runners that are kept."""
REMEMBERED = 100_000
"""Captions that are kept, for the page's descriptions of its images."""
FACETS = 8
"""Sets of labels whose answers for all images are kept."""
MOST_CACHED = 1 << 30
"""Bytes of embeddings that requests may add to the cache while a server runs: a client who sends
new texts all day must not fill the disk. The served folders are not counted."""
GALLERIES = 4
"""Sets of images that are kept as queries are compared with them."""
MAPPED = 1 << 26
"""Numbers that such a set may have if it is kept mapped into the joint space of a coupling."""
PENDING = 10_000
"""Embeddings of requests that may wait to be written."""
NOTHING = "a photo"
"""What an image without any of the page's labels is compared with."""

WriteText = Callable[[str], bool]
"""Takes the text so far; False if nobody listens any more."""


@dataclass(frozen=True)
class FacetTable:
    """The best label of every image of a snapshot, and how much better it fits than nothing."""

    labels: Sequence[str]
    best: Int[Tensor, " n"]
    scores: Float[Tensor, " n"]
    """The label's softmax probability against the neutral text."""

    def chosen(self, threshold: float) -> Int[Tensor, " n"]:
        """The index of each image's label; -1 for none of these."""
        return self.best.where(self.scores >= threshold, -1)


class Engine:
    """A model set, the cache, and the thread that uses both."""

    def __init__(
        self, models: ModelSet, cache: EmbeddingCache, batch_size: int, capacity: int = 256
    ) -> None:
        self.models = models
        self.cache = cache
        self.batch_size = batch_size
        self.meter = Meter()
        self.batcher = Batcher(capacity)
        self.captions: OrderedDict[str, str] = OrderedDict()
        """The set's own caption of an image, by its id."""
        self._opened: OrderedDict[Hashable, Runner] = OrderedDict()
        self._facets: OrderedDict[Hashable, FacetTable] = OrderedDict()
        self._galleries: OrderedDict[Hashable, Gallery] = OrderedDict()
        self._for_requests = _RequestCache(cache, MOST_CACHED)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self.batcher.close()
        self._for_requests.close()

    def load(self) -> None:
        """Load the encoder, so that the first request need not wait for it.

        Raises:
            NotAvailableError: a model that is not here.
        """

        def work(items: Sequence[None]) -> Sequence[None]:
            self.models.require(language_model=False)
            self.texts_now(["a photo"])
            if self.models.spec.encoder is None:
                fitted_coupling(self.search_models.coupled)
            return items

        self.batcher.submit("load", work, None).result()

    @cached_property
    def search_models(self) -> ModelSet:
        """The set with its coupling for queries; asked for in the thread that owns the models."""
        return with_coupling_for_task(self.models, None, SENTENCES, self.cache, Meter())

    # What the set can do

    @cached_property
    def cannot(self) -> Mapping[str, str]:
        """Why the set cannot do what it cannot do."""
        reasons = {}
        for name in ("segment", "detect", "explain"):
            try:
                self._check(name)
            except UnsupportedError as error:
                reasons[name] = str(error)
        if self.models.spec.language_model is None:
            reasons["caption"] = f"model set '{self.models.name}' has no language model"
        return reasons

    def _check(self, name: str) -> None:
        def work(items: Sequence[Any]) -> Sequence[Any]:
            if name == "explain":
                query = Query((Term("a photo"),))
                options = SearchOptions(explain=1)
                searching.prepare([query], self.search_models, options, self.cache, Meter())
            else:
                self._open(read_request(OPERATIONS[name], {"labels": ["photo"]}))
            return items

        self.batcher.submit(("check", name), work, None).result()

    @cached_property
    def captioners(self) -> Mapping[str, bool]:
        """The methods that caption with this set, its own first: do they write word by word?"""
        own = captioner.captioner(self.models, None, {})
        found = {methods_name(own): "written" in own.takes}
        return found | ({"magic": True} if self.models.spec.language_model else {})

    @property
    def names(self) -> Mapping[str, str]:
        """Canonical names of the set's encoders."""
        return canonical_names(self.models.encoder)

    # Requests

    def texts(self, texts: Sequence[str]) -> "Future[tuple[Float[Tensor, 'n d'], int]]":
        """Unit embeddings of texts by the set's text encoder, and the number of their tokens."""

        def work(items: Sequence[Sequence[str]]) -> Sequence[Any]:
            flat, sizes = [text for item in items for text in item], [len(item) for item in items]
            counts = torch.tensor(text_encoder_of(self.models.encoder).count_tokens(flat))
            embeddings, ends = self.texts_now(flat), torch.tensor(sizes).cumsum(0)[:-1]
            parts = zip(embeddings.tensor_split(ends), counts.tensor_split(ends), strict=True)
            return [(rows, int(tokens.sum())) for rows, tokens in parts]

        return self.batcher.submit("texts", work, list(texts))

    def texts_now(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """As `texts`, in the thread that owns the models."""
        encoder = text_encoder_of(self.models.encoder)
        check_lengths(texts, encoder, "a text")
        return embed_texts(texts, encoder, self._for_requests, self.meter)

    def row(
        self, asked: Asked, source: Source, written: WriteText | None = None
    ) -> "Future[Result]":
        """The result of one image; `written` gets a caption while it is written."""

        def work(items: Sequence[tuple[Source, WriteText | None]]) -> Sequence[Any]:
            runner = self._open(asked)
            listeners = {id(source): listen for source, listen in items if listen is not None}
            if not listeners or not isinstance(runner, CaptionRunner):
                return list(runner([source for source, _ in items], self.meter))

            left = set()

            def tell(source: Source, text: str) -> None:
                listen = listeners.get(id(source))
                if listen is not None and not listen(text):
                    left.add(id(source))
                    if len(left) == len(items):
                        raise AbandonedError("all clients have left")

            sources = [source for source, _ in items]
            return list(runner(sources, self.meter, tell))

        future = self.batcher.submit(asked.key, work, (source, written))
        if asked.operation.name == "caption" and not asked.given:
            future.add_done_callback(self._remember)
        return future

    def _remember(self, future: "Future[Any]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        result = future.result()
        if isinstance(result, CaptionResult) and result.caption and result.id:
            with self._lock:
                self.captions[result.id] = result.caption
                while len(self.captions) > REMEMBERED:
                    self.captions.popitem(last=False)

    def _open(self, asked: Asked) -> Runner:
        """The runner of a request, opened now or for an earlier one."""
        runner = self._opened.get(asked.key)
        if runner is None:
            task = asked.task(self.models)
            runner = task.open(self._for_requests, self.meter, self.batch_size)
            if isinstance(runner, CaptionRunner):
                check_candidates(options_of(runner.method))
            if is_transductive(runner):
                raise UserError(
                    f"method '{asked.given.get('method')}' scores all images together, and a "
                    "request has one: use the command line, or another method"
                )
            self._opened[asked.key] = runner
            while len(self._opened) > OPENED:
                self._opened.popitem(last=False)
        self._opened.move_to_end(asked.key)
        return runner

    # The served folders

    def index(self, sources: Sequence[Source]) -> Generator[EmbeddingBatch]:
        """Embeddings of images of the served folders, in order; requests go first in between."""
        run = Indexing(sources, self.models, self.cache, self.meter, self.batch_size)

        def work(items: Sequence[None]) -> Sequence[list[EmbeddingBatch]]:
            return [run.turn()]

        try:
            while batches := self.batcher.submit("index", work, None, background=True).result():
                yield from batches
        finally:
            run.close()

    def search(
        self, query: Query, options: SearchOptions, snapshot: Snapshot, part: Hashable = None
    ) -> "Future[list[SearchResult]]":
        """The hits of one query among the images of a snapshot.

        `part` tells apart the snapshots of one version.
        """

        def work(items: Sequence[Query]) -> Sequence[list[SearchResult]]:
            cache = self._for_requests
            asked = searching.prepare(items, self.search_models, options, cache, self.meter)
            if not len(snapshot):
                return [[] for _ in items]
            gallery = self._gallery((snapshot.version, part), snapshot)
            found = searching.answer(
                asked, snapshot.matrix, self.search_models, options, cache, self.meter, gallery
            )
            hits: list[list[SearchResult]] = [[] for _ in items]
            for result in found.results:
                if result.error is None:
                    hits[result.query_number].append(result)
            return hits

        kind = ("search", options.top_k, options.min_score, options.explain, snapshot.version, part)
        return self.batcher.submit(kind, work, query)

    def _gallery(self, key: Hashable, snapshot: Snapshot) -> Gallery:
        """The images as queries are compared with them, mapped into the joint space only once."""
        gallery = self._galleries.get(key)
        if gallery is None:
            gallery = searching.gallery_of(snapshot.matrix, self.search_models)
            width = gallery.take(torch.zeros(1, dtype=torch.long)).shape[1]
            if width * len(snapshot) <= MAPPED:
                gallery = Gallery(torch.cat(list(gallery.blocks(BLOCK))))
            self._galleries[key] = gallery
            while len(self._galleries) > GALLERIES:
                self._galleries.popitem(last=False)
        return gallery

    def facets(
        self, labels: Sequence[str], nothing: str, snapshot: Snapshot
    ) -> "Future[FacetTable]":
        """The best label of every image, from the embeddings that are there."""
        given = {"labels": list(labels), "multi": True, "against": [nothing], "top_k": 1}
        asked = read_request(OPERATIONS["classify"], given)
        kind = ("facets", asked.key, snapshot.version)

        def work(items: Sequence[None]) -> Sequence[FacetTable]:
            table = self._facets.get(kind)
            if table is None:
                table = self._facets[kind] = self._facet_table(asked, snapshot)
                while len(self._facets) > FACETS:
                    self._facets.popitem(last=False)
            return [table] * len(items)

        return self.batcher.submit(kind, work, None)

    def _facet_table(self, asked: Asked, snapshot: Snapshot) -> FacetTable:
        runner, matrix = self._open(asked), snapshot.matrix
        labels = list(asked.given["labels"])
        if not len(snapshot):
            return FacetTable(labels, torch.zeros(0, dtype=torch.long), torch.zeros(0))
        everything = EmbeddingBatch(
            matrix.sources, matrix.ids, matrix.embeddings, [None] * len(snapshot)
        )
        results: list[ClassifyResult] = list(runner.score(everything, self.meter))  # type: ignore[attr-defined]
        index = {label: i for i, label in enumerate(labels)}
        best = torch.tensor([index[result.labels[0].label] for result in results])
        return FacetTable(labels, best, torch.tensor([r.labels[0].score for r in results]))


def methods_name(method: Any) -> str:
    """The name of a configured method."""
    from zeroshot import methods

    return methods.name_of(method)


def options_of(method: Any) -> dict[str, Any]:
    """The option values of a configured method."""
    from zeroshot import methods

    return methods.values(method)


class _RequestCache(EmbeddingCache):
    """The same cache for requests, which may add only so much to it.

    What they add is written by a thread, because a write waits for the disk and an answer need not.
    """

    def __init__(self, cache: EmbeddingCache, most: int) -> None:
        self._cache = cache
        self._left = most
        self._pending: dict[tuple[str, str, str], Tensor] = {}
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache-writer")

    @property
    def write_error(self) -> str | None:
        return self._cache.write_error

    def file_id(self, path: Any) -> str:
        return self._cache.file_id(path)

    def file_ids(self, paths: Sequence[Any]) -> list[str | None]:
        return self._cache.file_ids(paths)

    def note(self, *key: object) -> Any:
        return self._cache.note(*key)

    def write_note(self, value: object, *key: object) -> None:
        self._cache.write_note(value, *key)

    def blob_id(self, stamp: str) -> str | None:
        return self._cache.blob_id(stamp)

    def remember_blob(self, stamp: str, id: str) -> None:
        self._cache.remember_blob(stamp, id)

    def get(self, encoder: str, kind: str, ids: Sequence[str]) -> Any:
        with self._lock:
            waiting = [self._pending.get((encoder, kind, id)) for id in ids]
        if not any(row is not None for row in waiting):
            return self._cache.get(encoder, kind, ids)
        rest = [id for id, row in zip(ids, waiting, strict=True) if row is None]
        rows, found = self._cache.get(encoder, kind, rest)
        stored, hits = iter(rows), iter(found.tolist())
        every = [next(stored) if row is None and next(hits) else row for row in waiting]
        mask = torch.tensor([row is not None for row in every])
        return torch.stack([row for row in every if row is not None]), mask

    def put(self, encoder: str, kind: str, ids: Sequence[str], rows: Float[Tensor, "n d"]) -> None:
        if not rows.isfinite().all():
            raise ValueError(f"encoder '{encoder}' gave embeddings that are not finite")
        self._left -= 4 * rows.numel()
        if self._left < 0:
            return
        given = rows.detach().float().cpu()
        keys = [(encoder, kind, id) for id in ids]
        with self._lock:
            self._pending.update(zip(keys, given, strict=True))
            full = len(self._pending) > PENDING
        writing = self._writer.submit(self._write, keys, given)
        if full:
            writing.result()

    def _write(self, keys: Sequence[tuple[str, str, str]], rows: Tensor) -> None:
        try:
            encoder, kind, _ = keys[0]
            self._cache.put(encoder, kind, [id for _, _, id in keys], rows)
        finally:
            with self._lock:
                for key in keys:
                    self._pending.pop(key, None)

    def close(self) -> None:
        """Write what waits."""
        self._writer.shutdown()
