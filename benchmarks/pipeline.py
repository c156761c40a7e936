"""Pictures and labels through the whole package, beside its bare parts and beside transformers.

    python benchmarks/pipeline.py                    # embed, and classify with 1000 labels
    python benchmarks/pipeline.py --templates openai # 80 prompts a label
    python benchmarks/pipeline.py --memory 1000 100000
    python benchmarks/pipeline.py --small            # tiny shapes: does it run at all

CLIP ViT-B/32 in its real shape with random weights (`random_models.py`), JPEG files made here, so
that nothing is downloaded. Bare parts, transformers' own pipeline and ours run in one process on
the same weights and pictures, and their answers are compared. Run it on one core with nothing else
there (`taskset -c 1`); medians of `--repeats` runs.
"""

import argparse
import io
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from magic import Peak
from PIL import Image
from random_models import as_loaded, clip, words

from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.images.reading import fetch, open_image
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.ops import normalize
from zeroshot.prompts import expand, load_templates
from zeroshot.results.result import ClassifyResult, EmbedResult
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions

Timed = tuple[float, float]
"""Wall and CPU seconds."""


def timed(work: Callable[[], Any]) -> tuple[Any, Timed]:
    """What `work` gives, and its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = work()
    return answer, (time.perf_counter() - wall, time.process_time() - cpu)


def median(work: Callable[[], Any], repeats: int) -> tuple[Any, Timed]:
    """What the last run gives, and the run in the middle by its wall time."""
    runs = [timed(work) for _ in range(repeats)]
    times = sorted(time for _, time in runs)
    return runs[-1][0], times[len(times) // 2]


def photograph(seed: int, width: int, height: int) -> bytes:
    """A JPEG with detail of every grain, about as many bytes as a photograph of its size."""
    rng = np.random.default_rng(seed)
    values = np.zeros((height, width, 3), np.float32)
    for grain in (4, 16, 64, 256):
        small = rng.integers(0, 256, (max(2, height * grain // width), grain, 3), np.uint8)
        layer = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        values += np.asarray(layer, np.float32) / grain**0.5
    values *= 255 / values.max()
    data = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(data, "JPEG", quality=92)
    return data.getvalue()


def photographs(folder: Path, count: int, width: int, height: int) -> list[Source]:
    """So many different files."""
    sources = []
    for i in range(count):
        path = folder / f"{i:06}.jpg"
        path.write_bytes(photograph(i, width, height))
        sources.append(Source(str(path)))
    return sources


def copies(folder: Path, count: int) -> Iterator[Source]:
    """So many small files of different bytes: one JPEG, each with a number behind its end."""
    data = photograph(0, 64, 48)
    for i in range(count):
        path = folder / f"{i // 1000:03}" / f"{i:06}.jpg"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data + i.to_bytes(8))
        yield Source(str(path))


def copies_of(folder: Path, kinds: int, count: int) -> Iterator[Source]:
    """So many photographs of 640 x 480 of different bytes, a few kinds of them, many times each."""
    made = [photograph(kind, 640, 480) for kind in range(min(kinds, count))]
    for i in range(count):
        path = folder / f"{i:06}.jpg"
        path.write_bytes(made[i % len(made)] + i.to_bytes(8))
        yield Source(str(path))


def models(encoder: Any) -> ModelSet:
    """The pocket set with this encoder instead of its own."""
    made = resolve("pocket")
    vars(made)["encoder"] = encoder
    return made


def check(name: str, apart: float, tolerance: float) -> None:
    """End the run where two answers differ."""
    print(f"{name}: largest difference {apart:.1e}")
    if apart > tolerance:
        sys.exit(f"{name} DIFFERS")


def embed(
    sources: Iterable[Source], made: ModelSet, cache: EmbeddingCache, batch: int = AUTO_BATCH
) -> Iterator[EmbedResult]:
    return Embed.from_options(made, EmbedOptions()).open(cache, Meter(), batch)(sources, Meter())


def bench_embed(
    options: argparse.Namespace, encoder: Any, stock: Any, sources: list[Source]
) -> None:
    """Images a second of `embed`, of the model alone and of its parts."""
    count = len(sources)
    pictures = [open_image(source) for source in sources]
    batches = [pictures[s : s + options.batch] for s in range(0, count, options.batch)]
    inputs = [encoder.image_processor(images=b, return_tensors="pt") for b in batches]

    @torch.inference_mode()
    def bare(model: Any) -> torch.Tensor:
        return torch.cat([model.get_image_features(**i).pooler_output for i in inputs])

    def run(cache: EmbeddingCache) -> torch.Tensor:
        results = embed(sources, models(encoder), cache, options.batch)
        return torch.tensor([result.embedding for result in results])

    def decode() -> None:
        for source in sources:
            open_image(source)

    def one_after_the_other() -> None:
        for start in range(0, count, options.batch):
            encoder.encode_images([open_image(s) for s in sources[start : start + options.batch]])

    quick = encoder.preprocessing.faster()

    def prepare() -> None:
        for source in sources:
            encoder.pixels(open_image(source))

    def prepare_fast() -> None:
        for source in sources:
            with fetch(source).decoded(draft_side=quick.draft_side) as picture:
                quick.pixels(picture.image)

    bare(encoder.model)  # the first pass of a model sets up its kernels
    bare(stock.model)
    theirs, unpacked = median(lambda: bare(stock.model), options.repeats)
    expected, alone = median(lambda: bare(encoder.model), options.repeats)
    rows, piped = median(lambda: run(NullCache()), options.repeats)
    check("embed beside the model alone", float((rows - normalize(expected)).abs().max()), 1e-6)
    check("and as transformers loads it", float((rows - normalize(theirs)).abs().max()), 1e-5)
    with tempfile.TemporaryDirectory() as folder, EmbeddingCache(Path(folder)) as cache:
        _, first = timed(lambda: run(cache))
        again, second = median(lambda: run(cache), options.repeats)
    check("embed from the cache", float((again - rows).abs().max()), 0)
    table = {
        "the model alone, on pixels in memory": alone,
        "the same as transformers loads it": unpacked,
        "embed, no cache": piped,
        "embed, empty cache": first,
        "embed, everything known": second,
        "opening and encoding in turn": median(one_after_the_other, options.repeats)[1],
        "decoding alone, one thread": median(decode, options.repeats)[1],
        "decoding and preprocessing alone": median(prepare, options.repeats)[1],
        "the same with --fast": median(prepare_fast, options.repeats)[1],
    }
    print(
        f"\n{count} pictures of {options.width} x {options.height}, {_kilobytes(sources)} KB each"
    )
    print("| what | images/s | CPU-ms an image | of the model alone |\n|---|---|---|---|")
    for name, (wall, cpu) in table.items():
        print(
            f"| {name} | {count / wall:.1f} | {cpu / count * 1e3:.2f} | {alone[1] / cpu:.3f} "
            f"(wall {alone[0] / wall:.3f}) |"
        )


def _kilobytes(sources: Iterable[Source]) -> int:
    return round(statistics.mean(Path(s.path or "").stat().st_size for s in sources) / 1000)


def bench_classify(
    options: argparse.Namespace, encoder: Any, stock: Any, sources: list[Source]
) -> None:
    """Seconds of `classify`, first and again, and of transformers' pipeline."""
    from transformers import pipeline

    known = ["".join(pair) for pair in words(len(encoder.tokenizer))]
    rng = np.random.default_rng(1)
    labels = sorted({" ".join(rng.choice(known, int(rng.integers(1, 4)))) for _ in range(2000)})
    labels = [labels[i] for i in rng.permutation(len(labels))[: options.labels]]
    templates = load_templates(options.templates, labels)
    prompts = expand(labels, templates)
    print(f"\n{len(labels)} labels, {len(prompts[0])} prompts each, {len(sources)} pictures")

    def run(cache: EmbeddingCache) -> list[ClassifyResult]:
        meter, made = Meter(), models(encoder)
        given = ClassifyOptions(labels=labels, templates=options.templates, top_k=len(labels))
        runner = Classify.from_options(made, given).open(cache, meter, options.batch)
        return list(runner(sources, meter))

    with tempfile.TemporaryDirectory() as folder, EmbeddingCache(Path(folder)) as cache:
        results, first = timed(lambda: run(cache))
        again, second = median(lambda: run(cache), options.repeats)
    if [r.labels for r in again] != [r.labels for r in results]:
        sys.exit("the second run DIFFERS")
    reference = pipeline(
        "zero-shot-image-classification",
        model=stock.model,
        image_processor=stock.image_processor,
        tokenizer=stock.tokenizer,
    )
    few = [open_image(source) for source in sources[: options.reference_images]]
    template = options.templates if "{" in options.templates else "a photo of a {}."
    answers, plain = timed(
        lambda: reference(few, candidate_labels=labels, hypothesis_template=template)
    )
    if len(prompts[0]) == 1:  # the one template that the pipeline knows
        apart = 0.0
        for ours, theirs in zip(results, answers, strict=False):
            scores = {one["label"]: one["score"] for one in theirs}
            apart = max(apart, *(abs(label.score - scores[label.label]) for label in ours.labels))
        check("classify beside transformers' pipeline", apart, 1e-3)
    scale = len(sources) / len(few)
    print("| what | s | CPU-s | times less CPU |\n|---|---|---|---|")
    for name, (wall, cpu) in {
        f"transformers' pipeline, by {len(few)} pictures": (plain[0] * scale, plain[1] * scale),
        "classify": first,
        "classify again": second,
    }.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {plain[1] * scale / cpu:.1f} |")
    print(f"the second run takes {second[1] / first[1]:.4f} of the first")


