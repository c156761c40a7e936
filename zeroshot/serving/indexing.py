"""Embedding many images in short turns, so that requests are answered in between.

Later images are read between two turns: the encoder finds them decoded when its turn comes.
"""

import time
from collections.abc import Iterator, Sequence

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import image_encoder_of
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch, EmbeddingPipeline
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet

TURN = 0.25
"""Seconds of a turn, and of a batch, as far as that is possible."""
AT_ONCE = 8
"""Images that are encoded together at first."""


class Indexing:
    """One pass over images; `turn` runs in the thread that owns the models."""

    def __init__(
        self,
        sources: Sequence[Source],
        models: ModelSet,
        cache: EmbeddingCache,
        meter: Meter,
        most: int,
    ) -> None:
        self._sources = sources
        self._models = models
        self._cache = cache
        self._meter = meter
        self._most = most
        """Images in a batch."""
        self._size = min(AT_ONCE, most)
        self._done = 0
        self._pipeline: EmbeddingPipeline | None = None
        self._batches: Iterator[EmbeddingBatch] = iter(())

    def turn(self) -> list[EmbeddingBatch]:
        """The next batches, in order; none at the end."""
        if self._pipeline is None:
            rest = self._sources[self._done :]
            encoder = image_encoder_of(self._models.encoder)
            self._pipeline = EmbeddingPipeline(rest, encoder, self._cache, self._meter, self._size)
            self._batches = iter(self._pipeline)
        begin = time.monotonic()
        some: list[EmbeddingBatch] = []
        for batch in self._batches:
            some.append(batch)
            self._done += len(batch.sources)
            if time.monotonic() - begin > TURN:
                break
        if some:
            self._resize((time.monotonic() - begin) / len(some))
        return some

    def _resize(self, seconds: float) -> None:
        """Other batches from now on, if one takes much more or less than a turn."""
        size = self._size
        if seconds < TURN / 2:
            size = min(2 * size, self._most)
        elif seconds > 2 * TURN:
            size = max(AT_ONCE // 2, size // 2)
        if size != self._size:
            self._size = size
            self.close()

    def close(self) -> None:
        """Leave no thread behind."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None
