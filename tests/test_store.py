"""The cache: equals a dictionary, survives crashes and damage, and several users at a time."""

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from zeroshot.cache import embedding_cache as store
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache, erase
from zeroshot.cache.lookup import MANY, Lookup, Run
from zeroshot.errors import NotAvailableError, UserError

ENCODER = "toy@1"


def id_of(text):
    return sha256(text.encode()).hexdigest()


def row_of(text, dim=5):
    """What the toy encoder says: numbers that only this text has."""
    values = sha256(text.encode()).digest()
    return torch.tensor([values[i] / 256 - 0.5 for i in range(dim)])


def rows_of(texts, dim=5):
    return torch.stack([row_of(text, dim) for text in texts])


class Counting:
    """An encoder that remembers what it was asked."""

    def __init__(self):
        self.batches = []

    def __call__(self, texts):
        self.batches.append(list(texts))
        return rows_of(texts)

    @property
    def asked(self):
        return [text for batch in self.batches for text in batch]


def through(cache, encode, texts, **options):
    ids = [id_of(text) for text in texts]
    return cache(encode, texts, ids=ids, encoder=ENCODER, kind="text", **options)


def held(root, texts):
    """Of `texts`, those whose rows are held; and they are right."""
    with EmbeddingCache(root) as cache:
        rows, found = cache.get(ENCODER, "text", [id_of(text) for text in texts])
    kept = [text for text, hit in zip(texts, found.tolist(), strict=True) if hit]
    assert len(rows) == len(kept)
    assert not kept or torch.equal(rows, rows_of(kept))
    return kept


def fill(root, *batches):
    with EmbeddingCache(root) as cache:
        for texts in batches:
            cache.put(ENCODER, "text", [id_of(text) for text in texts], rows_of(texts))


LEFT = "0" * 32 + ".f32"


def segments(root):
    return sorted((root / "segments").glob("*.f32"))


# What it is for


def test_second_run_calls_no_encoder_and_gives_the_same(tmp_path):
    texts = [f"text {i}" for i in range(23)]
    first, second = Counting(), Counting()
    with EmbeddingCache(tmp_path) as cache:
        rows = through(cache, first, texts, batch_size=4)
    assert [len(batch) for batch in first.batches] == [4, 4, 4, 4, 4, 3]
    assert torch.equal(rows, rows_of(texts))
    with EmbeddingCache(tmp_path) as cache:
        again = through(cache, second, list(reversed(texts)))
    assert second.batches == []
    assert torch.equal(again, rows.flip(0))


def test_only_what_is_missing_is_encoded_and_once(tmp_path):
    encode = Counting()
    with EmbeddingCache(tmp_path) as cache:
        through(cache, encode, ["b", "d"])
        rows = through(cache, encode, ["a", "b", "a", "c", "d", "d", "a"])
    assert sorted(encode.batches[1]) == ["a", "c"]
    assert torch.equal(rows, rows_of(["a", "b", "a", "c", "d", "d", "a"]))


def test_interrupted_call_keeps_what_was_encoded(tmp_path):
    def encode(texts):
        if "text 5" in texts:
            raise KeyboardInterrupt
        return rows_of(texts)

    texts = [f"text {i}" for i in range(9)]
    with EmbeddingCache(tmp_path) as cache, pytest.raises(KeyboardInterrupt):
        through(cache, encode, texts, batch_size=2)
    assert held(tmp_path, texts) == texts[:4]


def test_encoder_and_kind_are_part_of_the_key(tmp_path):
    with EmbeddingCache(tmp_path) as cache:
        cache.put("one", "text", ["x"], torch.ones(1, 3))
        cache.put("two", "text", ["x"], torch.zeros(1, 4))
        cache.put("one", "image", ["x"], torch.full((1, 2), 2.0))
        assert cache.get("one", "text", ["x"])[0].tolist() == [[1, 1, 1]]
        assert cache.get("two", "text", ["x"])[0].tolist() == [[0, 0, 0, 0]]
        assert cache.get("one", "image", ["x"])[0].tolist() == [[2, 2]]
        rows, found = cache.get("two", "image", ["x", "y"])
        assert (rows.shape, found.tolist()) == ((0, 0), [False, False])
        rows, found = cache.get("two", "text", ["y"])
        assert (rows.shape, found.tolist()) == ((0, 4), [False])


