"""A cache whose index somebody else wrote, or whose disk is full, read-only or damaged."""

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

from zeroshot import cli
from zeroshot.cache import embedding_cache
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache, open_cache
from zeroshot.cache.index import Index
from zeroshot.errors import NoCacheError, UserError
from zeroshot.output.filesystem import default_root

SCENE = next((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))
IDS = [hashlib.sha256(text.encode()).hexdigest() for text in ("a", "b", "c")]
ROWS = torch.arange(12.0).reshape(3, 4)


def fill(root):
    """A cache with three embeddings and a file; the file is settled."""
    with EmbeddingCache(root) as cache:
        cache.put("encoder", "text", IDS, ROWS)
        (root / "known.png").write_bytes(b"x")
        os.utime(root / "known.png", (1, 1))
        embedding_cache.settled, before = lambda _: True, embedding_cache.settled
        try:
            cache.file_id(root / "known.png")
        finally:
            embedding_cache.settled = before


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    root = tmp_path_factory.mktemp("filled") / "cache"
    root.mkdir()
    fill(root)
    return root


@pytest.fixture
def root(filled, tmp_path):
    root = tmp_path / "cache"
    shutil.copytree(filled, root)
    change(root, "UPDATE files SET path = ?", os.fsencode(root / "known.png"))
    return root


def change(root, statement, *values):
    database = sqlite3.connect(root / "index.sqlite", isolation_level=None)
    database.executescript(statement) if not values else database.execute(statement, values)
    database.close()


def use_all(root):
    """Everything that a cache does; the messages of what it refuses."""
    said = []
    with contextlib.ExitStack() as stack:
        try:
            cache = stack.enter_context(EmbeddingCache(root))
        except UserError as error:
            return [str(error)]
        for act in (
            lambda: cache.get("encoder", "text", IDS),
            lambda: cache.put("encoder", "text", IDS[:1], ROWS[:1]),
            lambda: cache.put("other", "text", IDS, ROWS),
            lambda: cache.file_id(root / "known.png"),
            lambda: cache.file_ids([root / "known.png"]),
            cache.info,
            cache.verify,
            lambda: cache.export(root / "out.npy", "encoder", "text"),
            lambda: cache.prune(encoder="other", older_than_days=1),
            lambda: cache.prune(max_bytes=0),
        ):
            try:
                act()
            except UserError as error:
                said.append(str(error))
        if cache.write_error:
            said.append(cache.write_error)
    return said


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# What is refused


@pytest.mark.parametrize(
    "name",
    [
        *("../../victim.txt", "../victim.f32", "/etc/victim", "a/b.f32", "", "x.f32", "-"),
        *("0" * 32 + ".f32/", "0" * 31 + ".f32", "0" * 32 + ".F32", "0" * 32 + ".f32\n"),
        *("A" * 32 + ".f32", "..", "0" * 32 + ".f32\0x", 7, None, b"0" * 32 + b".f32"),
    ],
)
def test_a_segment_is_only_called_as_we_call_it(root, name):
    (root.parent / "victim.txt").write_text("precious")
    (root.parent / "victim.f32").write_text("precious")
    change(root, "UPDATE segments SET name = ?", name)
    before = tree(root.parent)
    said = use_all(root)
    assert len(said) >= 4
    assert all("is damaged (" in one and "is no segment" in one for one in said), said
    assert all("\n" not in one for one in said)
    after = tree(root.parent)
    outside = {path for path in after if "cache" not in path.parts}
    assert {path: after[path] for path in outside} == {path: before[path] for path in outside}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE spaces SET dim = 1 << 40",
        "UPDATE spaces SET dim = -1",
        "UPDATE spaces SET dim = 'wide'",
        "UPDATE spaces SET dim = NULL",
        "UPDATE spaces SET dim = 4.5",
        "UPDATE spaces SET encoder = x'ff'",
        "UPDATE segments SET used = 'never'",
        "UPDATE segments SET used = NULL",
        "UPDATE segments SET used = -1",
        "UPDATE segments SET used = 1 << 60",
        "UPDATE segments SET space = 'x'",
        "UPDATE files SET id = '../../../../tmp/x'",
        "UPDATE files SET id = NULL",
        "UPDATE files SET stamp = x'07'",
        "UPDATE files SET path = 'text'",
        "UPDATE files SET path = 7",
    ],
)
def test_values_of_other_kinds_are_damage(root, statement):
    change(root, statement)
    said = use_all(root)
    assert said
    assert all("is damaged (" in one and "prune --all" in one for one in said), said


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON batches BEGIN DELETE FROM files; END",
        "ALTER TABLE files RENAME TO f; CREATE VIEW files AS SELECT * FROM f",
        "DROP TABLE forgotten; CREATE VIEW forgotten AS WITH RECURSIVE r(times) AS "
        "(SELECT 1 UNION ALL SELECT times FROM r) SELECT times FROM r",
        "DROP TABLE ids",
        "CREATE TABLE more (x)",
        "CREATE INDEX i ON files (lower(stamp))",
        "ALTER TABLE files ADD COLUMN x AS (hex(zeroblob(1000)))",
    ],
)
def test_other_tables_triggers_and_views_are_damage(root, statement):
    change(root, statement)
    (said,) = use_all(root)
    assert "is damaged (its tables are not those of a cache" in said


