"""How to get an extra, from what the installed distribution says of itself.

The package index has no `zeroshot-vision`, and its `zeroshot` is another project: an extra by name
cannot come from there. What reads metadata is imported late: `--help` must not wait for it.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution

NAME = "zeroshot-vision"


def installed() -> "Distribution | None":
    """The distribution, or None for a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution(NAME)
    except PackageNotFoundError:
        return None


def how_to_install(extra: str) -> str:
    """`pip install '.[data]' in FOLDER`; without a checkout, pip and the packages of the extra."""
    found = installed()
    if found is None:
        return f"{_pip(f'.[{extra}]')} in the checkout of zeroshot"
    origin = _origin(found)
    folder = _checkout(origin)
    if folder is None:
        return _pip(*_requirements(found, extra))
    editable = ("-e",) if origin["dir_info"].get("editable") else ()
    return f"{_pip(*editable, f'.[{extra}]')} in {folder}"


def _pip(*arguments: str) -> str:
    return shlex.join(["pip", "install", *arguments])


def _origin(found: "Distribution") -> dict[str, Any]:
    """What the installer wrote of the distribution's source (PEP 610)."""
    origin: dict[str, Any] = json.loads(found.read_text("direct_url.json") or "{}")
    return origin


def _checkout(origin: dict[str, Any]) -> Path | None:
    """The folder that was installed from, if it is still there; None for a wheel or an index."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    if "dir_info" not in origin:
        return None
    folder = Path(url2pathname(urlsplit(origin["url"]).path))
    return folder if (folder / "pyproject.toml").is_file() else None


def _requirements(found: "Distribution", extra: str) -> list[str]:
    lines = [line.partition(";") for line in found.requires or ()]
    marker = f"extra == '{extra}'"
    return [name.strip() for name, _, when in lines if when.strip().replace('"', "'") == marker]
