"""A caption's words as the Penn Treebank writes them, in lower case and without punctuation.

Measures of captions are defined on the words of the Stanford tokeniser (PTBTokenizer of CoreNLP
3.4.1, in Java) as pycocoevalcap calls it: lower case, `don't` as `do n't`, `dog's` as `dog 's`,
then without a list of punctuation marks. The rules are written from what that program answers.

Departures: there, the last word of a text is read with the next text in sight ("U." before "A dog"
loses its full stop, "No." before "5" keeps it); here a text stands alone. No-break spaces that join
a phone number, a fraction or a tag with attributes separate words here, as they do in
pycocoevalcap's BLEU and CIDEr. Scripts whose vowels are combining marks, faces such as `^_^`,
versions such as `1.x` and garbled contractions may be cut at other places.
"""

import itertools
import re
from functools import lru_cache

REMOVED = re.compile(r"[.?!,:;'’`\"“”„«»‘‚‹›…‐‒–—―]|-+|\.{3,}|''|``|&(?:quot|apos);", re.IGNORECASE)
"""The tokens that pycocoevalcap removes. `!!` and brackets are not among them: it looks for `-LRB-`
after lower-casing, so brackets stay as the words `-lrb-` and `-rrb-`."""
WRITTEN = {
    **dict(zip("()[]{}", ["-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"], strict=True)),
    **{"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "£": "#", "€": "$", "¢": "cents"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">"},
}
"""How the treebank writes a sign."""
TWO_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3}
"""Words of two words, and where the second begins."""
ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif
capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est
etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky
lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb
nev nov oct okla penn pfc ph ph.d plc ppte ppty pres prof pte ptes pty ptys pvt rd rep reps rev rt
sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va
vs vt wed wis wisc wm wyo
"""
"""Words that keep their full stop, whatever their case."""
CAPITALISED_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
"""Those that are words of another meaning in lower case."""
NUMBERED_ABBREVIATIONS = "art ca fig figs no nos op pp prop"
"""Those that are abbreviations before a number only."""
STARTERS = """
a about according after an as at but he her here however if in it last many more now once one
other our she since so some such that the their then there these they this we what when while yet
you
"""
"""Capitalised words before which, between spaces, the full stop of a lone letter ends a sentence
("I. The")."""

_LETTER = r"(?:[^\W\d_¹²³¼-¾⁰-⁹₀-₉⅐-⅞]|[\u0300-\u036f])"
_ALNUM = rf"(?:{_LETTER}|\d)"
_APOS = "['’]"
_WORD = rf"{_ALNUM}+(?:_{_ALNUM}+)*"
_DOTTED = rf"{_LETTER}{_ALNUM}*(?:_{_ALNUM}+)*"
_THING = rf"(?:[dolDOL]{_APOS}{_ALNUM})?{_WORD}(?:-(?:[dolDOL]{_APOS}{_ALNUM})?{_WORD})*"
_COMPOUND = rf"{_ALNUM}(?:{_ALNUM}|[_.,])*(?:-(?:(?:{_LETTER}\.){{2,}}|{_WORD}))+"
_NUMBER = r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)"
_END = rf"(?!{_ALNUM})"


def _any(words: str) -> str:
    return "(?:" + "|".join(map(re.escape, sorted(words.split(), key=len, reverse=True))) + ")"


_BEFORE_NUMBER, _BEFORE_STARTER = "\x00", "\x01"
_RULES = [
    re.compile(rule)
    for rule in (
        # what follows the group must be there and counts for the length, but is not taken
        rf"(?i)({_LETTER}+)n{_APOS}t{_END}",
        rf"(?i)n{_APOS}t{_END}",
        rf"(?i)({_WORD}){_APOS}(?:[smd]|ll|re|ve)(?!{_LETTER})",
        rf"(?i){_APOS}(?:[smd]|ll|re|ve)(?!{_LETTER})",
        rf"(?i)('t)(?:is|was)(?:n't)?{_END}",
        # words with an apostrophe of their own
        rf"(?i){_APOS}(?:em|till?|cause|[2-9]0s){_END}",
        rf"{_APOS}\d\d(?=$|{_BEFORE_NUMBER}|{_BEFORE_STARTER})",
        rf"(?i){_APOS}n(?:{_APOS}|{_END})",
        rf"(?i)(?:dunkin|somethin|ol){_APOS}{_END}",
        rf"(?i)(?:c{_APOS}mon|s{_APOS}mores|ev{_APOS}ry|li{_APOS}l|nat{_APOS}l|cap{_APOS}n){_END}",
        rf"(?i)nor{_APOS}easter{_END}",
        rf"[ldjLDJ]{_APOS}",
        rf"(?i)(y{_APOS})(?:all|know){_END}",
        rf"[A-HJ-XZn]{_APOS}{_LETTER}{{2,}}",
        rf"{_LETTER}*[aeiouyAEIOUY]{_APOS}[aeiouA-Z]{_LETTER}*",
        # words, numbers and what is made of them
        _THING,
        _COMPOUND,
        _NUMBER,
        rf"{_DOTTED}(?:[.!?]{_DOTTED})+",
        r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
        r"\d+-\d+/\d+",
        r"[A-Z]+(?:(?:&amp;|[&+])[A-Z]+)+",
        r"(?i)c\+\+|[cf]#",
        # abbreviations
        rf"(?:{_THING}|{_COMPOUND}|{_NUMBER})\.(?=[,;:])",
        rf"{_LETTER}\.(?:(?:{_LETTER}\.)+|(?!{_BEFORE_STARTER}))",
        rf"(?i){_any(ABBREVIATIONS)}\.",
        rf"(?:{'|'.join(f'{w[0]}(?i:{w[1:]})' for w in CAPITALISED_ABBREVIATIONS.split())})\.",
        rf"(?i){_any(NUMBERED_ABBREVIATIONS)}\.(?=\d|{_BEFORE_NUMBER})",
        # addresses, tags, names, signs
        r"https?://[^\s\"<>|()]*\.[^\s\"<>|()]*[^\s\"<>|().,?!:;'-]",
        r"(?i)(?:[a-z0-9-]+\.)+(?:com|net|org|edu)/[^\s\"<>|()]+[^\s\"<>|().,?!:;'-]",
        r"[\w.-]+@[\w.,-]*\w",
        r"</?[A-Za-z!?][^<>]*>",
        r"@[A-Za-z_][A-Za-z0-9_]*|#[A-Za-z]+",
        rf"[<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]]{_END}",
        r"(?:US|HK|NZ|[AC])\$",
        r"(?i)&(?:amp|lt|gt|quot|apos);",
        r"[?!]+|-+|_+|\.{3,}|''|``",
        r"\S",
    )
]
_STARTER = re.compile(rf"(?=[A-Z])(?i:{_any(STARTERS)})")
_CLITIC = re.compile(rf"n?{_APOS}(?:t|[smd]|ll|re|ve)")
_UNSEEN = re.compile(r"[\u200b-\u200f\ufe0f\ufeff\U00010000-\U0010ffff]")
"""Marks without a glyph, and characters beyond the basic plane (emoji): no tokens, but borders."""


def _written(token: str) -> str:
    """A token the treebank's way, in lower case."""
    token = token.lower().replace("&amp;", "&")
    if token in WRITTEN:
        return WRITTEN[token]
    if token[0] in ":;=<>":  # a face
        return "".join(WRITTEN.get(c, c) for c in token)
    return token.replace("’", "'") if _CLITIC.fullmatch(token) else token


