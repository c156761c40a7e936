"""What a release needs: `python tools/release.py check v0.1.0`, and `notes v0.1.0`.

The version stands in pyproject.toml. `check` compares the tag, CHANGELOG.md and CITATION.cff with
it; `notes` prints the changes of the version. It needs nothing but the standard library.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^## \[?(Unreleased|\d[\w.]*)\]?(?: - (\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)


def version() -> str:
    """The one that pyproject.toml declares."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return str(read["project"]["version"])


def cited() -> str:
    """The one of CITATION.cff."""
    found = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else ""


def changes() -> dict[str, tuple[str | None, str]]:
    """Date and text of each version in CHANGELOG.md."""
    parts = HEADING.split((ROOT / "CHANGELOG.md").read_text("utf-8"))
    return {
        name: (date, text.strip())
        for name, date, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


def faults(tag: str) -> list[str]:
    """What keeps this tag from being released."""
    found = []
    if tag != f"v{version()}":
        found.append(f"the tag is {tag}, and pyproject.toml says {version()}")
    if cited() != version():
        found.append(f"CITATION.cff says {cited()}, and pyproject.toml {version()}")
    date, text = changes().get(version(), (None, ""))
    if date is None or not text:
        found.append(f"CHANGELOG.md has no section '## [{version()}] - YYYY-MM-DD' with changes")
    return found


def main(what: str, tag: str) -> None:
    if what == "notes":
        print(changes()[tag.removeprefix("v")][1])
    elif found := faults(tag):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
