"""Pictures: what is found, what each kind of file becomes, and how every bad one is refused."""

import hashlib
import io
import os
import re
import struct
import sys
import threading
import time
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, strategies as st

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images import pixels, reading as images
from zeroshot.images.reading import open_image, read, read_ahead
from zeroshot.inputs import local_files
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import CLIPS, Picture, Source


def picture(width=13, height=7, mode="RGB", seed=0):
    channels = len(PIL.Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return PIL.Image.frombytes(mode, (width, height), values.tobytes())


def encoded(image, format, **options):
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def refusal(source, **options):
    with pytest.raises(UnreadableImageError) as caught:
        read(source, **options)
    return str(caught.value)


def array(source):
    image = open_image(source)
    assert (image.mode, type(image), image.info) == ("RGB", PIL.Image.Image, {})
    return np.asarray(image).astype(int)


# What is found


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [
        *("in/b.JPG", "in/b.txt", "in/a/z.png", "in/a/z.png.txt", "in/a.png", "in/notes.txt"),
        *("in/corrupt.jpg", "in/program.exe", "in/captions.jsonl", "in/a/index.html"),
        *("in/.hidden.png", "in/.git/c.png", "data/x.csv", "elsewhere/d.png"),
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


def found(*inputs, **options):
    result = find(inputs, **options)
    return [source.path for source in result.sources], list(result.left_out)


SCANNED = ["in/a/z.png", "in/a.png", "in/b.JPG", "in/corrupt.jpg"]
BESIDE = [
    *("in/a/index.html", "in/a/z.png.txt", "in/b.txt", "in/captions.jsonl"),
    *("in/notes.txt", "in/program.exe"),
]


def test_a_folder_gives_images_and_names_other_files(tree):
    assert found("in") == (SCANNED, BESIDE)
    assert find("in") == find(tree.relative_to(tree) / "in")


def test_the_content_decides_where_the_suffix_does_not(tmp_path):
    jpeg = encoded(picture(), "JPEG")
    content = {
        **dict.fromkeys(("3f2a", "a.jpg_large", "b.JPE", "sub/c.thm"), jpeg),
        **dict.fromkeys(("a.avif", "b.PGM", "c.heic", "d.CR2", "e.jp2"), b""),
        "f": encoded(picture(), "PPM"),
        "x.tar": b"",
    }
    others = {
        **dict.fromkeys(("Thumbs.db", "e.json"), jpeg),
        **dict.fromkeys(("README", "README.md", "LICENSE.txt", "a.log", "desktop.ini"), b"text"),
        "Makefile": b"P = 3\n",
        "Icon\r": b"",
        "clip.mp4": b"\0\0\0\x20ftypisom",
        "model.bin": bytes(300),
    }
    skipped = (".DS_Store", "._a.jpg", "@eaDir/a.jpg", "$RECYCLE.BIN/b.png", "__MACOSX/c.jpg")
    for name, data in (content | others | dict.fromkeys(skipped, jpeg)).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    result = find(str(tmp_path / "[!x]*"))
    assert {s.path for s in result.sources} == {str(tmp_path / x) for x in content if x != "x.tar"}
    assert set(result.left_out) == {str(tmp_path / name) for name in (*others, "pipe")}
    kept, _ = local_files.scan(str(tmp_path))
    assert {os.path.relpath(file, tmp_path) for file in kept} == set(content)
    assert [s.path for s in find(str(tmp_path / "README.md")).sources] == [
        str(tmp_path / "README.md")  # a file that is named
    ]
    clips, _ = local_files.scan(str(tmp_path), suffixes=CLIPS)
    assert {os.path.relpath(file, tmp_path) for file in clips} == {"clip.mp4", "x.tar"}


def test_elsewhere_files_without_a_suffix_are_images(tmp_path):
    """They are not opened: each would take a request."""
    names = ["b/3f2a", "b/a.AVIF", "b/a.heic", "b/x.tar", "b/x.tgz"]
    others = ["b/README.md", "b/a.log", "b/c.mp4"]
    assert local_files.without_data([*names, *others]) == (names, others)


def test_globs(tree):
    assert found("in/*.png") == (["in/a.png"], [])
    assert found("in/**/*.png") == (["in/a/z.png", "in/a.png"], [])
    assert found("in/**/*[gG]") == (["in/a/z.png", "in/a.png", "in/b.JPG", "in/corrupt.jpg"], [])
    assert found("in/**") == (SCANNED, BESIDE)  # folders and their files, each once
    assert found("in/*") == (SCANNED, BESIDE)


def test_inputs_keep_their_order_and_number(tree):
    assert found("in/b.JPG", "in/a.png", "in/b.JPG", "gone.jpg", "in/b.txt") == (
        ["in/b.JPG", "in/a.png", "in/b.JPG", "gone.jpg", "in/b.txt"],
        [],
    )


def test_file_whose_name_looks_like_a_glob(tree):
    (tree / "a[1].png").write_bytes(b"")
    assert found("a[1].png") == (["a[1].png"], [])


def test_paths_on_standard_input(tree):
    lines = io.StringIO("\ufeffin/a.png\r\n\ngone[1].png\nin/a\n")
    assert found("elsewhere/d.png", "-", stdin=lines) == (
        ["elsewhere/d.png", "in/a.png", "gone[1].png", "in/a/z.png"],
        ["in/a/index.html", "in/a/z.png.txt"],
    )


def test_links_to_folders_are_followed_once_and_end(tree):
    (tree / "in/aa").symlink_to(tree / "elsewhere", target_is_directory=True)
    (tree / "in/loop").symlink_to(tree / "in", target_is_directory=True)
    (tree / "in/0").symlink_to(tree / "in/a", target_is_directory=True)  # sorts before the real one
    (tree / "in/self").symlink_to(tree / "in/self")
    (tree / "in/nowhere.png").symlink_to(tree / "gone.png")
    paths, _ = found("in")
    assert sorted(paths) == sorted([*SCANNED, "in/aa/d.png", "in/self", "in/nowhere.png"])
    assert refusal("in/nowhere.png") == "a link to nothing"


def test_pictures_in_memory():
    image = picture()
    given_ = [image, b"data", Source("label", image)]
    assert find(given_).sources == (Source(None, image), Source(None, b"data"), given_[2])
    assert find(image).sources == (Source(None, image),)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("empty", "no images found in folder 'empty'"),
        ("data", "no images found in folder 'data', only 1 file of other kinds"),
        ("in/*.gif", "no images found in pattern 'in/*.gif'"),
        ([np.zeros((2, 3))], "array (float64, shape (2, 3)) does not say"),
    ],
)
def test_inputs_refused(tree, inputs, message):
    with pytest.raises(UserError, match=re.escape(message)):
        find(inputs)


