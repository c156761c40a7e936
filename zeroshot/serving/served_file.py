"""A file of the served folders, read as what it was when it was indexed, or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass

from zeroshot.errors import UnreadableImageError
from zeroshot.images.reading import fetch
from zeroshot.inputs.local_files import leads_out
from zeroshot.inputs.source import Source
from zeroshot.inputs.webdataset import InTar
from zeroshot.results.result import Failure

LINKED_OUT = Failure("LinkedOut", "a link that leads out of the served folders")
CHANGED = "the file has changed since it was indexed"


def is_linked_out(source: Source, within: Sequence[str]) -> bool:
    """Whether the file, or the tar file that an image is in, lies in none of some real folders."""
    file = source.content.tar if isinstance(source.content, InTar) else source.path
    return leads_out(file or "", within)


@dataclass(frozen=True)
class ServedFile:
    """The bytes of an indexed image, as `inputs.Blob`.

    Between two looks at the folders a file may be replaced, by a link to another one too: then its
    bytes are others than those of `id`.
    """

    source: Source
    id: str
    within: tuple[str, ...]

    @property
    def stamp(self) -> str | None:
        """None: the file is read, and not trusted for its time."""
        return None

    def read(self) -> bytes:
        """The bytes; UnreadableImageError if the file is gone, or is another one now."""
        if is_linked_out(self.source, self.within):
            raise UnreadableImageError(LINKED_OUT.message)
        fetched = fetch(self.source)
        if fetched.id != self.id or not isinstance(fetched.content, bytes):
            raise UnreadableImageError(CHANGED)
        return fetched.content
