"""Caption pictures by one or more methods, and score them against people's captions.

    python benchmarks/captions.py SET PICTURES CAPTIONS.jsonl
    python benchmarks/captions.py pocket pictures captions.jsonl --method magic --method retrieve
    python benchmarks/captions.py SET PICTURES CAPTIONS.jsonl --method magic:beta=1,k=25 --out said

A row of the file: {"file": "0001.jpg", "captions": ["A dog running on grass.", ...]}. CPU-seconds
are those of the process after a first picture, which sets up what is set up once (the texts that
`retrieve` chooses from, say); no embeddings are kept from run to run.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

import zeroshot
from zeroshot.caption_metrics import caption_scores
from zeroshot.images import find
from zeroshot.store import EmbeddingCache

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
        "--method", action="append", help="NAME or NAME:KEY=VALUE,...; again for another"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help="folder for 1-METHOD.jsonl, ...: captions and CIDEr"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pictures = [Path(source.path) for source in find(options.pictures).sources]
    truth = references(options.captions, [path.name for path in pictures])
    models = zeroshot.load(options.models, device="cpu")
    print(f"| method | {' | '.join(COLUMNS)} | CPU-s a picture | pictures |")
    print("|---|" + "---|" * (len(COLUMNS) + 2))
    for number, method in enumerate(options.method or ["magic"], 1):
        name, _, pairs = method.partition(":")
        given = dict(pair.split("=") for pair in pairs.split(",") if pair)
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder)
            zeroshot.caption(pictures[:1], models, name, cache=EmbeddingCache(kept), **given)
            begin = time.process_time()
            results = zeroshot.caption(pictures, models, name, cache=EmbeddingCache(kept), **given)
            seconds = (time.process_time() - begin) / len(pictures)
        if results.failed:
            sys.exit(f"{results.failed[0].path}: {results.failed[0].error.message}")
        texts = [result.caption for result in results]
        scores = caption_scores(texts, truth)
        values = " | ".join(f"{scores.percent()[name]:.2f}" for name in COLUMNS)
        print(f"| {method} | {values} | {seconds:.2f} | {len(pictures)} |", flush=True)
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
