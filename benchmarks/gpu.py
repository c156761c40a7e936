"""Everything that a GPU is for, in one command of at most seven minutes, without a network.

    python benchmarks/gpu.py                          # on the first CUDA device
    python benchmarks/gpu.py --json gpu.json --minutes 5
    python benchmarks/gpu.py --small --device cpu     # tiny shapes: does it run at all

Models of the real shapes with random weights (`random_models.py`). First the answers are compared
with the CPU's; then each figure stands beside its bare reference on the same card in the same run.
Parts run in the order of their importance, and one that no longer fits into `--minutes` is left out
and named. Where memory runs out, the batch is halved, and the table says so.

The peak that shares refer to is measured: the card's own product of two large square matrices.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from magic import Bench, Clock
from pipeline import copies_of, models
from random_models import as_loaded, clip, pictures, words

from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.images.reading import open_image
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods.asif import ASIF
from zeroshot.methods.stata import StatA
from zeroshot.models import devices
from zeroshot.models.devices import PRECISIONS, out_of_memory
from zeroshot.models.hf import language_model as hf_language_model
from zeroshot.models.towers import word_tokens
from zeroshot.ops import BLOCK, normalize, topk_stream
from zeroshot.ranking.exact import Gallery
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions

Row = dict[str, Any]
"""A line of a table: column to value."""
Answer = TypeVar("Answer")
SAME_COSINE = 1e-3
"""What a cosine in bf16 may differ by from the CPU's in float32; or twice what the CPU's own bf16
differs by, if that is more: random weights amplify rounding (0.003 for ViT-B/32)."""


@dataclasses.dataclass
class Sizes:
    """How much of everything."""

    steps: int = 16
    batches: tuple[int, ...] = (256, 32, 1)
    same_images: int = 3
    reference_images: int = 2
    encoded: int = 2048
    files: int = 2048
    labels: int = 1000
    rows: int = 1_000_000
    anchors: int = 100_000
    pool: int = 5000
    square: int = 8192

    @classmethod
    def small(cls) -> "Sizes":
        """So little that it takes seconds on a CPU."""
        return cls(5, (4, 2), 2, 1, 8, 8, 12, 5000, 300, 60, 256)


class Run:
    """The device, the time that is left, and what was found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.small: bool = options.small
        self.sizes = Sizes.small() if options.small else Sizes()
        self.end = time.perf_counter() + 60 * options.minutes
        self.tables: dict[str, list[Row]] = {}
        self.notes: list[str] = []
        self.wrong: list[str] = []

    def left(self) -> float:
        """Seconds."""
        return self.end - time.perf_counter()

    def synchronize(self) -> None:
        """Wait until the device has nothing to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Answer], repeats: int = 3) -> tuple[Answer, float]:
        """What `work` gives, and the least of some runs after one to begin with."""
        answer = work()
        least = float("inf")
        for _ in range(repeats):
            self.synchronize()
            begin = time.perf_counter()
            answer = work()
            self.synchronize()
            least = min(least, time.perf_counter() - begin)
            if self.left() < 0:
                break
        return answer, least

    def halving(self, what: str, size: int, work: Callable[[int], Answer]) -> tuple[int, Answer]:
        """`work` of the largest size that fits, and that size."""
        while True:
            try:
                return size, work(size)
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
            self.notes.append(f"{what}: memory ran out at {size}, {size // 2} was tried")
            size //= 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def megabytes(self) -> int | None:
        """Peak of the device's memory since the last call."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) >> 20
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def add(self, table: str, **row: Any) -> None:
        """Keep a line, and print it."""
        self.tables.setdefault(table, []).append(row)
        print(f"{table}: " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)

    def compare(self, what: str, apart: float, allowed: float) -> None:
        """Say how far two answers are apart."""
        self.add("same", what=what, apart=apart, allowed=allowed, same=apart <= allowed)
        if not apart <= allowed:
            self.wrong.append(what)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _bench(run: Run, device: str, precision: str) -> Bench:
    given = {
        "device": device,
        "precision": precision,
        "small": run.small,
        "early_end": False,
        "split_words": False,
    }
    given |= {"k": 45, "alpha": 0.1, "beta": 2.0, "end_after": None, "peak_tflops": 1.0}
    return Bench(argparse.Namespace(**given))


