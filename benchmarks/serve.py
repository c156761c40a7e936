"""A server against the same work without one: `python benchmarks/serve.py`.

For texts and images, on the pocket set and on CLIP ViT-B/32 in its real shape with random weights:
requests per second and the times of answers at 1, 8, 32 and 128 clients, against one process that
encodes the same in full batches, and against the same server with batches of one. Then memory over
`--requests` requests, pages of a folder of `--files` files, and with `--photos DIR --models SET` a
search of photographs and the first word of a caption.

The clients are one other process, which speaks HTTP over open connections and does little else. No
cache is used, and no text or image comes twice.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from pipeline import photograph
from random_models import as_loaded, clip, words

import zeroshot
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.commands.terminal import process
from zeroshot.inference.embedding import AUTO_BATCH, embed_texts
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.serving.web.server import RunningServer
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
CLIENTS = (1, 8, 32, 128)
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"]
SHAPES = ["circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring"]


def sets() -> Iterator[tuple[str, Callable[[], ModelSet]]]:
    yield "pocket", lambda: resolve("pocket")

    def large() -> ModelSet:
        models = resolve("pocket")
        vars(models)["encoder"] = as_loaded(clip(small=False))
        return models

    yield "ViT-B/32", large


def new_texts(name: str, start: int) -> Iterator[str]:
    """Texts of eight words, each a new one."""
    every = COLOURS + SHAPES if name == "pocket" else ["".join(w) for w in words(2000)]
    rng = np.random.default_rng(start)
    while True:
        yield "a " + " ".join(rng.choice(every, 8))


def new_images(name: str, start: int) -> Iterator[bytes]:
    """JPEG files of 640 x 480, each a new one: a photograph's noise, with a few pixels changed."""
    base = np.asarray(Image.open(io.BytesIO(photograph(start, 640, 480)))).copy()
    for i in itertools.count(start):
        rng = np.random.default_rng(i)
        base[:8, :8] = rng.integers(0, 256, (8, 8, 3))
        data = io.BytesIO()
        Image.fromarray(base).save(data, "JPEG", quality=85)
        yield data.getvalue()


def without_server(models: ModelSet, kind: str, name: str, seconds: float) -> float:
    """Items per second of one process that encodes in full batches."""
    with NullCache() as cache:
        task = Embed.from_options(models, EmbedOptions())
        runner = task.open(cache, Meter(), AUTO_BATCH)
        make = new_texts if kind == "texts" else new_images
        count = 64
        while True:
            items: list[Any] = list(itertools.islice(make(name, 10**6), count))
            begin = time.perf_counter()
            if kind == "texts":
                for i in range(0, count, AUTO_BATCH):
                    embed_texts(items[i : i + AUTO_BATCH], models.encoder, cache, Meter())
            else:
                for _ in runner((Source(None, item) for item in items), Meter()):
                    pass
            took = time.perf_counter() - begin
            if took > seconds / 2 or count >= 8192:
                return count / took
            count = int(count * min(8, max(2, 0.8 * seconds / took)))


# The clients


