"""The content ids of pictures, and which of them an output has rows of already."""

import hashlib
from collections.abc import Sequence

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inputs.source import Blob, Picture, Source
from zeroshot.output.resumable import ANY_ID, Output


def known_ids(sources: Sequence[Source], cache: EmbeddingCache) -> list[str | None]:
    """Of files, and of others where that takes no reading; None where there is none."""
    files = [s.path for s in sources if s.content is None and s.path is not None]
    of_files = iter(cache.file_ids(files))
    return [
        next(of_files) if s.content is None and s.path is not None else _known(s, cache)
        for s in sources
    ]


def _known(source: Source, cache: EmbeddingCache) -> str | None:
    if isinstance(source.content, Picture):
        return source.content.id
    if isinstance(source.content, Blob):
        stamp = source.content.stamp
        return None if stamp is None else cache.blob_id(stamp)
    return None


def to_do(sources: Sequence[Source], output: Output, cache: EmbeddingCache) -> list[Source]:
    """Those of which `output` has no row from an earlier run; only namesakes of rows are read."""
    namesakes = [output.has_path(source.path) for source in sources]
    asked = [s for s, named in zip(sources, namesakes, strict=True) if named]
    ids = (_read(s, id, cache) for s, id in zip(asked, known_ids(asked, cache), strict=True))
    return [
        s
        for s, named in zip(sources, namesakes, strict=True)
        if not (named and output.take_row(s.path, next(ids)))
    ]


def _read(source: Source, id: str | None, cache: EmbeddingCache) -> str | None:
    """The id, also of what has to be read for it; any will do for what has no stamp (a URL)."""
    blob = source.content
    if id is not None or not isinstance(blob, Blob):
        return id
    stamp = blob.stamp
    if stamp is None:
        return ANY_ID
    try:
        id = hashlib.sha256(blob.read()).hexdigest()
    except OSError:
        return None
    cache.remember_blob(stamp, id)
    return id
