"""Ray on a cluster of two nodes of this machine against one process: `ray_cluster.py PLACE`.

Draws scenes and works on them in one process and then on Ray, while an actor and later a whole node
are killed; compares the files byte for byte, and says what the actors that lived counted.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from many_scenes import draw

from zeroshot.cache.embedding_cache import NullCache
from zeroshot.distributed.folder import OutputSpec
from zeroshot.distributed.local import RunSpec, run
from zeroshot.distributed.ray_engine import run_on_ray
from zeroshot.distributed.worker import WorkerOptions
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.captioning.caption_task import CaptionImages
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions
from zeroshot.tasks.task import Task

BATCH = 32
SHARD = 4 * BATCH


def task_of(name: str) -> Task:
    models, labels = resolve("pocket"), ("red heart", "blue star", "green ring")
    if name == "embed":
        return Embed.from_options(models, EmbedOptions())
    if name == "caption":
        return CaptionImages.from_options(models, CaptionOptions())
    return Classify.from_options(models, ClassifyOptions(labels=labels, templates="none"))


def rows(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.glob("0*.jsonl"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--task", choices=["embed", "caption", "classify"], default="classify")
    given = parser.parse_args()
    files = draw(given.place / "pictures", given.pictures)
    sources = [Source(str(file)) for file in files]
    orders = {}
    for name in ("one", "ray"):
        shutil.rmtree(given.place / name, ignore_errors=True)
        place = OutputSpec(given.place / name, SHARD)
        orders[name] = RunSpec(task_of(given.task), sources, place, BATCH, cached=False)
    begun = time.perf_counter()
    run(orders["one"], NullCache(), Meter())
    print(f"one process: {time.perf_counter() - begun:.1f} s", flush=True)

    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    lost: list[str] = []

    def kill(meter: Meter) -> None:
        if not lost and meter.pictures > given.pictures / 4:
            for claim in (given.place / "ray" / ".work").glob("*.lease"):
                with contextlib.suppress(OSError, ValueError):
                    os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
                    lost.append(f"an actor after {meter.pictures} pictures")
                    return
        if len(lost) == 1 and meter.pictures > given.pictures / 2:
            cluster.remove_node(second, allow_graceful=False)
            lost.append(f"a node after {meter.pictures} pictures")

    begun = time.perf_counter()
    meter = run_on_ray(orders["ray"], WorkerOptions(), kill)
    print(f"Ray: {time.perf_counter() - begun:.1f} s; killed: {', '.join(lost)}")
    print(f"pictures counted by actors that lived: {meter.pictures} of {given.pictures}")
    same = rows(given.place / "one") == rows(given.place / "ray")
    print(f"{len(rows(given.place / 'ray'))} shards, {'equal' if same else 'DIFFERENT'}")
    ray.shutdown()
    cluster.shutdown()
    sys.exit(not same)


if __name__ == "__main__":
    main()
