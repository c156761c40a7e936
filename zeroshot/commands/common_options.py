"""The options that all commands on images share, and what follows from them: models, inputs.

As `cli`, nothing heavy is imported here.
"""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from zeroshot.errors import NoSuchPathError, UserError, no_such
from zeroshot.tasks.completion import encoders, model_sets
from zeroshot.tasks.options import BATCH_SIZE, check_number, option, option_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from zeroshot.cache.embedding_cache import EmbeddingCache
    from zeroshot.inference.meter import Phase
    from zeroshot.inputs.resolve import ResolvedInputs
    from zeroshot.inputs.source import Source
    from zeroshot.inputs.tables import InputOptions
    from zeroshot.model_set.model_set import ModelSet


SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""As `inputs.source.SCHEME`, which is not imported for this."""
DIGITS = 20
"""Longer numbers are no sizes, and Python reads none of 5000 digits."""
FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|txt|npz|npy|safetensors|toml|html?)", re.IGNORECASE)
"""Suffixes of a single file."""


Words = Mapping[str, str | Sequence[str] | None]
NO_WORDS: Words = {}


class FolderPath(type(Path())):  # type: ignore[misc]
    """A path that was given with a slash at its end."""


class RemotePath(FolderPath):
    """An output URL such as s3://...; not a local path (using it as one raises)."""

    address = ""

    def __str__(self) -> str:
        return self.address

    def check(self, allowed: bool, offline: bool) -> None:
        """UserError unless it is a folder of a store, for a command that may write there."""
        if not allowed:
            raise UserError(f"--out {self.address}: this command writes to local paths only")
        if FILE.fullmatch(self.suffix) and not self.address.endswith("/"):
            raise UserError(
                f"--out {self.address}: an object store takes a folder of shards, since nothing "
                f"can be added to a file there; --out {self.address.removesuffix(self.suffix)}/"
            )
        from zeroshot.output.object_store import Bucket

        if Bucket(self.address).shared and offline:
            raise UserError(f"--out {self.address}: --offline forbids the network")

    def __fspath__(self) -> str:
        raise UserError(f"--out {self.address}: only a local path can be written here")


def out_path(given: str) -> Path:
    """The path; a `FolderPath` where a slash says so, a `RemotePath` where a scheme does."""
    if not SCHEME.match(given):
        return FolderPath(given) if given.endswith(("/", os.sep)) else Path(given)
    remote = RemotePath(given)
    remote.address = given
    return remote


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which models, where they run, and the cache."""

    models: str = option(
        "base",
        "Model set: pocket, base, fast, best, or a directory with a models.toml.",
        env="MODELS",
        complete=model_sets,
    )
    encoder: str | None = option(
        None,
        "Replace the set's encoder: open_clip:ViT-B-32/openai, hf:./directory; 'coupled' "
        "is the set's own coupled pair of encoders.",
        env="ENCODER",
        complete=encoders,
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", env="DEVICE")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto", "Precision of the models; scores are always fp32.", env="PRECISION"
    )
    batch_size: str = option("auto", BATCH_SIZE.help, env="BATCH_SIZE")
    exact: bool = option(
        True,
        "Preprocess as the model's own library does, or faster and slightly different.",
        "--exact/--fast",
        env="EXACT",
    )
    cache: bool = option(True, "Keep and reuse embeddings.", "--cache/--no-cache", env="USE_CACHE")
    offline: bool = option(False, "Never use the network.", env="OFFLINE")
    trust_remote_code: bool = option(
        False,
        "Run Python code that comes with a model, with all your rights on this machine.",
        env="TRUST_REMOTE_CODE",
    )

    def model_set(self, language_model: str | None = None) -> "ModelSet":
        """The model set; nothing is loaded yet."""
        from zeroshot.model_set.model_set import resolve

        return resolve(
            self.models,
            encoder=self.encoder,
            language_model=language_model,
            device=self.device,
            precision=self.precision,
            offline=self.offline,
            trust_remote_code=self.trust_remote_code,
            fast=not self.exact,
        )

    @contextmanager
    def open_cache(self) -> "Iterator[EmbeddingCache]":
        """The user's cache, or one that holds nothing; the end says why it does not write."""
        from zeroshot.cache.embedding_cache import open_cache
        from zeroshot.commands import console

        with open_cache(self.cache) as cache:
            yield cache
            if cache.write_error is not None:
                console.log(cache.write_error)

    @property
    def images_per_batch(self) -> int:
        """`--batch-size` as a number."""
        from zeroshot.inference.embedding import AUTO_BATCH

        if self.batch_size == "auto":
            return AUTO_BATCH
        digits = self.batch_size if len(self.batch_size) <= DIGITS else ""
        if not digits.isdecimal():
            raise UserError(f"--batch-size {self.batch_size:.20}: auto or a number of at least 1")
        check_number("--batch-size", int(digits), BATCH_SIZE)
        return int(digits)


