"""`zeroshot cache`: what the cache of embeddings holds, making room, checking, handing out."""

from pathlib import Path
from typing import Annotated

import typer

from zeroshot.errors import UserError

app = typer.Typer(help="The cache of embeddings: what it holds, making room, checking, export.")


@app.command("info")
def cache_info() -> None:
    """What the cache of embeddings holds, and where it is."""
    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.commands import console

    with EmbeddingCache() as cache:
        info = cache.info()
    console.log(f"{info.root}: {info.bytes / 1e6:.1f} MB, {info.files} files known by their hash")
    console.print_table(
        ("encoder", "kind", "rows", "dim", "MB"),
        [(s.encoder, s.kind, s.rows, s.dim, round(s.bytes / 1e6, 1)) for s in info.spaces],
    )


@app.command("prune")
def cache_prune(
    encoder: Annotated[str | None, typer.Option(help="Rows of this encoder only.")] = None,
    older_than: Annotated[
        float | None, typer.Option(help="Rows not used for this many days.", min=0)
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option("--max-mb", help="The longest unused, down to this size.", min=0)
    ] = None,
    leftovers: Annotated[
        bool, typer.Option("--leftovers", help="Only what nothing refers to any more.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="The whole cache.")] = False,
) -> None:
    """Make room: by encoder, by age, by size, or all of it; leftovers of crashes always go."""
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
    with EmbeddingCache() as cache:
        freed = cache.prune(
            encoder=encoder,
            older_than_days=older_than,
            max_bytes=None if max_mb is None else int(max_mb * 1e6),
        )
    console.log(f"{freed / 1e6:.1f} MB freed")


@app.command("verify")
def cache_verify() -> None:
    """Read every row and check it; exit code 3 where some are damaged."""
    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.commands import console

    with EmbeddingCache() as cache:
        found = cache.verify()
    console.print_table(
        ("encoder", "kind", "rows", "damaged", "replaced"),
        [(s.encoder, s.kind, s.rows, s.damaged, s.replaced) for s in found.spaces],
    )
    if not found.sound:
        console.log("damaged rows are never used: they are encoded again when next needed")
    if found.lost:
        console.log(f"{len(found.lost)} segments are gone, for example {found.lost[0]}")
    if found.orphans:
        console.log(
            f"{len(found.orphans)} files hold nothing that the index knows; "
            "'zeroshot cache prune --leftovers' removes them"
        )
    if not found.sound:
        raise typer.Exit(3)


@app.command("export")
def cache_export(
    target: Annotated[
        Path, typer.Argument(help="x.safetensors or x.npy; ids and paths go to x.ids.jsonl.")
    ],
    encoder: Annotated[
        str | None,
        typer.Option(help="Whose rows, as 'cache info' says it."),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="image/rgb-1 or text.")] = None,
    half: Annotated[bool, typer.Option("--half", help="In float16.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file.")] = False,
) -> None:
    """Hand out the rows of an encoder, with their ids and the paths they were found at."""
    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.commands import console

    if target.exists() and not overwrite:
        raise UserError(f"'{target}' exists; --overwrite writes over it")
    with EmbeddingCache() as cache:
        spaces = [
            (s.encoder, s.kind)
            for s in cache.info().spaces
            if encoder in (None, s.encoder) and kind in (None, s.kind)
        ]
        if len(spaces) != 1:
            held = "; ".join(f"--encoder '{e}' --kind {k}" for e, k in spaces) or "none of those"
            raise UserError(f"say whose rows, with --encoder and --kind; the cache holds {held}")
        count = cache.export(target, *spaces[0], half=half)
    console.log(f"wrote {count} rows to {target}")
