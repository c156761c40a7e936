"""Images that would take far more memory or time than they weigh, and very large photographs."""

import functools
import io
import json
import os
import struct
import tarfile
import threading
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from zeroshot import cli
from zeroshot.commands.common_options import CommonOptions
from zeroshot.errors import UnreadableImageError
from zeroshot.images import limits, pixels, reading
from zeroshot.images.limits import Room, jpeg_cost
from zeroshot.images.reading import read, read_ahead
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import MAX_PIXELS, Picture
from zeroshot.inputs.tables import InputOptions
from zeroshot.results.regions import Detection


def noise(width, height, mode="RGB", seed=0):
    channels = len(PIL.Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return PIL.Image.frombytes(mode, (width, height), values.tobytes())


def encoded(image, format, **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def refusal(data, **options):
    with pytest.raises(UnreadableImageError) as caught:
        read(data, **options)
    return str(caught.value)


# Very large photographs


@pytest.mark.parametrize(
    ("size", "limit", "decoded"),
    [
        ((90, 61), 90 * 61, (90, 61)),  # at the limit: all of it
        ((90, 61), 90 * 61 - 1, (45, 31)),
        ((90, 61), 1000, (23, 16)),
        ((90, 61), 100, (12, 8)),
        ((61, 90), 1000, (16, 23)),
    ],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_beyond_the_limit_is_decoded_at_a_fraction(size, limit, decoded, progressive):
    data = encoded(noise(*size), "JPEG", progressive=progressive)
    picture = read(data, max_pixels=limit)
    assert (picture.image.size, picture.size) == (decoded, size)


def test_a_fraction_is_turned_upright_and_knows_its_full_size():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = PIL.Image.new("RGB", (80, 40), "blue")
    image.paste("red", (0, 0, 20, 40))  # the left quarter, which the camera turned upwards
    picture = read(encoded(image, "JPEG", exif=exif), max_pixels=1000)
    assert (picture.image.size, picture.size) == ((20, 40), (40, 80))
    assert picture.image.getpixel((10, 3))[0] > 200 > 50 > picture.image.getpixel((10, 30))[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(noise(90, 61), "JPEG"), "12 x 8 pixels are more than 5e-05 megapixels"),
        (encoded(noise(90, 61), "PNG"), "90 x 61 pixels are more than 5e-05 megapixels"),
        (encoded(noise(90, 61), "WebP"), "90 x 61 pixels are more than 5e-05 megapixels"),
    ],
)
def test_the_limit_counts_what_is_really_decoded(data, reason):
    assert refusal(data, max_pixels=50) == reason


def test_boxes_and_sizes_are_those_of_the_file(tmp_path, monkeypatch, capsys):
    scene = PIL.Image.new("RGB", (160, 80), "white")
    scene.paste("red", (0, 0, 160, 80))
    scene.save(tmp_path / "a.jpg", quality=95)
    rows = {}
    for limit in (160 * 80, 160 * 80 - 1):
        limited = functools.partial(_opened, limit)
        monkeypatch.setattr(pixels, "opened", limited)
        for command in ("detect", "segment"):
            options = ["--labels", "red,blue", "--models", "pocket", "--background", "none"]
            options += ["--json", "-q"]
            assert cli.run([command, str(tmp_path / "a.jpg"), *options]) == 0
            rows[command, limit] = json.loads(capsys.readouterr().out)
    (whole, half) = (rows["detect", limit] for limit in (160 * 80, 160 * 80 - 1))
    assert (half["width"], half["height"]) == (whole["width"], whole["height"]) == (160, 80)
    assert [box["box"] for box in half["boxes"]] == [box["box"] for box in whole["boxes"]]
    for limit in (160 * 80, 160 * 80 - 1):
        row = rows["segment", limit]
        assert (row["width"], row["height"]) == (160, 80)
        assert row["regions"][0]["rle"]["size"] == [80, 160]


def _opened(limit, data, max_pixels, draft_side=None, opened=pixels.opened):
    return opened(data, limit, draft_side)


def test_a_box_of_a_fraction_is_scaled():
    box = Detection("cat", 0.5, (1, 2, 3, 4)).scaled(2, 4)
    assert box == Detection("cat", 0.5, (2, 8, 6, 16))


def test_the_limit_of_a_run(tmp_path):
    """The images of all kinds of inputs have it."""
    noise(30, 20).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path\na.png\n")
    with tarfile.open(tmp_path / "t.tar", "w") as file:
        file.add(tmp_path / "a.png", "a.png")
    names = [str(tmp_path / name) for name in ("a.png", "t.csv", "t.tar")]
    for limit in (599, 600):
        found = find(names, options=InputOptions(max_pixels=limit)).sources
        results = list(read_ahead(found))
        assert [one.max_pixels for one in found] == [limit] * 3
        assert [isinstance(one, Picture) for one in results] == [limit == 600] * 3
    assert [one.max_pixels for one in find(names).sources] == [MAX_PIXELS] * 3


def test_the_option_of_the_limit():
    assert CommonOptions()._options().max_pixels == MAX_PIXELS
    assert CommonOptions(max_megapixels=150.5)._options().max_pixels == 150_500_000
    said = "20000 x 10000 pixels are more than 100 megapixels; --max-megapixels allows more"
    header = encoded(PIL.Image.new("1", (8, 8)), "PNG")
    chunk = header[12:16] + struct.pack(">II", 20_000, 10_000) + header[24:29]
    assert refusal(header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]) == said


