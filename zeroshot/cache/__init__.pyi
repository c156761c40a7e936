from .embedding_cache import (
    CacheInfo as CacheInfo,
    EmbeddingCache as EmbeddingCache,
    NullCache as NullCache,
    SpaceInfo as SpaceInfo,
    erase as erase,
)
