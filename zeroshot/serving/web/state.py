"""What the routes of a server share."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from zeroshot.inputs.source import Source
from zeroshot.serving.engine import Engine
from zeroshot.serving.folders import ServedFolders
from zeroshot.serving.small_copies import ThumbnailMaker, id_of
from zeroshot.serving.web.guard import Rules, Served
from zeroshot.serving.web.refusals import RefusedError

UPLOADS = 64 << 20
"""Bytes of images that were dropped on the page and are kept, so that its address names them."""


class UploadedImages:
    """The last images that were dropped on the page, by id; the oldest go first."""

    def __init__(self, most: int = UPLOADS) -> None:
        self._most = most
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, data: bytes) -> str:
        """Keep an image; its id."""
        id = id_of(data)
        with self._lock:
            if id not in self._images:
                self._bytes += len(data)
            self._images[id] = data
            self._images.move_to_end(id)
            while self._bytes > self._most and len(self._images) > 1:
                self._bytes -= len(self._images.popitem(last=False)[1])
        return id

    def get(self, id: str) -> bytes | None:
        """The image, if it is still here."""
        return self._images.get(id)


@dataclass
class ServerState:
    """The engine, the folders, and what the page needs beside them."""

    engine: Engine
    folders: ServedFolders
    rules: Rules
    thumbnails: ThumbnailMaker = field(default_factory=ThumbnailMaker)
    uploads: UploadedImages = field(default_factory=UploadedImages)
    served: Served = field(default_factory=Served)
    started: float = field(default_factory=time.monotonic)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def cannot(self) -> Mapping[str, str]:
        """`Engine.cannot`, for which the models are asked once: no other request waits for that."""
        if "cannot" in vars(self.engine):
            return self.engine.cannot
        async with self.asking:
            return await asyncio.to_thread(lambda: self.engine.cannot)

    def source(self, id: object) -> Source:
        """A served image, or one that was dropped on the page, by its id.

        Raises:
            RefusedError: there is none.
        """
        snapshot = self.folders.snapshot
        if isinstance(id, str):
            if (place := snapshot.place.get(id)) is not None:
                return self.folders.image(snapshot, place)
            if (data := self.uploads.get(id)) is not None:
                return Source(None, data)
        raise RefusedError(404, f"no served image has the id '{str(id)[:80]}'")
