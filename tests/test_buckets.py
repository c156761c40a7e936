"""Output folders in object stores: what a folder of this machine holds, whoever dies on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.test_scale import KilledError, Toy, expected, join, sources
from zeroshot.distributed.folder import OutputSpec
from zeroshot.distributed.worker import WorkerOptions, process_shard, work
from zeroshot.errors import NotAvailableError, OutputError, UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.remote import fsspec_files
from zeroshot.output import leases, object_store
from zeroshot.output.filesystem import Disk
from zeroshot.output.leases import Lease, claim
from zeroshot.output.object_store import Bucket
from zeroshot.results.result import EmbedResult

fsspec = pytest.importorskip("fsspec", reason="object stores need the extra [data]")
SCENES = Path(__file__).parent.parent / "examples" / "scenes"
CHILD = """
import os, sys, time
from dataclasses import dataclass
from tests.test_scale import Toy, join
from zeroshot.output.object_store import Bucket
from zeroshot.distributed.worker import WorkerOptions, work
from zeroshot.inference.meter import Meter
seen = 0
def stall(result):
    global seen
    seen += 1
    if seen == int(sys.argv[2]):
        print("stalls", flush=True)
        time.sleep(600)
toy = Toy(vectors=True)
folder = join(Bucket(sys.argv[1]), toy, count=60, size=4, layout="safetensors")
print("begun", flush=True)
sys.stdin.readline()
meter = Meter()
work(toy, folder, meter, WorkerOptions(on_result=stall))
print(meter.pictures, flush=True)
"""


@pytest.fixture(scope="module")
def server():
    """An S3 server with one bucket."""
    pytest.importorskip("s3fs", reason="s3:// needs its driver")
    moto = pytest.importorskip("moto.server", reason="there is no S3 server to test against")
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        running.start()
        boto3.client("s3").create_bucket(Bucket="shards")
        yield given
        running.stop()


@pytest.fixture(params=["memory", "s3"])
def bucket(request):
    """An empty folder in an object store."""
    name = request.node.name.replace("[", "-").replace("]", "")
    if request.param == "s3":
        request.getfixturevalue("server")
    yield Bucket(f"{request.param}://shards/{name}/")
    fsspec.filesystem("memory").store.clear()


in_memory = pytest.mark.parametrize("bucket", ["memory"], indirect=True)
"""Where the driver itself is tampered with, or its clock asked: there is one such driver."""


def files(place):
    """What every file holds, but for the times in marks and run.json."""
    if isinstance(place, Path):
        held = {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
    else:
        system, path = fsspec_files.connect(place.address, use_listings_cache=False)
        named = {file.lstrip("/"): file for file in system.find(path)}
        top = path.strip("/") + "/"
        held = {n.removeprefix(top): bytes(system.cat_file(f)) for n, f in named.items()}
    return {n: data for n, data in held.items() if not n.endswith(".json")}


def rows(folder):
    return [
        json.loads(line)
        for shard in range(folder.plan.count)
        for line in folder.files.read(f"{shard:05d}.jsonl").splitlines()
    ]


@pytest.mark.parametrize(
    ("layout", "format"),
    [("rows", "csv"), ("rows", "parquet"), ("safetensors", "jsonl"), ("clip-retrieval", "jsonl")],
)
def test_a_bucket_holds_what_a_folder_holds(tmp_path, bucket, layout, format):
    if "parquet" in format or layout == "clip-retrieval":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra [data]")
    toy = Toy(bad=("p1", "p6"), vectors=True)
    for place in (tmp_path / "o", bucket):
        work(toy, join(place, toy, layout=layout, format=format), Meter())
    assert files(bucket) == files(tmp_path / "o")
    folder, again = join(bucket, toy, layout=layout, format=format), Meter()
    assert [(mark.rows, mark.failed) for mark in folder.marks().values()] == [
        (4, 1),
        (4, 1),
        (3, 0),
    ]
    work(replace(toy, bad=("p6",)), folder, again, WorkerOptions(retry_failed=True))
    assert again.pictures == 2
    assert [mark.failed for mark in folder.marks().values()] == [0, 1, 0]
    one, two = (p.read("00000." + format) for p in (bucket, Disk(tmp_path / "o")))
    assert one != two  # p1 has its row now


def test_several_at_once_make_every_shard_once(bucket):
    toy, meters = Toy(), [Meter() for _ in range(4)]
    folders = [join(bucket, toy, count=60, size=3) for _ in meters]
    threads = [
        threading.Thread(target=work, args=(toy, folder, meter))
        for folder, meter in zip(folders, meters, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(folders[0]) == expected(toy, 60)
    assert sum(meter.pictures for meter in meters) == 60
    assert folders[0].claims.names() == []


def test_of_many_claims_at_once_one_wins(bucket):
    won, start = [], threading.Barrier(8)

    def run():
        start.wait()
        if isinstance(claim(bucket, "a"), Lease):
            won.append(1)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="only the age of a claim tells there")
def test_processes_share_a_bucket_and_one_is_killed(tmp_path, server):
    bucket = Bucket("s3://shards/killed")
    environment = os.environ | server | {"PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, bucket.address, stall],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"ZEROSHOT_CACHE": str(tmp_path / stall)},
        )
        for stall in ("6", "0")
    ]
    for child in children:
        assert child.stdout.readline() == "begun\n"
    doomed, other = children
    doomed.stdin.write("\n")
    doomed.stdin.flush()
    assert doomed.stdout.readline() == "stalls\n"  # four rows are a shard, two are in flight
    assert len(bucket.below(".work").names()) == 1
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    made = Meter()
    toy = Toy(vectors=True)
    folder = join(bucket, toy, count=60, size=4, layout="safetensors")
    other.stdin.write("\n")
    other.stdin.flush()
    work(toy, folder, made)
    said, _ = other.communicate()
    assert other.returncode == 0
    assert made.pictures + int(said) == 56  # nothing twice but what was in flight
    work(toy, join(tmp_path / "o", toy, count=60, size=4, layout="safetensors"), Meter())
    assert files(bucket) == files(tmp_path / "o")


def test_what_others_put_is_seen_at_once(server):
    import boto3

    bucket, client = Bucket("s3://shards/seen"), boto3.client("s3")
    bucket.replace("a", b"")
    assert bucket.names() == ["a"]
    client.put_object(Bucket="shards", Key="seen/b", Body=b"")
    assert bucket.names() == ["a", "b"]
    client.delete_object(Bucket="shards", Key="seen/a")
    assert bucket.names() == ["b"]


def test_from_a_bucket_into_a_bucket_and_on(server, zeroshot):
    photos = Bucket("s3://shards/photos")
    for file in sorted(SCENES.glob("*.png"))[:3]:
        photos.replace(file.name, file.read_bytes())
    more = ("--models", "pocket", "--batch-size", "2")
    out = "s3://shards/photos/vectors"
    assert zeroshot("embed", photos, *more, "--out", out)[0] == 0
    assert "resumed: 3 of 3" in zeroshot("embed", photos, *more, "--out", out)[2]
    code, read, _ = zeroshot("embed", f"{out}/00000.jsonl", *more, "--json")
    assert [json.loads(line)["path"] for line in read.splitlines()] == [
        photos.full(file.name) for file in sorted(SCENES.glob("*.png"))[:3]
    ]
    assert code == 0


def test_the_machine_of_a_kill_goes_on_behind_the_last_batch(bucket):
    toy = Toy(vectors=True)
    with pytest.raises(KilledError):
        work(replace(toy, killed_at=9), join(bucket, toy, count=20, size=20), Meter())
    made = Meter()
    work(toy, join(bucket, toy, count=20, size=20), made)
    assert made.pictures == 20 - 8
    OutputSpec(bucket).clear()
    made = Meter()
    work(toy, join(bucket, toy, count=20, size=20), made)
    assert made.pictures == 20


def test_rows_of_another_run_are_not_gone_on_with(bucket):
    toy = Toy()
    with pytest.raises(KilledError):
        work(replace(toy, killed_at=9), join(bucket, toy, count=20, size=20), Meter())
    for lease in bucket.below(".work").names():
        bucket.below(".work").remove(lease)
    OutputSpec(bucket).clear()
    folder, made = join(bucket, replace(toy, mood="sad"), count=20, size=20), Meter()
    work(replace(toy, mood="sad"), folder, made)
    assert made.pictures == 20
    assert {row["caption"].split()[0] for row in rows(folder)} == {"sad"}


def test_without_a_cache_unfinished_rows_are_temporary(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert Bucket("memory://shards/x").scratch("temporary").parent == tmp_path


def test_a_holder_elsewhere_is_outbid_by_age_alone(bucket, monkeypatch):
    holder = {"host": "far", "machine": "far/1/2", "pid": 7, "born": "9"}
    bucket.replace(".a.0.lease", json.dumps(holder).encode())
    assert claim(bucket, "a").host == "far"
    monkeypatch.setattr(leases, "STALE", -1.0)
    taken = claim(bucket, "a")
    assert (taken.generation, taken.is_current()) == (1, True)
    taken.release()
    assert bucket.names() == []


def test_a_sign_of_life_is_for_a_claim_that_stands(bucket, monkeypatch):
    touched = []
    monkeypatch.setattr(Bucket, "touch", lambda self, name: touched.append(name))
    lease = claim(bucket, "a")
    lease.touch()
    assert touched == [".a.0.lease"]
    bucket.replace(".a.1.lease", b"{}")
    lease.touch()
    bucket.remove(".a.1.lease")
    lease.release()
    lease.touch()
    assert touched == [".a.0.lease"]


@in_memory
def test_touching_makes_young(bucket, monkeypatch):
    bucket.replace("a", b"kept")
    info = fsspec.filesystem("memory").store[fsspec_files.connect(bucket.full("a"))[1]]
    info.created = info.modified = datetime(2020, 1, 1, tzinfo=UTC)
    assert bucket.age("a") > 1e6
    bucket.touch("a")
    assert 0 <= bucket.age("a") < 100
    assert bucket.read("a") == b"kept"
    assert bucket.names() == ["a"]


def _driver(monkeypatch, **replaced):
    """memory:// with some of its methods others."""
    from fsspec.implementations.memory import MemoryFileSystem

    kind = type("Other", (MemoryFileSystem,), {"protocol": "other", "store": {}, **replaced})
    fsspec.register_implementation("other", kind, clobber=True)
    return Bucket("other://shards/o")


