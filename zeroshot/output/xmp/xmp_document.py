"""Where the properties of an XMP document are, as byte positions.

No library that builds a document again keeps prefixes, comments, quotes and spaces, so edits are
made on the bytes: what is not edited stays as it was. expat says where elements begin. Files come
from anywhere: a document type, and with it every entity, is refused, as are other encodings than
UTF-8, and documents that are too large.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from xml.parsers import expat

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
LANG = ("http://www.w3.org/XML/1998/namespace", "lang")
RESERVED = {"xml": LANG[0], "xmlns": "http://www.w3.org/2000/xmlns/"}
MAX_BYTES = 16 << 20
MAX_ELEMENTS = 200_000
MAX_DEPTH = 100
TAG = re.compile(rb"<[^\s/>]+(?:\"[^\"]*\"|'[^']*'|[^\"'>])*>")
ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
SPACE_BEFORE = re.compile(rb"[ \t\r\n]*\Z")

Name = tuple[str, str]
"""Namespace and local name."""


class XmpError(ValueError):
    """A document that is no XMP, or not one that can be changed safely."""


@dataclass(slots=True)
class XmlElement:
    """An element, and where it is: `start`, `inner` after its first tag, `close`, `end`."""

    name: Name
    tag: str
    """As written, with its prefix."""
    attributes: Mapping[str, str]
    scope: Mapping[str, str]
    start: int
    inner: int
    close: int = 0
    end: int = 0
    children: "list[XmlElement]" = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text directly in it."""
        return "".join(self.texts)

    @property
    def prefix(self) -> str:
        """`rdf:` of `rdf:li`."""
        before, colon, _ = self.tag.rpartition(":")
        return before + colon

    def get(self, name: Name) -> str | None:
        """The value of an attribute."""
        found = (v for k, v in self.attributes.items() if expanded(k, self.scope, "") == name)
        return next(found, None)


@dataclass(frozen=True)
class XmpDocument:
    """A document and its elements."""

    data: bytes
    root: XmlElement

    @cached_property
    def rdf(self) -> XmlElement:
        """The element with all properties.

        Raises:
            XmpError: there is none, or more than one.
        """
        inside = [self.root, *self.root.children]
        found = [element for element in inside if element.name == (RDF, "RDF")]
        if len(found) != 1:
            raise XmpError("it is XML but no XMP: it has no rdf:RDF element of its own")
        if found[0].end == found[0].inner:
            raise XmpError("its rdf:RDF element is empty, and has no end of its own")
        return found[0]

    @property
    def descriptions(self) -> list[XmlElement]:
        """The elements that hold properties."""
        return [e for e in self.rdf.children if e.name == (RDF, "Description")]

    def properties(self, name: Name) -> Iterator[XmlElement]:
        """The elements of a property."""
        for description in self.descriptions:
            yield from (e for e in description.children if e.name == name)

    def attribute_spans(self, element: XmlElement, name: Name) -> Iterator[tuple[int, int]]:
        """Where an attribute is in a tag, with the spaces before it."""
        tag = self.data[element.start : element.inner]
        first = re.match(rb"<[^\s/>]+", tag)
        position = first.end() if first else 0
        while match := ATTRIBUTE.match(tag, position):
            if expanded(match[1].decode(), element.scope, "") == name:
                yield element.start + match.start(), element.start + match.end()
            position = match.end()

    def with_space(self, element: XmlElement) -> tuple[int, int]:
        """Where an element is, with the spaces before it."""
        return self.space_before(element.start), element.end

    def space_before(self, position: int) -> int:
        """Where the spaces before a position begin."""
        begin = max(0, position - 200)
        match = SPACE_BEFORE.search(self.data[begin:position])
        return position if match is None else begin + match.start()


def parse(data: bytes) -> XmpDocument:
    """The document.

    Raises:
        XmpError: why it cannot be changed.
    """
    if len(data) > MAX_BYTES:
        raise XmpError(f"it has more than {MAX_BYTES >> 20} MiB")
    if b"\0" in data:
        raise XmpError("it is not in UTF-8")
    builder = _Builder(data)
    try:
        builder.parser.Parse(data, True)
    except expat.ExpatError as error:
        raise XmpError(f"it is no whole XML: {error}") from None
    except UnicodeError:
        raise XmpError("it is not in UTF-8") from None
    assert builder.root is not None
    return XmpDocument(data, builder.root)


def expanded(tag: str, scope: Mapping[str, str], default: str | None = None) -> Name:
    """A written name as namespace and local name; an attribute without prefix has none (`""`).

    Raises:
        XmpError: a prefix that stands for nothing.
    """
    prefix, colon, local = tag.rpartition(":")
    if not colon:
        return (scope.get("", "") if default is None else default), local
    if prefix not in scope:
        raise XmpError(f"the prefix '{prefix}' stands for no namespace")
    return scope[prefix], local


class _Builder:
    def __init__(self, data: bytes) -> None:
        self.data, self.count = data, 0
        self.root: XmlElement | None = None
        self.open: list[XmlElement] = []
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.XmlDeclHandler = self.declared
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.text

    def declared(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8"):
            raise XmpError(f"it is not in UTF-8 but in {encoding[:40]}")

    def doctype(self, *declared: object) -> None:
        raise XmpError("it has a document type, which XMP has not")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.count += 1
        if self.count > MAX_ELEMENTS or len(self.open) >= MAX_DEPTH:
            raise XmpError(f"it has over {MAX_ELEMENTS} elements, or {MAX_DEPTH} in each other")
        known = self.open[-1].scope if self.open else RESERVED
        own = {k[6:]: v for k, v in attributes.items() if k.startswith("xmlns:")}
        if "xmlns" in attributes:
            own[""] = attributes["xmlns"]
        scope = {**known, **own} if own else known
        begin = self.parser.CurrentByteIndex
        match = TAG.match(self.data, begin)
        if match is None:
            raise XmpError("it is not in UTF-8")
        kept = {k: v for k, v in attributes.items() if k != "xmlns" and not k.startswith("xmlns:")}
        element = XmlElement(expanded(tag, scope), tag, kept, scope, begin, match.end())
        if self.open:
            self.open[-1].children.append(element)
        else:
            self.root = element
        self.open.append(element)

    def end(self, tag: str) -> None:
        element = self.open.pop()
        if self.data[element.inner - 2 : element.inner] == b"/>":
            element.close = element.end = element.inner
        else:
            element.close = self.parser.CurrentByteIndex
            element.end = self.data.index(b">", element.close) + 1

    def text(self, text: str) -> None:
        self.open[-1].texts.append(text)
