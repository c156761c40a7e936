"""The README's picture: `python tools/readme_picture.py`.

Runs `zeroshot caption examples/scenes --models pocket` and draws what it says below each scene.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parent.parent
COMMAND = ["caption", "examples/scenes", "--models", "pocket", "--json", "--quiet"]
COLUMNS, SIDE, GAP, LINES, LETTER = 4, 200, 14, 5, 14


def captions() -> list[tuple[str, str]]:
    """Path and caption of every scene, as the command line prints them."""
    command = [sys.executable, "-m", "zeroshot", *COMMAND]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [(row["path"], row["caption"]) for row in map(json.loads, printed.splitlines())]


def contact_sheet(answers: list[tuple[str, str]]) -> Image.Image:
    """The scenes in rows of `COLUMNS`, each above its caption."""
    font = ImageFont.load_default(LETTER)
    height = SIDE + LINES * (LETTER + 4) + GAP
    rows = -(-len(answers) // COLUMNS)
    sheet = Image.new("RGB", (GAP + COLUMNS * (SIDE + GAP), GAP + rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (path, caption) in enumerate(answers):
        x = GAP + number % COLUMNS * (SIDE + GAP)
        y = GAP + number // COLUMNS * height
        scene = Image.open(ROOT / path).convert("RGB")
        sheet.paste(scene.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
        draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline="lightgrey")
        text = "\n".join(textwrap.wrap(caption, 28)[:LINES])
        draw.multiline_text((x, y + SIDE + 6), text, fill="black", font=font, spacing=4)
    return sheet


if __name__ == "__main__":
    target = ROOT / "docs" / "images" / "captions.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(captions()).save(target, optimize=True)