def _count(results: Iterable[object]) -> int:
    return sum(1 for _ in results)


def bench_memory(options: argparse.Namespace) -> None:
    """Peak memory of the process by the number of pictures, and the time to look them all up."""
    encoder = clip(small=True)
    with tempfile.TemporaryDirectory() as folder:
        for count in options.memory:
            for _ in copies(Path(folder), count):
                pass
        time.sleep(2.1)  # the hash of a file younger than that is not remembered
        print("| pictures | what | MB | s |\n|---|---|---|---|")
        for count in [options.memory[0], *options.memory]:  # the first sets up what stays
            with (
                tempfile.TemporaryDirectory() as store,
                EmbeddingCache(Path(store)) as cache,
            ):
                for what in ("embed", "embed again"):
                    results = embed(copies(Path(folder), count), models(encoder), cache)
                    with Peak() as peak:
                        seen, took = timed(partial(_count, results))
                    assert seen == count
                    print(f"| {count} | {what} | {peak.megabytes:.0f} | {took[0]:.1f} |")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--templates", default="a photo of a {}.")
    parser.add_argument("--reference-images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["embed", "classify"])
    parser.add_argument("--memory", type=int, nargs="+", metavar="PICTURES")
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run at all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, torch {torch.__version__}, {options.threads} thread(s)\n")
    if options.memory:
        bench_memory(options)
        return
    encoder, stock = as_loaded(clip(options.small)), clip(options.small)
    with tempfile.TemporaryDirectory() as folder:
        sources = photographs(Path(folder), options.images, options.width, options.height)
        if options.only != "classify":
            bench_embed(options, encoder, stock, sources)
        if options.only != "embed":
            bench_classify(options, encoder, stock, sources)


if __name__ == "__main__":
    main()
