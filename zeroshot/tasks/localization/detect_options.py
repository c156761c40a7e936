"""The options of `detect`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zeroshot.tasks.options import BACKGROUND, COUPLING, REFINE, option

RegionSource = Literal["auto", "dense", "windows"]


@dataclass(frozen=True)
class DetectOptions:
    """What is looked for, by which model, and which boxes are reported."""

    labels: str | Sequence[str] = option(
        (),
        "cat,dog,bird, a .txt or .json file, or imagenet.",
        env="LABELS",
        typed=str,
        recorded="prompts",
    )
    query_images: Any = option(
        (),
        "Instead of --labels: an image of what is looked for; may be repeated.",
        "--query-image",
        env="QUERY_IMAGE",
        typed=list[str],
        images=True,
        recorded="queries",
    )
    sentence: str | None = option(
        None, "Instead of --labels: a sentence; each of its phrases gets boxes.", env="SENTENCE"
    )
    model: str | None = option(
        None,
        "A detection model (OWL-ViT, OWLv2, Grounding DINO, OmDet-Turbo): "
        "hf:google/owlv2-base-patch16-ensemble. Default: the set's dual encoder labels regions.",
        env="DETECT_MODEL",
        recorded="models",
    )
    threshold: float | None = option(
        None,
        "Leave out boxes that score less. Default: 0.1, with a query image 0.6, with a sentence "
        "0.25, for regions 0.5.",
        env="THRESHOLD",
        min=0,
        max=1,
    )
    word_threshold: float = option(
        0.25,
        "With --sentence: words that score less do not belong to a box.",
        env="WORD_THRESHOLD",
        min=0,
        max=1,
    )
    overlap: float = option(
        0.5,
        "If two boxes of one label have a larger IoU than this, the one that scores less is "
        "left out.",
        env="OVERLAP",
        min=0,
        max=1,
    )
    background: str | Sequence[str] | None = BACKGROUND
    templates: str | Sequence[str] | None = option(
        None,
        "As in classify. Default: simple; with --model 'a photo of a {}' (Grounding DINO: none).",
        env="TEMPLATES",
        typed=str,
        recorded="prompts",
    )
    regions: RegionSource = option(
        "auto",
        "Where a dual encoder looks: parts of its dense map, or windows of many sizes.",
        env="DETECT_REGIONS",
    )
    coupling: str | None = COUPLING
    resolution: int = option(
        0,
        "For dense regions: shorter side in pixels of what the encoder sees; 0 for 1.5 times its "
        "own.",
        env="RESOLUTION",
        min=0,
        max=10_000,
    )
    refine: int = REFINE
    draw: str | Path | None = option(
        None,
        "Write images with the boxes drawn on them to a folder.",
        env="DRAW",
        typed=Path,
        recorded="files",
    )
    overwrite: bool = option(
        False,
        "Replace files in the `draw` folder that hold something else.",
        on_command_line=False,
        decides_rows=False,
    )
