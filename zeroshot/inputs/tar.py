"""What lies in a tar file, and where: a list of members, each with its place in the file.

POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU tar. Nothing is unpacked and no link followed; a
member is read by seeking to it. Python's `tarfile` reads a header's extension whole, however large
it says it is, follows chains of them by recursion, and takes damage behind the first member for
the end of the archive; here they are bounded, a loop, and reported. The tests hold both against
each other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zeroshot.inputs.source import File

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Bytes of a long name or of pax records."""
MAX_NAME = 1 << 16
"""Characters of a name."""
PADDING = 128
"""Zero blocks behind which nothing more is looked for; GNU tar pads to 20."""
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"M": "the rest of a file in another volume",
}
"""Members that are no files of their own, by their type flag."""
USED, SPARSE = (b"path", b"size"), b"GNU.sparse."
"""Keys of pax records, and how those of sparse files begin. The others are not kept: all are looked
through for each member."""
_NO_FILES = (b"5", b"D", b"N", b"V")
"""Folders, GNU's lists of a folder's content and of long names, the name of a volume."""
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")


class DamagedError(ValueError):
    """From here on the tar file cannot be read."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar file: its bytes are the `size` from `start`; `fault` says why there are none.

    Bytes of the name that are no UTF-8 are kept as Python keeps those of file names.
    """

    name: str
    start: int
    size: int
    fault: str | None = None


def members(file: File) -> Iterator[Member]:
    """The members of a seekable file in order, folders left out.

    Raises:
        DamagedError: no tar file, a compressed one, a damaged header, an end that is cut off. What
            came before stands.
    """
    length = file.seek(0, 2)
    file.seek(0)
    common: dict[str, str] = {}
    own: dict[str, str] = {}
    place = zeros = named = 0
    while zeros < PADDING:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            _check_end(block, place, zeros, bool(own))
            return
        if not block.strip(b"\0"):
            zeros, place = zeros + 1, place + BLOCK
            continue
        zeros = 0
        kind, start = block[156:157], place + BLOCK
        size = _checked(block, place, file)
        if kind in (b"L", b"K", b"x", b"g"):
            data = _extension(file, size, place)
            if kind == b"L":
                own["path"] = _text(data)
            elif kind in (b"x", b"g"):
                (own if kind == b"x" else common).update(_records(data, place))
        else:
            known = common | own
            own = {}
            size = _decimal(known["size"], place) if "size" in known else size
            if kind == b"S":
                start = _behind_sparse_map(file, block, place)
            if kind in _WITHOUT_DATA:
                size = 0
            name = known["path"] if "path" in known else _name(block)
            named += len(name)
            if len(name) > MAX_NAME:
                raise DamagedError(f"damaged at byte {place}: a name of {len(name)} characters")
            if named > length:  # a global header of pax can give one to every member
                raise DamagedError(f"damaged at byte {place}: the names are longer than the file")
            if start + size > length:
                raise DamagedError(f"cut off within its member {name!r}")
            if kind not in _NO_FILES and not (kind == b"\0" and name.endswith("/")):
                yield Member(name, start, size, _fault(kind, known))
        place = start + -(-size // BLOCK) * BLOCK
        file.seek(place)


def _check_end(block: bytes, place: int, zeros: int, extended: bool) -> None:
    if place == 0 and not block:
        raise DamagedError("an empty file, not a tar file")
    if block.strip(b"\0") or extended:
        raise DamagedError(f"cut off in the header at byte {place}")
    if not zeros:
        raise DamagedError(
            f"cut off at byte {place}: the blocks of zeros that end a tar are missing"
        )


def _checked(block: bytes, place: int, file: File) -> int:
    """The size that a header states, if its checksum is right."""
    try:
        stated = _number(block[148:156], place)
    except DamagedError:
        stated = -1
    total = 256 + sum(block[:148]) + sum(block[156:])
    if stated != total and stated != total - 256 * sum(b > 127 for b in block[:148] + block[156:]):
        if place:
            raise DamagedError(f"damaged at byte {place}: what follows cannot be read")
        kind = next((name for begin, name in COMPRESSED.items() if block.startswith(begin)), None)
        if kind:
            raise DamagedError(
                f"compressed by {kind}, so that no member can be found by seeking; unpack it to "
                "a plain .tar first"
            )
        raise DamagedError("no tar file")
    return _number(block[124:136], place)


def _number(field: bytes, place: int) -> int:
    """Octal digits, or GNU's binary number for what does not fit into them; never negative."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip() or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise DamagedError(f"damaged at byte {place}: a header has no number where one belongs")
    return int(digits, 8)


def _decimal(text: str, place: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise DamagedError(f"damaged at byte {place}: a header states a size of {text[:20]!r}")
    return int(text)


def _extension(file: File, size: int, place: int) -> bytes:
    """The bytes of a header that describes the next one."""
    if size > MAX_EXTENSION:
        raise DamagedError(f"damaged at byte {place}: a header of {size} bytes")
    data = file.read(size)
    if len(data) < size:
        raise DamagedError(f"cut off in the header at byte {place}")
    return data


def _records(data: bytes, place: int) -> dict[str, str]:
    """Those pax records that are used, by key.

    Each is `length key=value` and a line feed, the length in decimal and of it all.
    """
    records = {}
    start, stop = 0, len(data.rstrip(b"\0"))
    while start < stop:
        digits, blank, _ = data[start : start + 20].partition(b" ")
        end = start + (int(digits) if digits.isdigit() else 0)
        key, equals, value = data[start + len(digits) + 1 : end - 1].partition(b"=")
        if not blank or not equals or data[end - 1 : end] != b"\n":
            raise DamagedError(f"damaged at byte {place}: a header of no pax records")
        if key in USED:
            records[_text(key)] = _text(value)
        elif key.startswith(SPARSE):
            records[_text(SPARSE)] = ""
        start = end
    return records


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _fault(kind: bytes, known: Mapping[str, str]) -> str | None:
    if _text(SPARSE) in known:
        return KINDS[b"S"]
    return KINDS.get(kind)


def _behind_sparse_map(file: File, block: bytes, place: int) -> int:
    """Where the data of an old GNU sparse file begin: behind blocks that say there is another."""
    more = block[482]
    while more:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise DamagedError(f"cut off in the header at byte {place}")
        more = block[504]
    return file.tell()