def test_drivers_that_cannot_create_are_refused(monkeypatch):
    put = fsspec.AbstractFileSystem.pipe_file
    with pytest.raises(UserError, match="cannot create an object only if"):
        _driver(monkeypatch, pipe_file=put).begin()


def test_drivers_that_drop_the_condition_are_refused(monkeypatch):
    def put(self, path, value, **kwargs):
        self.open(path, "wb", data=value)

    careless = _driver(monkeypatch, pipe_file=put)
    with pytest.raises(UserError, match="overwrites an object"):
        careless.begin()
    with pytest.raises(UserError, match="write to a disk and copy"):
        join(careless, Toy())
    assert type(fsspec_files.connect(careless.address)[0]).store == {}


def test_drivers_without_times_are_refused(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def info(self, path, **kwargs):
        return {**MemoryFileSystem.info(self, path), "created": None}

    with pytest.raises(UserError, match="when an object was written"):
        _driver(monkeypatch, info=info).begin()


@in_memory
@pytest.mark.parametrize("error", [FileExistsError("x"), OSError(22, "precondition failed")])
def test_a_success_whose_answer_was_lost_is_one(bucket, monkeypatch, error):
    system = type(fsspec_files.connect(bucket.address)[0])
    put = system.pipe_file

    def lost(self, path, value, mode="overwrite", **kwargs):
        put(self, path, value, mode=mode)
        raise error

    monkeypatch.setattr(system, "pipe_file", lost)
    assert isinstance(claim(bucket, "a"), Lease)
    assert bucket.publish("x", b"ours")
    assert not bucket.publish("x", b"theirs")
    assert bucket.read("x") == b"ours"


@in_memory
def test_a_put_that_fails_leaves_what_is_complete(bucket, monkeypatch):
    toy = Toy(vectors=True)
    system = type(fsspec_files.connect(bucket.address)[0])
    put = system.pipe_file

    def fails(self, path, value, **kwargs):
        if path.endswith("00001.jsonl"):  # the matrix is there by then
            raise ConnectionResetError(104, "connection reset")
        put(self, path, value, **kwargs)

    monkeypatch.setattr(system, "pipe_file", fails)
    monkeypatch.setattr("zeroshot.distributed.worker._rotated", lambda shards: shards)
    folder = join(bucket, toy, layout="safetensors")
    with pytest.raises(OutputError, match="reset; complete files are kept: check the"):
        work(toy, folder, Meter())
    assert list(folder.marks()) == [0]
    assert "00001.safetensors" in folder.files.names()
    assert folder.claims.names() == []
    monkeypatch.setattr(system, "pipe_file", put)
    made = Meter()
    work(toy, join(bucket, toy, layout="safetensors"), made)
    assert made.pictures == 3  # its rows were kept on this machine
    assert [row["path"] for row in rows(folder)] == [s.path for s in sources(11)]


@in_memory
def test_nothing_is_there_and_nothing_can_be_put(bucket, monkeypatch):
    tried = []

    def fails(self, path, value, **kwargs):
        tried.append(path)
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(type(fsspec_files.connect(bucket.address)[0]), "pipe_file", fails)
    with pytest.raises(OutputError, match="Unable to locate credentials"):
        bucket.publish("x", b"1")
    assert len(tried) == object_store.TRIES
    with pytest.raises(OutputError, match="cannot write to"):
        bucket.begin()


def test_a_bucket_that_is_missing(server):
    with pytest.raises(UserError, match=r"'s3://elsewhere/o'.*does the bucket exist"):
        Bucket("s3://elsewhere/o").begin()


def test_a_driver_that_is_missing(monkeypatch):
    fsspec.register_implementation("nodriver", "no_such_module.Driver", clobber=True)
    with pytest.raises(NotAvailableError, match="'pip install' the driver of 'nodriver://'"):
        Bucket("nodriver://b/o").begin()


@pytest.mark.parametrize(
    "name", ["s3://", "s3:///x", "s3://b/../x", "s3://b/./x", "s3://b//x", "s3://b/*", "s3://b/a?x"]
)
def test_names_that_lead_elsewhere(name):
    with pytest.raises(UserError, match="expected s3://BUCKET/FOLDER/"):
        Bucket(name)


def test_what_is_no_object_store():
    with pytest.raises(UserError, match="cannot write to a web address"):
        Bucket("https://example.com/o")
    with pytest.raises(UserError, match="chain"):
        Bucket("simplecache::s3://b/o")
    with pytest.raises(UserError, match="give only the path"):
        Bucket("file:///tmp/o")


WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "info",
    [
        {"LastModified": WHEN},
        {"last_modified": WHEN, "creation_time": 0},
        {"updated": "2024-05-06T07:08:09.000Z", "mtime": 3},
        {"modified": WHEN.replace(tzinfo=None), "created": None},
        {"mtime": WHEN.timestamp()},
        {"created": WHEN},
    ],
    ids=["s3fs", "adlfs", "gcsfs", "naive", "sftp", "memory"],
)
def test_when_a_file_was_written(info):
    assert fsspec_files.modified(info) == WHEN.timestamp()


