"""The thread that owns the models, the folders that change, the cache of requests."""

import gc
import hashlib
import os
import signal
import threading
import time

import pytest
import torch
from PIL import Image

from tests.serving import HEART, SCENES, STAR
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import resolve
from zeroshot.serving import start
from zeroshot.serving.batcher import Batcher, BusyError, StoppingError
from zeroshot.serving.engine import Engine, _RequestCache
from zeroshot.serving.folders import ServedFolders
from zeroshot.serving.indexing import Indexing


@pytest.fixture
def batcher():
    batcher = Batcher(capacity=8, most=4, wait=0.05)
    yield batcher
    batcher.close()


@pytest.fixture
def held(batcher):
    """The thread is busy until the event is set."""
    begun, go = threading.Event(), threading.Event()

    def work(items):
        begun.set()
        go.wait(20)
        return items

    batcher.submit("held", work, None)
    begun.wait(10)
    yield go
    go.set()


def doubled(seen):
    def work(items):
        seen.append(list(items))
        return [2 * item for item in items]

    return work


def test_requests_of_one_kind_are_answered_together(batcher, held):
    seen = []
    first = [batcher.submit("a", doubled(seen), i) for i in range(5)]
    other = batcher.submit("b", doubled(seen), 10)
    held.set()
    assert [future.result(10) for future in first] == [0, 2, 4, 6, 8]
    assert other.result(10) == 20
    assert seen[0] == [0, 1, 2, 3]  # four is the most
    assert sorted(map(tuple, seen[1:])) == [(4,), (10,)]


def test_the_first_waits_for_others_but_not_long(batcher):
    seen = []
    futures = [batcher.submit("a", doubled(seen), 1)]
    time.sleep(0.01)
    futures.append(batcher.submit("a", doubled(seen), 2))
    begin = time.monotonic()
    assert [future.result(10) for future in futures] == [2, 4]
    assert seen == [[1, 2]]
    assert time.monotonic() - begin < 5


def test_a_faulty_request_fails_alone(batcher, held):
    def work(items):
        if "bad" in items:
            raise UserError("bad")
        return [item.upper() for item in items]

    futures = [batcher.submit("a", work, text) for text in ("x", "bad", "y")]
    held.set()
    assert futures[0].result(10) == "X"
    assert futures[2].result(10) == "Y"
    with pytest.raises(UserError, match="bad"):
        futures[1].result(10)


def test_who_left_is_left_out(batcher, held):
    seen = []
    futures = [batcher.submit("a", doubled(seen), i) for i in range(3)]
    futures[1].cancel()
    held.set()
    assert futures[2].result(10) == 4
    assert seen == [[0, 2]]
    assert batcher.counts.cancelled == 1


def test_a_full_queue_refuses(batcher, held):
    for i in range(8):
        batcher.submit("a", doubled([]), i)
    with pytest.raises(BusyError, match="8 requests are waiting"):
        batcher.submit("a", doubled([]), 9)


def test_work_in_the_background_lets_requests_go_first_but_not_for_ever(batcher, held):
    seen = []
    batcher.submit("index", doubled(seen), "i", background=True)
    batcher.submit("a", doubled(seen), "a")
    held.set()
    while len(seen) < 2:
        time.sleep(0.01)
    assert seen == [["a"], ["i"]]
    done = batcher.submit("index", doubled(seen), "j", background=True)
    end = time.monotonic() + 10
    while not done.done() and time.monotonic() < end:
        batcher.submit("a", doubled([]), 1).result(10)
    assert done.done()


def test_what_waits_is_answered_at_the_end():
    batcher = Batcher(wait=60)
    future = batcher.submit("a", doubled([]), 1)
    batcher.close()
    assert future.result(0) == 2
    with pytest.raises(StoppingError):
        batcher.submit("a", doubled([]), 1)


# Folders


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with EmbeddingCache(tmp_path_factory.mktemp("cache")) as cache:
        engine = Engine(resolve("pocket"), cache, 32)
        yield engine
        engine.close()


def save(path, data):
    """A file whose time stamp is old enough to be trusted."""
    path.write_bytes(data)
    past = time.time() - 60
    os.utime(path, (past, past))


def test_new_changed_and_removed_files(engine, tmp_path):
    save(tmp_path / "a.png", HEART.read_bytes())
    (tmp_path / "b.png").write_text("no image, but its name is one's")
    folders = ServedFolders([tmp_path], engine.index)
    folders.look()
    first = folders.snapshot
    assert list(first.names) == ["a.png"]
    assert list(first.failed_names) == ["b.png"]
    folders.look()
    assert folders.snapshot is first
    (tmp_path / "below").mkdir()
    save(tmp_path / "below" / "c.png", STAR.read_bytes())
    save(tmp_path / "a.png", STAR.read_bytes())
    folders.look()
    second = folders.snapshot
    assert list(second.names) == ["a.png", "below/c.png"]
    assert second.matrix.ids[0] == second.matrix.ids[1] != first.matrix.ids[0]
    assert torch.equal(second.matrix.embeddings[0], second.matrix.embeddings[1])
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    folders.look()
    assert list(folders.snapshot.names) == ["below/c.png"]
    assert not folders.snapshot.failed_names
    (tmp_path / "below" / "c.png").unlink()
    folders.look()
    assert len(folders.snapshot) == 0
    assert "no images found" in folders.progress.message


