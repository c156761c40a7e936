"""Search images by text or by image: `python examples/search.py [QUERY] [FOLDER] [MODEL SET]`.

If the query is a file, it is an image query. The folder is embedded once; a second search encodes
only the query.
"""

import sys
from pathlib import Path

import zeroshot

SCENES = Path(__file__).parent / "scenes"


def main(query: str = "a red heart", folder: str = str(SCENES), models: str = "pocket") -> None:
    text_or_path = Path(query) if Path(query).is_file() else query
    for hit in zeroshot.search(text_or_path, folder, models=models, top_k=3):
        score = hit.error.message if hit.error else f"{hit.score:.3f}"
        print(f"{score}  {Path(hit.path or '').name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
