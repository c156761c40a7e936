"""Ask questions about images: `python examples/ask.py [FOLDER] [QUESTION] [NAMES] [MODEL SET]`."""

import sys
from pathlib import Path

import zeroshot

SCENES = Path(__file__).parent / "scenes"
QUESTION = "How many red shapes are there?"
NAMES = "red heart,blue star,green ring,purple cross,brown square,red square,blue ring,green heart"


def main(
    folder: str = str(SCENES),
    question: str = QUESTION,
    names: str = NAMES,
    models: str = "pocket",
) -> None:
    for result in zeroshot.ask(folder, question, models, among=names):
        print(f"{Path(result.path or '').name}: {result.summary() or result.error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