def test_entries_that_are_missing_or_strange_are_no_embeddings(root):
    change(root, "DELETE FROM segments")
    assert use_all(root) == []
    with EmbeddingCache(root) as cache:
        assert not cache.get("encoder", "text", IDS)[1].any()


def test_a_space_without_segments_has_an_info(root):
    change(root, "DELETE FROM segments")
    with EmbeddingCache(root) as cache:
        (space,) = cache.info().spaces
    assert (space.bytes, space.used) == (0, 0)


# Files that are none


def test_a_segment_that_is_a_link_is_never_written_to(root):
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    (segment,) = (root / "segments").iterdir()
    segment.unlink()
    segment.symlink_to(victim)
    with EmbeddingCache(root) as cache:
        cache.put("encoder", "text", IDS, ROWS)
        assert "is not writable" in cache.write_error
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["index", "segment"])
def test_a_pipe_is_not_waited_for(root, name):
    (segment,) = (root / "segments").iterdir()
    path = root / "index.sqlite" if name == "index" else segment
    path.unlink()
    os.mkfifo(path)
    said = use_all(root)
    assert said
    assert any("it is no regular file" in one or "not writable" in one for one in said), said


def test_a_journal_that_names_another_file_removes_none(root):
    """SQLite reads and removes the file that a journal names as the list of all journals."""
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    name = os.fsencode(victim)
    trailer = name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")
    page = (root / "index.sqlite").read_bytes()[:512]
    head = bytes.fromhex("d9d505f920a163d7") + bytes(20)
    journal = head.ljust(512, b"\0") + page + (1).to_bytes(4, "big") + trailer
    (root / "index.sqlite-journal").write_bytes(journal + bytes.fromhex("d9d505f920a163d7"))
    (said,) = use_all(root)
    assert "is damaged (its journal names another file)" in said
    assert victim.read_bytes() == b"precious"


def test_pruning_leaves_files_that_are_not_ours(root):
    for name in ("notes.f32", "0" * 32 + ".f32.txt", "x.txt"):
        (root / "segments" / name).write_text("mine")
    (root / "segments" / ("f" * 32 + ".f32")).write_text("left by a crash")
    (root / "index.sqlite.backup").write_text("mine")
    with EmbeddingCache(root) as cache:
        assert cache.prune(max_bytes=0) == 48 + len("left by a crash")
    embedding_cache.erase(root)
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == [
        "0" * 32 + ".f32.txt",
        "index.sqlite.backup",
        "known.png",
        "notes.f32",
        "x.txt",
    ]


# Damage of any kind


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_are_a_sentence_or_nothing(filled, tmp_path, seed):
    """Twenty damaged indexes each; a cut end, zeros, or other bytes somewhere."""
    source = random.Random(seed)
    whole = (filled / "index.sqlite").read_bytes()
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    for number in range(20):
        data = bytearray(whole)
        for _ in range(source.randrange(1, 30)):
            at = source.choice([source.randrange(len(data)), source.randrange(200)])
            data[at] = source.choice([0, 255, source.randrange(256)])
        if number % 5 == 0:
            del data[source.randrange(len(data)) :]
        root = tmp_path / str(number)
        shutil.copytree(filled, root)
        (root / "index.sqlite").write_bytes(data)
        for one in use_all(root):
            assert "\n" not in one
            assert "the cache" in one
        assert victim.read_text() == "precious"
        shutil.rmtree(root)