def test_rows_that_do_not_fit_are_refused(tmp_path):
    with EmbeddingCache(tmp_path) as cache:
        cache.put("e", "text", ["x"], torch.ones(1, 3))
        with pytest.raises(
            UserError,
            match=r"'e' gives text embeddings of width 4, but the cache has some of width 3",
        ):
            cache.put("e", "text", ["y"], torch.ones(1, 4))
        with pytest.raises(ValueError, match="2 ids for 1 embeddings"):
            cache.put("e", "text", ["y", "z"], torch.ones(1, 3))
        with pytest.raises(ValueError, match="not finite"):
            cache.put("e", "text", ["y"], torch.full((1, 3), torch.nan))
        assert cache.info().spaces[0].rows == 1
        cache.put("e", "text", [], torch.ones(0, 3))


def test_half_precision_comes_back_as_it_was_stored(tmp_path):
    halves = torch.tensor([[0.1, 0.2]], dtype=torch.float16)
    with EmbeddingCache(tmp_path) as cache:
        first = cache(lambda _: halves, ["a"], ids=["a"], encoder="h", kind="text")
        again = cache(lambda _: halves, ["a"], ids=["a"], encoder="h", kind="text")
    assert first.dtype == again.dtype == torch.float32
    assert torch.equal(first, again)
    assert torch.equal(first, halves.float())


def test_no_items(tmp_path):
    with EmbeddingCache(tmp_path) as cache:
        assert through(cache, Counting(), []).shape == (0, 0)


