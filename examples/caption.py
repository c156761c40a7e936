"""Caption images: `python examples/caption.py [FOLDER] [MODEL SET]`."""

import sys
from pathlib import Path

import zeroshot

SCENES = Path(__file__).parent / "scenes"


def main(folder: str = str(SCENES), models: str = "pocket") -> None:
    for result in zeroshot.caption(folder, models=models):
        text = result.caption if result.error is None else f"({result.error.message})"
        print(f"{Path(result.path or '').name}: {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