@pytest.mark.parametrize("info", [{}, {"mtime": None}, {"updated": "yesterday"}, {"modified": ()}])
def test_when_nobody_knows(info):
    assert fsspec_files.modified(info) is None


@pytest.fixture
def zeroshot(printed):
    """Its commands, whose output is looked at as it is."""
    return printed


def embed(out, *more):
    pocket = ("--models", "pocket", "--shard-size", "3", "--batch-size", "2")
    return ("embed", SCENES, *pocket, "--out", out, *more)


def test_the_command_line_fills_a_bucket(tmp_path, bucket, zeroshot):
    out = bucket.address + "/"
    assert zeroshot(*embed(tmp_path / "o"))[0] == 0
    code, _, said = zeroshot(*embed(out))
    assert (code, "3 of 3 shards are finished, 8 of 8 rows" in said) == (0, True)
    assert files(bucket) == files(tmp_path / "o")
    assert "resumed: 8 of 8" in zeroshot(*embed(out))[2]
    code, _, said = zeroshot(*embed(out, "--half"))
    assert (code, "was made with other settings" in said) == (2, True)
    bucket.replace("notes.txt", b"mine")
    assert zeroshot(*embed(out, "--half", "--overwrite"))[0] == 0
    assert bucket.read("notes.txt") == b"mine"


