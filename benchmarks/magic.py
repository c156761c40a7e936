"""MaGiC's speed against the algorithm as the paper's code runs it.

    python benchmarks/magic.py                       # GPT-2 small, CLIP ViT-B/32, k=45, 16 steps
    python benchmarks/magic.py --early-end --batches 32
    python benchmarks/magic.py --split-words --batches 9 --images 9 --reference-images 3
    python benchmarks/magic.py --growth              # seconds a step by length, k and pictures
    OMP_WAIT_POLICY=passive python benchmarks/magic.py --balance --batches 8 --images 8
    python benchmarks/magic.py --models DIR PICTURES # a real set: images a second, where time goes
    python benchmarks/magic.py --device cuda --precision bf16 --batches 1 32 128

Random weights of the real shapes (`random_models.py`), so nothing is downloaded. Reference
(`plain_magic.py`, on models as their libraries make them) and ours (on models as this package
loads them) run in one process on the same pictures, and their tokens are compared.
CPU-seconds are those of the process; run it with one thread to compare work and not scheduling.
"""

import argparse
import ctypes
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from plain_magic import plain_magic
from random_models import as_loaded, clip, language_model, pictures
from torch import Tensor

from zeroshot.decoding import generate
from zeroshot.images.reading import open_image
from zeroshot.inference.embedding import text_encoder_of
from zeroshot.inputs.resolve import find
from zeroshot.methods.magic import MagicGuide
from zeroshot.model_set.model_set import resolve
from zeroshot.models.devices import PRECISIONS
from zeroshot.models.hf import model_inputs
from zeroshot.models.hf.dual_encoder import TransformersDualEncoder
from zeroshot.models.hf.language_model import TransformersLanguageModel
from zeroshot.models.towers.cached_text_encoder import EmbeddingMemory
from zeroshot.models.towers.text_tower import TokenTree
from zeroshot.tasks.captioning.captioner import captioner


@dataclass
class Clock:
    """CPU and wall seconds, and the share of what is wrapped."""

    seconds: Callable[[], float] = time.process_time
    cpu: float = 0.0
    wall: float = 0.0
    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def running(self) -> Iterator[None]:
        cpu, wall = self.seconds(), time.perf_counter()
        yield
        self.cpu += self.seconds() - cpu
        self.wall += time.perf_counter() - wall

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self.seconds()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[name] += self.seconds() - begin

        return timed

    def shares(self) -> str:
        named = sorted(self.parts.items(), key=lambda item: -item[1])
        rest = self.cpu - sum(self.parts.values())
        return ", ".join(f"{name} {t / self.cpu:.0%}" for name, t in [*named, ("the rest", rest)])


class Peak:
    """Growth of the resident memory within a block, in megabytes (Linux)."""

    def __enter__(self) -> "Peak":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
        self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.megabytes = (self._status("VmHWM") - self.before) / 1024

    def _status(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])


