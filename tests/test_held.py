"""Remote files that are worked on: what is asked of the service, counted, and what goes wrong."""

import io
import json
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from zeroshot import cli
from zeroshot.distributed.sharding import FileRefusedError, make_plan
from zeroshot.images.reading import read
from zeroshot.inputs import containers
from zeroshot.inputs.containers import Containers
from zeroshot.inputs.remote import cached_files, fsspec_files
from zeroshot.inputs.resolve import resolve_inputs

fsspec = pytest.importorskip("fsspec", reason="remote files need the extra [data]")


class Counted(fsspec.AbstractFileSystem):
    """As `s3fs` to its caller: remembers listings, reads open files ahead in blocks of 5 MiB."""

    protocol = "counted"
    store: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, int]]] = []
    """Kind of each request, and its bytes."""
    broken: ClassVar[set[str]] = set()

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path).strip("/")
        if path not in self.dircache:
            self.asked.append(("list", 0))
            found = [self._told(p) for p in sorted(self.store) if p.rpartition("/")[0] == path]
            if not found:
                raise FileNotFoundError(path)
            self.dircache[path] = found
        found = self.dircache[path]
        return found if detail else [info["name"] for info in found]

    def _told(self, path):
        data = self.store[path]
        return {"name": path, "size": len(data), "type": "file", "ETag": f"{hash(data):x}"}

    def info(self, path, **kwargs):
        path = self._strip_protocol(path).strip("/")
        for info in self.dircache.get(path.rpartition("/")[0], ()):
            if info["name"] == path:
                return info
        self.asked.append(("info", 0))
        if path in self.broken:
            raise PermissionError(13, "forbidden")
        if path in self.store:
            return self._told(path)
        if any(p.startswith(path + "/") for p in self.store):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def invalidate_cache(self, path=None):
        self.dircache.clear()

    def cat_file(self, path, start=None, end=None, **kwargs):
        data = self.store[self._strip_protocol(path).strip("/")][start:end]
        self.asked.append(("range", len(data)))
        if path in self.broken:
            raise PermissionError(13, "forbidden")
        return data

    def _open(self, path, mode="rb", block_size=None, **kwargs):
        path = self._strip_protocol(path).strip("/")
        if path in self.broken:
            raise PermissionError(13, "forbidden")
        return _Opened(self, path, mode, 5 << 20)


