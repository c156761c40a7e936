"""`zeroshot embed`.

As `cli`, nothing heavy is imported here.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from zeroshot.commands.options import Images, on_pictures, option
from zeroshot.commands.runner import Rows

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs

Layout = Annotated[
    Literal["rows", "safetensors", "clip-retrieval"] | None,
    option(
        "--layout",
        env="LAYOUT",
        help="Of a folder: rows, rows with a matrix in safetensors, or what clip-retrieval "
        "writes; safetensors without it.",
    ),
]
Half = Annotated[
    bool, option("--half", env="HALF", help="Matrices in float16; clip-retrieval's always are.")
]


@on_pictures
def embed(run: Rows, images: Images, layout: Layout = None, half: Half = False) -> None:
    """Embed pictures: fill the cache, and give the rows out with --json or --out."""
    from zeroshot.tasks.embed_task import EmbedJob

    sources = run.inputs(images)
    captions = layout == "clip-retrieval" and have_captions(sources)
    job = EmbedJob(run.model_set(), captions)
    run.show(job, sources, layout=layout, half=half, default_layout="safetensors")


def have_captions(sources: "Inputs") -> bool:
    """Whether pictures come with captions; of files that are a shard each, those of the first."""
    from zeroshot.inputs.containers import Containers

    if isinstance(sources, Containers):
        pictures = (list(file.pictures()) for file in sources.files)
        sources = next(filter(None, pictures), [])
    return any("caption" in source.fields for source in sources)
