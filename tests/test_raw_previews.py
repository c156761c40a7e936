"""The JPEG in raw files: in every structure, upright, and what hostile files cost."""

import io
import random
import struct
import time

import numpy as np
import PIL.Image
import pytest

from zeroshot import cli
from zeroshot.errors import UnreadableImageError
from zeroshot.images import raw_previews
from zeroshot.images.raw_previews import raw_preview
from zeroshot.images.reading import read
from zeroshot.inputs.resolve import find

SHORT, LONG, BYTES = 3, 4, 7


def jpeg(width, height, colour="red", **options):
    data = io.BytesIO()
    PIL.Image.new("RGB", (width, height), colour).save(data, "JPEG", **options)
    return data.getvalue()


SMALL, LARGE = jpeg(16, 12, "blue"), jpeg(64, 48)


class Raw:
    """A TIFF structure; values that are bytes are stored behind, and stand for their offset."""

    def __init__(self, order="<", magic=None):
        self.order = order
        self.data = bytearray((magic or {"<": b"II*\0", ">": b"MM\0*"}[order]) + bytes(4))
        self.link = 4

    def put(self, block):
        self.data += bytes(len(self.data) % 2)
        place = len(self.data)
        self.data += block
        return place

    def directory(self, tags, chained=True):
        entries = b""
        for tag, kind, values in tags:
            values = [self.put(v) if isinstance(v, bytes) else v for v in values]
            raw = struct.pack(f"{self.order}{len(values)}{'HI'[kind - 3]}", *values)
            if len(raw) > 4:
                raw = struct.pack(f"{self.order}I", self.put(raw))
            head = struct.pack(f"{self.order}HHI", tag, kind, len(values))
            entries += head + raw.ljust(4, b"\0")
        place = self.put(struct.pack(f"{self.order}H", len(tags)) + entries + bytes(4))
        if chained:
            self.data[self.link : self.link + 4] = struct.pack(f"{self.order}I", place)
            self.link = place + 2 + len(entries)
        return place


def pointed(data):
    return [(513, LONG, [data]), (514, LONG, [len(data)])]


def strip(data, photometric=6, compression=7):
    return [
        (259, SHORT, [compression]),
        (262, SHORT, [photometric]),
        (273, LONG, [data]),
        (279, LONG, [len(data)]),
    ]


MOSAIC = [(259, SHORT, [34713]), (262, SHORT, [32803])]


def nef(order="<", orientation=1, large=LARGE):
    """A thumbnail in the first directory, the JPEG and the sensor's values below it."""
    raw = Raw(order)
    children = [raw.directory(pointed(large), False), raw.directory(MOSAIC, False)]
    thumbnail = strip(bytes(30), 2, 1)
    raw.directory([*thumbnail, (274, SHORT, [orientation]), (330, LONG, children)])
    return bytes(raw.data)


def arw():
    raw = Raw()
    children = [raw.directory([(259, SHORT, [32767]), (262, SHORT, [32803])], False)]
    raw.directory([*pointed(LARGE), (274, SHORT, [1]), (330, LONG, children)])
    raw.directory(pointed(SMALL))
    return bytes(raw.data)


def cr2():
    raw = Raw(magic=b"II*\0")
    raw.data += b"CR\2\0" + bytes(4)
    raw.directory(strip(LARGE, 6, 6))
    raw.directory(pointed(SMALL))
    lossless = LARGE.replace(b"\xff\xc0", b"\xff\xc3")
    raw.directory(strip(lossless + bytes(500), 6, 6))
    return bytes(raw.data)


def dng():
    raw = Raw()
    children = [
        raw.directory(strip(jpeg(200, 200).replace(b"\xff\xc0", b"\xff\xc3"), 32803), False),
        raw.directory(strip(SMALL), False),
        raw.directory(strip(LARGE), False),
    ]
    raw.directory([*strip(bytes(30), 2, 1), (330, LONG, children), (50706, LONG, [0x00000401])])
    return bytes(raw.data)


def rw2():
    raw = Raw(magic=b"IIU\0")
    raw.directory([(274, SHORT, [1])])
    place = raw.put(LARGE)
    at = raw.data.index(struct.pack("<HHI", 274, SHORT, 1))
    raw.data[at : at + 12] = struct.pack("<HHII", 46, BYTES, len(LARGE), place)
    return bytes(raw.data)


def orf():
    raw = Raw(magic=b"IIRO")
    raw.directory([(274, SHORT, [1])])
    raw.directory(pointed(LARGE))
    return bytes(raw.data)


def raf():
    head = b"FUJIFILMCCD-RAW 0201FF".ljust(84, b"\0") + struct.pack(">II", 148, len(LARGE))
    return head.ljust(148, b"\0") + LARGE + bytes(900)


def box(kind, data):
    return struct.pack(">I", 8 + len(data)) + kind + data


