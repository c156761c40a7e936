"""Embeddings as one Parquet file, for vector databases and data frames.

    id         string              sha256 of the image file or of the text
    paths      list<string>        files that had this content when they were hashed
    embedding  float32[d]          a list of fixed size, float16 with `half`

The schema's metadata has `encoder` (model, revision, preprocessing), `kind` and `dim`. Row groups
have `GROUP` bytes of embeddings, so neither writing nor reading needs more at a time.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot.cache.segments import Vectors
from zeroshot.errors import NotAvailableError
from zeroshot.output import atomic
from zeroshot.packaging.extras import how_to_install

Exported = tuple[Vectors, list[str], list[list[str]]]
"""Embeddings `[n d]`, their ids, and the paths of each."""
GROUP = 16 * 2**20


def write_parquet(
    target: Path,
    batches: Iterable[Exported],
    dim: int,
    metadata: Mapping[str, str],
    *,
    half: bool = False,
) -> int:
    """Write all batches; returns the number of embeddings. An earlier file is replaced at the end.

    Raises:
        NotAvailableError: pyarrow is not installed. OutputError: the file cannot be written.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError:
        how = how_to_install("data")
        raise NotAvailableError(f"Parquet needs pyarrow: {how}, or export .safetensors") from None
    number = arrow.float16() if half else arrow.float32()
    columns = [
        arrow.field("id", arrow.string(), nullable=False),
        arrow.field("paths", arrow.list_(arrow.string()), nullable=False),
        arrow.field("embedding", arrow.list_(number, dim), nullable=False),
    ]
    schema = arrow.schema(columns, metadata=dict(metadata))
    most = max(1, GROUP // (dim * (2 if half else 4)))
    count, waiting = 0, 0
    held: list[Any] = []

    def flush(writer: Any) -> None:
        writer.write_table(arrow.Table.from_batches(held, schema), row_group_size=most)
        held.clear()

    with atomic.whole(target) as file:
        options = {"use_dictionary": ["paths"], "write_statistics": ["id"]}
        with arrow.parquet.ParquetWriter(file, schema, **options) as writer:
            for vectors, ids, paths in batches:
                flat = arrow.array(
                    vectors.astype(np.float16 if half else np.float32).ravel(), number
                )
                rows = arrow.FixedSizeListArray.from_arrays(flat, dim)
                names = arrow.array(paths, arrow.list_(arrow.string()))
                held.append(arrow.record_batch([arrow.array(ids), names, rows], schema=schema))
                count, waiting = count + len(ids), waiting + len(ids)
                if waiting >= most:
                    flush(writer)
                    waiting = 0
            if held:
                flush(writer)
    return count