class Bench:
    """The models, and both ways to run them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        device, dtype = torch.device(options.device), PRECISIONS[options.precision]

        def both() -> tuple[TransformersLanguageModel, TransformersDualEncoder]:
            end_after = options.end_after if options.early_end else None
            lm = language_model(options.small, end_after, split_words=options.split_words)
            encoder = clip(options.small)
            lm.model.to(device, dtype)
            encoder.model.to(device, dtype)
            return lm, encoder

        self.plain_lm, self.plain_clip = both()
        self.lm, self.clip = map(as_loaded, both())
        self.settings = {"k": options.k, "alpha": options.alpha}

    def reference(self, images: list[Any], clock: Clock, steps: int) -> list[list[int]]:
        """The plain algorithm, picture by picture."""

        def encode(texts: list[str]) -> Tensor:
            tokens = self.plain_clip.tokenizer(
                self.plain_clip._prepare(texts),
                padding=True,
                truncation=True,
                max_length=77,
                return_tensors="pt",
            ).to(self.plain_clip.model.device)
            clock.counts["positions"] += tokens["input_ids"].numel()
            rows: Tensor = self.plain_clip.model.get_text_features(**tokens).pooler_output
            return rows

        text = clock.part("text tower", encode)
        model = clock.part("language model", self.plain_lm.model)
        out = []
        with clock.running():
            for image in images:
                row = clock.part("image tower", self.plain_clip.encode_images)([image])[0]
                row = row.to(self.plain_clip.model.device)
                out.append(
                    plain_magic(
                        model,
                        self.plain_lm.decode,
                        text,
                        row,
                        prefix=[self.plain_lm.start],
                        end=self.plain_lm.end,
                        logit_scale=self.plain_clip.logit_scale,
                        beta=self.options.beta,
                        steps=steps,
                        **self.settings,
                    )
                )
        return out

    def ours(
        self, images: list[Any], clock: Clock, steps: int, batch: int
    ) -> tuple[list[list[int]], int]:
        """The package's loop in batches; the tokens, and those that ran through the text tower."""
        self.clip.__dict__.pop("memory", None)  # nothing is left over from an earlier run
        self.clip._causal_tower  # noqa: B018  tried once when a model is first used
        run, lm = TokenTree.__call__, self.lm
        nodes = 0

        def counted(tree: TokenTree, paths: Any) -> Tensor:
            nonlocal nodes
            before = tree.nodes_run
            rows = timed(tree, paths)
            nodes += tree.nodes_run - before
            return rows

        def look_ahead(tokens: Tensor, cache: Any = None) -> Any:
            clock.counts["look-aheads"] += len(tokens)
            return forward(tokens, cache)

        timed = clock.part("text tower", run)
        wrapped = {name: getattr(lm, name) for name in ("forward", "logits", "select", "decode")}
        TokenTree.__call__ = counted  # type: ignore[method-assign]
        forward = clock.part("look-ahead", wrapped["forward"])
        lm.forward = look_ahead  # type: ignore[method-assign]
        for name, part in (
            ("logits", "vocabulary"),
            ("select", "cache"),
            ("decode", "decoding tokens"),
        ):
            setattr(lm, name, clock.part(part, wrapped[name]))
        tokenize = self.clip._paths
        self.clip._paths = clock.part("tokenizing", tokenize)  # type: ignore[method-assign]
        out = []
        try:
            with clock.running():
                for start in range(0, len(images), batch):
                    part = images[start : start + batch]
                    rows = clock.part("image tower", self.clip.encode_images)(part)
                    guide = MagicGuide(rows, self.clip, lm, self.options.beta)
                    out += generate(
                        lm, [[lm.start]] * len(part), guide, max_tokens=steps, **self.settings
                    )
        finally:
            TokenTree.__call__ = run  # type: ignore[method-assign]
            for name in wrapped:
                delattr(lm, name)
            del self.clip._paths
        return out, nodes

    def reach(self, nodes: int, clock: Clock) -> float:
        """Share of the card's matrix peak that the text tower's layers reach."""
        config = self.clip.model.config.text_config
        weights = config.num_hidden_layers * (
            4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
        )
        return 2 * weights * nodes / clock.parts["text tower"] / self.options.peak_tflops / 1e12


