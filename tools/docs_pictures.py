"""The pictures of real screens in docs/images: `python tools/docs_pictures.py`.

`terminal.png`, `report.png`, `trace.png` and `notebook.png` are what the commands and a notebook
show for the example scenes. Needs chromium, its driver and selenium, as tests/browser.py says.
"""

import dataclasses
import html
import io
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

import zeroshot

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import browser  # noqa: E402
from tests.terminal import TERM, Terminal  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SCENES = "examples/scenes"
POCKET = ("--models", "pocket", "--offline")
STEPS = 5
COLUMNS = 112
LINES = [
    f'zeroshot classify {SCENES} --labels "red heart,blue star,green ring" --models pocket -k 2 -q',
    f'zeroshot search "a blue star" {SCENES} --models pocket -k 3 -q',
]
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 16px; font: 15px/1.45 sans-serif; background: white }}
pre {{ margin: 0; font: 14px/1.35 "DejaVu Sans Mono", monospace }}
.screen {{ background: #1d1f21; color: #e8e8e8; border-radius: 8px; padding: 14px 18px }}
.in {{ background: #f4f4f4; border: 1px solid #ddd; padding: 8px 10px; margin: 8px 0 }}
.prompt {{ color: #9ece6a }}
</style><body>{body}</body>"""


def screenshot(address: str, target: Path, width: int, height: int | None = None) -> None:
    """A page as it is at this width, cut at `height` or at its own."""
    with browser(width, height or 100, motion=False) as driver:
        driver.get(address)
        high = driver.execute_script("return document.documentElement.scrollHeight")
        size = {"width": width, "height": height or high, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    image.quantize(256).save(target, optimize=True)


def draw(body: str, target: Path, width: int, height: int | None = None) -> None:
    """A page of this body."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(PAGE.format(body=body), "utf-8")
        screenshot(page.as_uri(), target, width, height)


def run(*arguments: str) -> None:
    """A command of this version, in the repository."""
    subprocess.run([sys.executable, "-m", "zeroshot", *arguments], cwd=ROOT, check=True)


def screen(line: str) -> str:
    """What a person sees after the command."""
    terminal = Terminal(COLUMNS)
    environment = {**os.environ, "TERM": TERM, "COLUMNS": str(COLUMNS)}
    command = [sys.executable, "-m", "zeroshot", *shlex.split(line)[1:]]
    subprocess.run(
        command, cwd=ROOT, check=True, env=environment, stdout=terminal.slave, stderr=terminal.slave
    )
    terminal.close()
    return "\n".join(terminal.screen.shown)


def terminal() -> None:
    """`terminal.png`."""
    seen = ["\n".join((line, screen(line), "", "")) for line in LINES]
    shown = "".join(f'<pre><span class="prompt">$</span> {html.escape(s)}</pre>' for s in seen)
    draw(f'<div class="screen">{shown}</div>', IMAGES / "terminal.png", 1040)


def report(folder: Path) -> None:
    """`report.png`: captions of two methods beside each other."""
    run("eval", SCENES, "--task", "caption", *POCKET, "--compare", "retrieve,magic",
        "--out", str(folder / "results"))  # fmt: skip
    page = folder / "report.html"
    run("report", str(folder / "results"), "--out", str(page))
    screenshot(page.as_uri(), IMAGES / "report.png", 1100, 900)


def trace() -> None:
    """`trace.png`: every choice of one caption."""
    [result] = zeroshot.caption(f"{ROOT}/{SCENES}/2-blue-star.png", models="pocket", trace=True)
    assert result.trace is not None
    begun = dataclasses.replace(result.trace, steps=result.trace.steps[:STEPS])
    begun.save(IMAGES / "trace.png")


def notebook() -> None:
    """`notebook.png`: a notebook of the examples, run."""
    read = nbformat.read(ROOT / "examples" / "classify.ipynb", as_version=4)
    NotebookClient(read, timeout=600, resources={"metadata": {"path": ROOT / "examples"}}).execute()
    parts = []
    for cell in read.cells:
        if cell.cell_type != "code":
            continue
        parts.append(f'<div class="in"><pre>{html.escape(cell.source)}</pre></div>')
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/html" in data:
                parts.append(data["text/html"])
            elif output.get("name") == "stderr":
                continue  # warnings about this environment
            elif text := data.get("text/plain") or output.get("text"):
                parts.append(f"<pre>{html.escape(text)}</pre>")
    draw("".join(parts), IMAGES / "notebook.png", 940, 820)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["ZEROSHOT_CACHE"] = f"{name}/cache"
        terminal()
        report(Path(name))
        trace()
        notebook()


if __name__ == "__main__":
    main()
