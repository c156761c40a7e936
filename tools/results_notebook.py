"""examples/results.ipynb, run from its first cell to its last: `python tools/results_notebook.py`.

Outputs are kept: somebody who only reads it sees them.
"""

import sys
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).parent.parent
TEXT, CODE = new_markdown_cell, new_code_cell
CELLS = [
    (
        TEXT,
        """# What comes back

Every function of `zeroshot` returns a list with one result for each image. In a notebook the
list is a table; in code it is a data frame, or objects with names. The pictures are drawn,
and the model set is the small one that comes with the package.""",
    ),
    (
        CODE,
        """import zeroshot

names = ["1-red-heart", "2-blue-star", "3-green-ring", "4-yellow-circle-purple-cross"]
scenes = [f"scenes/{name}.png" for name in names]
labels = ["red heart", "blue star", "green ring", "yellow circle"]
found = zeroshot.classify(scenes, labels, models="pocket", top_k=3)
found""",
    ),
    (TEXT, "A bar is a score between 0 and 1. One result in full, by its names:"),
    (CODE, "found[0].path, found[0].labels[0], found[0].method"),
    (TEXT, "## Captions\n\nThe score is the cosine of the caption with the image."),
    (
        CODE,
        """captions = zeroshot.caption(scenes[:3], models="pocket", trace=True)
captions""",
    ),
    (
        TEXT,
        """The trace has every choice of the words: which continuations the language model offered,
and how well each fits the image. It is shown as a figure, which `trace.save("a.png")` keeps.""",
    ),
    (CODE, "captions[1].trace"),
    (TEXT, "## Search\n\nA result for each hit, best first; an image may ask, too."),
    (CODE, 'zeroshot.search("a blue star", "scenes", models="pocket", top_k=3)'),
    (
        TEXT,
        """## Data frames

`to_pandas`, `to_polars` and `to_arrow` give a line for each image.""",
    ),
    (CODE, 'found.to_pandas()[["path", "label", "score", "cosine", "method"]]'),
    (TEXT, "With `long=True` a line for each label, box, region, text or answer."),
    (
        CODE,
        """boxes = zeroshot.detect(scenes, labels, models="pocket")
sides = ["left", "top", "right", "bottom"]
boxes.to_pandas(long=True)[["path", "label", "score", *sides]].round(2)""",
    ),
    (TEXT, "And from there a plot:"),
    (
        CODE,
        """from pathlib import Path

import matplotlib.pyplot as plt

every = zeroshot.classify("scenes", labels, models="pocket", top_k=4, score="cosine")
frame = every.to_pandas(long=True)
frame["scene"] = [Path(path).stem[:18] for path in frame.path]
grid = frame.pivot(index="scene", columns="label", values="cosine")
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
drawn = axes.imshow(grid.astype(float), aspect="auto")
axes.set_xticks(range(len(grid.columns)), grid.columns)
axes.set_yticks(range(len(grid)), grid.index)
figure.colorbar(drawn, label="cosine")
plt.show()""",
    ),
    (
        TEXT,
        """## Embeddings of your own

A method is a function of tensors. It takes arrays too, and says what is wrong with them.""",
    ),
    (
        CODE,
        """import numpy as np

from zeroshot.methods import StatA

images = np.array([one.embedding for one in zeroshot.embed(scenes, models="pocket")])
texts = zeroshot.load("pocket").encoder.encode_texts(labels)
StatA().scores(images, texts).round(decimals=2)""",
    ),
    (
        CODE,
        """try:
    StatA().scores(10 * images, texts)
except ValueError as error:
    print(error)""",
    ),
    (
        TEXT,
        """An image that cannot be read has an `error` and stops nothing; `results.failed` holds
these. More in [docs/python.md](../docs/python.md).""",
    ),
]


def cells():
    made = [kind(text) for kind, text in CELLS]
    for number, cell in enumerate(made):
        cell["id"] = f"cell-{number}"
    return made


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from tune_notebook import keep

    keep(cells(), ROOT / "examples" / "results.ipynb")


if __name__ == "__main__":
    main()
