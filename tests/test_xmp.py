"""XMP sidecars: what others wrote stays, ours is read by others, replaced and removed."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from zeroshot.output.xmp import xmp_fields
from zeroshot.output.xmp.xmp_document import MAX_BYTES, MAX_DEPTH, XmpError, parse
from zeroshot.output.xmp.xmp_fields import NEW, with_keywords, with_text, without_ours
from zeroshot.tasks.sidecars import xmp_sidecars

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))
CAPTION = ["--models", "pocket", "-o", "k=2", "--sidecar", "xmp"]
LABELS = ["--models", "pocket", "--labels", "red heart,blue star,green square", "--multi"]
KEYWORDS = [*LABELS, "--threshold=-0.3", "--sidecar", "xmp"]
READERS = pytest.mark.skipif(
    not (shutil.which("exiftool") and shutil.which("exiv2")),
    reason="apt-get install libimage-exiftool-perl exiv2",
)
DARKTABLE = """\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
   xmp:Rating="4"
   darktable:xmp_version="5"
   darktable:raw_params="0"
   darktable:history_end="1">
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="flip"
      darktable:enabled="1"
      darktable:params="gz05eJw7&#x2f;CgA"/>
    </rdf:Seq>
   </darktable:history>
   <dc:subject>
    <rdf:Bag>
     <rdf:li>darktable|format|jpg</rdf:li>
     <rdf:li>cat</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>animals|cat</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
DIGIKAM = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 5.1.2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:digiKam='http://www.digikam.org/ns/1.0/'
    xmlns:MicrosoftPhoto="http://ns.microsoft.com/photo/1.0/"
    xmlns:acdsee="http://ns.acdsee.com/iptc/1.0/"
    xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   digiKam:PickLabel="0" digiKam:ColorLabel='3'
   acdsee:categories="&lt;Categories&gt;&lt;/Categories&gt;">
   <!-- a note of mine -->
   <digiKam:TagsList>
    <rdf:Seq><rdf:li>Places/Köln</rdf:li></rdf:Seq>
   </digiKam:TagsList>
   <digiKam:CaptionsAuthorNames>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">Anna</rdf:li>
    </rdf:Alt>
   </digiKam:CaptionsAuthorNames>
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">My &amp; your words</rdf:li>
     <rdf:li xml:lang="de-DE">Meine Worte</rdf:li>
    </rdf:Alt>
   </dc:description>
   <dc:subject><rdf:Bag><rdf:li>Köln</rdf:li></rdf:Bag></dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
OTHER_PREFIXES = """\
<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\r
 <r:Description r:about="uuid:1" xmlns:d="http://purl.org/dc/elements/1.1/" d:format="image/jpeg">\r
  <d:subject><r:Bag/></d:subject>\r
  <d:description><r:Alt><r:li xml:lang="fr">un chat</r:li></r:Alt></d:description>\r
 </r:Description>\r
</r:RDF>\r
"""
OF_OTHERS = {"darktable": DARKTABLE, "digikam": DIGIKAM, "new": NEW.decode()}


def both(data, text="a cat", keywords=("cat", "hot dog")):
    """Ours of both kinds."""
    return with_keywords(with_text(data, text).data, keywords).data


def exiftool(file):
    out = subprocess.run(["exiftool", "-j", "-G1", "-a", file], capture_output=True, check=True)
    return json.loads(out.stdout)[0]


def exiv2(file):
    out = subprocess.run(
        ["exiv2", "-PXkv", file], capture_output=True, check=True, encoding="utf-8"
    )
    lines = (line.split(None, 1) for line in out.stdout.splitlines())
    return {line[0]: line[1] if len(line) > 1 else "" for line in lines}


# Merging


@pytest.mark.parametrize("name", OF_OTHERS)
def test_what_others_wrote_stays_byte_for_byte(name):
    before = OF_OTHERS[name].encode()
    after = both(before)
    assert both(after) == after
    assert without_ours(after) == before
    changed = both(after, "another caption", ["bird"])
    assert b"hot dog" not in changed
    assert without_ours(changed) == before
    assert without_ours(before) == before


def test_a_keyword_of_the_person_is_not_ours():
    """It has no second item, no note, and stays when ours go."""
    merged = with_keywords(DARKTABLE.encode(), ["cat", "dog"]).data
    document = parse(merged)
    [subject] = document.properties(("http://purl.org/dc/elements/1.1/", "subject"))
    words = [item.text for item in subject.children[0].children]
    assert words == ["darktable|format|jpg", "cat", "dog"]
    assert b"<rdf:li>cat</rdf:li>" in without_ours(merged)
    assert b"zeroshot|cat" in merged


