"""Caption pictures by one or more methods, and score them against people's captions.

    python benchmarks/captions.py SET PICTURES CAPTIONS.jsonl
    python benchmarks/captions.py pocket pictures captions.jsonl --method magic --method retrieve
    python benchmarks/captions.py SET PICTURES CAPTIONS.jsonl --method magic:beta=1,k=25 --out said
    python benchmarks/captions.py SET PICTURES CAPTIONS.jsonl --method retrieve@asif --method mbr

A row of the file: {"file": "0001.jpg", "captions": ["A dog running on grass.", ...]}. Behind @
stands a coupling in place of the set's (`caption --coupling`). The interval is that of CIDEr's mean
over pictures, of 10000 bootstrap samples. CPU-seconds are those of the process after a first
picture, which sets up what is set up once; by then the rows of pictures and of a pool's captions
are known.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import zeroshot
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.inputs.resolve import find
from zeroshot.metrics.captioning import caption_scores

COLUMNS = ("B@1", "B@4", "ROUGE-L", "CIDEr")


def references(file: Path, names: list[str]) -> list[list[str]]:
    """The captions of each picture, in order; the run ends where the two do not fit."""
    rows = map(json.loads, file.read_text("utf-8").splitlines())
    known = {row["file"]: row["captions"] for row in rows}
    if set(known) != set(names):
        without, absent = sorted(set(names) - set(known)), sorted(set(known) - set(names))
        sys.exit(f"pictures without captions: {without}; captions without a picture: {absent}")
    return [known[name] for name in names]


def main() -> None:
    """Caption, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", metavar="SET", help="a model set, its name or directory")
    parser.add_argument("pictures", metavar="PICTURES", type=Path)
    parser.add_argument("captions", metavar="CAPTIONS", type=Path, help="JSON lines")
    parser.add_argument(
        "--method",
        action="append",
        help="NAME, NAME@COUPLING, NAME:KEY=VALUE,...; again for another",
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings for later runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help="folder for 1-METHOD.jsonl, ...: captions and CIDEr"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pictures = [Path(source.path) for source in find(options.pictures).sources]
    truth = references(options.captions, [path.name for path in pictures])
    print(f"| method | {' | '.join(COLUMNS)} | 95 % | CPU-s a picture | pictures |")
    print("|---|" + "---|" * (len(COLUMNS) + 3))
    with tempfile.TemporaryDirectory() as folder:
        compare(options, pictures, truth, options.cache or Path(folder))


def interval(each: np.ndarray) -> str:
    """Where 95 of 100 bootstrap means lie, times 100."""
    picked = np.random.default_rng(0).integers(len(each), size=(10_000, len(each)))
    low, high = 100 * np.quantile(each[picked].mean(1), [0.025, 0.975])
    return f"{low:.1f} to {high:.1f}"


def compare(
    options: argparse.Namespace,
    pictures: list[Path],
    truth: list[list[str]],
    cache: Path,
) -> None:
    """A row for each method."""
    models = zeroshot.load(options.models, device="cpu")
    zeroshot.embed(pictures, models, cache=EmbeddingCache(cache))
    for number, method in enumerate(options.method or ["magic"], 1):
        what, _, pairs = method.partition(":")
        name, _, coupling = what.partition("@")
        given = dict(pair.split("=") for pair in pairs.split(",") if pair)
        given |= {"coupling": coupling or None}
        zeroshot.caption(pictures[:1], models, name, cache=EmbeddingCache(cache), **given)
        begin = time.process_time()
        results = zeroshot.caption(pictures, models, name, cache=EmbeddingCache(cache), **given)
        seconds = (time.process_time() - begin) / len(pictures)
        if results.failed:
            sys.exit(f"{results.failed[0].path}: {results.failed[0].error.message}")
        texts = [result.caption for result in results]
        scores = caption_scores(texts, truth)
        values = " | ".join(f"{scores.percent()[name]:.2f}" for name in COLUMNS)
        row = f"{values} | {interval(scores.cider.each)} | {seconds:.2f} | {len(pictures)}"
        print(f"| {method} | {row} |", flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            rows = zip(pictures, texts, truth, scores.cider.each.tolist(), strict=True)
            (options.out / f"{number}-{name}.jsonl").write_text(
                "".join(
                    json.dumps(
                        {"file": p.name, "prediction": text, "references": own, "cider": cider},
                        ensure_ascii=False,
                    )
                    + "\n"
                    for p, text, own, cider in rows
                ),
                "utf-8",
            )


if __name__ == "__main__":
    main()