@dataclasses.dataclass(frozen=True)
class CommonOptions(ModelOptions):
    """Models, inputs, output, and how much is printed."""

    modality: ClassVar[Literal["image", "video"]] = "image"
    """What the command works on."""

    out: Path | None = option(
        None,
        "Write rows to a file: .jsonl, .csv, .parquet or .txt; or in shards to a folder, also "
        "s3://bucket/folder/ and the like.",
        env="OUT",
        metavar="PATH",
        parser=out_path,
    )
    json: bool = option(False, "JSON lines on standard output.", env="JSON")
    overwrite: bool = option(
        False,
        "Start --out again, or continue where it stops.",
        "--overwrite/--resume",
        env="OVERWRITE",
    )
    retry_failed: bool = option(False, "Try failed rows of --out again.", env="RETRY_FAILED")
    limit: int | None = option(None, "Stop after this many images.", env="LIMIT", min=1)
    null: bool = option(
        False,
        "Names on standard input (-) end in a null character, as find -print0 writes them.",
        "--null",
        "-0",
    )
    image_column: str | None = option(
        None,
        "A table's column of paths, URLs or bytes; default: the first with a known name.",
        env="IMAGE_COLUMN",
    )
    caption_column: str | None = option(None, "A table's column of captions.", env="CAPTION_COLUMN")
    label_column: str | None = option(None, "A table's column of labels.", env="LABEL_COLUMN")
    image_root: Path | None = option(
        None,
        "Folder that the table's paths are relative to (default: the table's folder). Paths "
        "outside it are refused.",
        env="IMAGE_ROOT",
    )
    allow_private_urls: bool = option(
        False,
        "Also fetch URLs from this machine and from private networks.",
        env="ALLOW_PRIVATE_URLS",
    )
    url_timeout: float = option(
        30.0, "Seconds for one URL, including redirects and retries.", env="URL_TIMEOUT", min=0.1
    )
    url_max_mb: float = option(
        64.0, "Largest download of one URL, in MiB.", env="URL_MAX_MB", min=0.001
    )
    max_megapixels: float = option(
        100.0,
        "Images of more megapixels are not decoded; one takes 12 MB of memory per megapixel. JPEG "
        "files have no limit: beyond 100 they are decoded at a half, a quarter or an eighth.",
        env="MAX_MEGAPIXELS",
        min=100,
        max=10_000,
    )
    quiet: bool = option(False, "Print no progress and no summary.", "--quiet", "-q", env="QUIET")
    verbose: bool = option(
        False,
        "Print what was encoded and cached, and the time of each stage.",
        "--verbose",
        "-v",
        env="VERBOSE",
    )

    remote_out: ClassVar[bool] = False
    """Whether --out may be a folder in an object store."""

    def __post_init__(self) -> None:
        """UserError: an --out that cannot be."""
        if isinstance(self.out, RemotePath):
            self.out.check(self.remote_out, self.offline)
        elif self.out is not None:
            from zeroshot.output.atomic import check_place

            check_place(self.out)

    def with_shared(self, options: Any) -> Any:
        """Options of a task, with what the command line gives through the common options.

        Names of images become images, listed with the input options; a field that the command
        line does not offer, such as `overwrite`, has the value of its namesake here.
        """
        more: dict[str, Any] = {}
        for field in dataclasses.fields(options):
            known, value = option_of(field), getattr(options, field.name)
            if known.images and value:
                more[field.name] = tuple(self.listed(self.resolved(value)))
            elif not known.on_command_line and hasattr(self, field.name):
                more[field.name] = getattr(self, field.name)
        return dataclasses.replace(options, **more)

    def sources(self, images: Sequence[str], words: Words = NO_WORDS) -> "list[Source]":
        """The images that `images` name; other files of a folder are mentioned.

        `words` are as for `resolved`.
        """
        self.check_null(images)
        return self.listed(self.resolved(images, words))

    def check_null(self, images: Sequence[str]) -> None:
        """UserError for -0 without names on standard input."""
        if self.null and "-" not in images:
            raise UserError("-0 is for names on standard input: give - where they belong")

    def resolved(self, images: Sequence[str], words: Words = NO_WORDS) -> "ResolvedInputs":
        """What `images` name; no container of images is opened.

        Args:
            words: what was given as texts, by what it is called: `--labels`, `the query`.

        Raises:
            UserError: nothing of this name; it says if one of the words is a path.
        """
        from zeroshot.commands.terminal import progress
        from zeroshot.inputs.resolve import resolve_inputs

        typed = "-" in images and sys.stdin is not None and sys.stdin.isatty()
        with self._listing(), progress.hidden() if typed else contextlib.nullcontext():
            try:
                found = resolve_inputs(images, options=self._options())
                found.check_found()
            except NoSuchPathError as error:
                if hint := _swapped(words):
                    raise UserError(f"{error}; {hint}") from None
                raise
            return found

    def listed(self, found: "ResolvedInputs") -> "list[Source]":
        """The images of it, up to the limit; files that hold none are mentioned."""
        left_out, sources = list(found.left_out), []
        with self._listing() as phase:
            for source in islice(found.pictures(left_out), self.limit):
                sources.append(source)
                phase.done += 1
        self.say_left_out(left_out)
        return sources

    @contextlib.contextmanager
    def _listing(self) -> "Iterator[Phase]":
        """A block that lists inputs."""
        from zeroshot.commands import console
        from zeroshot.inference.meter import LISTING

        meter = console.meter()
        with meter.stage(LISTING), meter.phase(f"listing {self.modality}s") as phase:
            yield phase

    def say_left_out(self, files: Sequence[str]) -> None:
        """Mention files that hold no image."""
        from zeroshot.commands import console

        if files and not self.quiet:
            console.log(_left_out(files, self.modality))

    def _options(self) -> "InputOptions":
        from zeroshot.inputs.columns import Columns
        from zeroshot.inputs.remote.fetch import Fetch
        from zeroshot.inputs.source import CLIPS, PICTURES
        from zeroshot.inputs.tables import InputOptions

        root = self.image_root
        if root is not None and not root.is_dir() and not re.match(r"[a-z0-9]+:/", str(root)):
            raise no_such(root, "folder")
        return InputOptions(
            Columns(self.image_column, self.caption_column, self.label_column),
            None if root is None else str(root),
            Fetch(
                timeout=self.url_timeout,
                max_bytes=round(self.url_max_mb * (1 << 20)),
                allow_private=self.allow_private_urls,
                offline=self.offline,
            ),
            CLIPS if self.modality == "video" else PICTURES,
            self.null,
            max_pixels=round(self.max_megapixels * 1e6),
        )

    def shown(self) -> Literal["json", "table", "nothing"]:
        """JSON with --json or in a pipe; rows that go to a file are shown only with --json."""
        if self.json:
            return "json"
        if self.out is not None:
            return "nothing"
        return "table" if sys.stdout.isatty() else "json"


