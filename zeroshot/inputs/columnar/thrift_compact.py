"""Values in Thrift's compact protocol, as in the headers and the footer of a Parquet file.

Definition: `thrift-compact-protocol.md` of apache/thrift.
"""

from collections.abc import Iterator
from typing import Any

DEPTH = 16
"""Structs and lists within one another."""
STRUCT, LIST = 12, (9, 10)
"""Kinds of values; a set is stored as a list."""


class ThriftError(ValueError):
    """No value of this protocol."""


class Compact:
    """Reads values one after another; IndexError behind the last byte."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and kind of each field of a struct; its value must be read before the next."""
        number = 0
        while (head := self._byte()) & 15:
            number = number + (head >> 4) if head >> 4 else self._signed()
            yield number, head & 15

    def struct(self, depth: int = DEPTH) -> dict[int, Any]:
        """Fields by number: numbers, truth values and structs; of others there is None."""
        if not depth:
            raise ThriftError("values nested too deeply")
        found: dict[int, Any] = {}
        for number, kind in self.fields():
            found[number] = self.value(kind, depth)
        return found

    def value(self, kind: int, depth: int = DEPTH) -> Any:
        """A number, a truth value or a struct; None for any other, which is passed over."""
        if kind in (1, 2):  # true, false
            return kind == 1
        if kind in (4, 5, 6):  # integers
            return self._signed()
        if kind == 3:
            return self._byte()
        if kind == STRUCT:
            return self.struct(depth - 1)
        return self.skip(kind, depth)

    def skip(self, kind: int, depth: int = DEPTH) -> None:
        """Pass over a value."""
        if kind in (3, 4, 5, 6):
            self._unsigned() if kind > 3 else self._byte()
        elif kind == 7:  # a double
            self._jump(8)
        elif kind == 8:  # bytes
            self._jump(self._unsigned())
        elif kind == STRUCT or kind in LIST:
            if not depth:
                raise ThriftError("values nested too deeply")
            if kind == STRUCT:
                for _, inner in self.fields():
                    self.skip(inner, depth - 1)
            else:
                for inner in self.items():
                    self.skip(inner, depth - 1)
        elif kind not in (1, 2):
            raise ThriftError("a value of no kind that there is")

    def items(self) -> Iterator[int]:
        """The kind of each item of a list; its value must be read before the next."""
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._unsigned()
        kind = 3 if head & 15 in (1, 2) else head & 15  # a truth value is a byte in a list
        for _ in range(size):
            yield kind

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ThriftError("a number without end")
        return value | byte << shift

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _jump(self, size: int) -> None:
        self.place += size
        if self.place > len(self.data):
            raise IndexError
