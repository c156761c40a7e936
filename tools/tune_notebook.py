"""examples/tune.ipynb, run from its first cell to its last: `python tools/tune_notebook.py`.

The pictures are those of examples/tune.py. Outputs are kept: somebody who only reads it sees them.
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parent.parent
TEXTS = [
    """# Which method for my images?

You have a folder of pictures and a few labels. There are forty ways to let a frozen model
put these labels on the pictures, and nobody can know beforehand which one suits *your*
pictures. `zeroshot.tune` tries them on the pictures that you have labelled, and says how
often the best one will be right on the others.

Here the pictures are leaves of three trees. They are drawn, so that everything runs on a
laptop in a minute. For your own, put labelled pictures into one folder for each label, and
the others into another folder.""",
    """import tempfile
from pathlib import Path

from PIL import Image
from tune import TREES, draw, draw_leaves

folder = Path(tempfile.mkdtemp())
labelled, others = draw_leaves(folder, labelled=8, others=24)

sheet = Image.new("RGB", (6 * 96, 96))
for i in range(6):
    sheet.paste(draw(TREES[i // 2], i).resize((96, 96)), (96 * i, 0))
sheet.quantize(64)""",
    """Two lindens, two sweetgums, two poplars. Colour, size and place say nothing; the outline
says everything.

## Without labels

Nothing can be measured without labelled pictures. `tune` then takes a method that never
lost to plain zero-shot on the sets of real photographs that it was developed on, and says
that it measured nothing.""",
    """import zeroshot

blind = zeroshot.tune(others, TREES, "pocket")
blind.verdict""",
    """These leaves were drawn, so we know the truth and can look.
(With your own pictures you cannot.)""",
    """def share_right(recipe):
    results = zeroshot.classify(others, recipe=recipe, models="pocket")
    right = [Path(r.path).name.startswith(r.labels[0].label) for r in results]
    return sum(right) / len(right)


f"{share_right(blind):.0%} right"
""",
    """No better than a guess: the small model of this example has never read the names of trees.

## With eight labels of each tree

The same call with `shots`, the folder of labelled pictures. Now all methods compete.""",
    """recipe = zeroshot.tune(others, TREES, "pocket", shots=labelled, suggest=3)
print(recipe.verdict)
f = recipe.figures
print(f"right: {f.accuracy:.0%}, 95 % interval {f.low:.0%} to {f.high:.0%}")
print(f"plain zero-shot: {f.plain:.0%}, 95 % interval {f.plain_low:.0%} to {f.plain_high:.0%}")""",
    """The figure is honest: it comes from labelled pictures that took no part in the choice, each
in turn. The interval is for as many further pictures as there are in the other folder. Let
us look again:""",
    """f"{share_right(recipe):.0%} right\"""",
    """## What was tried

The best of many methods is lucky too, so do not take these figures for what you will get;
the one above is that. Methods within one standard error of the best are as good as we can
tell, and the simplest of them was taken.""",
    """for one in recipe.tried[:8]:
    print(f"{one['name']:32} {one['accuracy']:.0%}  standard error {one['error']:.0%}")""",
    """## Would more labels help?

The recipe with a part of the labels of each tree. If the last step still gains more than
its standard error, label more.""",
    """for point in recipe.curve:
    labels, right, error = point["labels"], point["accuracy"], point["error"]
    print(f"{labels:.0f} labels a tree: {right:.0%}  standard error {error:.0%}")""",
    """Which ones? Those that stand for many others, and whose label is uncertain:""",
    """[Path(path).name for path in recipe.suggested]""",
    """## Better words instead

A name may be a bad text for what it names. Write down other names and what the things look
like. Wrong ones do no harm, because the search leaves them out. With `truth` instead of
`shots` the labels only judge, and nothing learns from them: the result can be used by
people who have no labelled pictures.""",
    """import json

looks = ["a heart", "a star", "a diamond", "a ring"]
words = {tree: [f"{look} on a white background" for look in looks] for tree in TREES}
(folder / "words.json").write_text(json.dumps(words))

reworded = zeroshot.tune(
    others,
    TREES,
    "pocket",
    truth=labelled,
    among=["ensemble"],
    templates=["simple", str(folder / "words.json")],
)
print(reworded.verdict)
for tree, prompts in reworded.prompts.get("searched", {}).items():
    print(f"{tree}: {', '.join(prompts)}")
print(f"{share_right(reworded):.0%} right")""",
    """## Keep it, and look at its mistakes

The recipe is a text file. `zeroshot classify PICTURES --recipe leaves.toml` uses it, and
`zeroshot report leaves.toml` makes a page of it: what was tried, confusions, whether the
confidence can be trusted, and the surest mistakes.""",
    """from zeroshot.report import load_results, render
from zeroshot.tasks.tuning.recipe import write_recipe

write_recipe(recipe, folder / "leaves.toml")
page = folder / "leaves.html"
page.write_text(render(load_results([folder / "leaves.toml"]), title="Leaves"), "utf-8")
print("\\n".join((folder / "leaves.toml").read_text("utf-8").splitlines()[:10]))""",
    """What to do with how many labels, with figures from real photographs:
[docs/tune.md](../docs/tune.md).""",
]


PROSE = ("#", "Two", "These", "No", "The", "Which", "What")


def cells():
    made = [
        new_markdown_cell(text) if text.startswith(PROSE) else new_code_cell(text.strip())
        for text in TEXTS
    ]
    for number, cell in enumerate(made):
        cell["id"] = f"cell-{number}"
    return made


def tidy(outputs):
    """One text for all that was printed, and no picture twice."""
    kept = []
    for output in outputs:
        output.get("data", {}).pop("image/jpeg", None)
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def keep(cells, path):
    """Run the cells in the folder of the notebook, and write it with its outputs."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "ZEROSHOT_CACHE": cache,
            "PYTHONWARNINGS": "ignore",
        }
        client = NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(notebook, path)


def main() -> None:
    keep(cells(), ROOT / "examples" / "tune.ipynb")


if __name__ == "__main__":
    main()
