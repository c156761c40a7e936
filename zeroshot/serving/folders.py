"""The served folders: their images and embeddings, kept up to date with the disk.

A thread looks for new, changed and removed files every few seconds. What it finds is embedded by
the thread that owns the models, a little at a time, so that requests are answered in between; what
the cache holds is not embedded again. Readers see a `Snapshot`, which never changes.
"""

import contextlib
import hashlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from zeroshot.errors import UserError, ZeroshotError
from zeroshot.inference.embedding_matrix import EmbeddingMatrix, Failed
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.inputs.local_files import is_folder, settled, stamp_of
from zeroshot.inputs.resolve import resolve_inputs
from zeroshot.inputs.source import Blob, Source
from zeroshot.inputs.tables import InputOptions
from zeroshot.results.result import Failure
from zeroshot.serving.served_file import LINKED_OUT, ServedFile, is_linked_out

SECONDS = 2.0
"""Between two looks at the folders; longer if a look takes long."""
SHARE = 20
"""A look may take this fraction of the time, so that large folders are looked at less often."""
FAULT = "the folders could not be looked at; the server's log says why"

EmbedSources = Callable[[Sequence[Source]], Generator[EmbeddingBatch]]
"""Embeddings of images in order, as the tasks have them; the next images are read meanwhile."""