def test_standard_input_without_a_path(tree):
    with pytest.raises(UserError, match="there were none"):
        find("-", io.StringIO("\n\n"))


# What pictures become


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WebP"])
def test_lossless_formats_give_the_pixels(format):
    image = picture()
    data = encoded(image, format, **({"lossless": True} if format == "WebP" else {}))
    assert (array(data) == np.asarray(image)).all()


def test_jpeg_and_gif_are_near():
    image = picture(4, 3).resize((64, 40), PIL.Image.Resampling.BICUBIC)
    for data in (encoded(image, "JPEG", quality=95), encoded(image.quantize(256), "GIF")):
        assert np.abs(array(data) - np.asarray(image)).mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_are_converted_as_pillow_does(mode):
    image = picture(64, 40).convert(mode)
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    data = encoded(image, format)
    expected = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    assert (array(data) == np.asarray(expected)).all()


def test_transparency_lies_on_white():
    rgba = PIL.Image.new("RGBA", (3, 1))
    rgba.putdata([(0, 100, 200, 0), (0, 100, 200, 51), (0, 100, 200, 255)])
    expected = [[255, 255, 255], [204, 224, 244], [0, 100, 200]]  # 51 / 255 = 1 / 5
    for data in (encoded(rgba, "PNG"), encoded(rgba, "WebP", lossless=True, exact=True), rgba):
        assert array(data).tolist() == [expected]
    grey = PIL.Image.new("LA", (2, 1))
    grey.putdata([(0, 51), (10, 255)])
    assert array(encoded(grey, "PNG")).tolist() == [[[204] * 3, [10] * 3]]


