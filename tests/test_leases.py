"""Claims: one holder at a time, the dead outbid, the living never."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from zeroshot.errors import OutputError
from zeroshot.output import atomic, leases
from zeroshot.output.filesystem import Disk
from zeroshot.output.holders import Holder, ourselves
from zeroshot.output.leases import Lease, claim, live_holders

HOLD = """
import sys, time
from pathlib import Path
from zeroshot.output.leases import claim
from zeroshot.output.filesystem import Disk
claim(Disk(Path(sys.argv[1])), "a")
print("held", flush=True)
time.sleep(600)
"""


def elsewhere(folder, name="a", generation=0, age=0.0):
    """A claim as a process on another machine leaves it."""
    path = folder / f".{name}.{generation}.lease"
    holder = {"host": "far", "machine": "far/1/2", "pid": 7, "born": "9"}
    path.write_text(json.dumps(holder))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_one_holder_until_it_lets_go(tmp_path):
    first = claim(Disk(tmp_path), "a")
    assert isinstance(first, Lease)
    holder = claim(Disk(tmp_path), "a")
    assert (holder.pid, holder.host) == (os.getpid(), platform.node())
    assert isinstance(claim(Disk(tmp_path), "a.0"), Lease)  # names that look alike are others
    assert len(live_holders(Disk(tmp_path))) == 2
    first.release()
    again = claim(Disk(tmp_path), "a")
    assert isinstance(again, Lease)
    again.release()
    assert not list(tmp_path.glob(".a.[0-9].lease"))


def test_of_many_at_once_one_wins(tmp_path):
    won, start = [], threading.Barrier(16)

    def run():
        start.wait()
        if isinstance(claim(Disk(tmp_path), "a"), Lease):
            won.append(1)

    threads = [threading.Thread(target=run) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="only the age of a claim tells there")
def test_a_killed_holder_is_outbid_at_once(tmp_path):
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with held:
        held.stdout.readline()
        assert claim(Disk(tmp_path), "a").pid == held.pid
        held.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, held.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet reaped
        taken = claim(Disk(tmp_path), "a")
        assert isinstance(taken, Lease)
        assert taken.generation == 1
    assert isinstance(claim(Disk(tmp_path), "a"), Holder)
    taken.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_given_anew_is_another_process(tmp_path):
    ours = ourselves()
    (tmp_path / ".a.0.lease").write_text(json.dumps(vars(ours) | {"born": "1"}))
    if ours.born:
        assert isinstance(claim(Disk(tmp_path), "a"), Lease)


def test_another_machines_claim_lasts_as_long_as_its_signs_of_life(tmp_path):
    path = elsewhere(tmp_path, age=leases.STALE / 2)
    assert claim(Disk(tmp_path), "a").host == "far"
    os.utime(path, (0, 0))
    taken = claim(Disk(tmp_path), "a")
    assert isinstance(taken, Lease)
    assert taken.is_current()
    path.write_text(path.read_text())  # it was only asleep and wakes
    assert taken.is_current()


def test_an_outbid_holder_can_tell(tmp_path):
    mine = claim(Disk(tmp_path), "a")
    elsewhere(tmp_path, generation=1)
    assert not mine.is_current()
    mine.release()
    assert claim(Disk(tmp_path), "a").host == "far"  # the other's claim stays


def test_a_number_that_is_used_again_is_another_claim(tmp_path):
    """Suspended, superseded, released by the other, and claimed anew under the first number."""
    folder = Disk(tmp_path)
    asleep = claim(folder, "a")
    elsewhere(tmp_path, generation=1, age=0)
    for path in tmp_path.glob(".a.*.lease"):
        path.unlink()
    assert not asleep.is_current()
    third = claim(folder, "a")
    assert third.generation == asleep.generation == 0
    assert (asleep.is_current(), third.is_current()) == (False, True)
    asleep.touch()
    asleep.release()
    assert third.is_current()
    third.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_came_too_late_is_none(tmp_path, monkeypatch):
    """Slow between the look and the claim: the claim that it supersedes is gone by then."""
    path = elsewhere(tmp_path, age=1000)
    publish = Disk.publish

    def slow(self, name, data):
        path.unlink()
        return publish(self, name, data)

    monkeypatch.setattr(Disk, "publish", slow)
    assert claim(Disk(tmp_path), "a") is None
    assert list(tmp_path.iterdir()) == []


def test_a_torn_claim_is_somebodys_until_it_is_old(tmp_path):
    path = tmp_path / ".a.0.lease"
    path.write_text("{")
    assert claim(Disk(tmp_path), "a") is None
    os.utime(path, (0, 0))
    assert isinstance(claim(Disk(tmp_path), "a"), Lease)


def test_signs_of_life(tmp_path, monkeypatch):
    heart = leases._Heart()
    monkeypatch.setattr(leases, "HEARTBEAT", 0.01)
    path = elsewhere(tmp_path, age=1000)
    lease = Lease(Disk(tmp_path), "a", 0, path.read_bytes())
    heart.add(lease)
    deadline = time.monotonic() + 20
    while time.time() - path.stat().st_mtime > 500 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.time() - path.stat().st_mtime < 500
    heart.remove(lease)
    lease.release()


@pytest.mark.parametrize("links", [True, False])
def test_who_publishes_first_stays(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    assert atomic.publish(tmp_path / "a", b"first")
    assert not atomic.publish(tmp_path / "a", b"second")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"first"}


def test_a_replacement_that_fails_leaves_the_old(tmp_path, monkeypatch):
    atomic.replace(tmp_path / "a", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"), atomic.writing(tmp_path):
        atomic.replace(tmp_path / "a", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


def test_nothing_runs_on_once_all_claims_are_released(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "_heart", leases._Heart())  # no claims of other tests
    others = set(threading.enumerate())

    def beating():
        return [thread for thread in threading.enumerate() if thread not in others]

    for _ in range(2):
        first, second = (claim(Disk(tmp_path), name) for name in "ab")
        first.release()
        (thread,) = beating()
        second.release()
        thread.join(5)
        assert not beating()
