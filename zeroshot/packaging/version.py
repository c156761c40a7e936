"""The version of the installed distribution; only pyproject.toml declares it."""

from zeroshot.packaging.extras import installed

UNINSTALLED = "0+uninstalled"
"""The version of a source tree that is not installed."""

_found = installed()
__version__ = UNINSTALLED if _found is None else _found.version