@lru_cache(maxsize=1 << 17)
def _chunk(chunk: str, before: str) -> tuple[str, ...]:
    """Tokens of a text without white space that stands `before` a number, a starter or neither."""
    text = chunk + before
    start, tokens = 0, []
    while start < len(chunk):
        match = max(
            (rule.match(text, start) for rule in _RULES), key=lambda m: m.end() if m else -1
        )
        assert match is not None  # the last rule takes anything
        end = min(match.end(1) if match.re.groups else match.end(), len(chunk))
        token = text[start:end]
        cut = TWO_WORDS.get(token.lower())
        parts = [token] if cut is None else [token[:cut], token[cut:]]
        tokens += [_written(part) for part in parts if not REMOVED.fullmatch(part)]
        start = end
    return tuple(tokens)


def _kind(chunk: str) -> str:
    """What the full stop before this chunk must know of it."""
    if chunk[0].isdigit():
        return _BEFORE_NUMBER
    return _BEFORE_STARTER if _STARTER.fullmatch(chunk) else ""


def tokenize(text: str) -> list[str]:
    """Words as pycocoevalcap's PTBTokenizer leaves them: Penn Treebank, lower case, no punctuation.

    >>> tokenize("It isn't the dog's \\"bed\\", (maybe) a t-shirt.")
    ['it', 'is', "n't", 'the', 'dog', "'s", 'bed', '-lrb-', 'maybe', '-rrb-', 'a', 't-shirt']
    """
    chunks = _UNSEEN.sub(" ", text.replace("\u00ad", "")).split()
    kinds = [_kind(chunk) for chunk in chunks]
    pairs = itertools.zip_longest(chunks, kinds[1:], fillvalue="")
    return [token for pair in pairs for token in _chunk(*pair)]
