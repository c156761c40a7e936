"""Keywords and descriptions of ours in an XMP document: merged, replaced, removed.

What is ours is known by two things: hierarchical keywords by their root, all else by a note of what
was written, in a namespace of ours. A text that somebody changed since is theirs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from zeroshot.output.xmp.xmp_document import (
    LANG,
    RDF,
    Name,
    XmlElement,
    XmpDocument,
    XmpError,
    expanded,
    parse,
)

ROOT = "zeroshot"
"""The first level of our hierarchical keywords."""
OURS = "urn:zeroshot-vision:xmp:1.0/"
PREFIXES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "digiKam": "http://www.digikam.org/ns/1.0/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
    "zeroshot": OURS,
}
NEW = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="zeroshot">\n'
    b' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
    b" </rdf:RDF>\n"
    b"</x:xmpmeta>\n"
)
"""A document without properties."""
ARRAYS = {(RDF, kind) for kind in ("Bag", "Seq", "Alt")}
LI = (RDF, "li")

Edit = tuple[int, int, bytes]
"""Bytes in place of those from one position to another."""


@dataclass(frozen=True)
class TextProperty:
    """A text in several languages, of which ours is the default, and the note of what we wrote."""

    name: str
    note: str


@dataclass(frozen=True)
class KeywordProperty:
    """A list of keywords; ours begin with a root, or are noted."""

    name: str
    array: str
    separator: str = ""
    note: str = ""

    def written(self, keyword: str) -> str:
        """The keyword as it stands in the list."""
        return f"{ROOT}{self.separator}{keyword}" if self.separator else keyword

    def is_ours(self, text: str, noted: Iterable[str]) -> bool:
        """Whether a keyword of the list is ours."""
        if self.separator:
            return text == ROOT or text.startswith(ROOT + self.separator)
        return text in noted


TEXTS = (
    TextProperty("dc:description", "zeroshot:description"),
    TextProperty("Iptc4xmpCore:AltTextAccessibility", "zeroshot:altText"),
)
KEYWORDS = (
    KeywordProperty("dc:subject", "Bag", note="zeroshot:keywords"),
    KeywordProperty("lr:hierarchicalSubject", "Bag", "|"),
    KeywordProperty("digiKam:TagsList", "Seq", "/"),
)


@dataclass(frozen=True)
class MergedXmp:
    """A document after a merge; `kept` says which texts of others stayed instead of ours."""

    data: bytes
    kept: tuple[str, ...] = ()


def with_text(data: bytes, text: str) -> MergedXmp:
    """The description and the alternative text become `text`, unless somebody else wrote them."""
    document, place = _without(parse(data), texts=True)
    new, kept = [], []
    for prop in TEXTS:
        present = list(document.properties(_name(prop.name)))
        if any(_has_default(found) for found in present):
            kept.append(prop.name)
            continue
        translated = [found for found in present if _has_text(found)]
        if translated:
            document, place = _edited(document, _with_default(document, translated[0], text), place)
        else:
            document, place = _edited(document, _emptied(document, prop.name), place)
            new.append(_alt(prop.name, text))
        new.append(f"<{prop.note}>{_escaped(text)}</{prop.note}>")
    return MergedXmp(_inserted(document, new, place), tuple(kept))


def with_keywords(data: bytes, keywords: Sequence[str]) -> MergedXmp:
    """`keywords` instead of our earlier ones; those of others stay."""
    document, place = _without(parse(data), keywords=True)
    new: list[str] = []
    for prop in KEYWORDS if keywords else ():
        present = [p for p in document.properties(_name(prop.name)) if _items(p)]
        had = {item.text for p in present for item in _items(p)}
        added = [word for word in map(prop.written, dict.fromkeys(keywords)) if word not in had]
        if prop.note and added:
            new.append(_array(prop.note, "Bag", added))
        if not added:
            continue
        if present:
            document, place = _edited(document, _appended(document, present[-1], added), place)
        else:
            document, place = _edited(document, _emptied(document, prop.name), place)
            new.append(_array(prop.name, prop.array, added))
    return MergedXmp(_inserted(document, new, place))


def without_ours(data: bytes) -> bytes:
    """The document without all that is ours."""
    return _without(parse(data), texts=True, keywords=True)[0].data


def holds_text(data: bytes) -> bool:
    """Whether a text of ours was written."""
    document = parse(data)
    return any(_noted(document, prop.note) for prop in TEXTS)


def holds_keywords(data: bytes) -> bool:
    """Whether keywords of ours were written."""
    document = parse(data)
    noted = set(_noted(document, KEYWORDS[0].note))
    return bool(noted) or any(
        prop.is_ours(item.text, noted)
        for prop in KEYWORDS
        for found in document.properties(_name(prop.name))
        for item in _items(found)
    )


# What is ours


def _without(
    document: XmpDocument, *, texts: bool = False, keywords: bool = False
) -> tuple[XmpDocument, int]:
    """The document without ours, and where our element was or a new one belongs."""
    place = document.space_before(document.rdf.close)
    edits = [
        *(_text_edits(document) if texts else ()),
        *(_keyword_edits(document) if keywords else ()),
    ]
    document, place = _edited(document, edits, place)
    bare = [document.with_space(e) for e in document.descriptions if _is_bare(document, e)]
    document, place = _edited(document, [(*span, b"") for span in bare], place)
    return document, bare[0][0] if bare else place


def _is_bare(document: XmpDocument, element: XmlElement) -> bool:
    """Whether an element is ours, and nothing is left in it."""
    names = {expanded(tag, element.scope, "") for tag in element.attributes}
    ours = OURS in element.scope.values() and OURS not in document.rdf.scope.values()
    return ours and not element.children and names <= {(RDF, "about")}


def _text_edits(document: XmpDocument) -> Iterator[Edit]:
    for prop in TEXTS:
        noted = _noted(document, prop.note)
        for found in document.properties(_name(prop.name)):
            items = _items(found)
            ours = [i for i in items if i.get(LANG) == "x-default" and i.text in noted]
            yield from _removed(document, found, items, ours)
        yield from _emptied(document, prop.note)


def _keyword_edits(document: XmpDocument) -> Iterator[Edit]:
    noted = set(_noted(document, KEYWORDS[0].note))
    for prop in KEYWORDS:
        for found in document.properties(_name(prop.name)):
            items = _items(found)
            ours = [item for item in items if prop.is_ours(item.text, noted)]
            yield from _removed(document, found, items, ours)
    yield from _emptied(document, KEYWORDS[0].note)


def _removed(
    document: XmpDocument,
    found: XmlElement,
    items: Sequence[XmlElement],
    ours: Sequence[XmlElement],
) -> Iterator[Edit]:
    if ours and len(ours) == len(items):
        yield (*document.with_space(found), b"")
    else:
        for item in ours:
            yield (*document.with_space(item), b"")


def _emptied(document: XmpDocument, name: str) -> Iterator[Edit]:
    """Without a property, be it elements or attributes."""
    full = _name(name)
    for found in document.properties(full):
        yield (*document.with_space(found), b"")
    for description in document.descriptions:
        for begin, end in document.attribute_spans(description, full):
            yield begin, end, b""


def _noted(document: XmpDocument, name: str) -> list[str]:
    """What a note of ours says: the items of a list, or a text, which others may have rewritten."""
    full, noted = _name(name), []
    for found in document.properties(full):
        noted += [item.text for item in _items(found)] if found.children else [found.text]
    for description in document.descriptions:
        value = description.get(full)
        noted += [] if value is None else [value]
    return noted


def _items(found: XmlElement) -> list[XmlElement]:
    """The items of a list.

    Raises:
        XmpError: it is no list of texts.
    """
    arrays = found.children
    if not arrays and not found.text.strip() and not found.attributes:
        return []
    if len(arrays) != 1 or arrays[0].name not in ARRAYS:
        raise XmpError(f"its {found.tag} is no list")
    if any(item.name != LI or item.children for item in arrays[0].children):
        raise XmpError(f"its {found.tag} is no list of texts")
    return arrays[0].children


def _has_default(found: XmlElement) -> bool:
    """Whether a text property says something to readers of any language."""
    if not found.children:
        return bool(found.text.strip() or found.attributes)
    return any(i.text.strip() and i.get(LANG) in (None, "x-default") for i in _items(found))


def _has_text(found: XmlElement) -> bool:
    return any(item.text.strip() for item in _items(found))


# Edits


def _edited(document: XmpDocument, edits: Iterable[Edit], place: int) -> tuple[XmpDocument, int]:
    """The document after edits that do not overlap, and where `place` is then."""
    made = sorted(edits)
    if not made:
        return document, place
    parts, at, moved = [], 0, place
    for begin, end, new in made:
        parts += [document.data[at:begin], new]
        at = end
        if begin < place:
            moved += len(new) - (min(end, place) - begin)
    return parse(b"".join([*parts, document.data[at:]])), moved


def _appended(document: XmpDocument, found: XmlElement, added: Sequence[str]) -> Iterator[Edit]:
    """Items at the end of a list that exists, with the spaces of those before."""
    array = found.children[0]
    li = f"{array.prefix}li"
    texts = [f"<{li}>{_escaped(word)}</{li}>".encode() for word in added]
    last = array.children[-1]
    space = document.data[document.space_before(last.start) : last.start]
    yield last.end, last.end, b"".join(space + text for text in texts)


def _with_default(document: XmpDocument, found: XmlElement, text: str) -> Iterator[Edit]:
    """The default text before its translations."""
    first = _items(found)[0]
    blank = [i for i in _items(found) if not i.text.strip() and i.get(LANG) == "x-default"]
    li = f"{first.prefix}li"
    new = f'<{li} xml:lang="x-default">{_escaped(text)}</{li}>'.encode()
    if blank:
        yield blank[0].start, blank[0].end, new
        return
    space = document.data[document.space_before(first.start) : first.start]
    yield first.start, first.start, new + space


def _inserted(document: XmpDocument, properties: Sequence[str], place: int) -> bytes:
    """The document with an element of ours that has these properties."""
    if not properties:
        return document.data
    used = {text[1:].partition(":")[0] for text in properties} | {"zeroshot"}
    spaces = {p: uri for p, uri in PREFIXES.items() if p in used} | {"rdf": RDF}
    about = next((a for d in document.descriptions if (a := d.get((RDF, "about")))), "")
    names = "".join(f'\n    xmlns:{prefix}="{uri}"' for prefix, uri in spaces.items())
    head = f'\n  <rdf:Description rdf:about="{_escaped(about)}"{names}>'
    body = "".join(map(_lines, properties))
    element = f"{head}{body}\n  </rdf:Description>".encode()
    return document.data[:place] + element + document.data[place:]


def _lines(text: str) -> str:
    return "\n   " + text.replace("\n", "\n   ")


def _array(name: str, kind: str, items: Sequence[str]) -> str:
    lines = "".join(f"\n  <rdf:li>{_escaped(item)}</rdf:li>" for item in items)
    return f"<{name}>\n <rdf:{kind}>{lines}\n </rdf:{kind}>\n</{name}>"


def _alt(name: str, text: str) -> str:
    line = f'<rdf:li xml:lang="x-default">{_escaped(text)}</rdf:li>'
    return f"<{name}>\n <rdf:Alt>\n  {line}\n </rdf:Alt>\n</{name}>"


def _escaped(text: str) -> str:
    """A text in XML.

    Raises:
        XmpError: it has characters that XML cannot hold.
    """
    if any(not _is_allowed(character) for character in text):
        raise XmpError("the text has a character that XML cannot hold")
    return escape(text, {'"': "&quot;", "\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def _is_allowed(character: str) -> bool:
    code = ord(character)
    if code < 0x20:
        return character in "\t\n\r"
    return not (0xD800 <= code < 0xE000 or code in (0xFFFE, 0xFFFF))


def _name(prefixed: str) -> Name:
    prefix, _, local = prefixed.partition(":")
    return PREFIXES[prefix], local
