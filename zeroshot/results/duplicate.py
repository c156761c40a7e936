"""The result of looking for copies."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from zeroshot.results.result import Result, as_float32


@dataclass(frozen=True)
class DedupeResult(Result):
    """Whether an image is to be kept, and the group of copies that it belongs to."""

    group: int | None = None
    """From 1; None for an image without copies."""
    keep: bool = True
    kind: Literal["exact", "near"] | None = None
    """How the image is a copy of the one that is kept; None if it is kept itself."""
    copy_of: str | None = None
    """The path of the image that is kept."""
    cosine: float | None = None
    """Of the embeddings of a near copy and of the image that is kept."""
    correlation: float | None = None
    """Of their pixels."""
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    """Of the file; None for an image in memory. Only images of groups have a size."""
    reason: str = ""

    schema: ClassVar[str] = "zeroshot.dedupe/1"

    def answer(self) -> dict[str, Any]:
        """`group`, `keep`, `kind`, `copy_of`, `cosine`, `correlation`, the size, `reason`."""
        return {
            "group": self.group,
            "keep": self.keep,
            "kind": self.kind,
            "copy_of": self.copy_of,
            "cosine": None if self.cosine is None else as_float32(self.cosine),
            "correlation": None if self.correlation is None else as_float32(self.correlation),
            "width": self.width,
            "height": self.height,
            "bytes": self.bytes,
            "reason": self.reason,
        }

    def summary(self) -> str:
        """`1. keep: the most pixels of 3 (640 x 480)`."""
        if self.group is None:
            return self.reason
        return f"{self.group}. {'keep' if self.keep else 'copy'}: {self.reason}"
