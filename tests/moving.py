"""Clips for tests, written by PyAV: scenes, plain colours, and frames that carry their number."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroshot.images import clips
from zeroshot.inputs.source import Source

av = pytest.importorskip("av")

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART = SCENES / "1-red-heart.png"
LABELS = "red heart,blue star,green tree"
BITS = 8
"""Of a frame's number, drawn as black and white bars."""


def write(path, pictures, each=10, codec="mpeg4", rate=10, at=None, sound=0.0):
    """A clip that shows each picture for `each` frames, or at the milliseconds `at`.

    `sound` is so many seconds of silence beside it.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p" if codec != "mjpeg" else "yuvj420p"
        stream.bit_rate = 4_000_000
        if at is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=8000) if sound else None
        times = iter(at or ())
        for picture in pictures:
            for _ in range(1 if at is not None else each):
                frame = av.VideoFrame.from_image(picture.convert("RGB"))
                if at is not None:
                    frame.pts, frame.time_base = next(times), Fraction(1, 1000)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            silence(container, audio, sound)
    return path


def silence(container, stream, seconds):
    """Sound in which nothing is heard."""
    for number in range(int(seconds * 8000 / 1024) + 1):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, 1024 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def plain(*colours, size=(64, 48)):
    return [Image.new("RGB", size, colour) for colour in colours]


def numbered(count, size=(64, 48)):
    """Pictures in which one can read which they are."""
    found = []
    for number in range(count):
        bits = [255 * (number >> bit & 1) for bit in range(BITS)]
        row = np.repeat(np.array(bits, np.uint8), size[0] // BITS)
        found.append(Image.fromarray(np.tile(row, (size[1], 1))).convert("RGB"))
    return found


def numbers(frames):
    """Which frames of `numbered` these are."""
    found = []
    for frame in frames:
        bars = np.asarray(frame.convert("L")).mean(0).reshape(BITS, -1).mean(1)
        found.append(sum(int(bar > 127) << bit for bit, bar in enumerate(bars)))
    return found


def scene(name):
    (path,) = SCENES.glob(f"*{name}*.png")
    return Image.open(path).convert("RGB")


def read(path, count=8, **more):
    with clips.open_clip(Source(str(path))) as clip:
        return clips.frames_of(clip.file, count, **more)
