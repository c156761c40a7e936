"""`zeroshot anchors`: make, edit and describe the pairs that couple two encoders.

As in `cli`, nothing heavy is imported here.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.command import command, register
from zeroshot.errors import UserError, counted, no_such

if TYPE_CHECKING:
    from zeroshot.model_set.anchor_file import Anchors, VectorFormat
    from zeroshot.model_set.model_set import ModelSet

app = typer.Typer(help="Anchor sets: pairs that couple two encoders.")

Out = Annotated[
    Path, typer.Option("--out", envvar="ZEROSHOT_OUT", help="The .safetensors file to write.")
]
OutOrHere = Annotated[
    Path | None,
    typer.Option("--out", envvar="ZEROSHOT_OUT", help="Write here instead of in place."),
]
Set = Annotated[
    str, typer.Argument(help="A model set, its directory, or a .safetensors file of anchors.")
]
Pairs = Annotated[
    str,
    typer.Argument(
        help="A .csv, .tsv, .jsonl, .parquet or .json file, a webdataset .tar, or a folder of "
        "images with captions in .txt files."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder that image paths are relative to; by default that of the file."),
]
CaptionsOf = Annotated[
    Literal["mean", "each"],
    typer.Option(
        "--captions", help="One anchor for each image (mean), or for each caption (each)."
    ),
]
ImageEncoderFlag = Annotated[
    str | None, typer.Option("--image-encoder", help="hf:org/model, hf:./directory, ...")
]
TextEncoderFlag = Annotated[str | None, typer.Option("--text-encoder", help="As --image-encoder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Device = Annotated[
    str, typer.Option(envvar="ZEROSHOT_DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
]
Precision = Annotated[
    Literal["auto", "fp32", "fp16", "bf16"],
    typer.Option(envvar="ZEROSHOT_PRECISION", help="Precision of the encoders."),
]
HalfFlag = Annotated[bool, typer.Option("--half", help="Store embeddings in float16.")]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8", help="Store embeddings in int8 with one scale each: a quarter of the size."
    ),
]
BatchSize = Annotated[
    int, typer.Option(envvar="ZEROSHOT_BATCH_SIZE", help="Pairs that are encoded together.", min=1)
]
UseCache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        envvar="ZEROSHOT_USE_CACHE",
        help="Cache embeddings, so that an interrupted build continues where it stopped.",
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", envvar="ZEROSHOT_OFFLINE", help="Never use the network.")
]


@register(app, "build")
@command
def anchors_build(
    pairs: Pairs,
    out: Out = Path("anchors.safetensors"),
    models: Annotated[
        str | None, typer.Option(help="A model set with an image and a text encoder.")
    ] = None,
    image_encoder: ImageEncoderFlag = None,
    text_encoder: TextEncoderFlag = None,
    root: Root = None,
    captions: CaptionsOf = "mean",
    half: HalfFlag = False,
    int8: Int8 = False,
    limit: Annotated[int | None, typer.Option(help="Stop after this many pairs.", min=1)] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 32,
    cache: UseCache = True,
    offline: Offline = False,
    overwrite: Overwrite = False,
) -> None:
    """Encode pairs, and write a models.toml beside them, unless there is one.

    Examples:
        zeroshot anchors build pairs.csv --models pocket --out mine/anchors.safetensors
        zeroshot anchors build photos/captions.jsonl --models pocket --captions each
    """
    from itertools import islice

    from zeroshot.commands import console
    from zeroshot.datasets.pairs import read_pairs
    from zeroshot.model_set.anchor_writer import AnchorWriter
    from zeroshot.model_set.spec import find_set
    from zeroshot.models import load_image_encoder, load_text_encoder
    from zeroshot.output import atomic
    from zeroshot.output.formats import utf8
    from zeroshot.tasks import anchors as task

    kind = _kind(half, int8)
    names = {"image_encoder": image_encoder, "text_encoder": text_encoder}
    if models is not None:
        spec = find_set(models)
        names = {part: names[part] or getattr(spec, part) for part in names}
    lacking = [f"--{part.replace('_', '-')}" for part, name in names.items() if name is None]
    if lacking:
        raise UserError(
            f"{' and '.join(lacking)}: name the encoders of the pairs, or give --models"
        )
    how: dict[str, Any] = {"device": device, "precision": precision, "offline": offline}
    _check_out(out, overwrite)
    todo = islice(read_pairs(pairs, root), limit)
    with console.meter().phase("loading models", counts=False):
        left = load_image_encoder(names["image_encoder"] or "", **how)
        right = load_text_encoder(names["text_encoder"] or "", **how)
    encoders = {"image_encoder": left.name, "text_encoder": right.name}
    with AnchorWriter(out, encoders, kind=kind, force=overwrite) as file:
        failed = _write(todo, left, right, file, captions, batch_size, cache)
    console.log(f"wrote {out}: {counted(file.count, 'anchor')}")
    manifest = out.parent / "models.toml"
    with atomic.writing(manifest):
        made = not manifest.exists() and atomic.publish(manifest, utf8(task.manifest(out, names)))
    if made:
        console.log(f"wrote {manifest}: use it as --models {out.parent}")
    if failed:
        raise typer.Exit(3)


def _write(
    pairs: Any, left: Any, right: Any, file: Any, captions: Any, batch_size: int, cached: bool
) -> int:
    """Encode and write pairs, and report those that failed; returns their number."""
    from zeroshot.cache.embedding_cache import open_cache
    from zeroshot.commands import console
    from zeroshot.tasks import anchors as task

    failed, meter = 0, console.meter()
    with open_cache(cached) as cache:
        batches = task.encode(
            pairs, left, right, cache, meter, captions=captions, batch_size=batch_size
        )
        for batch in meter.track("anchors", batches, None, lambda batch: len(batch.entries)):
            if batch.entries:
                file.write(batch.images, batch.texts, batch.entries)
            for name, failure in batch.failures:
                failed += 1
                console.log(f"left out {name}: {failure.type}: {failure.message}")
        if cache.write_error is not None:
            console.log(cache.write_error)
    return failed


@register(app, "import")
@command
def anchors_import(
    arrays: Annotated[Path, typer.Argument(help="An .npz file with images [a d], texts [a e].")],
    out: Out = Path("anchors.safetensors"),
    lines: Annotated[
        Path | None,
        typer.Option(
            help='A file of captions, a line per pair: {"id": "...", "captions": ["..."]}.'
        ),
    ] = None,
    image_encoder: ImageEncoderFlag = None,
    text_encoder: TextEncoderFlag = None,
    half: HalfFlag = False,
    int8: Int8 = False,
    overwrite: Overwrite = False,
) -> None:
    """Make anchors from arrays, and record the encoders by their canonical names.

    Examples:
        zeroshot anchors import arrays.npz
        zeroshot anchors import arrays.npz --lines lines.jsonl --half
    """
    from zeroshot.commands import console
    from zeroshot.models import load_image_encoder, load_text_encoder
    from zeroshot.tasks import anchors as task

    kind = _kind(half, int8)
    _check_out(out, overwrite)
    encoders = {}
    if image_encoder is not None:
        encoders["image_encoder"] = load_image_encoder(image_encoder).name
    if text_encoder is not None:
        encoders["text_encoder"] = load_text_encoder(text_encoder).name
    with console.meter().phase("writing", counts=False):
        count = task.from_arrays(arrays, lines, encoders, out, kind=kind, force=overwrite)
    console.log(f"wrote {out}: {counted(count, 'anchor')}")


@register(app, "add")
@command
def anchors_add(
    anchors: Set,
    pairs: Pairs,
    out: OutOrHere = None,
    root: Root = None,
    captions: CaptionsOf = "mean",
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 32,
    cache: UseCache = True,
    offline: Offline = False,
) -> None:
    """Encode more pairs with a set's encoders, and append them to its anchors.

    Examples:
        zeroshot anchors add mine more.csv
        zeroshot anchors add mine more.csv --out more.safetensors
    """
    from zeroshot.commands import console
    from zeroshot.datasets.pairs import read_pairs
    from zeroshot.model_set.anchor_file import read_header
    from zeroshot.model_set.anchor_writer import AnchorWriter

    models, known = _open(anchors, device=device, precision=precision, offline=offline)
    if models is None:
        raise UserError(f"'{anchors}' names no encoders: add takes a model set, or its directory")
    target = _target(known, out)
    todo = read_pairs(pairs, root)
    with console.meter().phase("loading models", counts=False):
        pair = models.coupled
    encoders = {"image_encoder": pair.image_encoder.name, "text_encoder": pair.text_encoder.name}
    known.check_encoders(*encoders.values())
    kind = read_header(known.path)[0]["images"]["dtype"]
    with AnchorWriter(target, encoders | dict(known.encoders), kind=kind, force=True) as file:
        file.copy(known)
        failed = _write(
            todo, pair.image_encoder, pair.text_encoder, file, captions, batch_size, cache
        )
        if file.count == len(known):
            raise UserError(f"no pair is left for '{target}'")
    count = counted(file.count, "anchor")
    console.log(f"wrote {target}: {count}, {file.count - len(known)} of them new")
    if failed:
        raise typer.Exit(3)


@register(app, "remove")
@command
def anchors_remove(
    anchors: Set,
    id: Annotated[
        list[str] | None, typer.Option(help="The id of a pair; may be given several times.")
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="Remove the pairs whose texts are nearest to this one.")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of pairs for --query.", min=1)] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the pairs.")] = False,
    out: OutOrHere = None,
    device: Device = "auto",
    offline: Offline = False,
) -> None:
    """Remove pairs, by their ids or by a text.

    Examples:
        zeroshot anchors remove mine --id photos/17.jpg
        zeroshot anchors remove mine --query "a red heart" --top 3 --dry-run
    """
    from zeroshot.commands import console
    from zeroshot.model_set.anchor_writer import write_anchors
    from zeroshot.tasks import anchors as task

    if (query is None) == (not id):
        raise UserError("say which pairs: --id NAME, or --query TEXT")
    models, known = _open(anchors, device=device, offline=offline)
    if id:
        indices = task.find_ids(known, id)
    else:
        if models is None:
            raise UserError(f"'{anchors}' names no text encoder: --query takes a model set")
        with console.meter().phase("loading models", counts=False):
            rows = models.coupled.text_encoder.encode_texts([query or ""])
        indices, cosines = task.find_like(known, rows, top)
        for index, cosine in zip(indices.tolist(), cosines.tolist(), strict=True):
            entry = known.entries[index]
            console.log(f"{cosine:.3f}  {entry.id}  {'; '.join(entry.captions)[:80]}")
    if dry_run:
        console.log(f"{len(indices)} of {counted(len(known), 'anchor')}; nothing was changed")
        return
    target = _target(known, out)
    with console.meter().phase("writing", counts=False):
        count = write_anchors(target, [known], without=indices, force=True)
    console.log(f"wrote {target}: {counted(count, 'anchor')}, {len(indices)} removed")


@register(app, "info")
@command
def anchors_info(
    anchors: Set,
    choose: Annotated[
        bool, typer.Option("--choose/--no-choose", help="Try which coupling is best.")
    ] = True,
) -> None:
    """What an anchor set contains, and which coupling of its encoders is best.

    Examples:
        zeroshot anchors info mine
        zeroshot anchors info pocket --no-choose
    """
    from zeroshot.commands import console
    from zeroshot.tasks import anchors as task

    _, known = _open(anchors)
    with console.meter().phase("trying couplings" if choose else "reading", counts=False):
        described = task.describe(known, choose)
    console.print_table(("", "value"), [(k, str(v)) for k, v in described.rows.items()])
    if described.report is not None:
        for line in described.report.lines():
            console.log(line)
        console.log(f"in models.toml:\n{task.coupling_table(known, described.report)}")


@register(app, "merge")
@command
def anchors_merge(
    sets: Annotated[list[str], typer.Argument(help="Two or more anchor files or model sets.")],
    out: Out = Path("anchors.safetensors"),
    overwrite: Overwrite = False,
) -> None:
    """Merge the anchors of several sets; all must have the same encoders.

    Examples:
        zeroshot anchors merge mine pocket --out all.safetensors
        zeroshot anchors merge a.safetensors b.safetensors --overwrite
    """
    from zeroshot.commands import console
    from zeroshot.model_set.anchor_writer import write_anchors

    if len(sets) < 2:
        raise UserError("merge takes at least two sets")
    _check_out(out, overwrite)
    known = [_open(name)[1] for name in sets]
    with console.meter().phase("writing", counts=False):
        count = write_anchors(out, known, force=overwrite)
    parts = " + ".join(str(len(k)) for k in known)
    console.log(f"wrote {out}: {counted(count, 'anchor')} ({parts})")


def _check_out(path: Path, overwrite: bool) -> None:
    """UserError, before anything is loaded, for a file that cannot be written."""
    from zeroshot.output.atomic import check_place

    if path.suffix != ".safetensors":
        raise UserError(f"'{path}': anchors are a .safetensors file")
    if path.exists() and not overwrite:
        raise UserError(f"'{path}' exists; --overwrite replaces it")
    check_place(path)


def _kind(half: bool, int8: bool) -> "VectorFormat":
    """The format of the embeddings in the file."""
    if half and int8:
        raise UserError("--half and --int8 exclude each other: give one of them")
    return "F16" if half else "I8" if int8 else "F32"


def _open(name: str, **how: Any) -> "tuple[ModelSet | None, Anchors]":
    """The anchors of a file, or of a model set with its encoders."""
    from zeroshot.model_set.anchor_file import read_anchors
    from zeroshot.model_set.model_set import resolve

    if name.endswith(".safetensors"):
        if not Path(name).is_file():
            raise no_such(name)
        return None, read_anchors(Path(name))
    models = resolve(name, **how)
    return models, models.anchors


def _target(known: "Anchors", out: Path | None) -> Path:
    """The file to write; UserError for that of the bundled set, and for one that exists."""
    from zeroshot.model_set.spec import POCKET

    target = out or known.path
    if target.exists() and not target.samefile(known.path):
        raise UserError(f"'{target}' exists; choose another --out")
    _check_out(target, True)
    if target.resolve().is_relative_to(POCKET.resolve()):
        raise UserError("the bundled set cannot be changed; give --out FILE.safetensors")
    return target
