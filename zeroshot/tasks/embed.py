"""Images to unit embeddings: fills the cache, and returns the embeddings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.embedding import (
    AUTO_BATCH,
    embed_images,
    embed_texts,
    image_encoder_of,
    preprocessing_names,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.results.result import EmbedResult
from zeroshot.tasks.embed_options import EmbedOptions
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
        return EmbedRunner(task=self, cache=cache, batch_size=batch_size)


@dataclass(frozen=True, kw_only=True)
class EmbedRunner(OpenedTask[Embed]):
    """A set with its encoder loaded."""

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        models = self._used()
        if self.task.options.captions:
            models["text_encoder"] = text_encoder_of(self.task.models.encoder).name
        return {"models": models}

    def _used(self) -> dict[str, str]:
        encoder = image_encoder_of(self.task.models.encoder)
        return {"image_encoder": encoder.name} | preprocessing_names(encoder)

    def __call__(self, sources: Iterable[Source], meter: Meter) -> Iterator[EmbedResult]:
        """One result per image, in order; of a coupled pair, embeddings of its image encoder.

        Raises:
            UserError: a source without a caption, if captions are to be embedded.
        """
        encoder, used = self.task.models.encoder, self._used()
        for batch in embed_images(
            sources, image_encoder_of(encoder), self.cache, meter, self.batch_size
        ):
            texts = _captions(batch.sources) if self.task.options.captions else None
            text_embeddings = None
            if texts is not None:
                reader = text_encoder_of(encoder)
                text_embeddings = embed_texts(texts, reader, self.cache, meter).tolist()
            for i, embedding in enumerate(batch.embeddings.tolist()):
                failure = batch.failures[i]
                yield EmbedResult(
                    source=batch.sources[i],
                    id=batch.ids[i],
                    error=failure,
                    models=used,
                    method="embed",
                    embedding=() if failure else tuple(embedding),
                    caption=None if texts is None else texts[i],
                    text_embedding=() if text_embeddings is None else tuple(text_embeddings[i]),
                )


def _captions(sources: Sequence[Source]) -> list[str]:
    for source in sources:
        if "caption" not in source.fields:
            raise UserError(f"'{source.path}' has no caption, but other images have one")
    return [source.fields["caption"] for source in sources]