async def _client(host: str, port: int, requests: Iterator[bytes], times: list[float], end: float):
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 24)
    while time.perf_counter() < end:
        begin = time.perf_counter()
        writer.write(next(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        if head.split()[1] != b"200":
            raise RuntimeError(head.decode())
        times.append(time.perf_counter() - begin)
    writer.close()


def clients(
    port: int, token: str, kind: str, name: str, count: int, seconds: float, start: int, answer: Any
) -> None:
    """In a process of its own: so many clients, each asking again when it has its answer."""
    head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"

    def request(body: bytes) -> bytes:
        line = "POST /v1/embeddings HTTP/1.1\r\nContent-Type: application/json\r\n"
        return f"{line}{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def bodies() -> Iterator[bytes]:
        if kind == "texts":
            for text in new_texts(name, start):
                yield json.dumps({"input": text, "encoding_format": "base64"}).encode()
        for image in new_images(name, start):
            data = "data:image/jpeg;base64," + base64.b64encode(image).decode()
            yield json.dumps({"image": data, "encoding_format": "base64"}).encode()

    made = map(request, bodies())
    ready = itertools.chain(
        list(itertools.islice(made, 2000 if kind == "images" else 20_000)), made
    )
    times: list[float] = []

    async def run() -> float:
        begin = time.perf_counter()
        every = [_client("127.0.0.1", port, ready, times, begin + seconds) for _ in range(count)]
        await asyncio.gather(*every)
        return time.perf_counter() - begin

    took = asyncio.run(run())
    answer.put((len(times) / took, times))


def load(server: Any, kind: str, name: str, count: int, seconds: float, start: int) -> Any:
    """Requests per second, and the times of all."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    given = (server.state.rules.port, server.token, kind, name, count, seconds, start, answer)
    process = context.Process(target=clients, args=given)
    process.start()
    found = answer.get()
    process.join()
    return found


def percentiles(times: list[float]) -> str:
    cuts = np.percentile(times, [50, 95, 99]) * 1000
    return " | ".join(f"{cut:.0f}" for cut in cuts)


@contextlib.contextmanager
def serving(*what: Any, **how: Any) -> Iterator[RunningServer]:
    """As `zeroshot serve` does it."""
    with zeroshot.serve(*what, **how) as server:
        process.keep()
        yield server


def throughput(seconds: float) -> None:
    for name, make in sets():
        models = make()
        print(f"\n{name}: requests per second; p50, p95, p99 in ms\n")
        print("| what | clients | per s | p50 | p95 | p99 | of full batches | of batches of one |")
        print("|---|---|---|---|---|---|---|---|")
        for kind in ("texts", "images"):
            with serving(SCENES, models, cache=NullCache()) as server:
                server.wait_until_indexed()
                batcher, start = server.state.engine.batcher, 0
                load(server, kind, name, 8, 1, 10**7)  # warm
                for count in CLIENTS:
                    # beside each other in time, as the machine may have other work
                    full = without_server(models, kind, name, seconds)
                    rate, times = load(server, kind, name, count, seconds, start := start + 10**5)
                    most, batcher.most = batcher.most, 1
                    single, _ = load(server, kind, name, count, seconds, start := start + 10**5)
                    batcher.most = most
                    print(
                        f"| {kind} | {count} | {rate:.0f} | {percentiles(times)} "
                        f"| {rate / full:.2f} | {rate / single:.2f} |",
                        flush=True,
                    )
                print(f"| {kind}, full batches | | {full:.0f} | | | | 1 | |")


def memory(requests: int) -> None:
    """Resident memory while requests come, mixed texts and images, after a beginning."""
    with serving(SCENES, "pocket", cache=NullCache()) as server:
        server.wait_until_indexed()
        sizes, start = [], 0
        header = {"authorization": f"Bearer {server.token}"}
        while True:
            done = server.state.engine.batcher.counts.items
            page = httpx.get(f"{server.url}/metrics", headers=header).text
            line = next(x for x in page.splitlines() if x.startswith("zeroshot_resident_bytes"))
            sizes.append((done, int(line.split()[1]) / 1e6))
            if done >= requests:
                break
            for kind in ("texts", "images"):
                load(server, kind, "pocket", 32, 5, start := start + 10**5)
    begin = next(i for i, (done, _) in enumerate(sizes) if done >= requests / 5)
    told = ", ".join(f"{done}: {size:.0f}" for done, size in sizes)
    print(f"\nresident MB by requests answered: {told}")
    print(f"growth after the first fifth: {sizes[-1][1] - sizes[begin][1]:+.0f} MB")


def browse(files: int) -> None:
    """Pages of a large folder: without a query, with one, of a label, with its thumbnails."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(files):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(folder / f"{i:05}.png", compress_level=1)
        cache = EmbeddingCache(Path(temporary) / "cache")
        begin = time.perf_counter()
        with serving(folder, "pocket", cache=cache) as server:
            server.wait_until_indexed(3600)
            print(f"\n{files} files indexed in {time.perf_counter() - begin:.0f} s")
            header = {"authorization": f"Bearer {server.token}"}
            with httpx.Client(base_url=server.url, headers=header, timeout=60) as client:
                times: dict[str, list[float]] = {}

                def ask(what: str, path: str, body: Any) -> Any:
                    begin = time.perf_counter()
                    answer = client.post(path, json=body) if body else client.get(path)
                    answer.raise_for_status()
                    times.setdefault(what, []).append(time.perf_counter() - begin)
                    return answer

                facet = {"labels": ["a red star", "a blue ring"]}
                ask("labels, first", "/api/facets", facet)
                for offset in range(0, files, max(60, files // 40)):
                    page = ask("page", "/api/find", {"offset": offset}).json()["images"]
                    text = f"a {COLOURS[offset % 8]} star {offset}"
                    terms = [{"text": text}]
                    ask("page of a query", "/api/find", {"terms": terms, "offset": offset % 600})
                    one = {**facet, "label": "a red star"}
                    ask("page of a label", "/api/find", {"facet": one, "offset": 0})
                    ask("labels", "/api/facets", facet)
                    ask("thumbnail", f"/thumb/{page[0]['id']}", None)
        begin = time.perf_counter()
        again = EmbeddingCache(Path(temporary) / "cache")
        with serving(folder, "pocket", cache=again) as server:
            server.wait_until_indexed(3600)
            print(f"a second start, models and index: {time.perf_counter() - begin:.1f} s")
    for what, each in times.items():
        middle, most = statistics.median(each) * 1000, max(each) * 1000
        print(f"{what}: median {middle:.0f} ms, at most {most:.0f} ms of {len(each)}")


def photographs(folder: str, models: str) -> None:
    """Searches of photographs with new words, and how soon a caption begins."""
    with tempfile.TemporaryDirectory() as temporary:
        cache = EmbeddingCache(Path(temporary))
        with serving(folder, models, cache=cache) as server:
            server.wait_until_indexed(3600)
            header = {"authorization": f"Bearer {server.token}"}
            with httpx.Client(base_url=server.url, headers=header, timeout=600) as client:
                things = ("dog", "cat", "train", "beach", "food", "street", "bear", "horse")
                times = []
                for i, (a, b) in enumerate(itertools.permutations(things, 2)):
                    query = {"query": f"a {a} and a {b} number {i}", "top_k": 60}
                    begin = time.perf_counter()
                    client.post("/v1/search", json=query).raise_for_status()
                    times.append(time.perf_counter() - begin)
                print(
                    f"\nsearch of {len(server.state.folders.snapshot)} photographs with new words"
                )
                print(f"p50, p95, p99 in ms: {percentiles(times)}")
                ids = server.state.folders.snapshot.matrix.ids[:9]
                shares = []
                for id in ids:  # the first one loads the language model
                    begin = time.perf_counter()
                    given = {"id": id, "method": "magic"}
                    stream = {"accept": "text/event-stream"}
                    with client.stream("POST", "/v1/caption", json=given, headers=stream) as answer:
                        lines = answer.iter_lines()
                        next(line for line in lines if line.startswith("event: word"))
                        first = time.perf_counter() - begin
                        list(lines)
                    shares.append(first / (time.perf_counter() - begin))
                share = statistics.median(shares[1:])
                print(
                    f"first word of a caption by magic after {share:.3f} of its time (median of 8)"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--photos")
    parser.add_argument("--models", default="base")
    parser.add_argument("--only", choices=["throughput", "memory", "browse", "photos"])
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if given.only in (None, "throughput"):
        throughput(given.seconds)
    if given.only in (None, "memory"):
        memory(given.requests)
    if given.only in (None, "browse"):
        browse(given.files)
    if given.photos and given.only in (None, "photos"):
        photographs(given.photos, given.models)


if __name__ == "__main__":
    main()