names = st.sampled_from([f"text {i}" for i in range(12)])
steps = st.lists(
    st.tuples(st.sampled_from(["put", "get", "open"]), st.sampled_from("ab"), st.lists(names)),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(steps=steps)
def test_any_sequence_equals_a_dictionary(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("cache")
    model = {}
    cache = EmbeddingCache(root)
    for number, (act, encoder, texts) in enumerate(steps):
        ids = [id_of(text) for text in texts]
        if act == "open":
            cache.close()
            cache = EmbeddingCache(root)
        elif act == "put":
            rows = torch.arange(len(ids) * 3.0).reshape(-1, 3) + 1000 * number
            cache.put(encoder, "text", ids, rows)
            model |= {(encoder, id): row for id, row in zip(ids, rows.tolist(), strict=True)}
        else:
            rows, found = cache.get(encoder, "text", ids)
            assert found.tolist() == [(encoder, id) in model for id in ids]
            assert rows.tolist() == [model[encoder, id] for id in ids if (encoder, id) in model]
    cache.close()


def test_segments_roll_over(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SEGMENT_BYTES", 3 * 5 * 4)
    batches = [["a", "b"], ["c", "d"], ["e"], ["f"], ["g"], ["h"]]
    fill(tmp_path, *batches)
    assert sorted(path.stat().st_size for path in segments(tmp_path)) == [20, 60, 80]
    assert held(tmp_path, list("hgfedcba")) == list("hgfedcba")


# Files


def settled(path, content, seconds=60):
    path.write_bytes(content)
    os.utime(path, ns=(time.time_ns() - seconds * 10**9,) * 2)
    return path


@pytest.fixture
def clock(monkeypatch):
    """Counts hashed files; `tick` lets seconds pass, as ctime cannot be set."""

    class Clock:
        hashed = 0
        later = 0

        def tick(self, seconds):
            self.later += seconds * 10**9

    clock = Clock()
    now, hash_file = time.time_ns, store.hash_file

    def counting(path):
        clock.hashed += 1
        return hash_file(path)

    monkeypatch.setattr(store.time, "time_ns", lambda: now() + clock.later)
    monkeypatch.setattr(store, "hash_file", counting)
    return clock


def test_unchanged_file_is_hashed_once(tmp_path, clock):
    path = settled(tmp_path / "a.png", b"content")
    clock.tick(10)
    for _ in range(3):
        with EmbeddingCache(tmp_path / "cache") as cache:
            assert cache.file_id(path) == cache.file_id(str(path)) == sha256(b"content").hexdigest()
    assert clock.hashed == 1


def test_same_picture_under_another_name_is_a_hit(tmp_path):
    encode = Counting()
    with EmbeddingCache(tmp_path / "cache") as cache:
        for name in ("a.png", "b.png"):
            path = settled(tmp_path / name, b"content")
            cache(encode, ["content"], ids=[cache.file_id(path)], encoder="e", kind="image")
    assert encode.asked == ["content"]


def test_changed_file_of_equal_size_and_time_is_seen(tmp_path, clock):
    path = settled(tmp_path / "a.png", b"content")
    times = path.stat().st_mtime_ns
    clock.tick(10)
    with EmbeddingCache(tmp_path / "cache") as cache:
        cache.file_id(path)
        time.sleep(0.02)  # for the clock that stamps ctime
        path.write_bytes(b"CONTENT")
        os.utime(path, ns=(times, times))
        assert cache.file_id(path) == sha256(b"CONTENT").hexdigest()
        other = settled(tmp_path / "b.png", b"another")
        os.utime(other, ns=(times, times))
        os.replace(other, path)
        assert cache.file_id(path) == sha256(b"another").hexdigest()


def test_hash_of_a_file_just_written_is_not_trusted(tmp_path, clock):
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    with EmbeddingCache(tmp_path / "cache") as cache:
        for _ in range(3):
            cache.file_id(path)
        assert clock.hashed == 3
        clock.tick(3)
        for _ in range(3):
            cache.file_id(path)
        assert clock.hashed == 4


def test_file_changed_while_it_is_hashed_is_hashed_again(tmp_path, clock, monkeypatch):
    path = settled(tmp_path / "a.png", b"content")
    clock.tick(10)
    hash_file = store.hash_file

    def changing(path):
        id = hash_file(path)
        Path(path).write_bytes(b"changed meanwhile")
        return id

    with EmbeddingCache(tmp_path / "cache") as cache:
        monkeypatch.setattr(store, "hash_file", changing)
        cache.file_id(path)
        monkeypatch.setattr(store, "hash_file", hash_file)
        assert cache.file_id(path) == sha256(b"changed meanwhile").hexdigest()


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with EmbeddingCache(tmp_path / "cache") as cache:
        for name in ("gone", "pipe", ""):
            with pytest.raises(OSError, match=r"No such file|a pipe or a device|Is a directory"):
                cache.file_id(tmp_path / name)
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
        odd.write_bytes(b"content")
        assert cache.file_id(odd) == sha256(b"content").hexdigest()


# Crashes and damage


def script(root, body):
    return f"""
import os, signal
from pathlib import Path
from tests.test_store import *
root = Path({str(root)!r})
{body}
"""


def run(code):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)


DEATHS = {
    "before the append": "store.append_vectors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)",
    "within the append": """
def torn(path, rows):
    with open(path, "ab") as file:
        file.write(rows.tobytes()[:-7])
    os.kill(os.getpid(), signal.SIGKILL)
store.append_vectors = torn
""",
    "before the commit": """
append = store.append_vectors
def dying(path, rows):
    append(path, rows)
    os.kill(os.getpid(), signal.SIGKILL)
store.append_vectors = dying
""",
}


@pytest.mark.parametrize("death", DEATHS)
def test_killed_writer_leaves_nothing_wrong(tmp_path, death):
    fill(tmp_path, ["a", "b"])
    body = DEATHS[death] + '\nfill(root, ["c", "d", "e"])'
    process = run(script(tmp_path, body))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert held(tmp_path, list("abcde")) == ["a", "b"]
    fill(tmp_path, ["d"], ["e", "c"])
    assert held(tmp_path, list("abcde")) == list("abcde")


def test_segment_cut_or_grown_at_every_byte(tmp_path):
    fill(tmp_path / "whole", ["a", "b", "c"])
    (segment,) = segments(tmp_path / "whole")
    content = segment.read_bytes()
    for length in range(len(content) + 21):
        segment.write_bytes((content + b"\x3f" * 30)[:length])
        expected = ["a", "b", "c"][: length // 20]
        assert held(tmp_path / "whole", ["a", "b", "c"]) == expected
        if length % 7 == 0:  # what is put behind the torn end is right, too
            root = tmp_path / str(length)
            shutil.copytree(tmp_path / "whole", root)
            fill(root, ["d", "e"])
            assert held(root, list("abcde")) == [*expected, "d", "e"]


def test_every_flipped_bit_is_noticed(tmp_path):
    fill(tmp_path, ["a", "b", "c"])
    (segment,) = segments(tmp_path)
    content = segment.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        segment.write_bytes(damaged)
        assert held(tmp_path, ["a", "b", "c"]) == [
            x for i, x in enumerate("abc") if i != place // 20
        ]
    encode = Counting()
    with EmbeddingCache(tmp_path) as cache:
        assert torch.equal(through(cache, encode, ["a", "b", "c"]), rows_of(["a", "b", "c"]))
    assert encode.asked == ["c"]
    assert held(tmp_path, ["a", "b", "c"]) == ["a", "b", "c"]


def index(root):
    return sqlite3.connect(root / store.INDEX, isolation_level=None)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE batches SET place = place + 1",
        "UPDATE batches SET place = 1000000",
        "UPDATE batches SET place = 1 << 40",
        "UPDATE batches SET place = -1",
        "UPDATE batches SET segment = 99",
        "UPDATE batches SET segment = 1 << 40",
        "UPDATE batches SET keys = substr(keys, 2)",
        "UPDATE batches SET keys = substr(keys, 9)",
        "UPDATE batches SET checksums = x''",
        "UPDATE batches SET checksums = CAST(substr(checksums, 2) || x'00' AS BLOB)",
        "UPDATE batches SET keys = 7, checksums = NULL",
        "UPDATE batches SET place = 'first'",
        "UPDATE segments SET name = '0123456789abcdef0123456789abcdef.f32'",
        "UPDATE spaces SET dim = 10",
        "UPDATE batches SET keys = x'0102030405060708' || substr(keys, 9, 0)",
    ],
)
def test_index_that_points_elsewhere(tmp_path, change):
    fill(tmp_path, ["a", "b", "c"])
    database = index(tmp_path)
    database.execute(change)
    database.close()
    with EmbeddingCache(tmp_path) as cache:
        _, found = cache.get(ENCODER, "text", [id_of(x) for x in "abc"])
    assert not found.any()


def swap(root, column, width):
    """Exchange what the index says of the first two rows of a batch."""
    database = index(root)
    (held,) = database.execute(f"SELECT {column} FROM batches").fetchone()
    database.execute(
        f"UPDATE batches SET {column} = ?",
        (held[width : 2 * width] + held[:width] + held[2 * width :],),
    )
    database.close()


def test_swapped_rows_are_missing(tmp_path):
    fill(tmp_path, ["a", "b", "c"])
    swap(tmp_path, "keys", 8)
    assert held(tmp_path, ["a", "b", "c"]) == ["c"]
    swap(tmp_path, "checksums", 4)  # even where each checksum goes with its key
    assert held(tmp_path, ["a", "b", "c"]) == ["c"]


def test_row_under_another_rows_id_is_missing(tmp_path):
    """As when two ids have the same key: the checksum knows more of an id."""
    same = [id_of("a"), id_of("a")[:16] + id_of("b")[16:]]
    with EmbeddingCache(tmp_path) as cache:
        cache.put(ENCODER, "text", same[:1], rows_of(["a"]))
        rows, found = cache.get(ENCODER, "text", same)
        assert found.tolist() == [True, False]
        assert torch.equal(rows, rows_of(["a"]))
        cache.put(ENCODER, "text", same[1:], rows_of(["b"]))
        rows, found = cache.get(ENCODER, "text", same)
        assert found.tolist() == [False, True]
        assert torch.equal(rows, rows_of(["b"]))


def test_lost_index_and_lost_segments(tmp_path):
    fill(tmp_path, ["a", "b"])
    (old,) = segments(tmp_path)
    (tmp_path / store.INDEX).unlink()
    assert held(tmp_path, ["a", "b"]) == []
    fill(tmp_path, ["b"])
    assert held(tmp_path, ["a", "b"]) == ["b"]
    assert len(segments(tmp_path)) == 2
    with EmbeddingCache(tmp_path) as cache:
        assert cache.prune() == 40
    assert old not in segments(tmp_path)
    shutil.rmtree(tmp_path / "segments")
    assert held(tmp_path, ["a", "b"]) == []


def test_damaged_index_is_explained_and_can_be_erased(tmp_path):
    fill(tmp_path, [f"text {i}" for i in range(200)])
    path = tmp_path / store.INDEX
    content = bytearray(path.read_bytes())
    path.write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match=r"is damaged \(file is not a database\); clear it with"):
        EmbeddingCache(tmp_path)
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        held(tmp_path, ["text 1"])
    (tmp_path / "notes.txt").write_text("mine")
    erase(tmp_path)
    assert held(tmp_path, ["text 1"]) == []
    assert segments(tmp_path) == []
    assert (tmp_path / "notes.txt").exists()


