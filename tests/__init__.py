"""The tests; `typecheck` is named in pyproject.toml and must be reachable from here."""

from tests import typecheck as typecheck