def test_a_restart_encodes_nothing(engine, tmp_path):
    for i in range(20):
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    ServedFolders([tmp_path], engine.index).look()
    before = engine.meter.images_encoded
    again = ServedFolders([tmp_path], engine.index)
    again.look()
    assert len(again.snapshot) == 20
    assert engine.meter.images_encoded == before


def test_the_next_images_are_read_while_others_are_asked_for(engine, tmp_path, monkeypatch):
    """Between two turns the encoder works for others, and the threads go on reading."""
    from zeroshot.inference import prefetch

    for i in range(40):
        Image.new("RGB", (8, 8), (5 * i, 1, 7)).save(tmp_path / f"{i:02}.png")
    read = []
    real = prefetch.fetch
    monkeypatch.setattr(prefetch, "fetch", lambda source: (read.append(source), real(source))[1])
    monkeypatch.setattr("zeroshot.serving.indexing.TURN", 0.0)
    sources = [Source(str(path)) for path in sorted(tmp_path.iterdir())]
    run = Indexing(sources, engine.models, engine.cache, engine.meter, 4)
    [first] = run.turn()
    end = time.monotonic() + 10
    while len(read) < 2 * len(first.sources):
        assert time.monotonic() < end
        time.sleep(0.01)
    rest = [batch for turn in iter(run.turn, []) for batch in turn]
    assert [source for batch in (first, *rest) for source in batch.sources] == sources
    assert len(read) == len(sources)
    run.close()
    assert not [thread for thread in threading.enumerate() if "read-ahead" in thread.name]


def test_names_of_several_folders_have_the_folder_in_front(engine, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "a.png", HEART.read_bytes())
    folders = ServedFolders([tmp_path / "one", f"{tmp_path}/two/"], engine.index)
    folders.look()
    assert list(folders.snapshot.names) == ["one/a.png", "two/a.png"]
    assert len(set(folders.snapshot.keys)) == 2


def test_the_embeddings_are_those_of_the_command(engine, zeroshot, monkeypatch):
    folders = ServedFolders([SCENES], engine.index)
    folders.look()
    monkeypatch.setenv("ZEROSHOT_CACHE", str(engine.cache.root))
    _, rows, _ = zeroshot("embed", SCENES, "--models", "pocket", "--json")
    expected = torch.tensor([row["embedding"] for row in rows])
    assert torch.equal(folders.snapshot.matrix.embeddings, expected)
    assert [row["id"] for row in rows] == list(folders.snapshot.matrix.ids)


# The cache of requests


def ids(*numbers):
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def test_what_waits_to_be_written_is_there(tmp_path):
    with EmbeddingCache(tmp_path) as store:
        store.put("e", "k", ids(1, 2), torch.tensor([[1.0, 0], [2, 0]]))
        cache = _RequestCache(store, 1000)
        go = threading.Event()
        cache._writer.submit(go.wait, 20)  # the disk is slow
        cache.put("e", "k", ids(3, 4), torch.tensor([[3.0, 0], [4, 0]]))
        rows, found = cache.get("e", "k", ids(4, 9, 1, 3, 2))
        assert found.tolist() == [True, False, True, True, True]
        assert rows[:, 0].tolist() == [4, 1, 3, 2]
        assert not store.get("e", "k", ids(3))[1].any()
        go.set()
        cache.close()
        rows, found = store.get("e", "k", ids(4, 3))
        assert rows[:, 0].tolist() == [4, 3]
        assert not cache._pending


def test_requests_add_no_more_than_they_may(tmp_path):
    with EmbeddingCache(tmp_path) as store:
        cache = _RequestCache(store, 8 * 4)
        for i in range(10):
            cache.put("e", "k", ids(i), torch.full((1, 2), float(i)))
        cache.close()
        assert store.get("e", "k", ids(*range(10)))[1].tolist() == [True] * 4 + [False] * 6


def test_what_is_not_finite_is_refused(tmp_path):
    with EmbeddingCache(tmp_path) as store:
        cache = _RequestCache(store, 1000)
        with pytest.raises(ValueError, match="not finite"):
            cache.put("e", "k", ids(1), torch.full((1, 2), float("nan")))
        cache.close()


def test_the_cache_of_requests_has_whatever_a_cache_without_files_has():
    """It makes no index of its own, so that what it does not define would fail in a request."""
    of_no_request = {"info", "verify", "export", "prune"}
    needed = {name for name in vars(NullCache) if not name.startswith("_")} - of_no_request
    assert needed <= vars(_RequestCache).keys()


def test_requests_have_the_notes_of_the_cache(tmp_path):
    with EmbeddingCache(tmp_path) as cache:
        requests = _RequestCache(cache, 1 << 20)
        requests.write_note(["a"], "words")
        assert requests.note("words") == cache.note("words") == ["a"]
        scene = next(SCENES.glob("*.png"))
        assert requests.file_id(scene) == cache.file_id(scene)
        requests.close()


def test_the_command_looks_for_no_garbage_among_models(zeroshot, monkeypatch):
    class Served:
        page = "http://127.0.0.1:1/"

        def __enter__(self):
            counts.append(gc.get_freeze_count())
            raise KeyboardInterrupt

        def __exit__(self, *_):
            raise AssertionError

    counts = [gc.get_freeze_count()]
    monkeypatch.setattr(start, "serve", lambda *_, **__: Served())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        zeroshot("serve", SCENES, "--models", "pocket", "--quiet")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert counts[1] - counts[0] > 1000
