"""The options of `segment`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.tasks.options import BACKGROUND, METHOD, METHOD_OPTIONS, REFINE, option


@dataclass(frozen=True)
class SegmentOptions:
    """Which labels, by which model, and what is written."""

    labels: str | Sequence[str] = option(
        (), "cat,dog,bird, a .txt or .json file, or imagenet.", env="LABELS", typed=str
    )
    background: str | Sequence[str] | None = BACKGROUND
    templates: str | Sequence[str] | None = option(
        None,
        "As in classify. Default: simple, or 'a photo of a {}' with --model.",
        env="TEMPLATES",
        typed=str,
        recorded="prompts",
    )
    model: str | None = option(
        None,
        "A segmentation model (CLIPSeg, GroupViT, SAM 3): hf:CIDAS/clipseg-rd64-refined. Default: "
        "the set's dual encoder.",
        env="SEGMENT_MODEL",
        recorded="models",
    )
    method: Any = METHOD
    options: Mapping[str, Any] = METHOD_OPTIONS
    patches_by: str | None = option(
        None,
        "A second vision encoder, by whose patches --method proxyclip attends and lposs spreads: "
        "hf:facebook/dinov2-base.",
        env="PATCHES_BY",
        recorded="models",
    )
    threshold: float | None = option(
        None,
        "Pixels that score less have no label. Default: 0.5 if each label is judged by itself, 0 "
        "if labels compete.",
        env="THRESHOLD",
        min=0,
        max=1,
    )
    examples: str | Path | None = option(
        None,
        "Images of labels as prompts: a folder per label, or a .csv with path,label.",
        env="EXAMPLES",
        typed=Path,
    )
    mix: float = option(
        0.5,
        "Weight of the examples in a label's prompt; 1 for examples alone.",
        env="MIX",
        min=0,
        max=1,
    )
    resolution: int = option(
        0,
        "Shorter side in pixels of what a dual encoder sees; 0 for 1.5 times its own.",
        env="RESOLUTION",
        min=0,
        max=10_000,
    )
    refine: int = REFINE
    window: int | None = option(
        None,
        "Side of a dual encoder's windows in pixels; 0 for the whole image. Default: its own.",
        env="WINDOW",
        min=0,
    )
    masks: str | Path | None = option(
        None,
        "Write masks to a folder, as PNG with a palette.",
        env="MASKS",
        typed=Path,
        recorded="files",
    )
    draw: str | Path | None = option(
        None,
        "Write images with the regions drawn on them to a folder.",
        env="DRAW",
        typed=Path,
        recorded="files",
    )
    overwrite: bool = option(
        False,
        "Replace files in these folders that hold something else.",
        on_command_line=False,
        decides_rows=False,
    )
