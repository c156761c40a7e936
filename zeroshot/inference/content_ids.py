"""The content ids of images, and the images that an output has no row of yet."""

import hashlib
from collections.abc import Sequence

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inputs.source import Blob, Picture, Source
from zeroshot.output.resumable import ANY_ID, ResumableFile


def known_ids(sources: Sequence[Source], cache: EmbeddingCache) -> list[str | None]:
    """The ids of files, and of other images if they are known without reading; else None."""
    files = [s.path for s in sources if s.content is None and s.path is not None]
    file_ids = iter(cache.file_ids(files))
    return [
        next(file_ids) if s.content is None and s.path is not None else _known_id(s, cache)
        for s in sources
    ]


def _known_id(source: Source, cache: EmbeddingCache) -> str | None:
    if isinstance(source.content, Picture):
        return source.content.id
    if isinstance(source.content, Blob):
        stamp = source.content.stamp
        return None if stamp is None else cache.blob_id(stamp)
    return None


def to_do(sources: Sequence[Source], output: ResumableFile, cache: EmbeddingCache) -> list[Source]:
    """The images of which `output` has no row. An image is read only if a row has its path.

    Raises:
        UserError: an image has more equal rows than it is named.
    """
    has_path = [output.has_path(source.path) for source in sources]
    to_check = [s for s, known in zip(sources, has_path, strict=True) if known]
    known_before = known_ids(to_check, cache)
    ids = [_read_id(s, id, cache) for s, id in zip(to_check, known_before, strict=True)]
    next_id = iter(ids)
    left = [
        s
        for s, known in zip(sources, has_path, strict=True)
        if not (known and output.take_row(s.path, next(next_id)))
    ]
    for source, id in zip(to_check, ids, strict=True):
        output.check_doubles(source.path, id)
    return left


def _read_id(source: Source, id: str | None, cache: EmbeddingCache) -> str | None:
    """The id, which is read if it is not known; `ANY_ID` for an image without stamp (a URL)."""
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
