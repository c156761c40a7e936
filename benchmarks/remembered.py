"""What texts that are remembered save a captioning run: CPU-seconds an image as it goes on.

    python benchmarks/remembered.py SET              # 500 photographs, 50 others after them
    python benchmarks/remembered.py SET --photographs 100 --window 25 --after 25

The photographs are anchors of the set, by the image embeddings in its anchor file: they are left
out of the coupling, and no image encoder runs. Captions by MaGiC, whose candidate texts are
encoded. Others are captioned afterwards, by a process that knows nothing yet, and by one that finds
the texts of the first run in the cache.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inference.embedding import text_encoder_of
from zeroshot.inference.remembered_models import KeptTexts
from zeroshot.model_set.coupled_encoder import CoupledEncoder, calibrate
from zeroshot.model_set.model_set import ModelSet, resolve
from zeroshot.models.towers.cached_text_encoder import EmbeddingMemory
from zeroshot.ops import normalize
from zeroshot.tasks.captioning.captioner import captioner


@dataclass
class Counted:
    """A memory that counts: the texts it was asked for, and those that it lacked."""

    memory: EmbeddingMemory
    asked: int = 0
    new: int = 0

    def __call__(self, texts: Any, encode: Any) -> Tensor:
        def counting(fresh: list[str]) -> Tensor:
            self.new += len(fresh)
            rows: Tensor = encode(fresh)
            return rows

        self.asked += len(set(texts))
        return self.memory(texts, counting)


class Run:
    """Captions of photographs that are no longer anchors."""

    def __init__(self, models: ModelSet, count: int, options: argparse.Namespace) -> None:
        anchors = models.anchors
        order = torch.randperm(len(anchors.images), generator=torch.Generator().manual_seed(0))
        left, kept = order[:count], order[count:]
        images, texts = (normalize(side.float()) for side in (anchors.images, anchors.texts))
        pairs = images[kept], texts[kept]
        coupling = models.coupling.fit(*pairs)
        self.encoder = CoupledEncoder(
            models.image_encoder,
            models.text_encoder,
            coupling,
            calibrate(coupling, *pairs),
            anchors.fingerprint,
        )
        self.text_encoder: Any = text_encoder_of(self.encoder)
        self.images = self.encoder.project_images(images[left])
        self.language_model = models.language_model
        self.method = captioner(models, "magic", {})
        self.batch = options.batch
        self.kept = len(kept)

    def captions(self, first: int, end: int) -> tuple[float, float, float]:
        """CPU-seconds, texts of its candidates and new texts, an image."""
        counted = Counted(self.text_encoder.memory)
        self.text_encoder.__dict__["memory"] = counted
        begin = time.process_time()
        for start in range(first, end, self.batch):
            rows = self.images[start : min(end, start + self.batch)]
            self.method.caption(rows, self.encoder, language_model=self.language_model)
        seconds, count = time.process_time() - begin, end - first
        self.text_encoder.__dict__["memory"] = counted.memory
        return seconds / count, counted.asked / count, counted.new / count

    def remember(self, memory: EmbeddingMemory) -> EmbeddingMemory:
        """What the encoder remembered; from now on it has another memory."""
        before: EmbeddingMemory = self.text_encoder.memory
        self.text_encoder.__dict__["memory"] = memory
        return before


def nothing(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What a cache without texts has of them."""
    return torch.empty(0, 0), torch.zeros(len(texts), dtype=torch.bool)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", help="a set with a coupled pair, anchors and a language model")
    parser.add_argument("--photographs", type=int, default=500)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--after", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(resolve(options.models), options.photographs + options.after, options)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, "
        f"{run.kept} anchors, batches of {options.batch}\n"
    )
    run.captions(0, 2)  # what is set up once
    run.remember(EmbeddingMemory(before=nothing))
    print("| photographs | CPU-s an image | texts of its steps | new texts | remembered |")
    print("|---|---|---|---|---|")

    def line(what: str, first: int, end: int) -> None:
        seconds, asked, new = run.captions(first, end)
        held = len(run.text_encoder.memory)
        print(f"| {what} | {seconds:.3f} | {asked:.0f} | {new:.0f} | {held} |", flush=True)

    for first in range(0, options.photographs, options.window):
        end = min(options.photographs, first + options.window)
        line(f"{first + 1} to {end}", first, end)
    others = options.photographs, options.photographs + options.after
    learned = run.remember(EmbeddingMemory())
    line(f"{options.after} others, nothing remembered", *others)
    line("the same again, in the same process", *others)
    with tempfile.TemporaryDirectory() as folder, EmbeddingCache(Path(folder)) as cache:
        begin = time.process_time()
        store = KeptTexts(cache, run.text_encoder.name)
        store.put(learned)
        stored = time.process_time() - begin
        megabytes = sum(space.bytes for space in cache.info().spaces) / 1e6
        memory = EmbeddingMemory(before=store.get)
        run.remember(memory)
        line(
            f"{options.after} others, texts of the run of {options.photographs}, from the cache",
            *others,
        )
    print(f"\n{len(learned)} texts in the cache: {megabytes:.0f} MB, written in {stored:.2f} CPU-s")


if __name__ == "__main__":
    main()
