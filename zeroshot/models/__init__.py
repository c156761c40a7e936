"""Frozen models: the only place that imports transformers or open_clip.

`load("hf:openai/clip-vit-base-patch32")` gives whatever the name stands for; the other loaders
insist on a role. `names` says how models are called, `sets` which belong together.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroshot.models.loading import (
        load,
        load_detector,
        load_dual_encoder,
        load_image_encoder,
        load_language_model,
        load_segmenter,
        load_text_encoder,
    )
    from zeroshot.models.vision_language import (
        load_answerer,
        load_clip_scorer,
        load_pair_scorer,
        load_region_answerer,
        load_writer,
    )

__all__ = [
    "load",
    "load_answerer",
    "load_clip_scorer",
    "load_detector",
    "load_dual_encoder",
    "load_image_encoder",
    "load_language_model",
    "load_pair_scorer",
    "load_region_answerer",
    "load_segmenter",
    "load_text_encoder",
    "load_writer",
]
WITH_TEXTS = (
    "load_answerer",
    "load_clip_scorer",
    "load_pair_scorer",
    "load_region_answerer",
    "load_writer",
)


def __getattr__(name: str) -> Any:
    """The loaders, imported on first use: they bring torch and transformers along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "vision_language" if name in WITH_TEXTS else "loading"
    return getattr(importlib.import_module(f"zeroshot.models.{module}"), name)
