"""From a task to rows: on the screen, in a file, or in a folder of shards.

As `cli`, nothing heavy is imported here.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import typer

from zeroshot.commands.common_options import (
    NO_WORDS,
    FolderPath,
    RemotePath,
    RowOptions,
    Words,
)
from zeroshot.errors import UserError, counted
from zeroshot.tasks.options import option

if TYPE_CHECKING:
    from zeroshot.commands.console import Screen
    from zeroshot.distributed.local import RunSpec
    from zeroshot.distributed.saved_rows import SavedRows
    from zeroshot.distributed.sharding import Inputs, Size
    from zeroshot.distributed.worker import WorkerOptions
    from zeroshot.inputs.resolve import ResolvedInputs
    from zeroshot.inputs.source import Source
    from zeroshot.output.object_store import Bucket
    from zeroshot.output.resumable import ResumableFile
    from zeroshot.results.result import Result
    from zeroshot.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class OutputOptions(RowOptions):
    """The common options, and how a folder of shards is made."""

    format: Literal["jsonl", "csv", "parquet"] | None = option(
        None, "Format of the shards if --out is a folder: jsonl.", env="FORMAT"
    )
    shard_size: str | None = option(
        None,
        "Rows per shard (10000), or `file`: one shard per input file. `file` is the default if "
        "there are several inputs and all are tar or Parquet files.",
        env="SHARD_SIZE",
        metavar="N|file",
    )
    shards: str | None = option(
        None,
        "Only the shards of the K-th of N workers, for any launcher. Without it, processes that "
        "fill the same folder share the work.",
        env="SHARDS",
        metavar="K/N",
    )
    devices: str | None = option(None, "One process per device: 0,1 or cpu,cpu.", env="DEVICES")
    engine: Literal["here", "ray"] = option(
        "here", "Where the shards are processed: this machine or Ray.", env="ENGINE"
    )

    remote_out: ClassVar[bool] = True

    @property
    def folder(self) -> Path | None:
        """The folder --out names: one that is there, a name without a suffix or with a slash."""
        out = self.out
        if out is None or (out.suffix and not isinstance(out, FolderPath) and not out.is_dir()):
            return None
        return out

    @property
    def size(self) -> "Size | None":
        """Size of a shard, if given."""
        given = self.shard_size
        if given is None:
            return None
        if given == "file":
            return "file"
        if not given.isdecimal() or int(given) == 0:
            raise UserError(f"--shard-size {given}: file, or a number of at least 1")
        return int(given)

    def inputs(self, images: Sequence[str], words: Words = NO_WORDS) -> "Inputs":
        """What `images` name: images, or the containers of them that become a shard each.

        `words` are as for `resolved`.
        """
        self.check_null(images)
        if self.folder is None:
            return self.sources(images, words)
        from zeroshot.commands import console
        from zeroshot.inputs.containers import Containers

        found = self.resolved(images, words)
        if self._by_file(found):
            if not self.quiet:
                console.log(f"a shard for each of {counted(len(found.files), 'file')}")
                self.say_left_out(found.left_out)
            return Containers(found.files)
        return self.listed(found)

    def _by_file(self, found: "ResolvedInputs") -> bool:
        """Whether each file is a shard: as asked for, as the folder was begun, or as fits it."""
        from zeroshot.distributed.folder import OutputSpec

        size = self.size
        assert self.folder is not None
        if size is None and not self.overwrite:
            size = OutputSpec(self._where(self.folder)).existing_shard_size()
        if size == "file":
            self._refuse_to_list(found)
            return True
        return size is None and self.limit is None and self._are_shards(found)

    def _refuse_to_list(self, found: "ResolvedInputs") -> None:
        """What cannot be a shard, or would have all shards counted."""
        if self.limit is not None:
            raise UserError(
                "--limit counts pictures, and shards that are a file each (--shard-size file) are "
                "not counted beforehand: name fewer files, or choose another --out"
            )
        if found.loose is not None:
            raise UserError(
                "a shard for each file (--shard-size file) needs tar files, tables or Parquet "
                f"files alone, and '{found.loose}' is none: leave it out, or give all pictures "
                "another --out with --shard-size 10000"
            )

    def _are_shards(self, found: "ResolvedInputs") -> bool:
        """Whether there are several files and all are shards by nature; what is not, is said."""
        from zeroshot.commands import console
        from zeroshot.inputs.containers import is_shard

        shards = [file for file in found.files if is_shard(file.name)]
        if len(shards) < 2:
            return False
        if len(shards) < len(found.items) and not self.quiet:
            other = found.loose or next(f.name for f in found.files if not is_shard(f.name))
            console.log(
                f"listing {len(shards)} tar or Parquet files before the first row, since '{other}' "
                "is none; alone, each would be a shard of its own"
            )
        return len(shards) == len(found.items)

    def show(
        self,
        task: "Task[Any]",
        sources: "Inputs",
        through: "Callable[[Iterator[Result]], Iterator[Result]]" = iter,
        layout: str | None = None,
        half: bool = False,
        default_layout: str = "rows",
    ) -> None:
        """Run a task on the images without a row; show and write results; end with a summary.

        Raises:
            typer.Exit: with code 3, if an image failed.
        """
        from zeroshot.inputs.containers import Containers

        if self.folder is None:
            columns = self.table_columns(task.schema)
            if self.out is not None:
                from zeroshot.output.formats import format_for

                format_for(self.out, task.schema, columns)  # before models are loaded
            self._refuse_without_folder(layout, half)
            assert not isinstance(sources, Containers)
            self._show_rows(task, list(sources), through)
            return
        if self.json and (self.devices or self.engine == "ray"):
            raise UserError("--json shows the rows of this process: leave --devices and --engine")
        from zeroshot.distributed.folder import OutputSpec
        from zeroshot.distributed.local import RunSpec

        where = self._where(self.folder)
        if not isinstance(where, Path):
            where.begin()  # before models are loaded and anything is removed
        columns = self.table_columns(task.schema, self.format or "jsonl")
        self.check_columns(("path", "id", "error_type"), "a folder of shards")
        place = OutputSpec(where, self.size, self.format, layout, half, default_layout, columns)
        if self.overwrite:
            if self.shards:
                raise UserError("--overwrite with --shards would remove what the other workers do")
            place.clear(sources, task.schema)
        from zeroshot.commands import console

        command = console.command_line()
        self._fill(RunSpec(task, sources, place, self.images_per_batch, self.cache, command))

    @property
    def has_rows(self) -> bool:
        """Whether --out may have rows of earlier runs, which this one keeps."""
        if self.out is None or self.overwrite:
            return False
        if self.folder is None:
            return self.out.exists()
        from zeroshot.distributed.folder import OutputSpec

        return OutputSpec(self._where(self.folder)).existing_shard_size() is not None

    def saved(self) -> "SavedRows":
        """The rows of --out; of a folder those of its finished shards."""
        from zeroshot.distributed.saved_rows import saved_rows

        assert self.out is not None
        return saved_rows(self.out if self.folder is None else self._where(self.folder))

    def _where(self, folder: Path) -> "Path | Bucket":
        if not isinstance(folder, RemotePath):
            return folder
        from zeroshot.output.object_store import Bucket

        bucket = Bucket(folder.address)
        if not bucket.shared and (self.devices or self.engine == "ray"):
            raise UserError(
                f"--out {bucket}: what is in the memory of this process is not seen by those of "
                "--devices and --engine ray"
            )
        return bucket

    def _refuse_without_folder(self, layout: str | None, half: bool) -> None:
        given = {
            "--format": self.format,
            "--shard-size": self.shard_size,
            "--shards": self.shards,
            "--devices": self.devices,
            "--engine ray": self.engine == "ray",
            "--layout": layout,
            "--half": half,
        }
        for name, value in given.items():
            if value:
                raise UserError(f"{name} needs a folder for the shards: --out DIR/")

    def _show_rows(
        self,
        task: "Task[Any]",
        sources: "list[Source]",
        through: "Callable[[Iterator[Result]], Iterator[Result]]",
    ) -> None:
        from zeroshot.commands import console
        from zeroshot.inference.content_ids import to_do

        meter, output = console.meter(), None
        screen = console.Screen(meter, self.shown(), self.modality)
        screen.name_images([source.path for source in sources])
        with self.open_cache() as cache:
            try:
                with meter.phase("loading models", counts=False):
                    runner = task.open(cache, meter, self.images_per_batch)
                    settings = runner.settings()  # names every model, so that each is loaded now
                    meter.opened()
                if self.out is not None:
                    about = {"command": console.command_line(), **task.about()}
                    output = self._output(self.out, task.schema, settings, about)
                    with meter.phase("looking for images that --out has", counts=False):
                        sources = to_do(sources, output, cache)
                results = through(runner(sources, meter)) if sources else iter(())
                with screen.results(len(sources)):
                    while batch := list(islice(results, runner.batch_size if output else 1)):
                        if output is not None:
                            output.write([result.row() for result in batch])
                        for result in batch:
                            screen.add(result)
            finally:
                if output is not None:
                    output.close({"pictures": meter.pictures, "seconds": round(meter.elapsed, 3)})
            if not self.quiet:
                done = output.resumed if output else 0
                for line in console.summary(meter, done, self.verbose, modality=self.modality):
                    console.log(line)
        if meter.failed or meter.unwritten:
            raise typer.Exit(3)

    def _output(
        self, path: Path, schema: str, settings: dict[str, object], about: dict[str, object]
    ) -> "ResumableFile":
        from zeroshot.output.resumable import ResumableFile

        return ResumableFile(
            path,
            schema,
            settings,
            overwrite=self.overwrite,
            retry_failed=self.retry_failed,
            batch_size=self.images_per_batch,
            about=about,
            columns=self.table_columns(schema),
        )

    def _fill(self, spec: "RunSpec") -> None:
        """Fill a folder of shards, by whatever engine."""
        from zeroshot.commands import console
        from zeroshot.distributed.local import state
        from zeroshot.distributed.sharding import FileRefusedError, Share, changed_message
        from zeroshot.distributed.worker import WorkerOptions

        how = WorkerOptions(
            None if self.shards is None else Share.read(self.shards), self.retry_failed
        )
        meter = console.meter()
        with meter.phase("looking at the folder of --out", counts=False):
            before = state(spec, how)
        shards = (before.finished, before.shards) if before.total is None else None
        screen = console.Screen(meter, self.shown(), self.modality, shards)
        with screen.results(before.to_do):
            write_error = self._engine(spec, how, screen)
        with meter.phase("looking at the folder of --out", counts=False):
            after = state(spec, how)
        if not self.quiet:
            several = bool(self.devices) or self.engine == "ray"
            for line in console.summary(
                meter,
                before.resumed,
                self.verbose,
                before=before,
                several=several,
                modality=self.modality,
            ):
                console.log(line)
            if self.shards is None:
                console.log(console.how_far(after, str(self.folder)))
            else:  # another worker's rows are none of this one's
                console.log(console.how_far(after, f"{self.folder}, share {self.shards}"))
                whole = dataclasses.replace(how, share=None)
                console.log(console.how_far(state(spec, whole), str(self.folder)))
        if write_error is not None:
            console.log(write_error)
        if after.changed:
            raise FileRefusedError(*map(changed_message, after.changed))
        after.check(before)
        if meter.failed or meter.unwritten:
            raise typer.Exit(3)

    def _engine(self, spec: "RunSpec", how: "WorkerOptions", screen: "Screen") -> str | None:
        """Work on the shards, and count; what the cache has to say."""
        meter = screen.meter
        if self.engine == "ray":
            from zeroshot.distributed.ray_engine import run_on_ray

            meter.add(run_on_ray(spec, how, screen.count).counts())
            return None
        if self.devices:
            from zeroshot.distributed.processes import read_devices, run_on

            meter.add(run_on(spec, read_devices(self.devices), how, screen.count).counts())
            return None
        from zeroshot.distributed.local import run

        with spec.open_cache() as cache:
            run(spec, cache, meter, dataclasses.replace(how, on_result=screen.add))
            return cache.write_error