def cr3(orientation=1, large=LARGE):
    tags = Raw()
    tags.directory([(274, SHORT, [orientation])])
    canon = box(b"uuid", bytes(16) + box(b"CMT1", bytes(tags.data)))
    preview = struct.pack(">IHHHHI", 0, 1, 64, 48, 1, len(large)) + large
    uuid = raw_previews._CR3_PREVIEW + bytes(8) + box(b"PRVW", preview)
    parts = [(b"ftyp", b"crx \0\0\0\1crx isom"), (b"moov", canon), (b"uuid", uuid)]
    return b"".join(box(*part) for part in parts) + box(b"mdat", bytes(500))


KINDS = {
    **{"nef": nef(), "big": nef(">"), "arw": arw(), "cr2": cr2(), "dng": dng(), "rw2": rw2()},
    **{"orf": orf(), "raf": raf(), "cr3": cr3()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_jpeg_is_the_picture(kind):
    picture = read(KINDS[kind])
    assert picture.size == picture.image.size == (64, 48)
    assert np.abs(np.asarray(picture.image).astype(int) - (255, 0, 0)).max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("build", [nef, cr3])
def test_it_is_turned_as_the_raw_file_says(build, orientation):
    image = PIL.Image.new("RGB", (64, 48), "white")
    image.paste("blue", (0, 0, 16, 16))
    data, exif = io.BytesIO(), PIL.Image.Exif()
    image.save(data, "JPEG", quality=95)
    exif[0x0112] = orientation
    own = io.BytesIO()
    image.save(own, "JPEG", quality=95, exif=exif)
    expected = read(own.getvalue())
    for large in (data, own):  # its own counts, and is not applied twice
        got = read(build(orientation=orientation, large=large.getvalue()))
        assert got.size == expected.size
        assert (np.asarray(got.image) == np.asarray(expected.image)).all()


def test_another_tiff_is_no_raw_file():
    for options in ({}, {"compression": "jpeg"}, {"compression": "tiff_lzw"}):
        data = io.BytesIO()
        PIL.Image.new("RGB", (20, 10), "red").save(data, "TIFF", **options)
        assert raw_preview(data.getvalue()) is None
        assert read(data.getvalue()).size == (20, 10)


def test_a_folder_gives_raw_files_with_their_rows(tmp_path, capsys):
    for kind in ("nef", "CR3", "raf"):
        (tmp_path / f"a.{kind}").write_bytes(KINDS[kind.lower()])
    (tmp_path / "b.dng").write_bytes(KINDS["dng"][:100])
    assert len(find(str(tmp_path)).sources) == 4
    code = cli.run(["embed", str(tmp_path), "--models", "pocket", "--no-cache", "--json"])
    said = capsys.readouterr()
    assert code == 3
    assert said.out.count('"embedding"') == 3
    assert said.out.count('"error"') == 1


# Hostile files


def refusal(data):
    with pytest.raises(UnreadableImageError) as caught:
        read(data)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_is_refused(kind):
    whole = KINDS[kind]
    end = whole.index(LARGE)
    for cut in (end + len(LARGE) - 1, end + 30, end, 30):
        try:
            picture = read(whole[:cut])
        except UnreadableImageError:
            continue
        assert picture.size != (64, 48)  # another one was whole


def test_a_raw_file_without_a_jpeg_says_what_to_do():
    for data in (raf().replace(b"\xff\xd8\xff", b"\xff\xd8\0"), cr3(large=b""), nef(large=b"\xff")):
        assert refusal(data) == (
            "a raw file without a JPEG that can be read: develop it first, for example with "
            "darktable"
        )


def test_directories_that_point_to_each_other_end():
    raw = Raw()
    first = raw.directory([(330, LONG, [8] * 60), *MOSAIC])
    raw.data[raw.link : raw.link + 4] = struct.pack("<I", first)
    assert refusal(bytes(raw.data)).startswith("a raw file without a JPEG")


def test_directories_without_end_are_not_followed():
    """Each points to sixty others, and each of these has the most tags there can be."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    data += b"CR\2\0" + bytes(4)
    data[4:8] = struct.pack("<I", 16)
    entry = struct.pack("<HHII", 330, LONG, 1 << 20, 16)
    data += (struct.pack("<H", 65_535) + entry * 65_535) * 3
    begin = time.perf_counter()
    assert refusal(bytes(data)).startswith("a raw file without a JPEG")
    assert time.perf_counter() - begin < 5  # some milliseconds


def test_the_jpeg_of_a_raw_file_has_the_limits_of_any():
    huge = bytearray(jpeg(16, 16))
    at = huge.index(b"\xff\xc0") + 5
    huge[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    assert "too long" in refusal(nef(large=bytes(huge)))


def test_damaged_files_are_refused_or_read():
    """No other exception, whatever the bytes are."""
    source = random.Random(0)
    for whole in KINDS.values():
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(source.randint(1, 8)):
                data[
                    source.randrange(len(data)) if source.random() < 0.5 else source.randrange(200)
                ] = source.choice((0, 1, 0xFF, source.randrange(256)))
            try:
                read(bytes(data))
            except UnreadableImageError:
                continue