def real(options: argparse.Namespace) -> None:
    """A model set on real pictures: images and words a second, and the share of each stage."""
    models = resolve(options.models[0])
    encoder, lm = models.encoder, models.language_model
    sources = find(options.models[1]).sources
    method = captioner(models, "magic", {})
    clock = Clock()
    for part, owner, name in (
        ("look-ahead", lm, "forward"),
        ("vocabulary", lm, "logits"),
        ("cache", lm, "select"),
        ("text encoder", text_encoder_of(encoder), "encode_texts"),
        ("decoding tokens", lm, "decode"),
    ):
        setattr(owner, name, clock.part(part, getattr(owner, name)))
    run = TokenTree.__call__
    TokenTree.__call__ = clock.part("text tower", run)  # type: ignore[method-assign]
    tokenize = model_inputs.tokenize

    def counted(*args: Any) -> Any:
        batch = tokenize(*args)
        clock.counts["positions"] += batch["input_ids"].numel()
        return batch

    model_inputs.tokenize = counted
    text_encoder, asked = text_encoder_of(encoder), []
    session = text_encoder.session

    def recorded_session() -> Callable[[list[str]], Tensor]:
        encode = session()

        def recorded(texts: list[str]) -> Tensor:
            asked.append(texts)
            return encode(texts)

        return recorded

    text_encoder.session = recorded_session
    images = [open_image(source) for source in sources]
    captions = []
    try:
        with clock.running():
            for start in range(0, len(images), max(options.batches)):
                batch = images[start : start + max(options.batches)]
                rows = clock.part("image encoder", encoder.encode_images)(batch)
                captions += method.caption(rows, encoder, language_model=lm)
    finally:
        TokenTree.__call__ = run  # type: ignore[method-assign]
        model_inputs.tokenize = tokenize
        text_encoder.session = session
    words = sum(len(caption.text.split()) for caption in captions)
    print(
        f"{len(images)} pictures, {words} words: {len(images) / clock.wall:.2f} images/s, "
        f"{words / clock.wall:.1f} words/s; {clock.cpu / len(images):.3f} CPU-s an image\n"
        f"{clock.shares()}"
    )
    if clock.counts["positions"]:  # of an encoder that is not causal
        each = clock.counts["positions"] / len(images)
        print(f"{each:.0f} positions of text an image, padding included")
    print("\n| vectors remembered | new texts an image |\n|---|---|")
    for capacity in (1024, 2048, 4096, 8192, 16384, EmbeddingMemory().capacity):
        print(f"| {capacity} | {new_texts(asked, capacity) / len(images):.0f} |")


def new_texts(asked: list[list[str]], capacity: int) -> int:
    """How many texts of these calls a memory of so many vectors lacks."""
    memory, lacked = EmbeddingMemory(capacity), 0

    def encode(texts: list[str]) -> Tensor:
        nonlocal lacked
        lacked += len(texts)
        return torch.zeros(len(texts), 1)

    for texts in asked:
        memory(texts, encode)
    return lacked