def test_a_description_of_the_person_stays():
    merged = with_text(DIGIKAM.encode(), "a cat")
    assert merged.kept == ("dc:description",)
    assert b"My &amp; your words" in merged.data
    assert merged.data.count(b"a cat") == 2  # the alternative text and its note
    assert without_ours(merged.data) == DIGIKAM.encode()


def test_a_description_that_the_person_changed_is_theirs():
    ours = with_text(NEW, "a cat").data
    edited = ours.replace(b'x-default">a cat', b'x-default">my cat', 1)
    again = with_text(edited, "a dog")
    assert again.kept == ("dc:description",)
    assert b"my cat" in again.data
    assert b"my cat" in without_ours(again.data)
    assert b"a dog" not in without_ours(again.data)


def test_other_prefixes_translations_and_empty_lists():
    merged = both(OTHER_PREFIXES.encode())
    assert b'<r:li xml:lang="x-default">a cat</r:li><r:li xml:lang="fr">un chat' in merged
    assert b"<d:subject>" not in merged
    assert b"<dc:subject>" in merged
    assert merged.count(b'about="uuid:1"') == 3
    assert both(merged) == merged
    left = without_ours(merged)
    assert b"un chat" in left
    assert b"zeroshot" not in left
    assert b"cat<" not in left.replace(b"un chat", b"")


def test_texts_that_need_escapes():
    text = "a \"sign\" <b> & 'é' 🐈\nsecond\tline"
    merged = with_text(NEW, text).data
    [found] = parse(merged).properties(("http://purl.org/dc/elements/1.1/", "description"))
    assert found.children[0].children[0].text == text
    assert without_ours(merged) == NEW
    for bad in ("a\x00", "\x0b", "\ufffe", "\ud800"):
        with pytest.raises(XmpError, match="cannot hold"):
            with_text(NEW, bad)


def test_no_keywords_remove_ours():
    assert with_keywords(with_keywords(NEW, ["cat"]).data, []).data == NEW
    assert with_keywords(NEW, []).data == NEW


# Read, and written again, by others


@READERS
@pytest.mark.parametrize("name", OF_OTHERS)
def test_other_programs_read_it(tmp_path, name):
    before = OF_OTHERS[name].encode()
    file, old = tmp_path / "a.jpg.xmp", tmp_path / "old.xmp"
    file.write_bytes(both(before))
    old.write_bytes(before)
    read, theirs = exiftool(file), exiftool(old)
    changed = {"XMP-dc:Subject", "XMP-dc:Description", "XMP-digiKam:TagsList"}
    changed |= {"XMP-lr:HierarchicalSubject"}
    for key, value in theirs.items():
        if key.startswith("XMP-") and key not in changed:
            assert read[key] == value
    assert {"cat", "hot dog"} <= set(read["XMP-dc:Subject"])
    assert {"zeroshot|cat", "zeroshot|hot dog"} <= set(read["XMP-lr:HierarchicalSubject"])
    assert {"zeroshot/cat", "zeroshot/hot dog"} <= set(read["XMP-digiKam:TagsList"])
    assert read["XMP-iptcCore:AltTextAccessibility"] == "a cat"
    assert read["XMP-dc:Description"] == ("My & your words" if name == "digikam" else "a cat")
    read, theirs = exiv2(file), exiv2(old)
    assert {k: read[k] for k in theirs if k.split(".")[1] not in ("dc", "lr", "digiKam")} == {
        k: v for k, v in theirs.items() if k.split(".")[1] not in ("dc", "lr", "digiKam")
    }
    assert read["Xmp.dc.subject"].endswith("hot dog")
    assert "zeroshot|cat" in read["Xmp.lr.hierarchicalSubject"]
    assert "zeroshot/cat" in read["Xmp.digiKam.TagsList"]
    assert read["Xmp.iptc.AltTextAccessibility"] == 'lang="x-default" a cat'


REWRITES = {
    "exiftool": ["exiftool", "-q", "-overwrite_original", "-XMP-dc:Subject+=added"],
    "exiv2": ["exiv2", "-M", "set Xmp.dc.creator XmpSeq added"],
}


