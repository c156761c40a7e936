"""Find pictures by text or by picture: `python examples/search.py [QUERY] [FOLDER] [MODEL SET]`.

A query that is a file is a picture. The folder is embedded once; a second search encodes only the
query.
"""

import sys
from pathlib import Path

import torch

import zeroshot

SCENES = Path(__file__).parent / "scenes"


def main(query: str = "a red heart", folder: str = str(SCENES), models: str = "pocket") -> None:
    loaded = zeroshot.load(models)
    found = [r for r in zeroshot.embed(folder, models=loaded) if r.error is None]
    rows = torch.tensor([r.embedding for r in found])  # [n d], unit rows
    if Path(query).is_file():
        wanted = torch.tensor(zeroshot.embed(query, models=loaded)[0].embedding)
    else:
        wanted = loaded.encoder.encode_texts([query])[0]
    cosine, best = (rows @ wanted).topk(min(3, len(rows)))
    for value, place in zip(cosine.tolist(), best.tolist(), strict=True):
        print(f"{value:.3f}  {Path(found[place].path or '').name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