def compare(bench: Bench) -> None:
    """The table: one row of the reference, one for each batch size of ours."""
    options = bench.options
    steps = options.steps - 1  # the start token is the first of them
    images = pictures(options.images)
    peaks = {}
    bench.ours(images[:1], Clock(), steps, 1)  # what is set up once
    for batch in options.batches:  # before the reference leaves memory behind
        with Peak() as peak:
            bench.ours(images[:batch], Clock(), steps, batch)
        peaks[batch] = peak.megabytes
    clock = Clock()
    few = images[: options.reference_images]
    expected = bench.reference(few, clock, steps)
    length = sum(map(len, expected)) / len(expected)
    print(f"{len(few)} of {len(images)} pictures for the reference, {length:.1f} tokens a caption")
    print(
        "| what | CPU-s an image | wall s an image | times less CPU | peak MB an image | tokens |"
    )
    print("|---|---|---|---|---|---|")
    base = clock.cpu / len(few)
    print(f"| reference | {base:.2f} | {clock.wall / len(few):.2f} | 1 | | |")
    positions = clock.counts["positions"] / len(few)
    notes = [f"reference: {clock.shares()}; {positions:.0f} text tokens an image"]
    for batch in options.batches:
        clock = Clock()
        count = max(batch, len(images) // batch * batch) if batch > 1 else len(few)
        tokens, nodes = bench.ours(images[:count], clock, steps, batch)
        equal = tokens[: len(few)] == expected[: len(tokens)]
        mine = clock.cpu / count
        print(
            f"| batch {batch} | {mine:.3f} | {clock.wall / count:.3f} | {base / mine:.1f} "
            f"| {peaks[batch] / batch:.0f} | {'equal' if equal else 'DIFFERENT'} |"
        )
        made = sum(map(len, tokens))
        notes.append(
            f"batch {batch}: {clock.shares()}; {nodes / count:.0f} text tokens an image, "
            f"{clock.counts['look-aheads'] / made:.1f} look-aheads a token"
        )
        if options.device != "cpu":
            notes[-1] += f", {bench.reach(nodes, clock):.0%} of {options.peak_tflops} TFLOP/s"
        if not equal:
            print(f"expected {expected}\nbut got {tokens[: len(few)]}")
            sys.exit(1)
    print("\n".join(["", *notes]))


def growth(bench: Bench) -> None:
    """CPU-seconds a step against length, k and pictures."""
    images = pictures(bench.options.images)

    def step(steps: int, batch: int) -> float:
        return measured(steps, batch)[0]

    def measured(steps: int, batch: int) -> tuple[float, float, float, float]:
        """CPU-s, text tokens and look-aheads a step and picture; the tower's ms a text token."""
        clock = Clock()
        _, nodes = bench.ours(images[:batch], clock, steps, batch)
        each = steps * batch
        tower = 1000 * clock.parts["text tower"] / nodes
        seconds = (clock.cpu - clock.parts["image tower"]) / each
        return seconds, nodes / each, clock.counts["look-aheads"] / each, tower

    print("| caption length | CPU-s a step and picture (batch 4) | text tokens | look-aheads |")
    print("|---|---|---|---|")
    for steps in (8, 15, 30, 60):
        seconds, tokens, fed, tower = measured(steps, 4)
        print(f"| {steps} | {seconds:.4f} | {tokens:.0f}, {tower:.2f} ms each | {fed:.1f} |")
    print("\n| k | CPU-s a step (batch 4, 8 steps) |\n|---|---|")
    for k in (5, 15, 45, 90):
        bench.settings["k"] = k
        print(f"| {k} | {step(8, 4):.4f} |")
    bench.settings["k"] = bench.options.k
    print("\n| pictures at once | CPU-s a step and picture (8 steps) |\n|---|---|")
    for batch in (1, 2, 4, 8, 16, 32):
        if batch <= len(images):
            print(f"| {batch} | {step(8, batch):.4f} |")


def balance(bench: Bench) -> None:
    """CPU-seconds of the main thread beside those of one thread: what two could gain at most.

    The other thread only helps in parallel parts, so a part that it cannot help takes as long in
    the main thread as alone. Needs OMP_WAIT_POLICY=passive, or threads wait by computing.
    """
    images, steps = pictures(bench.options.images), bench.options.steps - 1
    batch = max(bench.options.batches)
    bench.ours(images, Clock(), 2, batch)
    clocks = []
    for threads, seconds in ((1, time.thread_time), (2, time.thread_time)):
        torch.set_num_threads(threads)
        clock = Clock(seconds=seconds)
        bench.ours(images, clock, steps, batch)
        clocks.append(clock)
    one, main = clocks
    print("| part | one thread, CPU-s | the main one of two | times less |\n|---|---|---|---|")
    rows = {name: (one.parts[name], main.parts[name]) for name in one.parts}
    rows["all"] = one.cpu, main.cpu
    for name, (alone, helped) in sorted(rows.items(), key=lambda row: -row[1][0]):
        print(f"| {name} | {alone:.3f} | {helped:.3f} | {alone / helped:.2f} |")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--reference-images", type=int, default=4)
    parser.add_argument("--k", type=int, default=45)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--beta", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=16, help="length with the start token")
    parser.add_argument("--early-end", action="store_true", help="captions end by themselves")
    parser.add_argument("--end-after", type=float, default=10.0, help="after about so many tokens")
    parser.add_argument(
        "--split-words", action="store_true", help="words of two to four text tokens"
    )
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--balance", action="store_true", help="what a second thread could gain")
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run at all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="bf16, H100 SXM: 989")
    parser.add_argument("--models", nargs=2, metavar=("SET", "PICTURES"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{options.threads} thread(s), k={options.k}, {options.steps} steps\n"
    )
    if options.models:
        real(options)
        return
    bench = Bench(options)
    (balance if options.balance else growth if options.growth else compare)(bench)
    print(
        f"\npeak of the whole process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB"
    )


if __name__ == "__main__":
    main()
