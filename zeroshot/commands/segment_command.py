"""`zeroshot segment`.

As `cli`, nothing heavy is imported here.
"""

from pathlib import Path
from typing import Annotated

from zeroshot.commands.options import (
    Images,
    Labels,
    Method,
    MethodOptions,
    on_pictures,
    option,
    read_options,
)
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError


@on_pictures
def segment(
    run: Rows,
    images: Images,
    labels: Labels = None,
    background: Annotated[
        str | None,
        option(
            "--background",
            env="BACKGROUND",
            help="What is no label, in words: sky,wall. A pixel that fits it best has no label.",
        ),
    ] = None,
    templates: Annotated[
        str | None,
        option(
            "--templates",
            env="TEMPLATES",
            help="As of classify; simple, or 'a photo of a {}' with --model, without it.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            env="SEGMENT_MODEL",
            help="A segmentation model (CLIPSeg, GroupViT): hf:CIDAS/clipseg-rd64-refined. Without "
            "one, the set's dual encoder segments.",
        ),
    ] = None,
    method: Method = None,
    option: MethodOptions = None,
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            env="THRESHOLD",
            help="Pixels less sure than this have no label; without it 0.5 where labels are "
            "judged one by one, 0 where they compete.",
            min=0,
            max=1,
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        option(
            "--examples",
            env="EXAMPLES",
            help="Pictures of labels as prompts: a folder per label, or a .csv with path,label.",
        ),
    ] = None,
    mix: Annotated[
        float,
        option(
            "--mix",
            env="MIX",
            help="Share of the examples in a label's prompt; 1 for examples alone.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    resolution: Annotated[
        int,
        option(
            "--resolution",
            env="RESOLUTION",
            help="Shorter side in pixels that a dual encoder sees; 0 for 1.5 times its own.",
            min=0,
        ),
    ] = 0,
    window: Annotated[
        int | None,
        option(
            "--window",
            env="WINDOW",
            help="Side of a dual encoder's windows in pixels, its own without; 0 for the picture "
            "as a whole.",
            min=0,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        option("--masks", env="MASKS", help="Write masks to a folder, PNG with a palette."),
    ] = None,
    draw: Annotated[
        Path | None,
        option("--draw", env="DRAW", help="Write pictures with the regions on them to a folder."),
    ] = None,
) -> None:
    """Give each pixel of pictures a label."""
    if not labels:
        raise UserError("segment needs --labels: cat,dog,sky, or a .txt or .json file")
    from zeroshot import prompts
    from zeroshot.datasets.labels import read_labeled_images
    from zeroshot.tasks.localization.segment_task import SegmentJob

    names = prompts.load_labels(labels)
    others = prompts.load_labels(background) if background else ()
    spec = templates or ("simple" if model is None else "a photo of a {}")
    made = prompts.load_templates(spec, [*names, *others])
    job = SegmentJob(
        run.model_set(),
        names,
        prompts.expand(names, made),
        prompts.expand(others, made),
        model,
        method,
        read_options(option),
        None if examples is None else read_labeled_images(examples, names),
        mix,
        threshold,
        resolution,
        window,
        None if masks is None else masks.absolute(),
        None if draw is None else draw.absolute(),
        run.overwrite,
    )
    run.show(job, run.inputs(images))
