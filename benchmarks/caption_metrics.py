"""The figures of a file of captions, and what they take.

    python benchmarks/caption_metrics.py captions.jsonl.gz

A row of the file: {"prediction": "A dog runs.", "references": ["A dog running on grass.", ...]}.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

from zeroshot.metrics.captioning import caption_scores


def main() -> None:
    """Read, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON lines, .gz or not")
    options = parser.parse_args()
    opened = gzip.open if options.file.suffix == ".gz" else open
    with opened(options.file, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    begin = time.process_time()
    scores = caption_scores(
        [row["prediction"] for row in rows], [row["references"] for row in rows]
    )
    seconds = time.process_time() - begin
    names = [*scores.percent(), "CIDEr plain"]
    values = [*scores.percent().values(), 100 * scores.cider_plain.corpus]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    print(f"| {' | '.join(f'{value:.2f}' for value in values)} |")
    bleu = scores.bleu
    print(
        f"\n{len(rows)} captions of {bleu.length} words, references of {bleu.reference_length}; "
        f"n-grams found {' / '.join(map(str, bleu.matches))} "
        f"of {' / '.join(map(str, bleu.totals))}; {seconds:.1f} CPU-s"
    )


if __name__ == "__main__":
    main()
