"""The options of `ask`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zeroshot.tasks.options import COUPLING, option

PRESENT = 0.1
"""Fraction of the softmax over all names at which a name counts as present."""


@dataclass(frozen=True)
class AskOptions:
    """What answers, and from what."""

    model: str | None = option(
        None,
        "A model that answers: ViLT, BLIP, BLIP-2, GIT, LLaVA and similar. Default: --models or "
        "--encoder answers by matching statements.",
        env="MODEL",
        recorded="models",
    )
    top_k: int = option(1, "Answers to each question.", env="TOP_K", min=1, max=50)
    answers: str | Sequence[str] = option(
        (),
        "The answers to choose from: red,green, or a file. With --regions, the names of the "
        "model's outputs, one per line.",
        env="ANSWERS",
        typed=str,
    )
    among: str | Sequence[str] = option(
        (),
        "Names of what may be in the images: cat,dog, or a file. For questions whether something "
        "is there, and how many.",
        env="AMONG",
        typed=str,
    )
    present: float = option(
        PRESENT,
        "Fraction of the softmax over --among at which a name counts as present.",
        env="PRESENT",
        min=0,
        max=1,
    )
    coupling: str | None = COUPLING
    regions: str | Path | None = option(
        None,
        "An .npz of regions that a detector found, for LXMERT and VisualBERT.",
        env="REGIONS",
        typed=Path,
    )