def test_the_command_line_ends_with_one_sentence(root, monkeypatch, capsys):
    change(root, "UPDATE segments SET name = '../../victim.txt'")
    monkeypatch.setenv("ZEROSHOT_CACHE", str(root))
    for command in (["info"], ["verify"], ["prune", "--max-mb", "0"], ["export", "x.npy"]):
        assert cli.run(["cache", *command]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: the cache index '")
        assert said.count("\n") == 1


# Full and read-only disks


@contextlib.contextmanager
def full_disk(monkeypatch):
    """No journal on the disk can be written, and no file grows."""

    @contextlib.contextmanager
    def transaction(index):
        (mode,) = index._db.execute("PRAGMA journal_mode").fetchone()
        (before,) = index._db.execute("SELECT total_changes()").fetchone()
        with real(index):
            index._db.execute("PRAGMA max_page_count = 1")
            yield
            (after,) = index._db.execute("SELECT total_changes()").fetchone()
            if mode != "memory" and after != before:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error

    real = Index._transaction
    with monkeypatch.context() as patch:
        patch.setattr(Index, "_transaction", transaction)
        yield


@pytest.mark.parametrize(
    ("options", "left"),
    [({"encoder": "encoder"}, ["other"]), ({"max_bytes": 48}, ["other"]), ({"max_bytes": 0}, [])],
)
def test_prune_frees_a_full_disk(root, options, left, monkeypatch):
    with EmbeddingCache(root) as cache:
        cache.put("other", "text", IDS, ROWS)
        with full_disk(monkeypatch):
            assert cache.prune(**options) == 48 * (2 - len(left))
            assert [space.encoder for space in cache.info().spaces] == left
    with EmbeddingCache(root) as cache:
        cache.put("other", "text", IDS, ROWS)
        assert cache.write_error is None
        assert cache.get("other", "text", IDS)[1].all()
        assert len(list((root / "segments").iterdir())) == 1


@pytest.mark.parametrize("errno_name", ["EROFS", "ENOSPC", "EACCES", "EDQUOT"])
def test_a_cache_that_cannot_be_created_is_done_without(errno_name, tmp_path, monkeypatch):
    number = getattr(__import__("errno"), errno_name)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(NoCacheError, match="cannot create a cache in"):
        EmbeddingCache(tmp_path / "x")
    with open_cache() as cache:
        assert isinstance(cache, NullCache)
        assert cache.write_error.startswith("warning: nothing was kept for the next run: cannot")
        assert os.strerror(number) in cache.write_error


def test_an_index_that_cannot_be_created_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "x"))
    with full_disk(monkeypatch), open_cache() as cache:
        assert isinstance(cache, NullCache)
        assert "cannot be used (database or disk is full)" in cache.write_error
    with open_cache() as cache:
        assert not isinstance(cache, NullCache)


def test_a_place_that_is_wrong_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        monkeypatch.setenv("ZEROSHOT_CACHE", str(place))
        with pytest.raises(UserError, match="cannot create a cache in") as caught:
            open_cache()
        assert not isinstance(caught.value, NoCacheError)


def test_a_run_without_a_cache_gives_its_rows_and_a_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "x"))
    real = Path.mkdir

    def refuse(path, *given, **named):
        if path == tmp_path / "x":
            raise OSError(30, "Read-only file system")
        real(path, *given, **named)

    monkeypatch.setattr(Path, "mkdir", refuse)
    common = ["--models", "pocket", "--quiet"]
    for command in (
        ["classify", str(SCENE), "--labels", "red heart,blue star", "--json"],
        ["search", "heart", str(SCENE), "--json"],
        ["embed", str(SCENE), "--out", str(tmp_path / "rows.jsonl")],
        ["embed", str(SCENE), "--out", f"{tmp_path}/rows/"],
    ):
        assert cli.run([*command, *common]) == 0
        said = capsys.readouterr().err
        assert said.count("warning: nothing was kept for the next run: cannot create a cache") == 1
        assert "(Read-only file system)" in said
    import zeroshot

    with pytest.warns(UserWarning, match="nothing was kept"):
        assert len(zeroshot.embed([SCENE], models="pocket")) == 1
    assert not (tmp_path / "x").exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, place in [("~/a", tmp_path / "a"), ("~", tmp_path), ("/x/~/a", Path("/x/~/a"))]:
        monkeypatch.setenv("ZEROSHOT_CACHE", given)
        assert default_root() == place
    monkeypatch.setenv("ZEROSHOT_CACHE", "~nobody-of-that-name/x")
    with pytest.raises(UserError, match="ZEROSHOT_CACHE is '~nobody-of-that-name/x'"):
        default_root()


@pytest.mark.parametrize("place", ["index.sqlite", "index.sqlite-journal", "segments/SEGMENT"])
def test_a_cache_that_cannot_be_erased_is_one_sentence(root, monkeypatch, capsys, place):
    segment = next((root / "segments").iterdir()).name
    path = root / place.replace("SEGMENT", segment)
    path.unlink(missing_ok=True)
    path.mkdir()
    monkeypatch.setenv("ZEROSHOT_CACHE", str(root))
    assert cli.run(["cache", "prune", "--all"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot remove '{path}' of the cache (Is a directory)")
    assert said.count("\n") == 1
