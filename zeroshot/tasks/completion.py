"""Values of options that a shell completes, found without importing a method or a model."""

from pathlib import Path
from typing import Any

METHODS = Path(__file__).parent.parent / "methods"
VERBS = {"caption": ("caption",), "segment": ("attend",), "eval": ("caption", "scores")}
"""What a method must be able to do for a command; for other commands it scores."""
TRAINED = "native"
"""What `caption --method` takes beside the methods."""
RERANKERS = ("csls", "dis", "dn", "inverted_softmax", "nnn")
"""What `search --method` takes."""


def model_sets() -> list[tuple[str, str]]:
    """The built-in model sets and what they are."""
    from zeroshot.model_set.spec import HUB_SETS, find_set

    return [(name, find_set(name).about) for name in ("pocket", *HUB_SETS)]


def methods(ctx: Any) -> list[str]:
    """The methods that a command can use; typer knows its context by the parameter's name."""
    command = ctx.command.name
    verbs = VERBS.get(command, ("scores",))
    names = [file.stem for file in _files() if _verb(file) in verbs]
    return [*names, TRAINED] if command == "caption" else names


def rerankers() -> list[str]:
    """The methods that rank the hits of a search anew."""
    return list(RERANKERS)


def all_methods() -> list[str]:
    """Every method."""
    return [file.stem for file in _files()]


def _files() -> list[Path]:
    return sorted(METHODS.glob("[!_]*.py"))


def _verb(file: Path) -> str:
    """`caption` or `attend` for a method that defines it, else `scores`."""
    text = file.read_text("utf-8")
    return next((verb for verb in ("caption", "attend") if f"def {verb}(" in text), "scores")
