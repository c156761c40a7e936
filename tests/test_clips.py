"""Frames of clips: which ones, upright, and of what is damaged or no clip a reason."""

import contextlib
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.moving import av, numbered, numbers, plain, read, silence, write
from zeroshot.errors import UnreadableImageError
from zeroshot.images import animation, clips
from zeroshot.inputs.source import Source


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov", "ts"])
def test_frames_are_those_in_the_middle_of_equal_parts(tmp_path, suffix):
    """Each colour is shown for a second: as many frames as colours are one of each, in order."""
    shades = [(10 + 30 * i,) * 3 for i in range(8)]
    path = write(tmp_path / f"a.{suffix}", plain(*shades))
    seen = [np.asarray(frame).mean() for frame in read(path)]
    np.testing.assert_allclose(seen, [s[0] for s in shades], atol=8)
    (middle,) = read(path, 1)
    assert abs(np.asarray(middle).mean() - shades[4][0]) < 8


def test_a_short_clip_shows_frames_again(tmp_path):
    assert len(read(write(tmp_path / "a.mp4", plain("red"), each=1))) == 8


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "flv"])
@pytest.mark.parametrize("rate", [24, Fraction(30000, 1001), 30])
def test_frames_are_those_that_x_clip_is_evaluated_on(tmp_path, suffix, rate):
    """SampleFrames of X-CLIP's and MMAction2's code in test mode, one frame from each segment."""

    def sample_frames(total, num_clips):
        avg_interval = total / float(num_clips)
        base_offsets = np.arange(num_clips) * avg_interval
        return (base_offsets + avg_interval / 2.0).astype(int).tolist()

    codec = "flv1" if suffix == "flv" else "mpeg4"
    for total in (16, 21, 40, 75):
        path = write(tmp_path / f"{total}.{suffix}", numbered(total), 1, codec, rate)
        for count in (1, 3, 8, 16):
            assert numbers(read(path, count)) == sample_frames(total, count)


def test_frames_by_hand(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(5), 1)
    assert numbers(read(path, 8)) == [0, 0, 1, 2, 2, 3, 4, 4]
    assert numbers(read(path, 5)) == [0, 1, 2, 3, 4]
    assert numbers(read(path, 2)) == [1, 3]


