"""`zeroshot cache`: inspect, prune, verify and export the cache of embeddings."""

from pathlib import Path
from typing import Annotated

import typer

from zeroshot.commands.command import command, register
from zeroshot.errors import UserError, counted

app = typer.Typer(help="The cache of embeddings: inspect, prune, verify, export.")


@register(app, "info")
@command
def cache_info() -> None:
    """What is in the cache of embeddings, and where it is.

    Examples:
        zeroshot cache info
    """
    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.commands import console

    with EmbeddingCache(optional=False) as cache, console.meter().phase("reading", counts=False):
        info = cache.info()
    files = counted(info.files, "file")
    console.log(f"{info.root}: {info.bytes / 1e6:.1f} MB, {files} known by their hash")
    console.print_table(
        ("encoder", "kind", "rows", "dim", "MB"),
        [(s.encoder, s.kind, s.rows, s.dim, round(s.bytes / 1e6, 1)) for s in info.spaces],
    )


@register(app, "prune")
@command
def cache_prune(
    encoder: Annotated[str | None, typer.Option(help="Only embeddings of this encoder.")] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Embeddings that were not used for this many days.", min=0)
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(
            "--max-mb",
            help="The least recently used embeddings, until the cache has this size.",
            min=0,
        ),
    ] = None,
    leftovers: Annotated[
        bool, typer.Option("--leftovers", help="Only files that the index does not refer to.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="The whole cache.")] = False,
) -> None:
    """Delete embeddings by encoder, age or size, or all; leftovers of crashes always go, too.

    Examples:
        zeroshot cache prune --older-than 90
        zeroshot cache prune --max-mb 2000
    """
    from zeroshot.cache.embedding_cache import EmbeddingCache, erase
    from zeroshot.commands import console

    if everything:
        erase()
        console.log("the cache is empty")
        return
    if encoder is None and older_than is None and max_mb is None and not leftovers:
        raise UserError(
            "say what to prune: --encoder, --older-than, --max-mb, --leftovers or --all"
        )
    with EmbeddingCache(optional=False) as cache, console.meter().phase("deleting", counts=False):
        freed = cache.prune(
            encoder=encoder,
            older_than_days=older_than,
            max_bytes=None if max_mb is None else int(max_mb * 1e6),
        )
    console.log(f"{freed / 1e6:.1f} MB freed")


@register(app, "verify")
@command
def cache_verify() -> None:
    """Read and check every embedding; exit code 3 if some are damaged.

    Examples:
        zeroshot cache verify
    """
    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.commands import console

    with (
        EmbeddingCache(optional=False) as cache,
        console.meter().phase("checking embeddings", counts=False),
    ):
        found = cache.verify()
    console.print_table(
        ("encoder", "kind", "rows", "damaged", "replaced"),
        [(s.encoder, s.kind, s.rows, s.damaged, s.replaced) for s in found.spaces],
    )
    if not found.sound:
        console.log(
            "damaged embeddings are never used; they are encoded again when they are needed"
        )
    if found.lost:
        console.log(f"{counted(len(found.lost), 'segment')} missing, for example {found.lost[0]}")
    if found.orphans:
        console.log(
            f"{counted(len(found.orphans), 'file')} unknown to the index: 'zeroshot cache prune "
            "--leftovers' removes what the index does not refer to"
        )
    if not found.sound:
        raise typer.Exit(3)


@register(app, "export")
@command
def cache_export(
    target: Annotated[
        Path,
        typer.Argument(
            help="x.parquet; or x.safetensors or x.npy, with ids and paths in x.ids.jsonl."
        ),
    ],
    encoder: Annotated[
        str | None,
        typer.Option(help="The encoder, as 'cache info' prints it."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="The kind of embeddings: image/rgb-2 or text.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Export in float16.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
) -> None:
    """Export the embeddings of an encoder, with their ids and paths.

    Examples:
        zeroshot cache export rows.parquet --kind image/rgb-2
        zeroshot cache export rows.npy --kind image/rgb-2 --half
    """
    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.cache.export import ids_of
    from zeroshot.commands import console
    from zeroshot.output.atomic import check_place

    files = (target,) if target.suffix == ".parquet" else (target, ids_of(target))
    for file in files:
        if file.exists() and not overwrite:
            raise UserError(f"'{file}' exists; --overwrite replaces it")
    check_place(target)
    with EmbeddingCache(optional=False) as cache:
        spaces = [
            (s.encoder, s.kind)
            for s in cache.info().spaces
            if encoder in (None, s.encoder) and kind in (None, s.kind)
        ]
        if len(spaces) != 1:
            there = "; ".join(f"--encoder '{e}' --kind {k}" for e, k in spaces) or "none of those"
            raise UserError(f"choose with --encoder and --kind; the cache has {there}")
        with console.meter().phase("writing", counts=False):
            count = cache.export(target, *spaces[0], half=half)
    console.log(f"wrote {counted(count, 'embedding')} to {target}")