def test_transparent_colour_of_palette_and_of_rgb_png():
    palette = PIL.Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putdata([0, 1])
    expected = [[[255, 255, 255], [40, 50, 60]]]
    assert array(encoded(palette, "PNG", transparency=0)).tolist() == expected
    assert array(encoded(palette, "GIF", transparency=0)).tolist() == expected
    rgb = palette.convert("RGB")
    assert array(encoded(rgb, "PNG", transparency=(1, 2, 3))).tolist() == expected


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(format):
    values = np.array([[0, 257, 128 * 257, 65535, 100, 200]], np.uint16)
    grey = array(encoded(PIL.Image.fromarray(values), format))
    assert grey[..., 0].tolist() == [[0, 1, 128, 255, 0, 1]]
    assert (grey == grey[..., :1]).all()


def test_floats_and_wide_integers_within_their_range():
    floats = PIL.Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert array(encoded(floats, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    whole = PIL.Image.fromarray(np.array([[0, 514, 65535]], np.int32))
    assert array(encoded(whole, "TIFF"))[0, :, 0].tolist() == [0, 2, 255]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 1.5]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[-1, 3]], np.int32),
        np.array([[0, 65536]], np.int32),
    ],
)
def test_grey_values_out_of_range_are_refused(values):
    assert "grey values outside 0.." in refusal(encoded(PIL.Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WebP", "TIFF"])
def test_exif_rotation_is_applied_once(orientation, format):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(16, 24), format, exif=exif)
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
    assert (array(data) == expected).all()
    assert expected.shape == ((16, 24, 3) if orientation > 4 else (24, 16, 3))
    again = PIL.ImageOps.exif_transpose(open_image(data))
    assert (np.asarray(again) == expected).all()


def test_a_turn_by_hand():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera's top is the picture's right
    image = PIL.Image.new("RGB", (2, 1))
    image.putdata([(1, 1, 1), (2, 2, 2)])
    assert array(encoded(image, "PNG", exif=exif)).tolist() == [[[1, 1, 1]], [[2, 2, 2]]]


def test_broken_exif_is_as_none():
    data = encoded(picture(), "PNG", exif=b"Exif\0\0nonsense")
    assert (array(data) == np.asarray(picture())).all()


def test_first_frame_of_several():
    frames = [PIL.Image.new("RGB", (5, 3), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "WebP", "TIFF", "MPO"):
        lossless = {"lossless": True} if format == "WebP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
        red = array(data)[0, 0]
        assert np.abs(red - [255, 0, 0]).max() <= 2, format


def test_picture_in_memory_is_left_as_it_was():
    image = picture(5, 4, "RGBA")
    before = image.tobytes()
    opened = open_image(image)
    opened.paste("black", (0, 0, 5, 4))
    rgb = picture()
    open_image(rgb).paste("black", (0, 0, 5, 4))
    assert (image.mode, image.tobytes()) == ("RGBA", before)
    assert rgb.tobytes() == picture().tobytes()


# Ids


def test_id_is_the_sha256_of_the_bytes(tmp_path):
    data = encoded(picture(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert {read(x).id for x in (data, tmp_path / "a.png", Source(str(tmp_path / "a.png")))} == {
        expected
    }


def test_id_in_memory_sees_pixels_and_size():
    wide, high = PIL.Image.new("RGB", (4, 3)), PIL.Image.new("RGB", (3, 4))
    ids = [read(x).id for x in (wide, high, picture(4, 3), wide.copy(), Source("x", wide))]
    assert len(set(ids)) == 3
    assert ids[0] == ids[3] == ids[4]
    assert ids[0] == hashlib.sha256(b"RGB 4 3 " + bytes(36)).hexdigest()
    assert read(wide.convert("L")).id == ids[0]


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (b"P1 # two\n2 1\n1 0", [[[0] * 3, [255] * 3]]),
        (b"P2 2 1 15 15 5", [[[255] * 3, [85] * 3]]),
        (b"P3\n1 1\n255\n1 2 3\n", [[[1, 2, 3]]]),
        (b"P4\n2 1\n\x40", [[[255] * 3, [0] * 3]]),
        (b"P5 2 1 255\n\x07\xff", [[[7] * 3, [255] * 3]]),
        (b"P5 1 1 65535\n\x80\x00", [[[128] * 3]]),
        (b"Pf\n1 2\n-1.0\n\0\0\0\0\0\0\x80\x3f", [[[255] * 3], [[0] * 3]]),  # the last row first
        (b"P6 1 1 255\n\x01\x02\x03", [[[1, 2, 3]]]),
    ],
)
def test_netpbm(data, pixels):
    assert array(data).tolist() == pixels


@pytest.mark.skipif(not pixels.HAS_AVIF, reason="Pillow has no AVIF")
def test_avif():
    image = PIL.Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    data = encoded(image, "AVIF", quality=90, subsampling="4:4:4")
    assert np.abs(array(data) - np.asarray(image)).max() < 8
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the left side is the top one
    turned = encoded(image, "AVIF", quality=90, subsampling="4:4:4", exif=exif)
    upright = np.asarray(image.transpose(PIL.Image.Transpose.ROTATE_270))
    assert np.abs(array(turned) - upright).max() < 8
    other = data[:8] + b"mif1" + data[12:]  # a general brand; AVIF is among the compatible ones
    assert (array(other) == array(data)).all()
    for length in (30, 200, len(data) - 5):
        assert re.match("(damaged|truncated) AVIF", refusal(data[:length]))


def heic(image, **options):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    data = io.BytesIO()
    pillow_heif.from_pillow(image).save(data, quality=-1, chroma=444, **options)
    return data.getvalue()


def test_heic():
    image = PIL.Image.new("RGB", (40, 24), "red")
    image.paste("blue", (20, 0, 40, 24))
    data = heic(image)
    assert np.abs(array(data) - np.asarray(image)).max() < 8
    for length in (30, 200, len(data) - 5):
        assert re.match("(damaged|truncated) HEIC", refusal(data[:length]))
    assert refusal(data, max_pixels=900) == "40 x 24 pixels are more than 0.0009 megapixels"
    place = data.index(b"ispe") + 8  # the size that is stated; the stream has its own
    for size in ((8, 8), (9000, 9000), (40, 16)):
        lying = data[:place] + struct.pack(">II", *size) + data[place + 8 :]
        assert re.match("(damaged|truncated) HEIC", refusal(lying))


def test_heic_is_turned_and_put_on_white(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    monkeypatch.setitem(PIL.Image.SAVE, "HEIF", pillow_heif.as_plugin._save_heif)
    image = PIL.Image.new("RGB", (40, 24), "red")
    image.paste("blue", (20, 0, 40, 24))
    turned = PIL.Image.open(io.BytesIO(encoded(image, "JPEG", exif=_orientation(6), quality=95)))
    upright = np.asarray(image.transpose(PIL.Image.Transpose.ROTATE_270))
    got = array(encoded(turned, "HEIF"))
    assert got.shape == upright.shape
    assert np.abs(got - upright).mean() < 8
    clear = PIL.Image.new("RGBA", (40, 24), (255, 0, 0, 0))
    assert (array(heic(clear)) > 250).all()


def _orientation(value):
    exif = PIL.Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("brand", [b"heic", b"mif1\0\0\0\0mif1heic", b"hevc", b"heix"])
def test_heic_without_its_library_says_what_to_install(brand, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    said = refusal(b"\0\0\0\x18ftyp" + brand)
    assert said.startswith("a HEIC picture, and pillow-heif is not installed: pip install ")
    assert "heic" in said


# What is refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file, not a picture"),
        (b"\n", "a text file, not a picture"),
        ("Grüße\n".encode(), "a text file, not a picture"),
        (b"\xef\xbb\xbf<!DOCTYPE html><svg>", "a web page, not a picture"),
        (b'<?xml version="1.0"?>\n<svg>', "an SVG drawing, not a picture"),
        (b"version https://git-lfs.github.com", "a Git LFS pointer (fetch it with 'git lfs pull')"),
        (b"%PDF-1.7", "a PDF document, not a picture"),
        (b"PK\3\4abc", "an archive, not a picture"),
        (b"MZ\x90\0", "a program, not a picture"),
        (bytes(5000), "a file of zero bytes only, not a picture"),
        (b"\0\0\0\x20ftypisom", "a video, not a picture"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a file of an unknown kind, not a picture"),
        (encoded(picture(), "ICO"), "an icon, not a picture"),
        (encoded(picture(), "JPEG2000"), "a JPEG 2000 picture; read are JPEG, PNG, WebP, GIF, "),
        (b"\xff\x4f\xff\x51\0\x2f", "a JPEG 2000 picture; read are"),
        (encoded(picture(), "PPM")[:60], "truncated PPM ("),
        (b"P3 2 1 255 1 2 3", "truncated PPM ("),
        (b"P6 2 1 0 ", "damaged PPM ("),
        (b"P7\nWIDTH 1\n", "a PAM picture; read are"),
        (b"PF\n1 1\n-1.0\n" + bytes(12), "a colour PFM picture; read are"),
        (b"\xff\x0a\0", "a JPEG XL picture; read are"),
        (b"\xff\xd8\xff", "damaged JPEG ("),
        (encoded(picture(), "PNG")[:60], "PNG ("),
        (encoded(picture(90, 80), "JPEG")[:-100], "truncated JPEG ("),
    ],
)
def test_what_is_no_picture_is_named(data, reason):
    assert reason in refusal(data)


def test_paths_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    assert refusal(tmp_path / "gone.jpg") == "no such file"
    assert refusal("") == "no such file"
    assert refusal("a\0b") == "no such file (its path has a null byte)"
    assert refusal(tmp_path) == "a folder, not a picture"
    assert refusal(tmp_path / "pipe") == "a pipe or a device, not a file"
    assert refusal(tmp_path / ("x" * 300)) == "cannot be read: File name too long"
    assert refusal(tmp_path / "file" / "x") == "cannot be read: Not a directory"


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read everything")
def test_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.png").chmod(0)
    assert refusal(tmp_path / "a.png") == "permission denied"


def test_permission_as_the_system_says_it(monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    assert refusal("a.png") == "permission denied"


def test_too_many_bytes(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert refusal(tmp_path / "a.png") == "larger than 1024 MiB"


def png_of(width, height):
    """A PNG whose header promises `width x height`, with almost nothing behind it."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 12_000), (10_001, 10_000)])
def test_decompression_bombs_end_at_their_header(size):
    started = time.perf_counter()
    reason = refusal(png_of(*size))
    assert reason == (
        f"{size[0]} x {size[1]} pixels are more than 100 megapixels; --max-megapixels allows more"
    )
    assert time.perf_counter() - started < 0.5
    assert PIL.Image.MAX_IMAGE_PIXELS == 89478485


def test_pixel_limit_is_an_argument():
    assert read(picture(13, 7), max_pixels=91).image.size == (13, 7)
    assert "13 x 7 pixels are more than" in refusal(picture(13, 7), max_pixels=90)
    webp = encoded(PIL.Image.new("RGB", (500, 400)), "WebP")
    assert "500 x 400 pixels are more than 0.1 megapixels" in refusal(webp, max_pixels=100_000)


def test_slivers_are_refused():
    assert open_image(PIL.Image.new("RGB", (400, 2))).size == (400, 2)
    assert "too narrow" in refusal(PIL.Image.new("RGB", (2, 401)))
    assert "0 x 5 pixels" in refusal(PIL.Image.new("RGB", (0, 5)))


def test_text_bomb_in_a_png_does_not_grow():
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))
    data = encoded(picture(), "PNG")
    assert "too large" in refusal(data[:33] + bomb + data[33:])


@given(st.data())
def test_broken_files_only_ever_raise_the_one_error(data):
    format = data.draw(st.sampled_from(["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"]))
    content = bytearray(encoded(picture(), format))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    (result,) = read_ahead([cut], workers=1)
    assert str(result) if isinstance(result, UnreadableImageError) else result.image.mode == "RGB"


# Reading ahead


def test_reading_ahead_keeps_order_and_failures(tmp_path):
    sources = [picture(5 + i, 4, seed=i) if i % 3 else b"no picture" for i in range(20)]
    results = list(read_ahead(sources, workers=3))
    assert len(results) == 20
    for source, result in zip(sources, results, strict=True):
        if isinstance(source, bytes):
            assert str(result) == "a text file, not a picture"
            assert (result.__traceback__, result.__context__) == (None, None)
        else:
            assert (result.image.size, result.id) == (source.size, read(source).id)
    assert list(read_ahead([])) == []


def test_reading_ahead_is_bounded(monkeypatch):
    asked, decoded = [], []

    def fetch(source, max_pixels):
        decoded.append(source)
        return images.Fetched(source, Picture(source, picture()))

    monkeypatch.setattr(images, "fetch", fetch)
    reading = read_ahead((asked.append(i) or str(i) for i in range(1000)), workers=2)
    assert next(reading).id == "0"
    time.sleep(0.05)
    assert len(asked) == 4
    assert [next(reading).id for _ in range(5)] == ["1", "2", "3", "4", "5"]
    assert len(asked) == 9
    reading.close()


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_reading_ahead_leaves_no_thread_behind():
    reading = read_ahead([picture() for _ in range(50)])
    next(reading)
    assert threads()
    reading.close()
    assert not threads()

    def interrupted():
        for number, _ in enumerate(read_ahead([picture() for _ in range(50)])):
            if number == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not threads()


def test_a_fault_of_ours_is_not_taken_for_a_bad_picture(monkeypatch):
    def broken(source, max_pixels):
        raise RuntimeError("a bug")

    monkeypatch.setattr(images, "fetch", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(read_ahead([b"x"]))


def test_a_lazy_picture_may_come_many_times(tmp_path):
    picture(300, 200).save(tmp_path / "a.jpg")
    with PIL.Image.open(tmp_path / "a.jpg") as lazy:
        results = list(read_ahead([lazy] * 40, workers=8))
    assert len({result.id for result in results}) == 1


def test_a_picture_read_elsewhere_keeps_its_id(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(), "PNG"))
    first = read(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert read(Source(str(tmp_path / "a.png"), first)) == first


# What pretends to be a file


@pytest.mark.skipif(not os.path.exists("/proc/self/pagemap"), reason="needs /proc of Linux")
@pytest.mark.parametrize("path", ["/proc/self/pagemap", "/proc/kmsg", "/proc/self/mem"])
def test_a_file_without_a_size_is_empty_and_never_waited_for(path, tmp_path):
    (tmp_path / "x.png").symlink_to(path)
    started = time.perf_counter()
    reasons = ("an empty file, not a picture", "permission denied")
    assert refusal(str(tmp_path / "x.png")) in reasons
    for name in ("x.tar", "x.csv", "x.parquet"):
        (tmp_path / name).symlink_to(path)
        (source,) = find(str(tmp_path / name)).sources
        assert len(refusal(source)) < 200
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("name", ["x.png", "x.tar", "x.jsonl"])
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(name, tmp_path, monkeypatch):
    """As if it was replaced between the look at it and its opening."""
    (tmp_path / "file").write_bytes(b"x")
    status = os.stat(tmp_path / "file")
    os.mkfifo(tmp_path / name)
    (source,) = find(str(tmp_path / name)).sources
    real = os.stat
    replaced = str(tmp_path / name)
    monkeypatch.setattr(os, "stat", lambda p, **o: status if str(p) == replaced else real(p, **o))
    (again,) = find(replaced).sources
    for one in (source, again):
        assert "a pipe or a device" in refusal(one)


def test_a_file_that_grows_beyond_the_limit_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(bytes(11))
    monkeypatch.setattr("zeroshot.inputs.local_files.MAX_BYTES", 10)
    assert refusal(str(tmp_path / "x.png")).startswith("larger than")


def test_damage_around_the_pixels_is_not_shown(zeroshot, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x010E] = "x" * 90
    data = encoded(picture(), "JPEG", exif=exif).replace(b"\0\0\0\x5b", b"\0\0\xff\x5b", 1)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="Corrupt EXIF|larger than file"):
        read(path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert zeroshot("embed", path, "--models", "pocket", "--no-cache")[0] == 0
    assert not [one for one in said if "PIL" in one.filename]
