"""Values of options for shell completion, without importing a method or a model."""

from pathlib import Path
from typing import Any

METHODS = Path(__file__).parent.parent / "methods"
VERBS = {"caption": ("caption",), "segment": ("attend",), "eval": ("caption", "scores")}
"""The functions of which a method needs one for a command; other commands need `scores`."""
TRAINED = "native"
"""A value of `caption --method` that is no method."""
RERANKERS = ("csls", "dis", "dn", "inverted_softmax", "nnn")
"""The methods that `search --method` takes."""
COUPLINGS = ("asif", "auto", "csa", "csa_asif", "procrustes", "relative", "ridge_cca")
"""The methods that couple two encoders."""


def model_sets() -> list[tuple[str, str]]:
    """The built-in model sets with a description of each."""
    from zeroshot.model_set.spec import HUB_SETS, find_set

    return [(name, find_set(name).about) for name in ("pocket", *HUB_SETS)]


def encoders() -> list[tuple[str, str]]:
    """Encoders of every family, with what each is for."""
    from zeroshot.models.systems import systems

    return [(name, system.about) for system in systems() for name in system.encoders]


def methods(ctx: Any) -> list[str]:
    """The methods that a command can use; typer needs the name `ctx` to pass its context."""
    command = ctx.command.name
    verbs = VERBS.get(command, ("scores",))
    names = [file.stem for file in _files() if _verb(file) in verbs]
    return [*names, TRAINED] if command == "caption" else names


def rerankers() -> list[str]:
    """The methods that re-rank the hits of a search."""
    return list(RERANKERS)


def couplings() -> list[str]:
    """The methods that couple two encoders."""
    return list(COUPLINGS)


def all_methods() -> list[str]:
    """Every method."""
    return [file.stem for file in _files()]


def _files() -> list[Path]:
    return sorted(METHODS.glob("[!_]*.py"))


def _verb(file: Path) -> str:
    """`caption`, `attend` or `decompose` for a method that defines it, else `scores`."""
    text = file.read_text("utf-8")
    others = ("caption", "attend", "decompose")
    return next((verb for verb in others if f"def {verb}(" in text), "scores")