@dataclasses.dataclass(frozen=True)
class RowOptions(CommonOptions):
    """The common options of commands that write rows."""

    columns: str | None = option(
        None,
        "Columns of a .csv or .parquet table, in this order: path,label,score. Default of .csv: "
        "all but models, which are in its record.",
        env="COLUMNS",
        metavar="A,B",
    )

    def table_columns(self, schema: str, suffix: str | None = None) -> tuple[str, ...] | None:
        """The columns that --columns names; None without it.

        `suffix` is that of the files, if --out is a folder.

        Raises:
            UserError: no such column, or --out is no table.
        """
        if self.columns is None:
            return None
        from zeroshot.output.formats import chosen_columns

        path = Path(f"x.{suffix}") if suffix else self.out or Path()
        return chosen_columns(self.columns, path, schema)

    def check_columns(self, needed: "Collection[str]", what: str) -> None:
        """UserError if --columns lacks one that `what` reads back from --out."""
        chosen = self.columns.split(",") if self.columns is not None else needed
        if lacking := sorted({*needed} - {name.strip() for name in chosen}):
            raise UserError(f"{what} needs more --columns: {','.join(lacking)}")


def _swapped(words: Words) -> str:
    """A hint, if one of the words is a path."""
    for what, given in words.items():
        for word in [given] if isinstance(given, str) else given or ():
            if os.path.lexists(word):
                return f"'{word}' is there, but was given as {what}: are the two swapped?"
    return ""


def _left_out(files: Sequence[str], thing: str) -> str:
    from zeroshot.commands import console

    folder = console.common_folder(files)
    named = ", ".join(file.removeprefix(folder) for file in files[:3])
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    holds = "file that holds" if len(files) == 1 else "files that hold"
    return f"skipped {len(files)} {holds} no {thing}: {named}{more}"