def test_a_jpeg_has_the_same_pixels_whatever_the_limit(monkeypatch):
    """Its embedding is in the cache, under the same name."""
    monkeypatch.setattr(pixels, "MAX_PIXELS", 90 * 61 - 1)
    assert read(encoded(noise(90, 61), "JPEG"), max_pixels=10**9).image.size == (45, 31)


# Bands


ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "F"])
def test_a_large_image_is_converted_in_bands_and_gives_the_same_pixels(mode, monkeypatch):
    image = {
        "P": lambda: noise(31, 23).quantize(16),
        "1": lambda: noise(31, 23, "L").convert("1"),
        "I;16": lambda: PIL.Image.fromarray(np.arange(31 * 23, dtype=np.uint16).reshape(23, 31)),
        "F": lambda: PIL.Image.fromarray(np.linspace(0, 1, 713, dtype=np.float32).reshape(23, 31)),
    }.get(mode, lambda: noise(31, 23, mode))()
    for orientation in ORIENTATIONS:
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        image.getexif()[0x0112] = orientation
        monkeypatch.setattr(pixels, "BAND", 1 << 24)
        whole = pixels.upright(image, 10**6)
        monkeypatch.setattr(pixels, "BAND", 31 * 5)  # the last one has three rows
        banded = pixels.upright(image, 10**6)
        assert np.array_equal(np.asarray(banded), np.asarray(whole)), orientation
        if mode == "RGB":
            expected = PIL.ImageOps.exif_transpose(image)
            assert np.array_equal(np.asarray(banded), np.asarray(expected)), orientation


def test_grey_values_out_of_range_in_the_last_band_are_refused(monkeypatch):
    monkeypatch.setattr(pixels, "BAND", 64)
    values = np.zeros((64, 64), np.float32)
    values[63, 63] = np.nan
    with pytest.raises(UnreadableImageError, match=r"grey values outside 0\.\.1"):
        pixels.upright(PIL.Image.fromarray(values), 10**6)


def test_an_image_of_the_callers_is_never_shared():
    mine = noise(9, 9)
    with PIL.Image.open(io.BytesIO(encoded(mine, "PNG"))) as opened:
        for image in (mine, opened):
            got = pixels.upright(image, 10**6)
            got.paste("red", (0, 0, 9, 9))
            assert image.getpixel((0, 0)) == noise(9, 9).getpixel((0, 0))


