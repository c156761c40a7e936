"""Results as a data frame: `python examples/results.py [FOLDER] [MODEL SET]`.

Needs pandas. A line for each image, and with `long=True` one for each box.
"""

import sys
from pathlib import Path

import zeroshot

SCENES = Path(__file__).parent / "scenes"
LABELS = ["red heart", "blue star", "green ring", "yellow circle"]


def main(folder: str = str(SCENES), models: str = "pocket") -> None:
    frame = zeroshot.classify(folder, LABELS, models=models).to_pandas()
    frame["name"] = [Path(path).name for path in frame.path]
    print(frame[["name", "label", "score"]].to_string(index=False))
    boxes = zeroshot.detect(folder, LABELS, models=models).to_pandas(long=True)
    print(boxes.groupby("label").score.agg(["count", "max"]).round(2))


if __name__ == "__main__":
    main(*sys.argv[1:])