def test_frames_that_come_unevenly_count_by_how_long_they_are_shown(tmp_path):
    """Frames at 0, 0.1 and 5 seconds; of 5.04 seconds the eight middles lie 0.63 apart."""
    path = write(tmp_path / "a.mkv", numbered(4)[1:], at=[0, 100, 5000])
    assert numbers(read(path, 8)) == [2] * 8
    assert numbers(read(path, 1)) == [2]
    path = write(tmp_path / "b.mkv", numbered(5)[1:], at=[0, 1000, 1100, 4000])
    assert numbers(read(path, 4)) == [1, 3, 3, 3]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_may_be_longer_than_what_is_seen(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", numbered(20), 1, sound=6.0)
    assert numbers(read(path, 4)) == [2, 7, 12, 17]


def test_sound_alone_is_no_clip(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        silence(container, container.add_stream("aac", rate=8000), 1)
    with pytest.raises(UnreadableImageError, match="without a video track"):
        read(path)


@pytest.mark.parametrize("tracks", [0, 1])
def test_the_cover_of_a_piece_of_music_is_no_clip(tmp_path, tracks):
    """A cover is a track of pictures, too, and may come before the clip."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=10)
        track = container.add_stream("mpeg4", rate=10)
        for stream, format in ((cover, "yuvj420p"), (track, "yuv420p")):
            stream.width, stream.height, stream.pix_fmt = 64, 48, format
        pictures = numbered(16)
        for stream, shown in ((cover, pictures[:1]), (track, pictures)):
            for picture in shown:
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())

    class Marked:
        """A stream of which the file said that it is a cover."""

        def __init__(self, stream):
            self.disposition = av.stream.Disposition.attached_pic | stream.disposition

    with av.open(str(path)) as container:
        first, second = container.streams.video
        streams = type("Streams", (), {"video": [Marked(first), second][: 1 + tracks]})
        held = type("Container", (), {"streams": streams})
        if tracks:
            assert clips._track(held) is second
        else:
            with pytest.raises(UnreadableImageError, match="without a video track"):
                clips._track(held)


def test_a_clip_of_one_frame_and_one_that_lasts_no_time(tmp_path):
    assert numbers(read(write(tmp_path / "a.mp4", numbered(4)[3:], 1))) == [3] * 8
    path = write(tmp_path / "b.mp4", numbered(4)[3:], at=[0])
    data = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):  # durations, version 0
        place = data.index(box) + 4 + offset
        data[place : place + 4] = bytes(4)
    path.write_bytes(data)
    assert numbers(read(path)) == [3] * 8


def test_a_clip_that_does_not_say_how_long_it_is(tmp_path):
    """As recorders write that cannot go back, and that were cut off: its packets tell."""
    path = tmp_path / "a.mkv"
    with path.open("wb") as file:
        pipe = type("Pipe", (), {"write": lambda self, data: file.write(data)})()
        with av.open(pipe, "w", format="matroska") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for picture in numbered(40):
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert container.streams.video[0].duration is None
        assert container.duration is None
    assert numbers(read(path, 4)) == [5, 15, 25, 35]


def test_a_clip_that_says_it_never_ends(tmp_path):
    """The tag of a track's length, which is counted in hours, beside one second of pictures."""
    path = write(tmp_path / "a.mkv", plain("red"))
    data = path.read_bytes()
    tag = b"00:00:01.000000000"
    assert data.count(tag) == 1
    path.write_bytes(data.replace(tag, b"99:00:01.000000000"))
    with pytest.raises(UnreadableImageError, match="longer than 24 hours"):
        read(path)
    path.write_bytes(data.replace(tag, b"00:10:01.000000000"))
    with pytest.raises(UnreadableImageError, match=r"breaks off at second 1\.0"):
        read(path)


def test_a_track_of_an_unknown_kind(tmp_path):
    path = write(tmp_path / "a.avi", plain("red"))
    data = path.read_bytes()
    assert b"FMP4" in data
    path.write_bytes(data.replace(b"FMP4", b"zzzz"))
    with pytest.raises(UnreadableImageError, match="does not know"):
        read(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "flv", "gif", "webp", "png"])
def test_damage_gives_frames_or_a_reason(tmp_path, suffix):
    """Flipped bytes, of the head above all, and cuts; never another exception."""
    path = tmp_path / f"a.{suffix}"
    if suffix in ("gif", "webp", "png"):
        first, *others = numbered(6)
        first.save(path, save_all=True, append_images=others, duration=100)
    else:
        write(path, numbered(12), 1, "flv1" if suffix == "flv" else "mpeg4")
    whole = path.read_bytes()
    source = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(source.integers(1, 8)):
            place = source.integers(4, source.choice([200, len(data)]))
            data[place] = source.integers(256)
        if source.random() < 0.2:
            data = data[: source.integers(len(data))]
        with (
            contextlib.suppress(UnreadableImageError),
            clips.open_clip(Source("a", bytes(data))) as clip,
        ):
            assert len(clips.frames_of(clip.file, 3)) == 3


def test_a_pipe_is_no_clip(tmp_path):
    """Nothing waits for what may never come."""
    import os

    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UnreadableImageError, match="a pipe"):
        read(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        # corners, from the left above in reading order, and what the matrix makes of them
        ((1, 0, 0, 1), "abcd"),
        ((0, 1, -1, 0), "cadb"),
        ((-1, 0, 0, -1), "dcba"),
        ((0, -1, 1, 0), "bdac"),
        ((-1, 0, 0, 1), "badc"),
        ((1, 0, 0, -1), "cdab"),
        ((0, 1, 1, 0), "acbd"),
        ((0, -1, -1, 0), "dbca"),
    ],
)
def test_clips_are_turned_and_mirrored_as_the_file_says(tmp_path, matrix, expected):
    """The matrix takes (x, y) to (ax + cy, bx + dy), as ISO 14496-12 has it."""
    colours = {"a": (230, 20, 20), "b": (20, 200, 20), "c": (20, 20, 230), "d": (230, 230, 230)}
    picture = Image.new("RGB", (64, 48))
    corners = {"a": (0, 0), "b": (32, 0), "c": (0, 24), "d": (32, 24)}
    for name, (left, top) in corners.items():
        picture.paste(colours[name], (left, top, left + 32, top + 24))
    path = write(tmp_path / "a.mp4", [picture])
    data = path.read_bytes()

    def packed(a, b, c, d):
        one = 1 << 16
        return struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)

    old = packed(1, 0, 0, 1)
    place = data.index(old, data.index(b"tkhd"))
    path.write_bytes(data[:place] + packed(*matrix) + data[place + len(old) :])
    (frame,) = read(path, 1)
    assert frame.size == ((48, 64) if matrix[0] == 0 else (64, 48))
    width, height = frame.size
    seen = ""
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixel = np.array(
            frame.getpixel((width // 4 + x * width // 2, height // 4 + y * height // 2))
        )
        seen += min(colours, key=lambda name: np.abs(pixel - colours[name]).sum())
    assert seen == expected


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animated_picture_is_a_clip(tmp_path, suffix):
    """Frames count by their delays: 100, 200 and 700 milliseconds."""
    first, *others = numbered(4)[1:]
    path = tmp_path / f"a.{suffix}"
    more = {"quality": 100} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=others, duration=[100, 200, 700], loop=0, **more)
    assert numbers(read(path, 5)) == [2, 3, 3, 3, 3]
    assert numbers(read(path, 10)) == [1, 2, 2] + [3] * 7
    assert read(path, 1)[0].mode == "RGB"


def test_an_animation_without_delays_shows_its_frames_equally_long(tmp_path):
    first, *others = numbered(5)
    path = tmp_path / "a.gif"
    first.save(path, save_all=True, append_images=others, duration=0)
    assert numbers(read(path, 5)) == [0, 1, 2, 3, 4]


def test_what_is_transparent_in_an_animation_lies_on_white(tmp_path):
    empty = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    path = tmp_path / "a.webp"
    empty.save(
        path, save_all=True, append_images=[Image.new("RGBA", (32, 32), "red")], duration=100
    )
    seen = [np.asarray(frame).mean((0, 1)) for frame in read(path, 2)]
    np.testing.assert_allclose(seen, [[255, 255, 255], [255, 0, 0]], atol=4)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_picture_that_stands_still_and_a_damaged_animation(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)) for _ in range(3)]
    noise[0].save(path)
    with pytest.raises(UnreadableImageError, match="stands still"):
        read(path)
    noise[0].save(path, save_all=True, append_images=noise[1:], duration=100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImageError, match=r"damaged|truncated"):
        read(path)
    path.write_bytes(whole)
    with pytest.raises(UnreadableImageError, match="megapixels"):
        read(path, max_pixels=1000)
    monkeypatch.setattr(animation, "MAX_FRAMES", 2)
    with pytest.raises(UnreadableImageError, match="more than 2 frames"):
        read(path)


def test_a_clip_that_breaks_off_says_so(tmp_path):
    path = write(tmp_path / "a.mkv", plain(*[(9 * i,) * 3 for i in range(20)]), codec="mjpeg")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImageError, match=r"breaks off|no frame|damaged"):
        read(path)


def test_limits(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", plain("red"), each=40)
    with pytest.raises(UnreadableImageError, match="megapixels"):
        read(path, max_pixels=1000)
    for name, value, reason in (
        ("MAX_DECODED", 3, "no key frame"),
        ("MAX_SECONDS", 3, "longer than"),
        ("DEADLINE", -1, "longer than"),
        ("MAX_BYTES", 10, "larger than"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(clips, name, value)
            with pytest.raises(UnreadableImageError, match=reason):
                read(path)


def test_a_folder_and_nothing_are_no_clips(tmp_path):
    with pytest.raises(UnreadableImageError, match="a folder"):
        read(tmp_path)
    with pytest.raises(UnreadableImageError, match="no such file"):
        read(tmp_path / "none.mp4")
