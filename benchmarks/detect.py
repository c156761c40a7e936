"""Labels encoded once against once for each picture: `python benchmarks/detect.py`.

OWL-ViT's classes with random weights, saved and loaded, on pictures of noise: our `detect` and
transformers' own zero-shot-object-detection pipeline, one after the other in one run, on the same
weights, labels and pictures. Figures are seconds of CPU time and texts that the text tower read.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from random_models import CLIP_SIZE, clip_tokenizer, words

from zeroshot import models


def save_model(directory: Path, width: int, layers: int) -> None:
    """OWL-ViT with random weights, its tokenizer and preprocessing."""
    tokenizer = clip_tokenizer(CLIP_SIZE[True])
    tokenizer.model_max_length = 16
    shared = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
    }
    text = shared | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = transformers.OwlViTConfig(
        text_config=text,
        vision_config=shared | {"image_size": 96, "patch_size": 16},
        projection_dim=width,
    )
    torch.manual_seed(0)
    model = transformers.OwlViTForObjectDetection(config)
    images = transformers.OwlViTImageProcessorPil(size={"height": 96, "width": 96})
    for part in (model, tokenizer, images):
        part.save_pretrained(directory)


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Seconds of CPU time, and what the work gives back."""
    begin = time.process_time()
    answer = work()
    return time.process_time() - begin, answer


def main() -> None:
    """Print both rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threshold", type=float, default=0.6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8))
        for _ in range(options.images)
    ]
    labels = ["".join(pair) for pair in words(CLIP_SIZE[True])[: options.labels]]

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options.width, options.layers)
        detector = models.load_detector(f"hf:{folder}", device="cpu")
        read = {"texts": 0}

        def ours() -> int:
            prompts = detector.encode_prompts(labels)
            found = detector.detect(pictures, prompts, options.threshold)
            return sum(len(f.boxes) for f in found)

        def theirs() -> int:
            finds = transformers.pipeline(
                "zero-shot-object-detection",
                model=transformers.OwlViTForObjectDetection.from_pretrained(folder).eval(),
                tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
                image_processor=transformers.AutoImageProcessor.from_pretrained(
                    folder, backend="pil"
                ),
            )
            asked = [{"image": picture, "candidate_labels": labels} for picture in pictures]
            listen(finds.model, read)
            return sum(len(found) for found in finds(asked, threshold=options.threshold))

        listen(detector.model, read)
        print(f"{options.labels} labels, {options.images} pictures, width {options.width}")
        for name, work in (("zeroshot", ours), ("transformers' pipeline", theirs)):
            read["texts"] = 0
            seconds, boxes = timed(work)
            print(f"{name:24} {seconds:8.2f} s CPU  {read['texts']:6} texts read  {boxes} boxes")


def listen(model: torch.nn.Module, read: dict[str, int]) -> None:
    """Count the rows that the text tower reads."""

    def count(module: torch.nn.Module, given: tuple, more: dict, answer: object) -> None:
        ids = more["input_ids"] if "input_ids" in more else given[0]
        read["texts"] += len(ids)

    model.owlvit.text_model.register_forward_hook(count, with_kwargs=True)


if __name__ == "__main__":
    main()
