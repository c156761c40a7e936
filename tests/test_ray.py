"""The Ray engine on a real cluster of two nodes on this machine: the same rows, whoever dies."""

import contextlib
import json
import os
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zeroshot.cache.embedding_cache import NullCache
from zeroshot.distributed.folder import OutputSpec
from zeroshot.distributed.local import RunSpec, run
from zeroshot.distributed.sharding import FileRefusedError
from zeroshot.distributed.worker import WorkerOptions
from zeroshot.inference.meter import Meter
from zeroshot.inputs.containers import Containers
from zeroshot.inputs.resolve import resolve_inputs
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.captioning.caption_task import CaptionImages
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions

ray = pytest.importorskip("ray", reason="the Ray engine needs the extra [ray]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
LABELS = ("red heart", "blue star", "green ring")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.getcwd() + os.pathsep + os.environ.get("PYTHONPATH", ""))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False},
        )
        made.second = made.add_node(num_cpus=2)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty scenes, all different, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    scenes = [np.asarray(Image.open(f).convert("RGB")) for f in sorted(SCENES.glob("*.png"))]
    files = []
    for number in range(40):
        pixels = np.roll(scenes[number % 8], number, axis=(0, 1))
        files.append(folder / f"{number:02d}.png")
        Image.fromarray(pixels).save(files[-1])
    files[7].write_bytes(files[7].read_bytes()[:500])
    return [Source(str(file)) for file in files]


def tasks():
    models = resolve("pocket")
    plain, center = (ClassifyOptions(labels=LABELS, method=m) for m in (None, "center"))
    return {
        "embed": (Embed.from_options(models, EmbedOptions()), "safetensors"),
        "classify": (Classify.from_options(models, plain), "rows"),
        "transductive": (Classify.from_options(models, center), "rows"),
        "caption": (CaptionImages.from_options(models, CaptionOptions()), "rows"),
    }


def order(name, pictures, path, size=4):
    task, layout = tasks()[name]
    return RunSpec(
        task, pictures, OutputSpec(path, size, layout=layout), batch_size=2, cached=False
    )


def files(path):
    return {
        p.name: p.read_bytes()
        for p in path.iterdir()
        if p.suffix in (".jsonl", ".safetensors") and p.is_file()
    }


def working(path):
    """The process of an actor that has a shard."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for claim in (path / ".work").glob("*.lease"):
            with contextlib.suppress(OSError, ValueError):  # it was let go meanwhile
                return json.loads(claim.read_text())["pid"]
    raise AssertionError("no actor is at work")


@pytest.fixture(params=["caption", "transductive"])
def alone(request, pictures, tmp_path):
    """The files of one process."""
    run(order(request.param, pictures, tmp_path / "alone"), NullCache(), Meter())
    return request.param, files(tmp_path / "alone")


def test_the_rows_of_one_process_whoever_dies(cluster, pictures, alone, tmp_path):
    """Captions lose an actor, and then a node."""
    from zeroshot.distributed.ray_engine import run_on_ray

    name, expected = alone
    given = order(name, pictures, tmp_path / "ray")
    lost = []

    def kill(meter):
        if lost:
            return
        lost.append(meter.pictures)
        if name == "caption":
            os.kill(working(tmp_path / "ray"), signal.SIGKILL)
            cluster.remove_node(cluster.second, allow_graceful=False)

    meter = run_on_ray(given, WorkerOptions(), kill)
    assert files(tmp_path / "ray") == expected
    assert lost
    assert 40 - 4 * 4 <= meter.pictures <= 40 + 4 * 4  # at most the shards in flight were repeated
    assert not list((tmp_path / "ray" / ".work").glob("*.lease"))


def test_what_an_actor_refuses_is_said_here(cluster, pictures, tmp_path):
    from zeroshot.distributed.ray_engine import run_on_ray
    from zeroshot.errors import UserError

    run(order("embed", pictures[:4], tmp_path / "o"), NullCache(), Meter())
    with pytest.raises(UserError, match="started with other inputs"):
        run_on_ray(order("embed", pictures, tmp_path / "o"), WorkerOptions())


def test_actors_list_the_files_of_their_own_shards(cluster, pictures, tmp_path):
    """And one that has changed costs its own shard alone."""
    from zeroshot.distributed.ray_engine import run_on_ray

    (tmp_path / "in").mkdir()
    for number in range(4):
        with tarfile.open(tmp_path / "in" / f"{number}.tar", "w") as file:
            for source in pictures[number * 10 : number * 10 + 10]:
                file.add(source.path, Path(source.path).name)
    tars = Containers(resolve_inputs(str(tmp_path / "in")).files)
    given = order("embed", tars, tmp_path / "ray", None)
    run(replace(given, output=replace(given.output, path=tmp_path / "alone")), NullCache(), Meter())
    expected = files(tmp_path / "alone")
    given.output.open(tars, given.task.schema, given.task.open(NullCache(), Meter()).settings())
    (tmp_path / "in" / "2.tar").write_bytes(b"changed")
    with pytest.raises(FileRefusedError, match=r"2\.tar' has changed since"):
        run_on_ray(given, WorkerOptions())
    assert files(tmp_path / "ray") == {k: v for k, v in expected.items() if "00002" not in k}
