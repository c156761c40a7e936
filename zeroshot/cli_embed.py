"""`zeroshot embed`.

As `cli`, nothing heavy is imported here.
"""

from typing import Annotated, Literal

from zeroshot.cli_rows import Rows
from zeroshot.cli_run import Images, on_pictures, option

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
    from zeroshot.jobs.embed import EmbedJob

    sources = run.sources(images)
    captions = layout == "clip-retrieval" and any("caption" in s.fields for s in sources)
    job = EmbedJob(run.model_set(), captions)
    run.show(job, sources, layout=layout, half=half, default_layout="safetensors")