def test_a_transductive_method_over_a_bucket(tmp_path, bucket, zeroshot):
    given = ("classify", SCENES, "--labels", "red heart,blue star", "--models", "pocket")
    given = (*given, "--method", "center", "--shard-size", "3", "--out")
    assert zeroshot(*given, f"{tmp_path / 'o'}/")[0] == 0
    assert zeroshot(*given, bucket.address + "/")[0] == 0
    assert files(bucket) == files(tmp_path / "o")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--out", "s3://b/rows.jsonl"), "--out s3://b/rows/"),
        (("--out", "s3://b/o/", "--offline"), "--offline forbids the network"),
        (("--out", "memory://b/o/", "--devices", "cpu,cpu"), "the memory of this process"),
        (("--out", "memory://b/o/", "--engine", "ray"), "the memory of this process"),
    ],
)
def test_what_the_command_line_refuses(zeroshot, given, said):
    code, _, error = zeroshot("embed", SCENES, "--models", "pocket", *given)
    assert (code, said in error) == (2, True)


@pytest.mark.parametrize("command", [("search", "red heart"), ("eval",)])
def test_commands_that_write_on_this_machine_only(tmp_path, monkeypatch, zeroshot, command):
    monkeypatch.chdir(tmp_path)
    code, _, error = zeroshot(*command, SCENES, "--models", "pocket", "--out", "memory://b/o/")
    assert (code, "writes to local paths only" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_arrays_and_traces_are_files_of_this_machine(tmp_path, monkeypatch, zeroshot):
    monkeypatch.chdir(tmp_path)
    more = ("--labels", "red heart,blue star", "--models", "pocket", "--out", "memory://b/o.npz")
    assert zeroshot("classify", SCENES, *more)[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_somebody_works_in_is_not_begun_anew(bucket):
    toy = Toy()
    folder = join(bucket, toy)
    process_shard(toy, folder, 0, Meter())
    held = claim(folder.claims, "00001")
    with pytest.raises(UserError, match="is being written by process"):
        OutputSpec(bucket).clear()
    held.release()
    OutputSpec(bucket).clear()
    assert files(bucket) == {}
    bucket.replace("00000.jsonl", b"")
    with pytest.raises(UserError, match=r"has 00000.jsonl but no run.json"):
        join(bucket, toy)


def test_other_inputs_are_named(bucket):
    toy = Toy()
    join(bucket, toy)
    with pytest.raises(UserError, match=r"other inputs: 1 \('p11'\) new"):
        join(bucket, toy, count=12)
    with pytest.raises(UserError, match="was made with other settings"):
        OutputSpec(bucket, 4).open(sources(11), EmbedResult.schema, toy.settings())
