"""The options of `dedupe`."""

from dataclasses import dataclass

from zeroshot.tasks.options import option


@dataclass(frozen=True)
class DedupeOptions:
    """Which images count as near copies; those with the same content always are copies."""

    threshold: float = option(
        0.8,
        "Least cosine of a copy that is cropped or turned a little.",
        env="DEDUPE_THRESHOLD",
        min=0,
        max=1,
    )
    whole_threshold: float = option(
        0.5,
        "Least cosine of a copy that shows the whole image, also mirrored, turned by 90 degrees, "
        "smaller or re-saved.",
        env="DEDUPE_WHOLE_THRESHOLD",
        min=0,
        max=1,
    )
