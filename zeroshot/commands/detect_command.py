"""`zeroshot detect`.

As `cli`, nothing heavy is imported here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from zeroshot.commands.options import Images, Labels, on_pictures, option
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.tasks.localization.detect_task import DetectJob


@on_pictures
def detect(
    run: Rows,
    images: Images,
    labels: Labels = None,
    query_image: Annotated[
        list[str] | None,
        option(
            "--query-image",
            env="QUERY_IMAGE",
            help="Instead of --labels: a picture of what is looked for; may be repeated.",
        ),
    ] = None,
    sentence: Annotated[
        str | None,
        option(
            "--sentence",
            env="SENTENCE",
            help="Instead of --labels: a sentence, whose words find their boxes.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            env="DETECT_MODEL",
            help="A detection model (OWL-ViT, OWLv2, Grounding DINO): "
            "hf:google/owlv2-base-patch16-ensemble. Without one, the set's dual encoder labels "
            "regions.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            env="THRESHOLD",
            help="Boxes less sure than this are left out; without it 0.1, 0.6 for a query image, "
            "0.25 for a sentence, 0.5 for regions.",
            min=0,
            max=1,
        ),
    ] = None,
    word_threshold: Annotated[
        float,
        option(
            "--word-threshold",
            env="WORD_THRESHOLD",
            help="Of a sentence: words less sure than this do not belong to a box.",
            min=0,
            max=1,
        ),
    ] = 0.25,
    overlap: Annotated[
        float,
        option(
            "--overlap",
            env="OVERLAP",
            help="Of two boxes of one label with a larger IoU the less sure goes.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    background: Annotated[
        str,
        option(
            "--background",
            env="BACKGROUND",
            help="For regions: what is no label, in words.",
        ),
    ] = "background",
    templates: Annotated[
        str | None,
        option(
            "--templates",
            env="TEMPLATES",
            help="As of classify; simple, with --model 'a photo of a {}' (Grounding DINO: none), "
            "without it.",
        ),
    ] = None,
    regions: Annotated[
        Literal["auto", "dense", "windows"],
        option(
            "--regions",
            env="DETECT_REGIONS",
            help="Where a dual encoder looks: parts of its dense map, or windows of many sizes.",
        ),
    ] = "auto",
    resolution: Annotated[
        int,
        option(
            "--resolution",
            env="RESOLUTION",
            help="For dense regions: shorter side in pixels that the encoder sees; 0 for twice "
            "its own.",
            min=0,
        ),
    ] = 0,
    draw: Annotated[
        Path | None,
        option("--draw", env="DRAW", help="Write pictures with the boxes on them to a folder."),
    ] = None,
    coco: Annotated[
        Path | None,
        option("--coco", env="COCO", help="Write all boxes to a .json file in COCO's format."),
    ] = None,
) -> None:
    """Find things in pictures: a box for each."""
    from zeroshot import prompts
    from zeroshot.tasks.localization.detect_task import DetectJob

    names = prompts.load_labels(labels) if labels else ()
    job = DetectJob(
        run.model_set(),
        names,
        templates,
        prompts.load_labels(background),
        model,
        run.sources(query_image) if query_image else (),
        sentence,
        threshold,
        word_threshold,
        overlap,
        regions,
        resolution,
        None if draw is None else draw.absolute(),
        run.overwrite,
    )
    run.show(job, run.inputs(images), *_gathered(coco, job, run))


def _gathered(
    path: Path | None, job: "DetectJob", run: Rows
) -> "tuple[()] | tuple[Callable[[Iterator[Any]], Iterator[Any]]]":
    """What passes results on and writes them all when the last has passed."""
    if path is None:
        return ()
    from zeroshot.tasks.localization import coco_results as coco

    if path.exists() and not run.overwrite:
        raise UserError(f"'{path}' exists; --overwrite writes over it")
    if run.out is not None and (run.folder is not None or not run.overwrite):
        raise UserError(
            "--coco holds the boxes of one run, and one that goes on (--out) would lack the "
            "earlier ones: give --overwrite and a file, or one of the two"
        )

    def through(results: Iterator[Any]) -> Iterator[Any]:
        seen = []
        for result in results:
            seen.append(result)
            yield result
        coco.write(path, coco.document(seen, job.labels), run.overwrite)

    return (through,)
