"""Find pictures by text or by picture: `python examples/search.py [QUERY] [FOLDER] [MODEL SET]`.

A query that is a file is a picture. The folder is embedded once; a second search encodes only the
query.
"""

import sys
from pathlib import Path

import zeroshot

SCENES = Path(__file__).parent / "scenes"


def main(query: str = "a red heart", folder: str = str(SCENES), models: str = "pocket") -> None:
    wanted = Path(query) if Path(query).is_file() else query
    for hit in zeroshot.search(wanted, folder, models=models, top_k=3):
        said = hit.error.message if hit.error else f"{hit.score:.3f}"
        print(f"{said}  {Path(hit.path or '').name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