def test_layout_of_another_version_is_refused(tmp_path):
    fill(tmp_path, ["a"])
    database = index(tmp_path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(
        UserError, match=r"has layout 7, this version reads 2; clear it with .* prune --all"
    ):
        EmbeddingCache(tmp_path)


# Disks that refuse


def test_full_disk_ends_keeping_but_not_the_run(tmp_path):
    body = """
import resource
fill(root, ["a", "b"])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
texts = [f"text {i}" for i in range(6000)]
with EmbeddingCache(root) as cache:
    rows = through(cache, rows_of, texts, batch_size=1000)
    assert torch.equal(rows, rows_of(texts))
    assert "is not writable" in cache.write_error, cache.write_error
    rows, found = cache.get(ENCODER, "text", [id_of("a"), id_of("text 5999")])
    assert found.tolist() == [True, False]
"""
    process = run(script(tmp_path, body))
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert held(tmp_path, ["a", "b"]) == ["a", "b"]


def test_failed_append_leaves_no_trace(tmp_path, monkeypatch):
    def full(path, rows):
        raise OSError(28, "No space left on device")

    with EmbeddingCache(tmp_path) as cache:
        monkeypatch.setattr(store, "append_vectors", full)
        assert torch.equal(through(cache, rows_of, ["a", "b"]), rows_of(["a", "b"]))
        assert cache.write_error.endswith("is not writable: [Errno 28] No space left on device")
        assert cache.info().spaces == ()


def test_read_only_index_is_read(tmp_path, monkeypatch):
    fill(tmp_path, ["a"])
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda path, **rest: connect(f"file:{path}?mode=ro", uri=True, **rest),
    )
    encode = Counting()
    with EmbeddingCache(tmp_path) as cache:
        through(cache, encode, ["a", "b"])
        assert "attempt to write a readonly database" in cache.write_error
        with pytest.raises(UserError, match="readonly"):
            cache.prune()
    assert encode.asked == ["b"]


