"""Classify images: `python examples/classify.py [FOLDER] [LABELS] [MODEL SET]`."""

import sys
from pathlib import Path

import zeroshot

SCENES = Path(__file__).parent / "scenes"
LABELS = "red heart,blue star,green ring,purple cross,brown square,pink diamond"


def main(folder: str = str(SCENES), labels: str = LABELS, models: str = "pocket") -> None:
    for result in zeroshot.classify(folder, labels, models=models, top_k=2):
        best = ", ".join(f"{x.label} {x.score:.2f}" for x in result.labels)
        print(f"{Path(result.path or '').name}: {best or result.error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
