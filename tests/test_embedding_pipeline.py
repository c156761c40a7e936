"""Pictures to rows with look-ahead: counts, order, bounds and threads; no timings."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.toy import ToyEncoder
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.commands.console import summary
from zeroshot.errors import UnreadableImageError
from zeroshot.images import reading as images
from zeroshot.images.reading import open_image
from zeroshot.inference import prefetch
from zeroshot.inference.embedding import canonical_names, embed_images
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import resolve
from zeroshot.models.preprocessing import FAST
from zeroshot.ops import normalize
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions

MAGIC = Path(__file__).parent / "data" / "magic"


class Whole(ToyEncoder):
    """Pictures by their mean colour, each on its own; counts what it is given."""

    def __init__(self):
        self.batches = []

    def encode_images(self, given):
        self.batches.append(len(given))
        return self._rows([np.asarray(image) for image in given])

    def _rows(self, given):
        return normalize(torch.stack([torch.tensor([*a.mean((0, 1)), 1.0]) for a in given]).float())


class Split(Whole):
    """The same with preprocessing as a step of its own; knows how many pictures wait."""

    shortcuts, draft_side = "", None

    def __init__(self):
        super().__init__()
        self.alive, self.most = 0, 0
        self.lock = threading.Lock()

    def pixels(self, image):
        with self.lock:
            self.alive += 1
            self.most = max(self.most, self.alive)
        return np.asarray(image)

    def encode_pixels(self, pixels):
        rows = self.encode_images(pixels)
        time.sleep(0.01)  # threads get as far ahead as they may
        with self.lock:
            self.alive -= len(pixels)
        return rows


@pytest.fixture(params=[Whole, Split])
def encoder(request):
    return request.param()


@pytest.fixture
def folder(tmp_path):
    """So many different files."""

    def made(count):
        paths = [tmp_path / f"{i:05}.png" for i in range(count)]
        for i, path in enumerate(paths):
            Image.new("RGB", (4, 3), (i % 251, i // 251, 7 * i % 256)).save(path)
        return [Source(str(path)) for path in paths]

    return made


def alone(encoder, sources):
    """One picture after the other, without cache or threads."""
    return torch.cat([encoder.encode_images([open_image(source)]) for source in sources])


def run(sources, encoder, cache=None, batch_size=8, meter=None):
    batches = list(
        embed_images(sources, encoder, cache or NullCache(), meter or Meter(), batch_size)
    )
    assert [s for b in batches for s in b.sources] == list(sources)
    assert all(len(b.sources) == batch_size for b in batches[:-1])
    return batches


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 150])
def test_rows_are_those_of_one_by_one_bit_for_bit(encoder, folder, count):
    sources = folder(count)
    batches = run(sources, encoder)
    given = list(encoder.batches)
    if count:
        rows = torch.cat([b.embeddings for b in batches])
        assert torch.equal(rows, alone(encoder, sources))
    assert given == [8] * (count // 8) + [count % 8] * (count % 8 > 0)
    assert not threads()


def test_a_model_gives_what_it_gives_without_threads():
    clip = resolve(encoder=f"hf:{MAGIC / 'clip'}").encoder
    sources = [Source(str(MAGIC / f"image_{i}.png")) for i in range(5)]
    [batch] = run(sources, clip)
    pictures = [open_image(source) for source in sources]
    assert torch.equal(batch.embeddings, clip.encode_images(pictures))
    assert torch.equal(batch.embeddings, clip.encode_pixels([clip.pixels(p) for p in pictures]))


def test_batches_are_filled_where_the_cache_holds_most(encoder, folder, tmp_path):
    sources = folder(160)
    expected = alone(encoder, sources)
    new = set(range(0, 160, 10))
    with EmbeddingCache(tmp_path / "cache") as cache:
        run([s for i, s in enumerate(sources) if i not in new], encoder, cache)
        encoder.batches.clear()
        meter = Meter()
        batches = run(sources, encoder, cache, meter=meter)
        assert torch.equal(torch.cat([b.embeddings for b in batches]), expected)
        assert encoder.batches == [8, 8]
        assert (meter.images_encoded, meter.images_cached) == (16, 144)
        encoder.batches.clear()
        meter = Meter()
        assert torch.equal(
            torch.cat([b.embeddings for b in run(sources, encoder, cache)]), expected
        )
        assert encoder.batches == []


def test_a_picture_does_not_wait_for_ever_for_a_full_batch(encoder, folder, tmp_path):
    """One to encode, then more known ones than may wait for it."""
    sources = folder(8 * prefetch.WINDOW * 3)
    with EmbeddingCache(tmp_path / "cache") as cache:
        run(sources[1:-1], encoder, cache)
        encoder.batches.clear()
        run(sources, encoder, cache)
    assert encoder.batches == [1, 1]


def test_each_content_is_opened_and_encoded_once(encoder, folder, tmp_path, monkeypatch):
    sources = folder(5)
    copies = []
    for i in range(60):
        copies.append(tmp_path / f"copy{i}.png")
        copies[-1].write_bytes(Path(sources[i % 5].path).read_bytes())
    opened, fetch = [], images.fetch
    monkeypatch.setattr(prefetch, "fetch", lambda s: opened.append(s) or fetch(s))
    meter = Meter()
    batches = run([Source(str(c)) for c in copies], encoder, meter=meter)
    assert torch.equal(
        torch.cat([b.embeddings for b in batches]), alone(encoder, sources).repeat(12, 1)
    )
    assert len(opened) == meter.images_encoded == 5
    assert meter.images_cached == 55


def test_failures_stay_in_their_places(encoder, folder, tmp_path):
    sources = folder(40)
    bad = {3: "no such file", 7: "a text file", 8: "a text file", 31: "a folder", 39: "null byte"}
    (tmp_path / "text.png").write_text("no picture")
    paths = {3: "absent.png", 7: "text.png", 8: "text.png", 31: "", 39: "a\0b"}
    for i, path in paths.items():
        sources[i] = Source(str(tmp_path / path))
    meter = Meter()
    batches = run(sources, encoder, meter=meter)
    failures = [f for b in batches for f in b.failures]
    assert {i for i, f in enumerate(failures) if f} == set(bad)
    for i, reason in bad.items():
        assert reason in failures[i].message
    rows = torch.cat([b.embeddings for b in batches])
    good = [i for i in range(40) if i not in bad]
    assert torch.equal(rows[good], alone(encoder, [sources[i] for i in good]))
    assert not rows[list(bad)].any()
    assert (meter.pictures, meter.failed) == (40, 5)


def test_a_file_that_changes_under_way_takes_nobody_with_it(encoder, folder, tmp_path, monkeypatch):
    """Twins are told by their ids when they are asked for; one is another picture when opened."""
    sources = folder(2)
    first, twin, third = (tmp_path / f"twin{i}.png" for i in range(3))
    for path in (first, twin, third):
        path.write_bytes(Path(sources[0].path).read_bytes())
    fetch = images.fetch

    def changed(source):
        if source.path == str(first):
            first.write_bytes(Path(sources[1].path).read_bytes())
        return fetch(source)

    monkeypatch.setattr(prefetch, "fetch", changed)
    [batch] = run([Source(str(path)) for path in (first, twin, third)], encoder)
    assert torch.equal(batch.embeddings, alone(encoder, [sources[1], sources[0], sources[0]]))
    assert batch.ids[1] == batch.ids[2] != batch.ids[0]


def test_pictures_in_memory_are_found_by_what_they_are(encoder, folder, tmp_path):
    sources = folder(3)
    data = [Source(None, Path(s.path).read_bytes()) for s in sources]
    loaded = [Source(None, open_image(s)) for s in sources]
    with EmbeddingCache(tmp_path / "cache") as cache:
        run(sources, encoder, cache)
        encoder.batches.clear()
        [known] = run(data, encoder, cache)
        assert encoder.batches == []
        run(loaded, encoder, cache)
        assert encoder.batches == [3]
        run(loaded, encoder, cache)
        assert encoder.batches == [3]
    assert torch.equal(known.embeddings, alone(encoder, sources))


def test_what_waits_is_bounded(folder):
    encoder = Split()
    run(folder(200), encoder, batch_size=10)
    assert 10 < encoder.most <= 20 + 1


def test_whole_pictures_wait_in_small_numbers(folder, monkeypatch):
    """An encoder that preprocesses by itself gets them in full size."""
    monkeypatch.setattr(prefetch, "workers", lambda: 2)
    fetch, begun = images.fetch, []
    encoder = Whole()
    encode = encoder.encode_images

    def slow(given):
        time.sleep(0.01)
        done = sum(encoder.batches)
        assert len(begun) <= done + len(given) + 4
        return encode(given)

    encoder.encode_images = slow
    monkeypatch.setattr(prefetch, "fetch", lambda s: begun.append(s) or fetch(s))
    run(folder(100), encoder, batch_size=20)


def test_reading_goes_on_while_the_encoder_works(folder):
    """The first batch is not done before the second one has been read."""
    read = threading.Semaphore(0)

    class Waiting(Split):
        def pixels(self, image):
            read.release()
            return super().pixels(image)

        def encode_pixels(self, pixels):
            for _ in pixels if self.batches else pixels * 2:
                assert read.acquire(timeout=30)
            return super().encode_pixels(pixels)

    # The last batch finds nothing to wait for: it was read during the one before.
    sources, encoder = folder(24), Waiting()
    batches = embed_images(sources, encoder, NullCache(), Meter(), 8)
    next(batches)
    batches.close()
    assert encoder.batches == [8]


def test_rows_reach_the_cache_as_they_come(encoder, folder, tmp_path):
    """What was encoded before a fault is not encoded again."""
    sources = folder(32)
    encode = encoder.encode_images

    def breaks(given):
        if len(encoder.batches) == 3:
            raise RuntimeError("pulled the plug")
        return encode(given)

    encoder.encode_images = breaks
    with EmbeddingCache(tmp_path / "cache") as cache:
        with pytest.raises(RuntimeError, match="plug"):
            run(sources, encoder, cache)
        assert not threads()
        ids = [cache.file_id(s.path) for s in sources]
        _, found = cache.get(encoder.name, prefetch.IMAGE_KIND, ids)
        assert found.tolist() == [True] * 24 + [False] * 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_a_consumer_that_stops_leaves_no_thread(encoder, folder, error):
    batches = embed_images(folder(100), encoder, NullCache(), Meter(), 4)
    next(batches)
    assert threads()
    if error is GeneratorExit:
        batches.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            batches.throw(error)
    assert not threads()


def test_a_fault_of_ours_in_a_thread_ends_the_run(encoder, folder, monkeypatch):
    def broken(source):
        raise RuntimeError("a bug")

    monkeypatch.setattr(prefetch, "fetch", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(folder(3), encoder)
    assert not threads()


def test_an_error_keeps_no_bytes_alive(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    reading = prefetch.EmbeddingPipeline([], Whole(), NullCache(), Meter(), 4)
    error = reading._read(Source(str(tmp_path / "bad.png")), None)
    reading.close()
    assert isinstance(error, UnreadableImageError)
    assert (error.__traceback__, error.__context__) == (None, None)


def test_memory_that_runs_out_is_met_once(folder):
    class Small(Split):
        refused = 0

        def encode_pixels(self, pixels):
            if len(pixels) > 3:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().encode_pixels(pixels)

    encoder, sources = Small(), folder(26)
    batches = run(sources, encoder)
    assert torch.equal(torch.cat([b.embeddings for b in batches]), alone(Whole(), sources))
    assert encoder.refused == 2, "8 and 4 were tried once each"
    assert max(encoder.batches) == 2


# What a run says of itself


def test_the_summary_says_what_was_waited_for():
    meter = Meter(pictures=8)
    meter.seconds |= {"cache": 0.5, "decoding": 3.0, "encoder": 1.0}
    meter.add_thread_seconds("decoding", 4.0)
    meter.add_thread_seconds("decoding", 5.5)
    first, *rest = summary(meter, 0, verbose=True)
    assert "slowest step: reading images" in first
    assert "decoding took 9.50 s in other threads" in rest
    meter.seconds["encoder"] = 4.0
    assert "slowest step: encoder" in summary(meter, 0, verbose=False)[0]


def test_times_of_threads_are_theirs(encoder, folder):
    meter = Meter()
    run(folder(20), encoder, meter=meter)
    assert set(meter.seconds) == {"cache", "decoding", "encoder"}
    assert list(meter.thread_seconds) == ["decoding"]


# Shortcuts to pixels


def test_rows_of_other_pixels_are_never_mixed(tmp_path):
    """Exact and fast rows: each found by its own kind alone, each named in what comes out."""
    Image.open(MAGIC / "image_0.png").convert("RGB").resize((900, 700)).save(tmp_path / "a.jpg")
    [source] = sources = [Source(str(tmp_path / "a.jpg"))]
    name = f"hf:{MAGIC / 'clip'}"
    exact, fast = resolve(encoder=name), resolve(encoder=name, fast=True)
    with EmbeddingCache(tmp_path / "cache") as cache:
        rows = {}
        for models in (exact, fast, exact, fast):
            meter = Meter()
            runner = Embed.from_options(models, EmbedOptions()).open(cache, meter)
            [result] = runner(sources, meter)
            first = models.fast not in rows
            assert (meter.images_encoded, meter.images_cached) == (first, not first)
            assert rows.setdefault(models.fast, result.embedding) == result.embedding
        assert result.models["preprocessing"] == FAST
        assert {space.kind for space in cache.info().spaces} == {
            "image/rgb-2",
            "image/rgb-2/fast-1",
        }
    tasks = [Embed.from_options(models, EmbedOptions()) for models in (exact, fast)]
    first, second = (task.open(NullCache(), Meter()).settings() for task in tasks)
    assert first != second
    assert canonical_names(exact.encoder) != canonical_names(fast.encoder)
    assert torch.equal(
        torch.tensor([rows[False]]), exact.encoder.encode_images([open_image(source)])
    )
    a, b = (torch.tensor(row) for row in rows.values())
    assert 0.99 < float(a @ b) < 1 - 1e-9