@READERS
@pytest.mark.parametrize("program", REWRITES)
@pytest.mark.parametrize("name", OF_OTHERS)
def test_ours_is_known_after_another_program_wrote_the_file(tmp_path, program, name):
    file = tmp_path / "a.jpg.xmp"
    file.write_bytes(both(OF_OTHERS[name].encode()))
    before = file.read_bytes()
    subprocess.run([*REWRITES[program], file], check=True, capture_output=True)
    assert file.read_bytes() != before
    changed = both(file.read_bytes(), "a bird", ["bird"])
    assert b"hot dog" not in changed
    assert b"zeroshot|bird" in changed
    left = without_ours(changed)
    for ours in (b"zeroshot|", b"zeroshot/", b"a bird", b"zeroshot:", b">bird"):
        assert ours not in left.replace(b"xmlns:zeroshot", b"").replace(b'"zeroshot"', b"")
    file.write_bytes(left)
    read = exiftool(file)
    assert "added" in str(read)
    if name == "darktable":
        assert "cat" in read["XMP-dc:Subject"]
        assert read["XMP-lr:HierarchicalSubject"] == "animals|cat"
        assert read["XMP-xmp:Rating"] == 4
    if name == "digikam":
        assert read["XMP-digiKam:TagsList"] == "Places/Köln"
        assert read["XMP-dc:Description"] == "My & your words"


# Files that are not trusted

BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
REFUSED = {
    "entities": (BOMB, "document type"),
    "external": (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>', "document type"),
    "undeclared entity": (NEW.replace(b" </rdf", b"&a;</rdf"), "no whole XML"),
    "cut off": (DARKTABLE.encode()[:900], "no whole XML"),
    "empty": (b"", "no whole XML"),
    "two documents": (NEW + NEW.split(b"\n", 1)[1], "no whole XML"),
    "no XML": (b"my notes", "no whole XML"),
    "other XML": (b"<html><body/></html>", "no XMP"),
    "UTF-16": (DARKTABLE.replace("UTF-8", "UTF-16").encode("utf-16"), "not in UTF-8"),
    "Latin-1": (NEW.replace(b"UTF-8", b"ISO-8859-1"), "not in UTF-8"),
    "bad bytes": (NEW.replace(b" </rdf", b"\xff</rdf"), "no whole XML"),
    "too large": (b" " * (MAX_BYTES + 1), "16 MiB"),
    "deep": (b"<a>" * (MAX_DEPTH + 1) + b"</a>" * (MAX_DEPTH + 1), "in each other"),
    "unbound prefix": (b"<y:a/>", "'y' stands for no namespace"),
    "no list": (DARKTABLE.replace("rdf:Bag", "rdf:Description").encode(), "no list"),
    "RDF without end": (
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>',
        "is empty",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(name):
    data, reason = REFUSED[name]
    with pytest.raises(XmpError, match=reason):
        both(data)


# The commands


def xmp(folder="p"):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.xmp")}


@pytest.mark.parametrize("name", ["full", "stem"])
def test_captions_then_keywords_then_neither(zeroshot, folder, name):
    suffix, named = (".png.xmp", []) if name == "full" else (".xmp", ["--xmp-name", "stem"])
    images = {path: path.read_bytes() for path in folder.glob("*.png")}
    Path(f"p/b{suffix}").write_text(DIGIKAM, "utf-8")
    os.chmod(f"p/b{suffix}", 0o600)
    code, rows, err = zeroshot("caption", "p", *CAPTION, *named)
    assert code == 0
    assert "kept 1 text of others in XMP sidecars" in err
    assert sorted(xmp()) == [f"{x}{suffix}" for x in "abcd"]
    for row in rows:
        assert row["caption"].encode() in xmp()[f"{Path(row['path']).stem}{suffix}"]
    code, rows, err = zeroshot("classify", "p", *KEYWORDS, *named)
    assert code == 0
    assert any(row["labels"] for row in rows)
    for row in rows:
        data = xmp()[f"{Path(row['path']).stem}{suffix}"]
        for label in ("red heart", "blue star", "green square"):
            held = label in [x["label"] for x in row["labels"]]
            assert (f"zeroshot|{label}".encode() in data) == held
    assert Path(f"p/b{suffix}").stat().st_mode & 0o777 == 0o600
    before = xmp()
    assert zeroshot("classify", "p", *KEYWORDS, *named)[0] == 0
    assert xmp() == before
    code, rows, err = zeroshot("classify", "p", "--sidecar-remove", *named)
    assert (code, rows) == (0, [])
    assert "took what zeroshot wrote out of 4 XMP sidecars" in err
    assert xmp() == {f"b{suffix}": DIGIKAM.encode()}
    assert "out of 0 XMP sidecars" in zeroshot("caption", "p", "--sidecar-remove", *named)[2]
    assert {path: path.read_bytes() for path in folder.glob("*.png")} == images


@pytest.mark.parametrize("out", ["o.jsonl", "o.csv", "o/"])
def test_rows_of_earlier_runs(zeroshot, folder, out):
    Path("p/broken.png").write_bytes(b"no image")
    for command, options, of in (
        ("caption", CAPTION, "captions"),
        ("classify", KEYWORDS, "keywords"),
    ):
        name = f"{command}-{out}"
        arguments = [command, "p", *options[:-2], "--out", name]
        assert zeroshot(*arguments)[0] == 3
        assert xmp() == {}
        code, _, err = zeroshot(*arguments, "--sidecar", "xmp")
        assert code == 0
        assert f"{of} of earlier rows that are now beside their images" in err
        written = xmp()
        assert written
        mine = next(iter(written))
        edited = written[mine].replace(b"</zeroshot:", b"<!-- mine --></zeroshot:", 1)
        Path("p", mine).write_bytes(edited)
        assert "now beside" not in zeroshot(*arguments, "--sidecar", "xmp")[2]
        assert Path("p", mine).read_bytes() == edited
        zeroshot("caption", "p", "--sidecar-remove")
        for left in folder.glob("*.xmp"):
            left.unlink()


@pytest.mark.parametrize("out", [[], ["--out", "o/"]])
def test_a_method_that_sees_all_images(zeroshot, folder, out):
    arguments = [*KEYWORDS, "--threshold=-9", "--method", "center", *out]
    assert zeroshot("classify", "p", *arguments)[0] == 0
    assert xmp()


KINDS = {
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("other.xmp"),
    "damaged": lambda path: path.write_bytes(DARKTABLE.encode()[:500]),
    "entities": lambda path: path.write_bytes(BOMB),
}


def state(path):
    info = path.lstat()
    return info.st_mode, info.st_ino, info.st_size, info.st_mtime_ns


def test_what_cannot_be_merged_stays_and_is_named(zeroshot, folder):
    Path("p/other.xmp").write_bytes(NEW)
    for number, make in enumerate(KINDS.values()):
        shutil.copy("p/a.png", f"p/x{number}.png")
        make(folder / f"x{number}.png.xmp")
    before = {path.name: state(path) for path in folder.glob("x*.xmp")}
    for arguments in (
        ["caption", "p", *CAPTION, "--overwrite"],
        ["caption", "p", "--sidecar-remove"],
    ):
        code, _, err = zeroshot(*arguments)
        assert code == 3
        for number, reason in enumerate(
            ("a pipe has its name", "a folder has its name", "a link has its name", "no whole XML")
        ):
            assert f"not written: 'p/x{number}.png.xmp': " in err
            assert reason in err
        assert "document type" in err
        assert {path.name: state(path) for path in folder.glob("x*.xmp")} == before
        assert Path("p/other.xmp").read_bytes() == NEW
    assert xmp("p/..") == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (LABELS[:4], "needs a threshold"),
        (LABELS, "needs a threshold"),
        ([*LABELS, "--threshold", "0.2", "--labels", "cat,a|b"], "'a|b' has a | or a /"),
        ([*LABELS, "--threshold", "0.2", "--compare", "zpe,center"], "--compare"),
    ],
)
def test_refused_before_the_run(zeroshot, folder, more, message):
    code, rows, err = zeroshot("classify", "p", *more, "--sidecar", "xmp")
    assert (code, rows, xmp()) == (2, [], {})
    assert message in err


def test_images_that_share_a_name_share_no_sidecar(zeroshot, folder):
    shutil.copy("p/a.png", "p/a.gif")
    code, _, err = zeroshot("caption", "p", *CAPTION, "--xmp-name", "stem")
    assert code == 2
    assert "would both have their captions in 'p/a.xmp'" in err
    assert xmp() == {}
    assert zeroshot("caption", "p", *CAPTION)[0] == 0
    assert len(xmp()) == 5


def test_a_sidecar_that_changes_meanwhile(folder):
    file = Path("p/a.png.xmp")
    file.write_bytes(DIGIKAM.encode())
    with pytest.raises(XmpError, match="another program"):
        xmp_sidecars._write(file, DARKTABLE.encode(), both(DARKTABLE.encode()))
    with pytest.raises(XmpError, match="another program"):
        xmp_sidecars._write(file, None, NEW)
    assert file.read_bytes() == DIGIKAM.encode()
    assert not list(folder.glob(".*"))


def test_keywords_of_rows():
    labels = [{"label": "cat", "score": 0.9, "cosine": 0.3}]
    assert xmp_sidecars.keywords({"labels": labels, "abstained": False}) == ["cat"]
    assert xmp_sidecars.keywords({"labels": json.dumps(labels), "abstained": "false"}) == ["cat"]
    assert xmp_sidecars.keywords({"labels": labels, "abstained": True}) == []
    assert xmp_sidecars.keywords({"labels": json.dumps(labels), "abstained": "True"}) == []
    assert xmp_fields.ROOT == "zeroshot"
