"""Pairs to anchors: encode, import, edit, describe.

Every embedding goes through the cache before it is written. A build that was killed therefore
continues where it stopped, and encodes only its last batch again.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.pairs import Pair
from zeroshot.errors import UserError, no_such
from zeroshot.inference.embedding import AUTO_BATCH, embed_images, embed_texts
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._coupling_report import Report
from zeroshot.methods.auto import Auto
from zeroshot.metrics import alignment
from zeroshot.model_set.anchor_file import Anchors, Entry, VectorFormat
from zeroshot.model_set.anchor_writer import AnchorWriter
from zeroshot.models.base import ImageEncoder, TextEncoder
from zeroshot.models.names import parse
from zeroshot.ops import normalize, topk_stream
from zeroshot.results.result import Failure
from zeroshot.tasks.classification.arrays import read_arrays

Captions = Literal["mean", "each"]
SAMPLE = 1000
"""Number of pairs for the diagnostics."""


@dataclass(frozen=True)
class EncodedPairs:
    """A batch of pairs, encoded; a pair whose image cannot be read is only in `failures`."""

    images: Float[Tensor, "n d"]
    texts: Float[Tensor, "n e"]
    entries: list[Entry]
    failures: list[tuple[str, Failure]]


def encode(
    pairs: Iterable[Pair],
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    captions: Captions = "mean",
    batch_size: int = AUTO_BATCH,
) -> Iterator[EncodedPairs]:
    """Embeddings of every pair, batch by batch.

    Args:
        captions: `mean` makes one anchor per image, whose text is the unit mean of its captions'
            unit embeddings; `each` makes one anchor per caption.
    """
    begun: deque[Pair] = deque()

    def sources() -> Iterator[Source]:
        for pair in pairs:
            begun.append(pair)
            yield pair.source

    for batch in embed_images(sources(), image_encoder, cache, meter, batch_size):
        batch_pairs = [begun.popleft() for _ in batch.sources]
        failures = [
            (pair.id, failure)
            for pair, failure in zip(batch_pairs, batch.failures, strict=True)
            if failure is not None
        ]
        good = [batch_pairs[i] for i in batch.readable]
        flat = [text for pair in good for text in pair.captions]
        texts = embed_texts(flat, text_encoder, cache, meter)
        counts = [len(pair.captions) for pair in good]
        entries = [_entry(pair) for pair in good]
        images = batch.embeddings[batch.readable]
        if captions == "each":
            images = images.repeat_interleave(torch.tensor(counts, dtype=torch.long), dim=0)
            entries = [
                Entry(f"{entry.id}#{number}", (text,), entry.path)
                for entry in entries
                for number, text in enumerate(entry.captions)
            ]
        elif good:
            parts = torch.split(texts, counts)
            texts = torch.stack([normalize(normalize(part).mean(0)) for part in parts])
        yield EncodedPairs(images, texts, entries, failures)


def _entry(pair: Pair) -> Entry:
    in_memory = pair.source.content is not None
    return Entry(pair.id, pair.captions, None if in_memory else pair.source.path)


def manifest(out: Path, names: Mapping[str, str | None]) -> str:
    """The text of a `models.toml` that makes an anchor file a model set."""
    models = {part: str(parse(name)) for part, name in names.items() if name is not None}
    tables = [f"[{part}]\nmodel = {json.dumps(model)}\n" for part, model in models.items()]
    coupling = f'[coupling]\nmethod = "auto"\nanchors = {json.dumps(out.name)}\n'
    return "\n".join([*tables, coupling])


def coupling_table(anchors: Anchors, report: Report) -> str:
    """The coupling that `auto` chose, for a `models.toml`, so that no run chooses again."""
    coupling = report.chosen.coupling
    options = [
        f"{name} = {json.dumps(getattr(coupling, name))}"
        for name in methods.options(type(coupling))
    ]
    head = [f'method = "{methods.name_of(coupling)}"', f"anchors = {json.dumps(anchors.path.name)}"]
    return "\n".join(["[coupling]", *head, *options])


def from_arrays(
    path: Path,
    captions: Path | None,
    encoders: dict[str, str],
    out: Path,
    *,
    kind: VectorFormat = "F32",
    force: bool = False,
) -> int:
    """Write anchors from `images` and `texts` of an .npz file; returns the number of pairs."""
    arrays = read_arrays(path)
    images, texts = (_anchor_embeddings(path, arrays, name) for name in ("images", "texts"))
    if len(images) != len(texts):
        raise UserError(
            f"'{path}': {len(images)} images and {len(texts)} texts; a pair takes one of each"
        )
    entries: Sequence[Entry] = [Entry(str(i)) for i in range(len(images))]
    if captions is not None:
        entries = _read_entries(captions, len(images))
    with AnchorWriter(out, encoders, kind=kind, force=force) as file:
        for start in range(0, len(images), 8192):
            part = slice(start, start + 8192)
            file.write(images[part], texts[part], entries[part])
    return file.count


def _anchor_embeddings(path: Path, arrays: Mapping[str, Any], name: str) -> Float[Tensor, "a d"]:
    array = arrays.get(name, arrays.get(f"anchor_{name}"))
    if array is None or array.ndim != 2 or array.dtype.kind not in "fiu":
        present = ", ".join(f"{n} {list(a.shape)}" for n, a in sorted(arrays.items()))
        raise UserError(f"'{path}' has {present}; anchors are images [a d] and texts [a e]")
    embeddings = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not (embeddings.isfinite().all() and embeddings.any(1).all()):
        raise UserError(f"'{path}': {name} has an embedding that is zero or not finite")
    return embeddings


def _read_entries(path: Path, count: int) -> tuple[Entry, ...]:
    """The lines of a file, read as those beside an anchor file."""
    blank = torch.ones(count, 1)
    if not path.is_file():
        raise no_such(path)
    return Anchors(path.with_suffix(".safetensors"), blank, blank).entries


def find_ids(anchors: Anchors, ids: Sequence[str]) -> Int[Tensor, " m"]:
    """Indices of the pairs with these ids; UserError for ids that no pair has.

    `photo.jpg` also stands for `photo.jpg#0`, `photo.jpg#1` and so on.
    """
    indices, used = [], set()
    for index, entry in enumerate(anchors.entries):
        for name in (entry.id, entry.id.rpartition("#")[0]):
            if name in ids:
                indices.append(index)
                used.add(name)
                break
    unknown = sorted(set(ids) - used)
    if unknown:
        names = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if unknown[5:] else "")
        raise UserError(f"no anchor called {names} in '{anchors.path}'; nothing was changed")
    return torch.tensor(indices, dtype=torch.long)


def find_like(
    anchors: Anchors, text: Float[Tensor, "1 e"], count: int
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Indices of the pairs whose texts are nearest to a text's embedding, and the cosines."""
    cosines, indices = topk_stream(
        normalize(text), AnchorMatrix.from_embeddings(anchors.texts), count
    )
    return indices[0], cosines[0]