# The parts, in the order of their importance


def same(run: Run) -> None:
    """The answers are those of the CPU: tokens in float32, cosines in bf16."""
    sizes = run.sizes
    images = pictures(max(16, sizes.same_images))
    here, there = _bench(run, "cpu", "fp32"), _bench(run, str(run.device), "fp32")
    few = images[: sizes.same_images]
    steps = min(8, sizes.steps)
    expected, _ = here.ours(few, Clock(), steps, len(few))
    found, _ = there.ours(few, Clock(), steps, len(few))
    differ = sum(a != b for a, b in zip(expected, found, strict=True))
    run.compare("captions that differ in float32", float(differ), 0)
    texts = ["".join(pair) for pair in words(2000)[:32]]
    cosines = here.clip.encode_images(images) @ here.clip.encode_texts(texts).T
    apart = []
    for device in ("cpu", str(run.device)):
        half = _bench(run, device, "bf16").clip
        halved = half.encode_images(images).float() @ half.encode_texts(texts).float().T
        apart.append(float((halved.cpu() - cosines).abs().max()))
    run.compare("cosines in bf16", apart[1], max(SAME_COSINE, 2 * apart[0]))


def magic(run: Run) -> None:
    """Captions by guided decoding, beside the plain algorithm on the same card."""
    steps = run.sizes.steps - 1
    images = pictures(max(run.sizes.batches))
    for precision in ("bf16", "fp32"):
        bench = _bench(run, str(run.device), precision)
        peak = product_of(run, PRECISIONS[precision])
        few = images[: run.sizes.reference_images]
        bench.reference(few[:1], Clock(), 2)
        clock = Clock()
        expected = bench.reference(few, clock, steps)
        base = len(few) / clock.wall
        run.add("magic", precision=precision, what="plain", per_second=base)
        for batch in run.sizes.batches:
            if run.left() < 20:
                run.notes.append(f"magic, batch {batch} in {precision}: no time was left")
                continue
            bench.ours(images[:batch], Clock(), 2, batch)
            run.megabytes()

            def work(size: int, bench: Bench = bench) -> Any:
                clock = Clock()
                return *bench.ours(images[:size], clock, steps, size), clock

            size, (tokens, nodes, clock) = run.halving(f"magic in {precision}", batch, work)
            if precision == "fp32":
                shared = zip(tokens, expected, strict=False)
                run.compare(f"captions beside plain, {size}", sum(a != b for a, b in shared), 0)
            run.add(
                "magic",
                precision=precision,
                what=f"batch {size}",
                per_second=size / clock.wall,
                times_plain=size / clock.wall / base,
                tower_share_of_peak=tower_operations(bench, nodes) / clock.wall / peak,
                look_aheads=clock.counts["look-aheads"] / max(1, sum(map(len, tokens))),
                megabytes=run.megabytes(),
            )


def tower_operations(bench: Bench, nodes: int) -> float:
    """Floating-point operations of the text tower's layers for so many tokens."""
    config = bench.clip.model.config.text_config
    square, feed = config.hidden_size**2, config.hidden_size * config.intermediate_size
    return 2 * config.num_hidden_layers * (4 * square + 2 * feed) * nodes


def product_of(run: Run, dtype: torch.dtype) -> float:
    """Operations per second of a product of two square matrices."""
    n = run.sizes.square
    a = torch.randn(n, n, device=run.device).to(dtype)
    _, seconds = run.seconds(lambda: a @ a)
    return float(2 * n**3 / seconds)