@dataclass(frozen=True)
class Progress:
    """How far the index is."""

    phase: Literal["indexing", "ready", "failed"] = "indexing"
    done: int = 0
    total: int = 0
    failed: int = 0
    seconds: float = 0.0
    message: str = ""
    version: int = 0
    """Of the snapshot."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.done / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Snapshot:
    """All images at one moment: those with an embedding, and those that failed."""

    version: int
    matrix: EmbeddingMatrix
    names: Sequence[str] = ()
    """For each image of the matrix, its path below the served folder."""
    failed_names: Sequence[str] = ()

    @cached_property
    def place(self) -> dict[str, int]:
        """For each id, the index of the first image with that content."""
        return {id: i for i, id in reversed(list(enumerate(self.matrix.ids)))}

    @cached_property
    def keys(self) -> list[str]:
        """A name for each image that is no path; two with the same content have two."""
        return [hashlib.sha256(os.fsencode(name)).hexdigest()[:24] for name in self.names]

    @cached_property
    def by_key(self) -> dict[str, int]:
        """For each key, the index of its image."""
        return {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def texts(self) -> list[str]:
        """For each image, its name as valid text: a file system has bytes that are none."""
        return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in self.names]

    @cached_property
    def by_text(self) -> dict[str, int]:
        """For each of `texts`, the index of its image."""
        return {text: i for i, text in enumerate(self.texts)}

    @cached_property
    def by_path(self) -> dict[str | None, int]:
        """For each path, the index of its image."""
        return {source.path: i for i, source in enumerate(self.matrix.sources)}

    def __len__(self) -> int:
        return len(self.matrix.ids)

    def only(self, places: Sequence[int]) -> "Snapshot":
        """Some of the images, in this order, and none that failed."""
        every = self.matrix
        index = torch.tensor(list(places), dtype=torch.long)
        part = EmbeddingMatrix(
            [every.sources[i] for i in places],
            [every.ids[i] for i in places],
            every.embeddings[index],
            [],
        )
        return Snapshot(self.version, part, [self.names[i] for i in places])


@dataclass(frozen=True)
class _Known:
    """What is known of a file in one state."""

    source: Source
    stamp: str
    id: str | None = None
    embedding: Tensor | None = field(default=None, repr=False)
    failure: Failure | None = None


class ServedFolders:
    """Folders whose images are embedded, and looked at again and again."""

    def __init__(self, folders: Sequence[str | Path], embed: EmbedSources) -> None:
        """Nothing is read yet.

        Raises:
            UserError: no folder, or one that is none.
        """
        self.roots = [str(folder) for folder in folders]
        for root in self.roots:
            if not is_folder(root):
                raise UserError(f"'{root}' is no folder; serve takes folders of images")
        if not self.roots:
            raise UserError("serve needs a folder: zeroshot serve photos/")
        self._within = tuple(os.path.realpath(root) for root in self.roots)
        self._names = _names_of(self.roots)
        self._embed = embed
        self._known: dict[str, _Known] = {}
        self._differs = False
        """Whether the images are others than those of the snapshot."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.progress = Progress()
        self.snapshot = Snapshot(0, EmbeddingMatrix([], [], torch.zeros(0, 0), []))
        self.ready = threading.Event()
        """Set when the first look is done, or has failed."""

    def start(self) -> None:
        """Begin to look, in a thread."""
        self._thread = threading.Thread(target=self._run, name="folders", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            begin = time.monotonic()
            try:
                self.look()
            except ZeroshotError as error:
                self.progress = replace(self.progress, phase="failed", message=str(error))
            except Exception:  # whatever it is, the next look may succeed
                traceback.print_exc()
                self.progress = replace(self.progress, phase="failed", message=FAULT)
            self.ready.set()
            pause = max(SECONDS, SHARE * (time.monotonic() - begin))

    def look(self) -> None:
        """Bring the snapshot up to date with the folders."""
        listed, message = self._listed()
        removed = self._known.keys() - listed.keys()
        to_do = [path for path, (_, stamp) in listed.items() if self._changed(path, stamp)]
        for path in removed:
            del self._known[path]
        self._differs = bool(removed)
        begin = published = time.monotonic()
        done, order = 0, list(listed)
        if to_do and len(to_do) > len(self._known) // 10:
            self.progress = replace(self.progress, phase="indexing", done=0, total=len(to_do))
        for count in self._index([(path, *listed[path]) for path in to_do]):
            done += count
            now = time.monotonic()
            self.progress = replace(
                self.progress, done=done, total=len(to_do), seconds=now - begin, failed=self._failed
            )
            if now - published > 1 and self._differs:
                self._publish(order)
                published = time.monotonic()
            if self._stop.is_set():
                return
        if self._differs or not self.snapshot.version:
            self._publish(order)
        self.progress = replace(
            self.progress,
            phase="ready",
            message=message,
            failed=self._failed,
            version=self.snapshot.version,
        )

    @property
    def _failed(self) -> int:
        return sum(known.failure is not None for known in self._known.values())

    def _changed(self, path: str, stamp: str) -> bool:
        known = self._known.get(path)
        return known is None or not stamp or known.stamp != stamp

    def _listed(self) -> "tuple[dict[str, tuple[Source, str]], str]":
        """The images by path, each with its state; and why there are none, if so."""
        found: dict[str, tuple[Source, str]] = {}
        message = ""
        for root in self.roots:
            try:
                options = InputOptions(within=self._within)
                sources: Iterator[Source] = resolve_inputs(root, options=options).pictures([])
                for source in sources:
                    if source.path is not None:
                        found.setdefault(source.path, (source, _stamp(source)))
            except UserError as error:
                message = str(error)
        return found, message

    def _index(self, to_do: "Sequence[tuple[str, Source, str]]") -> Generator[int]:
        """Embed images; gives the number of those that are done, again and again."""
        inside = []
        for path, source, stamp in to_do:
            if is_linked_out(source, self._within):
                self._know(path, _Known(source, stamp, failure=LINKED_OUT))
            else:
                inside.append((path, source, stamp))
        yield len(to_do) - len(inside)
        rest = iter(inside)
        with contextlib.closing(self._embed([source for _, source, _ in inside])) as batches:
            for batch in batches:
                rows = zip(batch.ids, batch.embeddings, batch.failures, strict=True)
                for (id, row, failure), (path, source, stamp) in zip(rows, rest, strict=False):
                    if is_linked_out(source, self._within):  # it was replaced while it was read
                        self._know(path, _Known(source, "", failure=LINKED_OUT))
                    elif failure is not None:
                        self._know(path, _Known(source, stamp, id, failure=failure))
                    else:  # a copy: a slice would keep the whole block
                        self._know(path, _Known(source, stamp, id, row.clone()))
                yield len(batch.sources)

    def _know(self, path: str, now: _Known) -> None:
        before = self._known.get(path)
        same = before is not None and (before.id, before.failure) == (now.id, now.failure)
        self._differs = self._differs or not same
        self._known[path] = now

    def _publish(self, order: Sequence[str]) -> None:
        known = [self._known[path] for path in order if path in self._known]
        good = [one for one in known if one.embedding is not None]
        bad = [one for one in known if one.failure is not None]
        rows = [one.embedding for one in good if one.embedding is not None]
        matrix = EmbeddingMatrix(
            [one.source for one in good],
            [one.id or "" for one in good],
            torch.stack(rows) if rows else torch.zeros(0, 0),
            [Failed(one.source, one.id, one.failure) for one in bad if one.failure is not None],
        )
        names = [self.name_of(one.source.path or "") for one in good]
        failed_names = [self.name_of(one.source.path or "") for one in bad]
        version = self.snapshot.version + 1
        self.snapshot = Snapshot(version, matrix, names, failed_names)
        self.progress = replace(self.progress, version=version, failed=len(bad))

    def image(self, snapshot: Snapshot, place: int) -> Source:
        """An image that a request names, to be read as what was indexed or not at all."""
        source, id = snapshot.matrix.sources[place], snapshot.matrix.ids[place]
        return Source(source.path, ServedFile(source, id, self._within))

    def name_of(self, path: str) -> str:
        """The path below its folder; of several folders, with the folder's own name in front."""
        for root, folder in zip(self.roots, self._names, strict=True):
            if path.startswith(os.path.join(root, "")):
                return os.path.join(folder, os.path.relpath(path, root))
        return os.path.basename(path)


def _names_of(roots: Sequence[str]) -> list[str]:
    """What stands before the names of each folder: nothing, its name, or as much as tells apart."""
    if len(roots) == 1:
        return [""]
    paths = [os.path.abspath(root) for root in roots]
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) == len(set(paths)):
        return names
    return [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]


def _stamp(source: Source) -> str:
    """Changes when the image does; empty if it is gone, or changed so lately that nobody knows."""
    if isinstance(source.content, Blob):
        return source.content.stamp or ""
    try:
        info = os.stat(source.path or "")
    except (OSError, ValueError):
        return "gone"
    return stamp_of(info) if settled(info) else ""
