"""The command that installs an extra, from the metadata of the installed distribution.

The package index has no `zeroshot-vision`, and its `zeroshot` is another project, so an extra
cannot be installed from there by name. Readers of metadata are imported late: they slow `--help`.
"""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution

NAME = "zeroshot-vision"


def installed() -> "Distribution | None":
    """The installed distribution; None for a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution(NAME)
    except PackageNotFoundError:
        return None


def how_to_install(extra: str) -> str:
    """`pip install '.[data]' in FOLDER`; without a checkout, pip and the packages of the extra."""
    distribution = installed()
    if distribution is None:
        return f"{_pip(f'.[{extra}]')} in the checkout of zeroshot"
    origin = _origin(distribution)
    folder = _checkout(origin)
    if folder is None:
        return _pip(*_requirements(distribution, extra))
    editable = ("-e",) if origin["dir_info"].get("editable") else ()
    return f"{_pip(*editable, f'.[{extra}]')} in {folder}"


def _pip(*arguments: str) -> str:
    return shlex.join(["pip", "install", *arguments])


def _origin(distribution: "Distribution") -> dict[str, Any]:
    """The installer's record of the distribution's source (PEP 610)."""
    origin: dict[str, Any] = json.loads(distribution.read_text("direct_url.json") or "{}")
    return origin


def _checkout(origin: dict[str, Any]) -> Path | None:
    """The source folder of the installation, if it exists; None for a wheel or an index."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    if "dir_info" not in origin:
        return None
    folder = Path(url2pathname(urlsplit(origin["url"]).path))
    return folder if (folder / "pyproject.toml").is_file() else None


def _requirements(distribution: "Distribution", extra: str) -> list[str]:
    lines = [line.partition(";") for line in distribution.requires or ()]
    marker = f"extra == '{extra}'"
    return [name.strip() for name, _, when in lines if when.strip().replace('"', "'") == marker]