def test_decoding_takes_no_copies_of_large_images():
    """Python's part of the memory: a 16-bit grey image was two arrays of doubles."""
    side = 3000
    data = encoded(PIL.Image.fromarray(np.zeros((side, side), np.uint16)), "PNG")
    tracemalloc.start()
    pixels.BAND, before = 1 << 20, pixels.BAND
    try:
        read(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pixels.BAND = before
    assert peak < 2 * side * side


# TIFF


def tiff(tags, data):
    """A TIFF of one page; a tag's value `data` is the place of the data."""

    def build(start):
        entries, more = b"", b""
        first = 14 + 12 * len(tags)
        for tag, kind, values in sorted(tags):
            values = [start if v == "data" else v for v in values]
            raw = struct.pack(f"<{len(values)}{'HI'[kind - 3]}", *values)
            if len(raw) > 4:
                more += raw
                raw = struct.pack("<I", first + len(more) - len(raw))
            entries += struct.pack("<HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
        head = b"II*\0" + struct.pack("<IH", 8, len(tags))
        return head + entries + bytes(4) + more

    return build(len(build(0))) + data


def grey(width, height):
    return [(256, 4, [width]), (257, 4, [height]), (258, 3, [8]), (262, 3, [1]), (277, 3, [1])]


@pytest.mark.parametrize(("width", "height"), [(25_000, 25_000), (65_536, 2048), (16, 8_000_000)])
def test_tiles_larger_than_the_limit_are_refused(width, height):
    data = zlib.compress(bytes(1000))
    tile = [(322, 4, [width]), (323, 4, [height]), (324, 4, ["data"]), (325, 4, [len(data)])]
    reason = refusal(tiff([*grey(64, 64), (259, 3, [8]), *tile], data))
    assert reason.startswith(f"a TIFF in tiles of {width} x {height} pixels; more than 100 ")


def test_a_tile_that_is_larger_than_the_image_is_read():
    data = zlib.compress(bytes(range(256)) * 256)
    tile = [(322, 4, [256]), (323, 4, [256]), (324, 4, ["data"]), (325, 4, [len(data)])]
    image = read(tiff([*grey(100, 60), (259, 3, [8]), *tile], data)).image
    assert np.asarray(image)[59, :, 0].tolist() == list(range(100))


def test_strips_that_read_the_same_bytes_without_end_are_refused():
    data = zlib.compress(bytes(1000)) + bytes(100_000)
    strips = [(278, 4, [1]), (273, 4, ["data"] * 60_000), (279, 4, [len(data)] * 60_000)]
    reason = refusal(tiff([*grey(1000, 60_000), (259, 3, [8]), *strips], data))
    assert reason == "a TIFF whose strips read 5723 MiB of a file of 0 MiB"


def test_strips_that_share_their_bytes_are_read():
    data = zlib.compress(bytes(range(100)))
    strips = [(278, 4, [1]), (273, 4, ["data"] * 50), (279, 4, [len(data)] * 50)]
    image = read(tiff([*grey(100, 50), (259, 3, [8]), *strips], data)).image
    assert np.asarray(image)[49, :, 0].tolist() == list(range(100))


# JPEG


def with_scans(data, count):
    """A progressive JPEG with its last scan many times."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def test_the_cost_of_a_jpeg_by_hand():
    image = noise(50, 40)
    one = jpeg_cost(encoded(image, "JPEG", subsampling=0))
    assert (one.work, one.coefficients, one.scans) == (3 * 2000, 0, 1)
    half = jpeg_cost(encoded(image, "JPEG", subsampling=2))
    assert (half.work, half.coefficients, half.scans) == (2000 + 2 * 500, 0, 1)
    # libjpeg's script of ten scans: the DC of all parts twice; of the luma five, of both others
    # three of the AC.
    scans = jpeg_cost(encoded(image, "JPEG", subsampling=0, progressive=True))
    luma = chroma = 2000
    assert scans.scans == 10
    assert scans.work == 2 * 3 * luma + 4 * luma + 2 * 2 * chroma
    assert scans.coefficients == 2 * 3 * 2000
    assert jpeg_cost(encoded(noise(50, 40, "L"), "JPEG")).work == 2000


def test_the_cost_is_of_the_first_image_and_not_of_what_follows_or_lies_inside():
    small, large = encoded(noise(8, 8), "JPEG"), encoded(noise(800, 600), "JPEG", progressive=True)
    assert jpeg_cost(small + large) == jpeg_cost(small)
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(small)) + small
    assert jpeg_cost(large[:2] + thumbnail + large[2:]) == jpeg_cost(large)


@pytest.mark.parametrize("size", [(1500, 1500), (200, 20_001), (1000, 2000)])
def test_thousands_of_scans_are_refused_before_they_are_decoded(size):
    data = encoded(PIL.Image.new("L", size), "JPEG", progressive=True)
    assert read(with_scans(data, 3)).image.size == size
    reason = refusal(with_scans(data, 3000))
    assert reason.endswith("would take too long (more than 2.5 billion samples)")
    assert 500 < int(reason.split()[0]) < 1500


def test_a_progressive_jpeg_whose_coefficients_fill_the_memory_is_refused(monkeypatch):
    data = encoded(noise(300, 300), "JPEG", progressive=True, subsampling=0)
    monkeypatch.setattr(limits, "MAX_COEFFICIENTS", 6 * 90_000 - 1)
    assert "coefficients" in refusal(data)
    assert read(encoded(noise(300, 300), "JPEG", subsampling=0)).image.size == (300, 300)


@pytest.mark.parametrize("cut", [3, 4, 200, 630, -5])
def test_the_cost_of_a_damaged_jpeg_is_an_answer(cut):
    data = encoded(noise(50, 40), "JPEG", progressive=True)
    assert jpeg_cost(data[:cut]).work <= jpeg_cost(data).work


# Room


def test_images_beyond_the_room_wait_for_each_other():
    room, inside, most = Room(100), [], []

    def work(size):
        with room.of(size):
            inside.append(size)
            most.append(sum(inside))
            inside.remove(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in (60, 60, 300, 20, 100) * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 100
    assert all(total <= 100 or total == 300 for total in most)
    assert room.take(100)
    assert not room.take(1)
    room.give_back(100)


def test_large_images_wait_undecoded_and_come_in_order(monkeypatch):
    """Whether an image is decoded ahead or when its turn comes, it is the same."""
    data = [encoded(noise(20 + i, 30, seed=i), "PNG") for i in range(30)]
    expected = [read(one).image.tobytes() for one in data]
    for size in (0, 30_000, 10**9):
        monkeypatch.setattr(reading, "WAITING", Room(size))
        assert [one.image.tobytes() for one in read_ahead(data)] == expected
        assert reading.WAITING.take(size)


def test_what_was_read_ahead_in_vain_gives_its_room_back(monkeypatch):
    monkeypatch.setattr(reading, "WAITING", Room(10**6))
    data = [encoded(noise(20, 30), "PNG"), b"no picture"] * 20
    ahead = read_ahead(data)
    next(ahead)
    ahead.close()
    assert reading.WAITING.take(10**6)


def test_a_damaged_image_gives_its_room_back(monkeypatch):
    whole = encoded(noise(200, 200), "PNG")
    monkeypatch.setattr(reading, "WAITING", Room(10**6))
    monkeypatch.setattr(reading, "WORKING", Room(10**6))
    results = list(read_ahead([whole[:9000]] * 9))
    assert {str(one)[:13] for one in results} == {"truncated PNG"}
    assert reading.WAITING.take(10**6)
    assert reading.WORKING.take(10**6)


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3"])
@pytest.mark.parametrize("comment", [b"#\n", b"# a\r", b"#"])
def test_a_plain_ppm_of_comments_is_refused_before_it_is_decoded(kind, comment):
    size = b" 5 5 255\n" if kind != b"P1" else b" 5 5\n"
    said = refusal(kind + size + comment * 20_000 + b"\n" + b"1 " * 75)
    assert said == "a PPM with more than 10000 comments"


@pytest.mark.parametrize("kind", [b"P1", b"P2", b"P3", b"P6"])
def test_a_ppm_with_some_comments_is_read(kind):
    size = b" # x\n5 5 255\n" if kind != b"P1" else b" # x\n5 5\n"
    pixels_ = bytes(range(75)) if kind == b"P6" else b"# one\n" + b"1 # 2\n" * 75
    assert read(kind + size + pixels_).size == (5, 5)


@pytest.mark.parametrize("name", ["a.tif", "b.gif", "c.png"])
def test_pillow_warns_of_no_image_below_our_limit(name, tmp_path, monkeypatch, capsys):
    """It does for some formats, when it decodes what is twice below its own limit."""
    load = PIL.Image.Image.load

    def loaded(image):
        limit = image.width * image.height * 2 // 3
        with monkeypatch.context() as patch:
            patch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
            PIL.Image._decompression_bomb_check(image.size)
        return load(image)

    noise(40, 30).save(tmp_path / name)
    arguments = ["embed", str(tmp_path / name), "--models", "pocket", "--no-cache"]
    monkeypatch.setattr(PIL.Image.Image, "load", loaded)
    code = cli.run(arguments)
    said = capsys.readouterr().err
    assert code == 0
    assert "Warning" not in said
    assert said.count("\n") == 1


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux says what is resident")
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP"])
def test_no_thread_keeps_the_memory_of_a_large_image(format):
    """Threads that have decoded one after another kept all of them."""
    data = encoded(PIL.Image.new("L" if format == "GIF" else "RGB", (5000, 5000)), format)
    before, done = resident(), threading.Event()

    def work():
        read(data)
        ready.release()
        done.wait()

    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
        ready.acquire()
    after = resident()
    done.set()
    for thread in threads:
        thread.join()
    assert after - before < 250_000_000  # and not 500
