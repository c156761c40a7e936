"""Tar files as input: what is listed, what samples say, and how every bad member is refused."""

import io
import json
import os
import pickle
import tarfile
import time

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, strategies as st

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images.reading import read
from zeroshot.inputs import tar, webdataset
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import with_captions
from zeroshot.inputs.webdataset import InTar, pictures, read_dataset


def png(seed=0):
    data = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    PIL.Image.fromarray(values).save(data, "PNG")
    return data.getvalue()


def archive(members, format=tarfile.PAX_FORMAT, **common):
    """A tar file of `(name, bytes)` or `(TarInfo, bytes)`."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format, **common) as file:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(name, tarfile.TarInfo) or info.isreg():
                info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(source):
    """The label of a source, and its id or the reason why there is none."""
    try:
        return source.path, read(source).id[:8]
    except UnreadableImageError as error:
        return source.path, str(error)


def listed(name, content):
    """What a task that needs captions makes of a tar file."""
    with open(name, "wb") as file:
        file.write(content)
    return [outcome(source) for source in with_captions(pictures(name))]


def ok(seed):
    return read(png(seed)).id[:8]


# The list of members, against Python's tarfile


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120)


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(0, 4),
)
def test_members_are_those_that_tarfile_finds(members, format, deep):
    named = []
    for i, (name, content) in enumerate(members):
        long = "/".join(["a folder"] * deep * 5 + [name[: 60 if format == 0 else 120]])
        try:
            tarfile.TarInfo(long).tobuf(format)
        except ValueError:  # ustar has no place for it
            continue
        named.append((long if i % 3 else name[:30], content))
    data = archive(named, format)
    with tarfile.open(fileobj=io.BytesIO(data)) as theirs:
        expected = [(m.name, m.offset_data, m.size) for m in theirs if m.isreg()]
    ours = [(m.name, m.start, m.size) for m in tar.members(io.BytesIO(data))]
    assert ours == expected
    assert [data[s : s + n] for _, s, n in ours] == [content for _, content in named]


def test_a_header_by_hand():
    block = bytearray(512)
    block[:5], block[100:108], block[124:136] = b"a.png", b"0000644\0", b"00000000003\0"
    block[148:156], block[156:157] = b" " * 8, b"0"
    block[148:156] = b"%06o\0 " % sum(block)
    data = bytes(block) + b"abc" + bytes(509) + bytes(1024)
    assert list(tar.members(io.BytesIO(data))) == [tar.Member("a.png", 512, 3)]


def test_binary_sizes_and_global_headers():
    big = tarfile.TarInfo("x.png")
    big.size = 3
    block = bytearray(big.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + (3).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    [member] = tar.members(io.BytesIO(bytes(block) + b"abc" + bytes(509 + 1024)))
    assert (member.name, member.size) == ("x.png", 3)
    data = archive([("a.png", b"x"), ("b.png", b"y")], pax_headers={"comment": "of all"})
    assert [m.name for m in tar.members(io.BytesIO(data))] == ["a.png", "b.png"]


def test_tar_files_put_one_behind_the_other():
    data = archive([("a.png", b"x")]) + archive([("b.png", b"y")])
    assert [m.name for m in tar.members(io.BytesIO(data))] == ["a.png", "b.png"]


def test_thousands_of_extended_headers_do_not_nest():
    info = tarfile.TarInfo("./@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 6
    long = info.tobuf(tarfile.USTAR_FORMAT) + b"b.png\0" + bytes(506)
    data = long * 5000 + archive([("a.png", b"x")])
    assert [m.name for m in tar.members(io.BytesIO(data))] == ["b.png"]


# Pictures and what samples say of them


def test_a_plain_tar(folder):
    data = archive([("b.png", png(1)), ("./in/a.v2.png", png(2)), ("readme.md", b"x")])
    assert listed("x.tar", data) == [("x.tar/b.png", ok(1)), ("x.tar/in/a.v2.png", ok(2))]
    left_out = []
    list(pictures("x.tar", left_out))
    assert left_out == ["x.tar/readme.md"]


def test_samples(folder):
    sample = [
        ("s/1.cls", b"7\n"),
        ("s/1.png", png(1)),
        ("s/1.txt", b"a cat\nthe cat\n"),
        ("s/2.PNG", png(2)),
        ("s/2.json", json.dumps({"caption": "a dog", "label": 3, "more": [1]}).encode()),
        ("s/3.txt", b"of nothing"),
        ("s/4.png", png(4)),
    ]
    (folder / "x.tar").write_bytes(archive(sample))
    left_out = []
    found = {s.path: dict(s.fields) for s in pictures("x.tar", left_out)}
    assert found == {
        "x.tar/s/1.png": {"caption": ("a cat", "the cat"), "label": "7"},
        "x.tar/s/2.PNG": {"caption": "a dog", "label": "3"},
        "x.tar/s/4.png": {},
    }
    assert left_out == ["x.tar/s/3.txt"]


def beside(folder, *members):
    """Caption and label of each image in a tar file of these members, or the fault."""
    names = [(name, text.encode() if text else png(1)) for name, text in members]
    (folder / "x.tar").write_bytes(archive(names))
    return {
        s.path.removeprefix("x.tar/"): s.fields.fault or dict(s.fields) for s in pictures("x.tar")
    }


@pytest.mark.parametrize("order", ["by sample", "by name", "texts first", "texts last"])
def test_a_text_belongs_to_the_image_of_its_whole_name(folder, order):
    members = [
        ("at 10.15.22.png", ""),
        ("at 10.15.22.txt", "a heart"),
        ("at 10.16.30.v2.PNG", ""),
        ("at 10.16.30.v2.TXT", "a star"),
        ("at 10.16.30.v2.Cls", "7"),
        ("at 10.png", ""),
        ("at 10.json", '{"caption": "a ring"}'),
        ("at 10.99.txt", "of nothing"),
    ]
    if order == "by name":
        members.sort()
    elif order.startswith("texts"):
        members.sort(key=lambda member: bool(member[1]) != (order == "texts last"))
    assert beside(folder, *members) == {
        "at 10.15.22.png": {"caption": "a heart"},
        "at 10.16.30.v2.PNG": {"caption": "a star", "label": "7"},
        "at 10.png": {"caption": "a ring"},
    }
    left_out = []
    list(pictures("x.tar", left_out))
    assert left_out == ["x.tar/at 10.99.txt"]


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        (["a.png", "a.txt", "a.TXT"], "'a.txt' and 'a.TXT': it is not known which one holds"),
        (["a.b.cls", "a.b.png", "a.b.cls"], "'a.b.cls' and 'a.b.cls': it is not known which"),
        (["in/a.json", "in/a.json", "in/a.png"], "'in/a.json' and 'in/a.json': it is not"),
        (["./a.png", "a.jpg", "a.txt"], "2 images have the name of 'a.txt'"),
        (["v1.2.gif", "v1.2.cls", "v1.2.jpeg", "v1.2.webp"], "3 images have the name of 'v1.2.cls"),
    ],
)
def test_two_candidates_are_no_answer(folder, members, fault):
    """The next sample is not affected, nor is a task that needs no text."""
    texts = [(n, "" if n.endswith(("png", "jpg", "gif", "jpeg", "webp")) else "1") for n in members]
    found = beside(folder, *texts, ("z.png", ""), ("z.txt", "z"))
    assert found.pop("z.png") == {"caption": "z"}
    assert found
    for said in found.values():
        assert said.startswith(fault)
    for source in with_captions(pictures("x.tar")):
        assert isinstance(source.content, InTar) == source.path.endswith("z.png")
    assert {outcome(source)[1] for source in pictures("x.tar")} == {ok(1)}


@pytest.mark.parametrize(
    ("text", "told", "captions"),
    [
        ("one\n\n two \r\n", None, ("one", "two")),
        ("one\ntwo", '{"caption": "one\\ntwo"}', ("one\ntwo",)),
        ("one\ntwo", '{"caption": " one\\r\\ntwo"}', (" one\r\ntwo",)),
        ("one\ntwo", '{"caption": "three"}', ("one", "two")),
        ("one\ntwo", '{"caption": ["one", "two"]}', ("one", "two")),
        (" \n", '{"caption": "three"}', ("three",)),
        (" \n", None, ()),
        ("nan", '{"caption": NaN}', ("nan",)),
        (None, '{"caption": NaN, "label": NaN}', ()),
        (None, '{"caption": ["one", NaN, null, " ", "two\\nlines"]}', ("one", "two\nlines")),
        (None, '{"captions": []}', ()),
    ],
)
def test_captions_of_a_sample(folder, text, told, captions):
    members = [("a.txt", text), ("a.json", told), ("a.png", png(1))]
    data = [(n, x if isinstance(x, bytes) else x.encode()) for n, x in members if x is not None]
    (folder / "x.tar").write_bytes(archive(data))
    [source] = pictures("x.tar")
    assert source.captions == captions
    assert "label" not in source.fields
    assert [s.captions for s in with_captions([source], each=True)] == [
        (caption,) for caption in captions
    ] or captions == ()


def test_hidden_members_say_nothing(folder):
    members = [("._a.png", "x"), ("._a.txt", "hidden"), (".txt", "hidden"), ("txt", "no suffix")]
    assert beside(folder, *members, ("a.png", ""), ("a.txt", "seen")) == {
        "a.png": {"caption": "seen"}
    }


def test_files_of_one_name_that_are_apart_are_two_samples(folder):
    (folder / "x.tar").write_bytes(
        archive([("1.png", png(1)), ("2.png", png(2)), ("1.txt", b"late")])
    )
    assert [dict(s.fields) for s in pictures("x.tar")] == [{}, {}]


def test_a_source_is_small_and_travels(folder):
    (folder / "x.tar").write_bytes(archive([("1.png", png(1)), ("1.cls", b"0")]))
    [source] = pictures("x.tar")
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert outcome(again) == ("x.tar/1.png", ok(1))
    assert len(pickle.dumps(source)) < 300


def test_the_stamp_changes_with_the_tar_file(folder):
    (folder / "x.tar").write_bytes(archive([("1.png", png(1)), ("2.png", png(2))]))
    first, second = (s.content for s in pictures("x.tar"))
    assert first.stamp is None  # changed just now
    os.utime("x.tar", (1, 1))
    assert first.stamp is None  # the time of the change of its times is now
    old = os.stat("x.tar")
    later = old.st_ctime + 10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: int(later * 1e9))
        stamps = {first.stamp, second.stamp}
        assert len(stamps) == 2
        assert {s.split("\0")[0] for s in stamps} == {str(folder / "x.tar")}
        os.utime("x.tar", (2, 2))
        assert first.stamp not in stamps
        os.remove("x.tar")
        assert first.stamp is None


# What is refused


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (
            special("a.png", tarfile.SYMTYPE, "/etc/passwd"),
            "'a.png' is a symbolic link, not a file",
        ),
        (special("a.png", tarfile.LNKTYPE, "good.png"), "'a.png' is a hard link, not a file"),
        (special("a.png", tarfile.CHRTYPE), "'a.png' is a device, not a file"),
        (special("a.png", tarfile.FIFOTYPE), "'a.png' is a pipe, not a file"),
        ("../../a.png", "'../../a.png' is a name that leads out of the tar file"),
        ("/etc/a.png", "'/etc/a.png' is a name that leads out of the tar file"),
        ("in/../../a.png", "'in/../../a.png' is a name that leads out of the tar file"),
        ("..\\a.png", "'..\\\\a.png' is a name that leads out of the tar file"),
        ("C:\\a.png", "'C:\\\\a.png' is a name that leads out of the tar file"),
        ("good.png", "the tar file has 'good.png' twice; the first one is used"),
        ("empty.png", "an empty file, not a picture"),
    ],
)
def test_a_bad_member_is_one_row_and_spoils_no_other(folder, member, reason):
    data = archive([("good.png", png(1)), (member, b""), ("last.png", png(2))])
    first, bad, last = listed("x.tar", data)
    assert (first, last) == (("x.tar/good.png", ok(1)), ("x.tar/last.png", ok(2)))
    assert bad[1] == reason
    assert bad[0] in ("x.tar#1", "x.tar/empty.png")


def test_names_that_are_no_utf8(folder):
    info = tarfile.TarInfo("caf\udce9.png")
    data = archive([(info, png(1))], tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape")
    assert listed("x.tar", data) == [("x.tar/caf\udce9.png", ok(1))]


def test_sparse_members(folder):
    sparse = special("a.png", tarfile.GNUTYPE_SPARSE)
    data = archive([(sparse, b""), ("b.png", png(1))], tarfile.GNU_FORMAT)
    assert listed("x.tar", data)[0] == ("x.tar#0", "'a.png' is a sparse file, not a file")
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.size": "9999999999999"}
    assert listed("x.tar", archive([(info, b"x")])) == [
        ("x.tar#0", "'a.png' is a sparse file, not a file")
    ]


@pytest.mark.parametrize(
    ("part", "content", "reason"),
    [
        (
            "a.txt",
            b"caf\xe9",
            "'a.txt' line 1, character 4 is the byte 0xe9, which is not UTF-8",
        ),
        ("a.json", b"{", "'a.json' line 1, character 2 is not JSON"),
        ("a.json", b"[" * 100_000, "'a.json' is not JSON"),
        ("a.json", b"[]", "'a.json' beside it is no JSON object"),
        ("a.json", b'{"caption": "\\ud800"}', "column 'caption': '\\ud800' is no valid text"),
        ("a.txt", b" " * (webdataset.MAX_PART + 1), "'a.txt' beside it is larger than 1 MiB"),
    ],
)
def test_a_part_that_cannot_be_read_fails_its_sample(folder, part, content, reason):
    data = archive([("a.png", png(1)), (part, content), ("b.png", png(2))])
    (name, said), other = listed("x.tar", data)
    assert name == "x.tar/a.png"
    assert reason in said
    assert other == ("x.tar/b.png", ok(2))
    assert [outcome(source)[1] for source in pictures("x.tar")] == [ok(1), ok(2)]  # of an image


def test_every_truncation_is_seen(folder):
    data = archive([("a.png", png(1)), ("b.png", png(2))])
    ends = [m.start + m.size for m in tar.members(io.BytesIO(data))]
    assert len(data) > ends[1] + 512
    for length in [0, 1, 100, 511, 512, 600, ends[0], ends[0] + 1, 1023, 1024, 1030, ends[1]]:
        rows = listed("x.tar", data[:length])
        assert rows[-1][1].startswith("tar file: "), length
        assert [row[1] for row in rows[:-1]] == [ok(1), ok(2)][: sum(e <= length for e in ends)]


def test_damage_hides_what_is_behind_it_and_says_so(folder):
    data = bytearray(archive([("a.png", png(1)), ("b.png", png(2)), ("c.png", png(3))]))
    second = list(tar.members(io.BytesIO(bytes(data))))[1]
    data[second.start - 512] ^= 1
    assert listed("x.tar", bytes(data)) == [
        ("x.tar/a.png", ok(1)),
        ("x.tar#1", f"tar file: damaged at byte {second.start - 512}: what follows cannot be read"),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "tar file: an empty file, not a tar file"),
        (b"x" * 2000, "tar file: no tar file"),
        (b"\x1f\x8b" + bytes(2000), "tar file: compressed by gzip, so that no member can be found"),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "compressed by zstd"),
    ],
)
def test_what_is_no_tar_file(folder, content, reason):
    [(name, said)] = listed("x.tar", content)
    assert name == "x.tar"
    assert reason in said


def with_size(field):
    block = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


@pytest.mark.parametrize(
    "field",
    [
        b"\x80" + b"\xff" * 11,  # 2^88
        b"\xff" * 12,  # -1
        b"-0000000001\0",
        b"77777777777\0",
        b"0x000000001\0",
        b"99999999999\0",
    ],
)
def test_sizes_that_lie(folder, field):
    [(name, said)] = listed("x.tar", with_size(field))
    assert name == "x.tar"
    assert said.startswith("tar file: ")


@pytest.mark.parametrize(
    "records",
    [
        b"99 path=a.png\n",
        b"0 path=a.png\n",
        b"13 path=a.png",
        b"xx path=a.png\n",
        b"15 size=-0001\n\n",
        b"11 size=1e9\n",
        b"8 path=\n",
    ],
)
def test_pax_records_that_lie(folder, records):
    info = special("x", tarfile.XHDTYPE)
    info.size = len(records)
    head = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    for name, said in listed("x.tar", head + archive([("a.png", png(1))])):
        assert name.startswith("x.tar")
        assert said


def test_a_sparse_hole_of_a_terabyte_costs_nothing(folder):
    info = special("./@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 40
    with open("x.tar", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 40)
    started = time.process_time()
    [(_, said)] = [outcome(s) for s in pictures("x.tar")]
    assert said == "tar file: damaged at byte 0: a header of 1099511627776 bytes"
    with open("x.tar", "wb") as file:
        file.write(archive([("a.png", png(1))]))
        file.truncate(1 << 40)
    assert [outcome(s) for s in pictures("x.tar")] == [("x.tar/a.png", ok(1))]
    assert time.process_time() - started < 5


def test_a_tar_that_is_no_file(folder):
    os.mkfifo("pipe.tar")
    assert [outcome(s) for s in pictures("gone.tar")] == [("gone.tar", "no such file")]
    [(_, said)] = [outcome(s) for s in pictures("pipe.tar")]
    assert said == "cannot be read: a pipe or a device, not a file"


def test_a_tar_that_shrinks_after_it_was_listed(folder):
    (folder / "x.tar").write_bytes(archive([("a.png", png(1))]))
    [source] = pictures("x.tar")
    os.truncate("x.tar", 520)
    assert outcome(source)[1] == "the tar file has become shorter since it was listed"
    os.remove("x.tar")
    assert "No such file" in outcome(source)[1]


# Folders and patterns of them


def shards(folder, count, split="test"):
    (folder / split).mkdir(parents=True)
    for i in range(count):
        sample = [(f"s{i}.cls", b"%d" % (i % 2)), (f"s{i}.png", png(i))]
        (folder / split / f"{i}.tar").write_bytes(archive(sample))
    (folder / split / "nshards.txt").write_text(f"{count}\n")


def test_a_folder_as_clip_benchmark_keeps_it(folder):
    shards(folder / "wds", 12)
    (folder / "wds" / "classnames.txt").write_text("cat\ndog\n")
    (folder / "wds" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    result = find("wds")
    assert [s.path for s in result.sources] == [f"wds/test/{i}.tar/s{i}.png" for i in range(12)]
    assert [s.fields["label"] for s in result.sources] == ["0", "1"] * 6
    assert sorted(os.path.basename(p) for p in result.left_out) == [
        "classnames.txt",
        "nshards.txt",
        "zeroshot_classification_templates.txt",
    ]
    held = read_dataset(folder / "wds")
    assert (held.kind, held.classes, held.templates) == (
        "classification",
        ("cat", "dog"),
        ("a photo of a {c}.",),
    )
    assert [s.fields for s in held.sources()] == [s.fields for s in result.sources]
    with pytest.raises(UserError, match="is no webdataset of CLIP_benchmark's"):
        read_dataset(folder / "wds", "train")


def test_shards_that_are_missing_are_rows(folder):
    shards(folder / "wds", 3)
    os.remove("wds/test/1.tar")
    assert [outcome(s)[1] for s in find("wds/test").sources] == [ok(0), "no such file", ok(2)]
    (folder / "wds/test/nshards.txt").write_text("many")
    with pytest.raises(UserError, match="is no number of tar files"):
        find("wds")
    (folder / "wds/test/nshards.txt").write_text("99999999999")
    with pytest.raises(UserError, match="at most 1000000 are read"):
        find("wds")


def test_tar_files_among_pictures(folder):
    (folder / "in").mkdir()
    (folder / "in/b.tar").write_bytes(archive([("x.png", png(1))]))
    (folder / "in/a.png").write_bytes(png(2))
    (folder / "in/c.png").write_bytes(png(3))
    assert [outcome(s) for s in find("in").sources] == [
        ("in/a.png", ok(2)),
        ("in/b.tar/x.png", ok(1)),
        ("in/c.png", ok(3)),
    ]


def test_brace_patterns(folder):
    for i in (8, 9, 10):
        (folder / f"s-{i:03d}.tar").write_bytes(archive([(f"{i}.png", png(i))]))
    paths = [s.path for s in find("s-{008..011}.tar").sources]
    assert paths == ["s-008.tar/8.png", "s-009.tar/9.png", "s-010.tar/10.png", "s-011.tar"]
    assert [s.path for s in find("s-{010,008}.tar").sources] == [
        "s-010.tar/10.png",
        "s-008.tar/8.png",
    ]
    assert [s.path for s in find("s-0{08,1*}.tar").sources] == [
        "s-008.tar/8.png",
        "s-010.tar/10.png",
    ]
    assert [s.path for s in find("{10..8}.png").sources] == ["10.png", "9.png", "8.png"]
    with pytest.raises(UserError, match="more than 10000000 names"):
        find("s-{0..99999999999}.tar")
    with pytest.raises(UserError, match="more than 10000000 names"):
        find("{0..9999}{0..9999}.tar")
    (folder / "{1..2}.png").write_bytes(png(5))
    assert [outcome(s) for s in find("{1..2}.png").sources] == [("{1..2}.png", ok(5))]


def test_reading_is_by_place_alone(folder, monkeypatch):
    (folder / "x.tar").write_bytes(archive([("a.png", png(1)), ("b.png", png(2))]))
    sources = list(pictures("x.tar"))
    assert all(isinstance(s.content, InTar) for s in sources)
    monkeypatch.setattr(tar, "members", lambda file: 1 / 0)
    assert [outcome(s)[1] for s in reversed(sources)] == [ok(2), ok(1)]


# Work that is bounded by the bytes


def header(name, size, kind):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def extended(kind, records):
    data = b"".join(records)
    return header("x", len(data), kind) + data + bytes(-len(data) % 512)


def record(key, value):
    line = f" {key}={value}\n".encode()
    length = len(line) + 1
    while length != len(str(length)) + len(line):
        length = len(str(length)) + len(line)
    return str(length).encode() + line


@pytest.mark.parametrize(
    "content",
    [
        extended(b"x", [record("a", "b")] * 170_000) * 3 + header("a.png", 0, b"0"),
        extended(b"g", [record(f"k{i:06d}", "") for i in range(70_000)])
        + header("a.png", 0, b"0") * 2000,
        extended(b"g", [record("GNU.sparse." + "k" * 90 + str(i), "") for i in range(9000)])
        + header("a.png", 0, b"0") * 2000,
        extended(b"x", [record("path", "a" * 900)] * 1100) + header("a.png", 0, b"0"),
    ],
    ids=["short records", "global ones", "sparse ones", "the same key"],
)
def test_pax_records_take_time_by_their_bytes(content):
    """They were copied for each record, and looked through for each member: minutes."""
    began = time.process_time()
    found = list(tar.members(io.BytesIO(content + bytes(1024))))
    assert time.process_time() - began < 5
    assert len(found) == content.count(b"a.png")


def test_a_name_for_all_members_is_of_bounded_length():
    members = extended(b"g", [record("path", "n" * 1_000_000)]) + header("a.png", 0, b"0") * 1000
    with pytest.raises(tar.DamagedError, match="a name of 1000000 characters"):
        list(tar.members(io.BytesIO(header("b.png", 0, b"0") + members + bytes(1024))))
    longest = extended(b"x", [record("path", "n" * (1 << 16))]) + header("a.png", 0, b"0")
    assert len(next(tar.members(io.BytesIO(longest + bytes(1024)))).name) == 1 << 16


@pytest.mark.parametrize(
    ("records", "key", "value"),
    [
        ([record("path", "ä.png"), record("mtime", "1.5")], "path", "ä.png"),
        ([record("path", "x.png"), record("path", "y.png")], "path", "y.png"),
        ([record("size", "00"), record("comment", "a=b\nc")], "size", "00"),
        ([record("comment", "1 path=no.png\n"), record("path", "y.png")], "path", "y.png"),
    ],
)
def test_records_that_count(records, key, value):
    assert tar._records(b"".join(records) + bytes(9), 0) == {key: value}


@pytest.mark.parametrize("bad", [b"0 a=b\n", b"1 a=b\n", b"7 a=b\n", b"6 aab\n", b"x", b"6 a=b"])
def test_records_that_are_none(bad):
    with pytest.raises(tar.DamagedError, match="a header of no pax records"):
        tar._records(record("path", "x") + bad, 0)


@pytest.mark.parametrize("name", ["n" * 60_000, "😀" * 15_000 + ".png", "a/" * 30_000 + "x.png"])
@pytest.mark.parametrize("kind", [b"0", b"2"])
def test_a_name_for_all_members_takes_no_more_than_the_file(name, kind):
    """pax can give one to every member at once: gigabytes from a megabyte."""
    members = extended(b"g", [record("path", name)]) + header("a.png", 0, kind) * 3000
    file = io.BytesIO(members + bytes(1024))
    found = []
    with pytest.raises(tar.DamagedError, match="the names are longer than the file"):
        found.extend(iter(tar.members(file)))
    assert sum(len(member.name) for member in found) <= len(file.getvalue())


def test_many_names_that_are_all_written_are_read():
    members = b"".join(
        extended(b"x", [record("path", f"{'n' * 3000}{i}.png")]) + header("a.png", 0, b"0")
        for i in range(50)
    )
    assert len(list(tar.members(io.BytesIO(members + bytes(1024))))) == 50
