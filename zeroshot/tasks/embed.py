"""Images to unit embeddings: fills the cache, and returns the embeddings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    embed_images,
    embed_texts,
    preprocessing_names,
)
from zeroshot.inference.meter import Meter
from zeroshot.inference.remembered_models import image_encoder_alone, text_encoder_alone
from zeroshot.inputs.source import Source
from zeroshot.models.base import ImageEncoder, TextEncoder
from zeroshot.results.result import EmbedResult, Failure
from zeroshot.tasks.embed_options import EmbedOptions
from zeroshot.tasks.filter import caption_failure, caption_of
from zeroshot.tasks.task import OpenedTask, Task


@dataclass(frozen=True, kw_only=True)
class Embed(Task[EmbedOptions]):
    """Embeddings of the set's image encoder."""

    schema: ClassVar[str] = EmbedResult.schema

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "EmbedRunner":
        """Load the encoder."""
        self.models.require(language_model=False)
        of = self.models, cache, meter
        return EmbedRunner(
            task=self,
            cache=cache,
            batch_size=batch_size,
            image_encoder=image_encoder_alone(*of),
            text_encoder=text_encoder_alone(*of) if self.options.captions else None,
        )


@dataclass(frozen=True, kw_only=True)
class EmbedRunner(OpenedTask[Embed]):
    """A set with its encoders."""

    image_encoder: ImageEncoder
    text_encoder: TextEncoder | None
    """For captions."""

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        models = self._used()
        if self.text_encoder is not None:
            models["text_encoder"] = self.text_encoder.name
        return {"models": models}

    def _used(self) -> dict[str, str]:
        encoder = self.image_encoder
        return {"image_encoder": encoder.name} | preprocessing_names(encoder)

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbedResult]:
        """One result per image, in order; of a coupled pair, embeddings of its image encoder.

        If captions are embedded too, an image without one fails.
        """
        used = self._used()
        for batch in embed_images(sources, self.image_encoder, self.cache, meter, self.batch_size):
            failures, texts = list(batch.failures), {}
            if self.text_encoder is not None:
                for i in batch.readable:
                    failures[i] = caption_failure(batch.sources[i])
                meter.failed += sum(map(bool, failures)) - sum(map(bool, batch.failures))
                texts = self._embedded_captions(batch.sources, failures, meter)
            for i, embedding in enumerate(batch.embeddings.tolist()):
                failure, source = failures[i], batch.sources[i]
                yield EmbedResult(
                    source=source,
                    id=batch.ids[i],
                    error=failure,
                    models=used,
                    method="embed",
                    embedding=() if failure else tuple(embedding),
                    caption=caption_of(source) if i in texts else None,
                    text_embedding=texts.get(i, ()),
                )

    def _embedded_captions(
        self, sources: Sequence[Source], failures: Sequence[Failure | None], meter: Meter
    ) -> dict[int, tuple[float, ...]]:
        """The embeddings of the captions, by the indices of the images that did not fail."""
        good = [i for i, failure in enumerate(failures) if failure is None]
        if not good:
            return {}
        texts = [caption_of(sources[i]) for i in good]
        assert self.text_encoder is not None
        rows = embed_texts(texts, self.text_encoder, self.cache, meter).tolist()
        return {i: tuple(row) for i, row in zip(good, rows, strict=True)}