def test_no_place_for_a_cache(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot create a cache in .* or use --no-cache"):
        EmbeddingCache(tmp_path / "file" / "cache")


def test_place_and_permissions(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "mine"))
    with EmbeddingCache() as cache:
        assert cache.root == tmp_path / "mine"
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o700
    monkeypatch.delenv("ZEROSHOT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.default_root().name == "zeroshot"


# Several at once


def test_processes_share_a_cache(tmp_path):
    body = """
import random
random.seed({seed})
texts = [f"text {{i}}" for i in range(60)]
with EmbeddingCache(root) as cache:
    for _ in range(25):
        some = random.sample(texts, 7)
        assert torch.equal(through(cache, rows_of, some), rows_of(some))
    own = [f"own {seed} {{i}}" for i in range(30)]
    through(cache, rows_of, own, batch_size=3)
    assert cache.write_error is None
"""
    processes = [run(script(tmp_path, body.format(seed=seed))) for seed in range(2)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    for seed in range(2):
        own = [f"own {seed} {i}" for i in range(30)]
        assert held(tmp_path, own) == own
    assert len(segments(tmp_path)) == 1


def test_threads_share_a_cache(tmp_path):
    texts = [f"text {i}" for i in range(40)]
    paths = [settled(tmp_path / f"{i}", b"%d" % i) for i in range(9)]
    faults = []

    def work(start):
        try:
            for i in range(6):
                some = texts[start + i : start + i + 9]
                assert torch.equal(through(cache, rows_of, some, batch_size=4), rows_of(some))
                assert [cache.file_id(p) for p in paths] == [id_of(str(i)) for i in range(9)]
        except BaseException as error:
            faults.append(error)

    with EmbeddingCache(tmp_path / "cache") as cache:
        threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 24, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert faults == []


def test_one_writer_at_a_time(tmp_path):
    with EmbeddingCache(tmp_path) as first, EmbeddingCache(tmp_path) as second:
        second._index._db.execute("PRAGMA busy_timeout = 0")
        first._index.write(lambda db: second.put("e", "text", ["x"], torch.ones(1, 2)))
        assert "database is locked" in second.write_error
        assert (first.write_error, segments(tmp_path)) == (None, [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_process_is_told_to_open_its_own(tmp_path, monkeypatch):
    with EmbeddingCache(tmp_path) as cache:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="opened before the process forked"):
            cache.get(ENCODER, "text", ["a"])
        monkeypatch.undo()


# Looking after it


def test_info_counts(tmp_path):
    path = settled(tmp_path / "a.png", b"content")
    with EmbeddingCache(tmp_path / "cache") as cache:
        cache.put("b", "text", ["x", "y"], torch.ones(2, 3))
        cache.put("a", "text", ["x"], torch.ones(1, 4))
        cache.put("b", "image", ["x"], torch.ones(1, 5))
        cache.put("b", "text", ["x"], torch.zeros(1, 3))
        cache.file_id(path)
        info = cache.info()
    held = [(s.encoder, s.kind, s.rows, s.dim, s.bytes) for s in info.spaces]
    assert held == [("a", "text", 1, 4, 16), ("b", "image", 1, 5, 20), ("b", "text", 2, 3, 36)]
    assert all(abs(space.used - time.time()) < 60 for space in info.spaces)
    assert info.root == tmp_path / "cache"
    assert info.bytes > 72


def aged(root, encoder, days):
    database = index(root)
    database.execute(
        "UPDATE segments SET used = used - ? WHERE space = "
        "(SELECT id FROM spaces WHERE encoder = ?)",
        (days * 86400, encoder),
    )
    database.close()


@pytest.mark.parametrize(
    ("options", "left", "freed"),
    [
        ({}, ["new", "old", "older"], 0),
        ({"encoder": "old"}, ["new", "older"], 12),
        ({"encoder": "none"}, ["new", "old", "older"], 0),
        ({"older_than_days": 5}, ["new", "old"], 16),
        ({"older_than_days": 1}, ["new"], 28),
        ({"encoder": "new", "older_than_days": 1}, ["new", "old", "older"], 0),
        ({"encoder": "old", "older_than_days": 1}, ["new", "older"], 12),
        ({"max_bytes": 36}, ["new", "old", "older"], 0),
        ({"max_bytes": 35}, ["new", "old"], 16),
        ({"max_bytes": 10}, ["new"], 28),
        ({"max_bytes": 0}, [], 36),
        ({"encoder": "new", "max_bytes": 15}, ["old"], 24),
    ],
)
def test_prune(tmp_path, options, left, freed):
    with EmbeddingCache(tmp_path) as cache:
        for number, encoder in enumerate(["old", "new", "older"]):
            cache.put(encoder, "text", ["x"], torch.full((1, [3, 2, 4][number]), float(number)))
        aged(tmp_path, "old", 3)
        aged(tmp_path, "older", 9)
        assert cache.prune(**options) == freed
        assert [space.encoder for space in cache.info().spaces] == left
        assert sum(path.stat().st_size for path in segments(tmp_path)) == 36 - freed
        for encoder in ["old", "new", "older"]:
            assert cache.get(encoder, "text", ["x"])[1].tolist() == [encoder in left]


def test_use_is_noted(tmp_path):
    fill(tmp_path, ["a"])
    aged(tmp_path, ENCODER, 9)
    assert held(tmp_path, ["a"]) == ["a"]
    with EmbeddingCache(tmp_path) as cache:
        assert cache.prune(older_than_days=1) == 0


def test_prune_under_a_reader_and_a_writer(tmp_path):
    with EmbeddingCache(tmp_path) as reader, EmbeddingCache(tmp_path) as pruner:
        through(reader, rows_of, ["a", "b"])
        pruner.prune(encoder=ENCODER)
        encode = Counting()
        assert torch.equal(through(reader, encode, ["a", "b"]), rows_of(["a", "b"]))
        assert encode.asked == ["a", "b"]
    assert held(tmp_path, ["a", "b"]) == ["a", "b"]


def test_prune_forgets_files_that_are_gone(tmp_path, clock):
    paths = [settled(tmp_path / name, b"content") for name in ("a", "b")]
    clock.tick(10)
    with EmbeddingCache(tmp_path / "cache") as cache:
        for path in paths:
            cache.file_id(path)
        cache.put("e", "text", ["x"], torch.ones(1, 2))
        assert cache.info().files == 2
        paths[0].unlink()
        cache.prune()
        assert cache.info().files == 1


def test_without_a_cache(tmp_path):
    encode = Counting()
    path = settled(tmp_path / "a", b"content")
    with NullCache() as cache:
        for _ in range(2):
            rows = through(cache, encode, ["a", "b", "a"], batch_size=1)
            assert torch.equal(rows, rows_of(["a", "b", "a"]))
        assert cache.file_id(path) == sha256(b"content").hexdigest()
        assert (cache.info().spaces, cache.prune(), cache.write_error) == ((), 0, None)
    assert encode.asked == ["a", "b", "a", "b"]
    assert list(tmp_path.iterdir()) == [path]


# Checking and handing out


def test_verify_finds_what_changed(tmp_path):
    with EmbeddingCache(tmp_path) as cache:
        for texts in ("abc", "de", "a"):
            cache.put(ENCODER, "text", [id_of(x) for x in texts], rows_of(texts))
        cache.put("other", "text", ["x"], torch.ones(1, 2))
        found = cache.verify()
        assert [(s.encoder, s.rows, s.damaged, s.replaced) for s in found.spaces] == [
            ("other", 1, 0, 0),
            (ENCODER, 5, 0, 1),
        ]
        assert found.sound
        assert (found.lost, found.orphans) == ((), ())
        names = dict(cache._index._db.execute("SELECT space, name FROM segments"))
        path = tmp_path / "segments" / names[1]
        damaged = bytearray(path.read_bytes())
        damaged[4 * 20 + 3] ^= 1  # of "e"
        path.write_bytes(damaged)
        (tmp_path / "segments" / names[2]).unlink()
        (tmp_path / "segments" / LEFT).write_bytes(b"1234")
        found = cache.verify()
        assert [(s.rows, s.damaged, s.replaced) for s in found.spaces] == [(0, 1, 0), (4, 1, 1)]
        assert not found.sound
        assert (found.lost, found.orphans) == ((names[2],), (LEFT,))
        cache.put(ENCODER, "text", [id_of("e")], rows_of("e"))
        assert [(s.rows, s.damaged, s.replaced) for s in cache.verify().spaces][1] == (5, 0, 2)
        cache.prune()
        assert cache.verify().orphans == ()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".npy"])
def test_export_is_what_get_gives(tmp_path, clock, suffix, half):
    paths = [settled(tmp_path / name, b"a") for name in ("one.png", "two.png")]
    with EmbeddingCache(tmp_path / "cache") as cache:
        clock.tick(10)
        ids = [cache.file_id(paths[0]), *map(id_of, "bcd")]
        cache.file_id(paths[1])
        cache.put(ENCODER, "image", ids, torch.zeros(4, 5))
        cache.put(ENCODER, "image", ids[:3], rows_of("abc"))
        target = tmp_path / "out" / f"rows{suffix}"
        assert cache.export(target, ENCODER, "image", half=half) == 4
        expected, _ = cache.get(ENCODER, "image", [ids[3], *ids[:3]])
        expected = expected.half() if half else expected
        listed = [json.loads(x) for x in target.with_suffix(".ids.jsonl").read_text().splitlines()]
        assert [line["id"] for line in listed] == [ids[3], *ids[:3]]
        assert [line["row"] for line in listed] == [0, 1, 2, 3]
        assert [line["paths"] for line in listed] == [[], list(map(str, paths)), [], []]
        if suffix == ".npy":
            rows = torch.from_numpy(np.load(target, allow_pickle=False))
            assert np.load(target, mmap_mode="r").shape == (4, 5)
        else:
            rows = load_file(target)["rows"]
        assert rows.dtype == expected.dtype
        assert torch.equal(rows, expected)
        assert {p.name for p in (tmp_path / "out").iterdir()} == {target.name, "rows.ids.jsonl"}


@pytest.mark.parametrize("half", [False, True])
def test_a_parquet_export_is_read_by_others(tmp_path, clock, monkeypatch, half):
    """By pyarrow, duckdb and polars; row groups are bounded, and names of no UTF-8 shown."""
    import duckdb
    import polars
    import pyarrow.parquet

    from zeroshot.cache import parquet_export

    monkeypatch.setattr(parquet_export, "GROUP", 3 * 5 * 4)
    odd = settled(tmp_path / os.fsdecode(b"o\xffne.png"), b"a")
    texts = [f"text {i}" for i in range(17)]
    with EmbeddingCache(tmp_path / "cache") as cache:
        clock.tick(10)
        ids = [cache.file_id(odd), *map(id_of, texts)]
        for part in (slice(0, 2), slice(2, 3), slice(3, 18)):
            cache.put(ENCODER, "image", ids[part], rows_of(["odd", *texts][part]))
        target = tmp_path / "out" / "rows.parquet"
        assert cache.export(target, ENCODER, "image", half=half) == 18
        expected, _ = cache.get(ENCODER, "image", ids)
    expected = (expected.half() if half else expected).float().numpy()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["rows.parquet"]

    with pyarrow.parquet.ParquetFile(target) as file:
        metadata, schema = file.metadata, file.schema_arrow
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        table = file.read()
    assert sum(groups) == 18
    assert max(groups) <= (6 if half else 3)
    known = {b"encoder": ENCODER.encode(), b"kind": b"image", b"dim": b"5"}
    assert {k: schema.metadata[k] for k in known} == known
    assert str(schema.field("embedding").type).startswith("fixed_size_list<")
    assert table["id"].to_pylist() == ids
    assert table["paths"].to_pylist()[0] == [str(tmp_path / "o\\xffne.png")]

    frame = polars.read_parquet(target)
    assert frame.schema["embedding"].shape == (5,)
    found = frame["embedding"].cast(polars.Array(polars.Float32, 5)).to_numpy()
    np.testing.assert_array_equal(found, expected)

    query = (
        "select id, array_cosine_similarity(embedding::float[5], $1::float[5]) as score "
        f"from '{target}' order by score desc limit 1"
    )
    best, score = duckdb.execute(query, [expected[7].tolist()]).fetchall()[0]
    assert best == ids[7]
    assert score == pytest.approx(1, abs=1e-6)


def test_a_parquet_export_that_is_interrupted_leaves_the_earlier_file(tmp_path, monkeypatch):
    from zeroshot.cache import parquet_export

    target = tmp_path / "rows.parquet"
    target.write_bytes(b"earlier")

    def broken():
        yield np.zeros((1, 2), np.float32), ["a"], [[]]
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space"):
        parquet_export.write_parquet(target, broken(), 2, {})
    assert target.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_parquet_export_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    fill(tmp_path / "cache", ["a"])
    with (
        EmbeddingCache(tmp_path / "cache") as cache,
        pytest.raises(NotAvailableError, match=r"needs pyarrow: .*, or export \.safetensors"),
    ):
        cache.export(tmp_path / "x.parquet", ENCODER, "text")


def test_exports_that_cannot_be(tmp_path):
    fill(tmp_path / "cache", ["a"])
    with EmbeddingCache(tmp_path / "cache") as cache:
        with pytest.raises(UserError, match="unknown format of an export"):
            cache.export(tmp_path / "x.csv", ENCODER, "text")
        with pytest.raises(
            UserError, match=f"no image embeddings of '{ENCODER}'; available: '{ENCODER}' text"
        ):
            cache.export(tmp_path / "x.npy", ENCODER, "image")
    assert list(tmp_path.glob("*x*")) == []


def test_many_rows_in_batches_of_any_size(tmp_path, monkeypatch):
    """Large batches are sorted in at once, small ones wait in a dictionary: both find the same."""
    from zeroshot.cache import lookup as places

    monkeypatch.setattr(places, "MANY", 5)
    known = {}
    with EmbeddingCache(tmp_path) as cache, EmbeddingCache(tmp_path) as other:
        for number, size in enumerate([1, 7, 2, 30, 4, 4, 1, 12]):
            texts = [f"{(number * 13 + i) % 40}" for i in range(size)]
            rows = rows_of(texts) + number
            cache.put(ENCODER, "text", [id_of(x) for x in texts], rows)
            known |= dict(zip(texts, rows, strict=True))
            for reader in (cache, other):
                got, found = reader.get(ENCODER, "text", [id_of(str(i)) for i in range(40)])
                assert found.tolist() == [str(i) in known for i in range(40)]
                assert torch.equal(
                    got, torch.stack([known[k] for k in map(str, range(40)) if k in known])
                )
        assert cache.info().spaces[0].rows == len(known)
    with EmbeddingCache(tmp_path) as cache:
        assert cache.info().spaces[0].rows == len(known)


def test_known_files_are_looked_up_together(tmp_path, clock):
    paths = [settled(tmp_path / f"{i}.png", b"%d" % i) for i in range(5)]
    clock.tick(10)
    with EmbeddingCache(tmp_path / "cache") as cache:
        first = cache.file_ids([*paths, tmp_path / "gone", "nul\0"])
        assert first == [*(id_of(str(i)) for i in range(5)), None, None]
        assert clock.hashed == 5
    with EmbeddingCache(tmp_path / "cache") as cache:
        settled(paths[2], b"other")
        again = cache.file_ids(paths)
        assert clock.hashed == 6
        assert again[2] == id_of("other")
        assert again[:2] + again[3:] == first[:2] + first[3:5]


def some_runs(rng, count):
    """Runs of few keys, most of which come again in others."""
    for number in range(count):
        keys = rng.choice(np.uint64(1 << 40) + np.arange(3 * MANY, dtype=np.uint64), 40, False)
        yield Run(number, 1000 * number, keys, rng.integers(0, 99, 40).astype(np.uint32))


def where(places, keys):
    found = places.find(keys)
    return [array.tolist() for array in (found.segments, found.indices, found.checksums)]


@pytest.mark.parametrize("at_once", [1, 30, 400])
def test_of_equal_keys_the_newest_counts_however_they_are_read(at_once):
    runs = list(some_runs(np.random.default_rng(0), 400))
    newest = {
        key: (run.segment, run.first + i, int(run.checksums[i]))
        for run in runs
        for i, key in enumerate(run.keys.tolist())
    }
    places = Lookup()
    for start in range(0, len(runs), at_once):
        places.add(runs[start : start + at_once])
    keys = np.array([*newest, 5], np.uint64)
    expected = [*newest.values(), (-1, 0, 0)]
    assert where(places, keys) == [list(column) for column in zip(*expected, strict=True)]
    assert len(places) == len(newest)
    assert where(places, keys) == [list(column) for column in zip(*expected, strict=True)]
