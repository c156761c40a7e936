"""`zeroshot embed`.

As `cli`, nothing heavy is imported here.
"""

from zeroshot.cli_run import Images, Run, on_pictures


@on_pictures
def embed(run: Run, images: Images) -> None:
    """Embed pictures: fill the cache, and give the rows out with --json or --out."""
    from zeroshot.jobs.embed import EmbedJob

    run.show(EmbedJob(run.model_set()), run.sources(images))