@dataclass(frozen=True)
class AnchorSummary:
    """What `zeroshot anchors info` prints."""

    rows: dict[str, Any]
    report: Report | None
    """How the coupling was chosen, if it was."""


def describe(anchors: Anchors, choose: bool = True) -> AnchorSummary:
    """Counts, encoders, how similar the two sides are, and the best coupling."""
    entries = anchors.entries
    captions = sum(len(entry.captions) for entry in entries)
    rows: dict[str, Any] = {
        "file": str(anchors.path),
        "pairs": len(anchors),
        "images": f"[{len(anchors)}, {anchors.images.shape[1]}]",
        "texts": f"[{len(anchors)}, {anchors.texts.shape[1]}]",
        "captions": captions,
        "fingerprint": anchors.fingerprint,
        "image encoder": anchors.encoders.get("image_encoder", "not recorded"),
        "text encoder": anchors.encoders.get("text_encoder", "not recorded"),
    }
    if len(anchors) >= 20:
        order = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(0))[:SAMPLE]
        images = normalize(anchors.images[order].double())
        texts = normalize(anchors.texts[order].double())
        k = 10
        rows |= {
            "linear CKA": round(alignment.linear_cka(images, texts), 3),
            "unbiased CKA": round(alignment.unbiased_cka(images, texts), 3),
            "mutual 10-NN": f"{alignment.mutual_knn(images, texts, k):.3f} "
            f"(chance {k / (len(order) - 1):.3f})",
        }
    report = Auto().choose(anchors.images, anchors.texts) if choose else None
    return AnchorSummary(rows, report)