class _Opened(fsspec.spec.AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.asked.append(("range", end - start))
        return self.fs.store[self.path][start:end]


fsspec.register_implementation("counted", Counted, clobber=True)


def scene(number):
    data = io.BytesIO()
    values = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(values).save(data, "PNG")
    return data.getvalue()


def archive(contents):
    """A webdataset: pictures with a caption each."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        for number, content in enumerate(contents):
            for suffix, member in ((".png", content), (".txt", b"a red heart")):
                info = tarfile.TarInfo(f"{number:05}{suffix}")
                info.size = len(member)
                file.addfile(info, io.BytesIO(member))
    return data.getvalue()


@pytest.fixture(autouse=True)
def bucket():
    """Empty, and with nothing remembered of another test."""
    Counted.clear_instance_cache()
    for held_by in (Counted.store, Counted.asked, Counted.broken):
        held_by.clear()
    yield Counted.store
    for name in list(fsspec_files._copies):
        fsspec_files.release(name)


def asked():
    """Requests and bytes since the last time, by kind."""
    told = {}
    for kind, size in Counted.asked:
        count, total = told.get(kind, (0, 0))
        told[kind] = (count + 1, total + size)
    Counted.asked.clear()
    return told


def by_file(*names):
    return make_plan(Containers(resolve_inputs(names).files), "file")


@pytest.mark.parametrize(("pictures", "size"), [(400, 30_000), (8, 3_000_000)])
def test_a_tar_file_is_fetched_once(bucket, pictures, size):
    """Expected without: listed once by reading ahead, then a request for each picture."""
    noise = np.random.default_rng(0).bytes(size)
    bucket["b/x.tar"] = archive([noise] * pictures)
    whole = len(bucket["b/x.tar"])
    plan = by_file("counted://b/*.tar")
    assert "range" not in asked()
    sources = plan.shard(0)
    assert len(sources) == pictures
    assert sources[-1].fields["caption"] == "a red heart"
    assert all(source.content.read() == noise for source in sources)
    assert all(source.content.stamp.endswith(f" {hash(bucket['b/x.tar']):x}") for source in sources)
    assert asked() == {"info": (1, 0), "range": (-(-whole // cached_files.BLOCK), whole)}
    plan.release(0)
    assert sources[0].content.read() == noise
    assert asked()["range"] == (1, size)


def test_a_parquet_file_is_fetched_once(bucket):
    pa = pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra [data]")
    data, noise = io.BytesIO(), np.random.default_rng(0)
    cells = [noise.bytes(30_000) for _ in range(600)]
    pq.write_table(pa.table({"bytes": cells}), data, row_group_size=100, compression="none")
    bucket["b/x.parquet"] = data.getvalue()
    plan = by_file("counted://b/x.parquet", "counted://b/x.parquet")
    asked()
    assert [source.content.read() for source in plan.shard(0)] == cells
    requests, total = asked()["range"]
    assert total == len(data.getvalue())
    assert requests == -(-total // cached_files.BLOCK)


def test_any_part_in_any_order(monkeypatch):
    monkeypatch.setattr(cached_files, "BLOCK", 100)
    data = np.random.default_rng(0).bytes(2345)
    Counted.store["b/x"] = data
    copy = cached_files.RemoteCopy(Counted(), "b/x", len(data), None)
    places = np.random.default_rng(1).integers(0, 2400, (500, 2))
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda p: copy.read(int(p[0]), int(p[1])), places))
    assert parts == [data[start : start + size] for start, size in places]
    requests, total = asked()["range"]
    assert (requests, total) == (24, 2345)
    with io.BufferedReader(cached_files.Reader(copy)) as file:
        assert file.seek(-5, 2) == 2340
        assert (file.read(), file.read()) == (data[-5:], b"")
        assert (file.seek(10), file.read(3), file.tell()) == (10, data[10:13], 13)


def test_blocks_are_fetched_ahead_only_in_order(monkeypatch):
    monkeypatch.setattr(cached_files, "BLOCK", 10)
    Counted.store["b/x"] = bytes(1000)
    copy = cached_files.RemoteCopy(Counted(), "b/x", 1000, None)
    done = threading.Event()
    for place in (500, 300, 900):  # from header to header of large members
        copy.read(place, 5)
    copy._pool.submit(done.set)
    assert done.wait(10)
    assert len(Counted.asked) == 3
    for place in range(0, 100, 5):
        copy.read(place, 5)
    copy._pool.shutdown()
    assert 10 <= len(Counted.asked) - 3 <= 10 + cached_files.AHEAD


def test_a_block_that_did_not_come_is_asked_for_again(monkeypatch):
    Counted.store["b/x"] = b"something"
    Counted.broken.add("b/x")
    copy = cached_files.RemoteCopy(Counted(), "b/x", 9, None)
    with pytest.raises(PermissionError):
        copy.read(0, 9)
    Counted.broken.clear()
    assert copy.read(0, 9) == b"something"
    Counted.store["b/x"] = b"some"
    with pytest.raises(OSError, match="4 bytes came instead of 9: it has changed"):
        cached_files.RemoteCopy(Counted(), "b/x", 9, None).read(0, 9)


def test_what_is_too_large_is_read_by_ranges(bucket, monkeypatch):
    bucket["b/x.tar"] = archive([scene(0), scene(1)])
    for limit in ("LARGEST", "_room"):
        with monkeypatch.context() as patch:
            patch.setattr(
                *(
                    (cached_files, limit, 5)
                    if limit == "LARGEST"
                    else (fsspec_files, limit, lambda: 5)
                )
            )
            plan = by_file("counted://b/x.tar")
            sources = plan.shard(0)
            assert not fsspec_files.has_copy("counted://b/x.tar")
            asked()
            assert [read(source).id for source in sources] == [read(scene(i)).id for i in (0, 1)]
            assert asked()["range"][0] == 2


def test_thousands_of_names_are_not_asked_for_one_by_one(bucket):
    for number in range(50):
        bucket[f"b/{number:03}.tar"] = archive([scene(number)])
    plan = by_file("counted://b/{000..059}.tar")
    assert plan.count == 60
    assert sum(count for count, _ in asked().values()) <= 2
    versions = [json.loads(line)[2] for line in plan.lines.splitlines()]
    assert [version is None for version in versions] == [False] * 50 + [True] * 10
    assert set(asked()) == {"info"}
    folder = by_file("counted://b/")
    assert [file.version for file in folder.files] == versions[:50]
    assert sum(count for count, _ in asked().values()) <= 2


def test_changes_are_seen_past_what_a_driver_remembers(bucket):
    bucket["b/x.tar"] = archive([scene(0)])
    plan = by_file("counted://b/*.tar", "counted://b/*.tar")
    bucket["b/x.tar"] = archive([scene(1)])
    with pytest.raises(FileRefusedError, match=r"x\.tar' has changed since"):
        plan.shard(0)
    del bucket["b/x.tar"]
    with pytest.raises(FileRefusedError, match=r"x\.tar' has changed since"):
        plan.shard(0)


def test_a_service_that_fails_is_a_row(bucket):
    bucket["b/x.tar"] = archive([scene(0)])
    plan = by_file("counted://b/*.tar")
    Counted.broken.add("b/x.tar")
    [source] = plan.shard(0)
    assert source.path == "counted://b/x.tar"
    assert source.content.reason == "cannot be read: forbidden"
    Counted.broken.clear()
    [source] = plan.shard(0)
    assert read(source).id == read(scene(0)).id


def test_a_run_from_a_bucket(bucket, tmp_path, capsys):
    for number in range(3):
        bucket[f"b/{number}.tar"] = archive([scene(number), scene(10 + number)])
    whole = sum(map(len, bucket.values()))
    run = ["embed", "counted://b/", "--out", f"{tmp_path}/o/", "--models", "pocket", "--no-cache"]
    assert cli.run(run) == 0
    told = asked()
    assert told["range"] == (3, whole)
    assert told["info"][0] <= 3 + 2  # each once, and what the folder is
    assert cli.run(run) == 0
    assert "range" not in asked()
    assert cli.run(["embed", *run[1:3], f"{tmp_path}/n/", *run[4:], "--shard-size", "10"]) == 0
    [rows] = [(tmp_path / "n" / "00000.jsonl").read_text()]
    assert "".join((tmp_path / "o" / f"0000{n}.jsonl").read_text() for n in range(3)) == rows
    assert asked()["range"][1] > whole
    assert not fsspec_files._copies


def test_bytes_go_along_to_who_decodes(bucket):
    """A decoder of a cluster would fetch the file anew, or a range for each picture."""
    bucket["b/x.tar"] = archive([scene(0)])
    plan = by_file("counted://b/x.tar")
    [source] = plan.shard(0)
    asked()
    sent = containers.with_bytes(source)
    assert (sent.path, sent.fields, sent.content) == (source.path, source.fields, scene(0))
    assert asked() == {}
    plan.release(0)
    assert containers.with_bytes(source) is source
