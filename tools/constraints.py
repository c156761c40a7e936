"""constraints.txt, the versions at hand of what zeroshot needs: `python tools/constraints.py`.

Run it in the environment in which the tests have just passed. CI installs the wheel with the file.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
EXTRAS = ("data", "plot", "report", "video", "index", "serve", "mcp", "ray", "heic", "sklearn")
PLATFORM = re.compile(r"nvidia-|cuda-|triton")
"""What torch itself pins, on some platforms."""


def needed() -> dict[str, str]:
    """Version of every package that some extra, or zeroshot itself, needs here."""
    waiting = [("zeroshot-vision", extra) for extra in ("", *EXTRAS)]
    seen: set[tuple[str, str]] = set()
    versions: dict[str, str] = {}
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        versions[name] = found.version
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                own = re.sub(r"[-_.]+", "-", requirement.name).lower()
                waiting += [(own, e) for e in ("", *requirement.extras)]
    del versions["zeroshot-vision"]
    return {name: v for name, v in sorted(versions.items()) if not PLATFORM.match(name)}


if __name__ == "__main__":
    lines = ["# Written by tools/constraints.py: versions with which the tests passed."]
    lines += [f"{name}=={version}" for name, version in needed().items()]
    (ROOT / "constraints.txt").write_text("\n".join(lines) + "\n", "utf-8")