def profile(run: Run) -> None:
    """One step of guided decoding: kernels, times that the host waits, gaps between kernels."""
    from torch.profiler import ProfilerActivity

    bench = _bench(run, str(run.device), "bf16" if run.device.type == "cuda" else "fp32")
    batch = sorted(run.sizes.batches)[len(run.sizes.batches) // 2]
    images = pictures(batch)
    bench.ours(images, Clock(), 3, batch)
    activities, on_card = [ProfilerActivity.CPU], run.device.type == "cuda"
    if on_card:
        activities.append(ProfilerActivity.CUDA)
    found = []
    for steps in (2, 6):  # what four steps cost, without the image tower and the beginning
        clock = Clock()
        with torch.profiler.profile(activities=activities) as seen:
            bench.ours(images, clock, steps, batch)
            run.synchronize()
        found.append((clock.wall, _counted(seen)))
    (wall, before), (longer, after) = found
    step = {name: (after[name] - before[name]) / 4 for name in after}
    seconds = (longer - wall) / 4
    run.add(
        "profile",
        batch=batch,
        ms_a_step=1000 * seconds,
        kernels=step["kernels"] if on_card else None,
        host_waits=step["waits"],
        copies_to_device=step["copies"],
        share_without_kernel=max(0.0, 1 - step["busy"] / seconds) if on_card else None,
    )


SWITCHES: dict[str, Any] = {"tables": True, "one_read": True, "columns": 8, "static": True}
"""What spares waits of the host: `devices.Ways`, and texts and tokens that are looked up."""
WORTH = 0.02
"""Share of a step that a switch has to save."""


def ways(run: Run) -> None:
    """A step with every switch, without each of them, with none; and which are worth it."""
    kind = run.device.type
    bench = _bench(run, str(run.device), "bf16" if kind == "cuda" else "fp32")
    exact = _bench(run, str(run.device), "fp32")
    for batch in sorted(run.sizes.batches)[-2::-1]:
        images = pictures(batch)
        few = images[: run.sizes.same_images]
        with switched(kind):
            expected, _ = exact.ours(few, Clock(), min(8, run.sizes.steps), len(few))
        found = {}
        for name, on in _choices():
            if run.left() < 10 and not run.small:
                run.notes.append(f"ways, batch {batch}, {name}: no time was left")
                return
            found[name] = _step(run, bench, images, kind, on)
            with switched(kind, **on):
                tokens, _ = exact.ours(few, Clock(), min(8, run.sizes.steps), len(few))
            run.compare(
                f"captions, {name}", sum(a != b for a, b in zip(tokens, expected, strict=True)), 0
            )
        saved = {name: found[f"all but {name}"] / found["all"] - 1 for name in SWITCHES}
        verdict = {n: SWITCHES[n] for n, share in saved.items() if share > WORTH}
        found["those worth it"] = _step(run, bench, images, kind, verdict)
        for name, seconds in found.items():
            of_none = found["none"] / seconds
            run.add("ways", batch=batch, what=name, ms_a_step=1000 * seconds, times_none=of_none)
        given = ", ".join(f"{n}={v}" for n, v in verdict.items() if n != "tables")
        tables = "" if "tables" in verdict else "; WORDS and PIECES are not worth it"
        run.notes.append(f'batch {batch}: WAYS["{kind}"] = Ways({given}){tables}')


def _choices() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "none", {}
    yield "all", SWITCHES
    for name in SWITCHES:
        yield f"all but {name}", {n: on for n, on in SWITCHES.items() if n != name}


@contextmanager
def switched(kind: str, tables: bool = False, **on: Any) -> Iterator[None]:
    """With these ways on devices of this type, and no others."""
    before = devices.WAYS.get(kind), word_tokens.WORDS, hf_language_model.PIECES
    devices.WAYS[kind] = devices.Ways(**on)
    word_tokens.WORDS = hf_language_model.PIECES = tables
    try:
        yield
    finally:
        devices.WAYS[kind], word_tokens.WORDS, hf_language_model.PIECES = before


def _step(run: Run, bench: Bench, images: list[Any], kind: str, on: dict[str, Any]) -> float:
    """Seconds of a step of all images, the least of two runs after one."""
    least, steps = float("inf"), run.sizes.steps - 1
    with switched(kind, **on):
        for turn in range(3):
            clock = Clock()
            bench.ours(images, clock, steps, len(images))
            if turn:
                least = min(least, clock.wall / steps)
    return least


def _counted(seen: Any) -> dict[str, float]:
    """Kernels and their seconds, waits of the host, and copies to the device, of a profile."""
    counts = {"kernels": 0.0, "busy": 0.0, "waits": 0.0, "copies": 0.0}
    waits = {"cudaStreamSynchronize", "cudaDeviceSynchronize"}
    if not torch.cuda.is_available():  # where they would be
        waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            counts["kernels"] += 1
            counts["busy"] += event.device_time_total / 1e6
        elif event.name in waits:
            counts["waits"] += 1
        elif event.name == "cudaMemcpyAsync":
            counts["copies"] += 1
    return counts


def embed(run: Run) -> None:
    """Images a second: the model alone on resident pixels, encode_images, files, decoding alone."""
    precision = "bf16" if run.device.type == "cuda" else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        files = list(copies_of(Path(folder), min(64, run.sizes.files), run.sizes.files))
        decoded = [open_image(source) for source in files[: min(256, len(files))]]
        for name, large in (("ViT-B/32", False), ("ViT-L/14", True)):
            if run.left() < 30 and large:
                run.notes.append("embed, ViT-L/14: no time was left")
                continue
            encoder = clip(run.small, large=large)
            encoder.model.to(run.device, PRECISIONS[precision])
            encoder = as_loaded(encoder)
            _embed(run, f"{name} {precision}", encoder, files, decoded)


def _embed(run: Run, name: str, encoder: Any, files: list[Source], decoded: list[Any]) -> None:
    at_once = min(256, len(decoded))
    batch = decoded[:at_once]
    pixels = encoder.image_processor(images=batch, return_tensors="pt")["pixel_values"]
    pixels = pixels.to(run.device, encoder.model.dtype)

    @torch.inference_mode()
    def alone(size: int) -> Any:
        def work() -> Any:
            return encoder.model.get_image_features(pixel_values=pixels[:size]).pooler_output

        return run.seconds(work)

    run.megabytes()
    size, (rows, took) = run.halving(f"embed, {name}", at_once, alone)
    bare = size / took
    peak = run.megabytes()
    own, took = run.seconds(lambda: encoder.encode_images(batch[:size]), 1)
    expected = normalize(rows.float()).cpu()
    allowed = SAME_COSINE if encoder.model.dtype != torch.float32 else 1e-5
    run.compare(f"embed, {name}", float(1 - (own.cpu() * expected).sum(1).min()), allowed)
    parts = {"the model alone": bare, "encode_images": size / took}

    def from_files() -> int:
        made, meter = models(encoder), Meter()
        with NullCache() as cache:
            runner = Embed.from_options(made, EmbedOptions()).open(cache, meter, size)
            return sum(1 for _ in runner(files, meter))

    count, took = run.seconds(from_files, 1)
    parts["embed of files"] = count / took
    begin = time.perf_counter()
    for source in files[: len(decoded)]:
        encoder.pixels(open_image(source))
    parts["decoding and preprocessing, one thread"] = len(decoded) / (time.perf_counter() - begin)
    for what, rate in parts.items():
        of_bare = rate / bare
        run.add("embed", model=name, what=what, per_second=rate, of_bare=of_bare, megabytes=peak)
        peak = None


def classify(run: Run) -> None:
    """Many labels with 80 prompts each, for the first and the second time."""
    precision = "bf16" if run.device.type == "cuda" else "fp32"
    encoder = clip(run.small)
    encoder.model.to(run.device, PRECISIONS[precision])
    encoder = as_loaded(encoder)
    labels = sorted({"".join(pair) for pair in words(49408 if not run.small else 2000)})
    labels = labels[: run.sizes.labels]
    with tempfile.TemporaryDirectory() as folder:
        files = list(copies_of(Path(folder), 16, min(256, run.sizes.files)))
        with EmbeddingCache(Path(folder) / "cache") as cache:
            seconds = []
            for _ in range(2):
                made, meter = models(encoder), Meter()
                given = ClassifyOptions(labels=labels, templates="openai", top_k=1)
                begin = time.perf_counter()
                runner = Classify.from_options(made, given).open(cache, meter, 256)
                assert sum(1 for _ in runner(files, meter)) == len(files)
                seconds.append(time.perf_counter() - begin)
    prompts = 80 * len(labels)

    def alone() -> Any:
        texts = [f"a photo of a {label}." for label in labels[:256]]
        tokens = encoder.tokenizer(texts, padding=True, return_tensors="pt").to(run.device)
        with torch.inference_mode():
            return encoder.model.get_text_features(**tokens).pooler_output

    _, took = run.seconds(alone)
    bare = prompts * took / min(256, len(labels))
    for what, value in (("first", seconds[0]), ("again", seconds[1]), ("bare text tower", bare)):
        run.add("classify", labels=len(labels), prompts=prompts, what=what, seconds=value)


def tensors(run: Run) -> None:
    """Methods on tensors that lie on the card: search, ASIF, StatA."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int, dim: int = 512) -> torch.Tensor:
        return normalize(torch.randn(rows, dim, generator=generator)).to(run.device)

    def search(size: int) -> Any:
        gallery, queries = unit(size), unit(256)
        kept = Gallery(gallery)
        _, bare = run.seconds(lambda: [queries @ part.T for part in gallery.split(BLOCK)])
        found, ours = run.seconds(lambda: topk_stream(queries, kept, 10, BLOCK))
        scores = torch.cat([queries[:4] @ part.T for part in gallery.split(BLOCK)], 1)
        apart = float((found[0][:4] - scores.topk(10).values).abs().max())
        return bare, ours, apart

    size, (bare, ours, apart) = run.halving("search", run.sizes.rows, search)
    run.compare(f"best of {size} rows", apart, 1e-5)
    run.add("tensors", what=f"search, {size} rows, 256 queries", seconds=ours, bare=bare)

    def asif(size: int) -> Any:
        coupling = ASIF().fit(anchor_images=unit(size), anchor_texts=unit(size, 384))
        images = unit(256)
        anchors = unit(size)
        _, bare = run.seconds(lambda: images @ anchors.T)
        _, ours = run.seconds(lambda: coupling.map_images(images))
        return bare, ours

    size, (bare, ours) = run.halving("asif", run.sizes.anchors, asif)
    run.add("tensors", what=f"asif, {size} anchors, 256 images", seconds=ours, bare=bare)

    def stata(size: int) -> Any:
        images, texts = unit(size), unit(100)[:, None]
        _, bare = run.seconds(lambda: images @ texts[:, 0].T)
        found, ours = run.seconds(lambda: StatA().scores(images, texts), 1)
        expected = StatA().scores(images.cpu(), texts.cpu())
        return bare, ours, float((found.cpu() - expected).abs().max())

    size, (bare, ours, apart) = run.halving("stata", run.sizes.pool, stata)
    run.compare(f"stata, {size} images", apart, 1e-3)
    run.add("tensors", what=f"stata, {size} images, 100 labels", seconds=ours, bare=bare)


PARTS: dict[str, tuple[float, Callable[[Run], None]]] = {
    "same": (40, same),
    "magic": (120, magic),
    "profile": (20, profile),
    "ways": (60, ways),
    "embed": (60, embed),
    "tensors": (30, tensors),
    "classify": (40, classify),
}
"""Seconds that a part takes on a card, roughly, and the part."""


def markdown(tables: dict[str, list[Row]]) -> Iterator[str]:
    """The tables as docs/performance.md has them."""
    for name, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        yield f"\n{name}\n"
        yield "| " + " | ".join(columns).replace("_", " ") + " |"
        yield "|---" * len(columns) + "|"
        for row in rows:
            cells = ("" if row.get(c) is None else _short(row[c]) for c in columns)
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Parse and run; exit 1 if an answer is not the CPU's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run at all")
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("this machine has no CUDA device; --small --device cpu tries the script itself")
    run = Run(options)
    card = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    about = {
        "card": card,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "small": run.small,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    for name in options.only:
        needed, part = PARTS[name]
        if run.left() < (0 if run.small else needed / 2):
            run.notes.append(f"{name}: left out, {max(0, run.left()):.0f} s of the time were left")
            continue
        begin = time.perf_counter()
        try:
            part(run)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            run.notes.append(f"{name}: ended, as memory ran out: {str(error).splitlines()[0]}")
        run.notes.append(f"{name}: {time.perf_counter() - begin:.1f} s")
        if options.json:  # after each part: what is there counts if the machine goes away
            found = {"about": about, "tables": run.tables, "notes": run.notes, "wrong": run.wrong}
            options.json.write_text(json.dumps(found, indent=1))
    print("\n".join(markdown(run.tables)))
    print("\n".join(["", *run.notes]))
    if run.wrong:
        sys.exit(f"DIFFERENT from the CPU: {', '.join(run.wrong)}")


if __name__ == "__main__":
    main()
