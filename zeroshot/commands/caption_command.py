"""`zeroshot caption`.

As `cli`, nothing heavy is imported here.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zeroshot.commands.options import (
    LanguageModel,
    Method,
    MethodOptions,
    on_pictures,
    option,
    read_options,
)
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError

if TYPE_CHECKING:
    from zeroshot.distributed.sharding import Inputs


@on_pictures
def caption(
    run: Rows,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or -; none takes those of --prompts."),
    ] = None,
    method: Method = None,
    option: MethodOptions = None,
    preset: Annotated[
        str | None,
        option("--preset", env="PRESET", help="Named settings of magic: coco, flickr30k, story."),
    ] = None,
    lm: LanguageModel = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            env="CAPTIONER",
            help="With --method native: BLIP, BLIP-2, GIT, ViT-GPT2, CoCa, ClipCap, LLaVA, ...",
        ),
    ] = None,
    coupling: Annotated[
        str | None,
        option("--coupling", env="COUPLING", help="Replace the set's coupling; auto chooses one."),
    ] = None,
    prompt: Annotated[
        str | None,
        option("--prompt", env="PROMPT", help="What every text begins with; a story's title."),
    ] = None,
    prompts: Annotated[
        Path | None,
        option("--prompts", env="PROMPTS", help="A prompt per picture: JSON lines, path, prompt."),
    ] = None,
    sidecar: Annotated[
        Literal["txt"] | None,
        option(
            "--sidecar",
            env="SIDECAR",
            help="Also write each caption beside its picture: a.txt for a.jpg. A file that is "
            "there stays unless --overwrite.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        option("--trace", env="TRACE", help="Write every choice to a file, a JSON line each text."),
    ] = None,
) -> None:
    """Caption pictures.

    The method is the model set's; else mbr where the set has captions beside its anchors, and
    magic where it has none or a preset, a prompt or a trace is asked for.
    """
    from zeroshot.datasets.questions import read_prompts
    from zeroshot.tasks.captioning.caption_task import CaptionJob
    from zeroshot.tasks.captioning.sidecars import SidecarJob
    from zeroshot.tasks.captioning.trained_task import NativeCaptionJob

    if prompt is not None and prompts is not None:
        raise UserError("--prompt is one text for all pictures, --prompts one for each: give one")
    each = read_prompts(prompts) if prompts is not None else {}
    if not images and not each:
        raise UserError("caption needs pictures: files, folders, globs or -")
    _see_to_native(method, model, [option, preset, lm, trace, coupling])
    job: CaptionJob | NativeCaptionJob
    if model is not None:
        job = NativeCaptionJob(run.model_set(), model, each or prompt)
    else:
        job = CaptionJob(
            run.model_set(lm),
            method,
            read_options(option),
            preset,
            each or prompt,
            trace is not None,
            coupling,
        )
    sources = _pictures(run, images or list(each), each, prompts)
    if trace is not None and run.folder is not None:
        raise UserError("--trace goes with one output file; a folder of shards keeps no traces")
    whole = SidecarJob(job, run.overwrite) if sidecar else job
    with _traces(trace, run) as traced:
        run.show(whole, sources, traced)


def _see_to_native(method: str | None, model: str | None, of_methods: Sequence[object]) -> None:
    """A trained captioner is asked for by both options, and has none of a method's."""
    if (method == "native") != (model is not None):
        raise UserError("--method native and --model NAME belong together: a trained captioner")
    if model is not None and any(of_methods):
        raise UserError("a trained captioner has no -o, --preset, --lm, --coupling and --trace")


def _pictures(
    run: Rows, images: Sequence[str], each: Mapping[str, str], prompts: Path | None
) -> "Inputs":
    """What `images` name; with a prompt for each, all of them."""
    if not each:
        return run.inputs(images)
    sources = run.sources(images)
    unasked = [source.path for source in sources if source.path not in each]
    if unasked:
        raise UserError(f"'{prompts}' has no prompt for {len(unasked)} pictures: '{unasked[0]}'")
    return sources


@contextlib.contextmanager
def _traces(path: Path | None, run: Rows) -> Iterator[Callable[[Iterator[Any]], Iterator[Any]]]:
    """What passes results on and writes their traces to `path`, a line as soon as it is there."""
    if path is None:
        yield lambda results: results
        return
    from zeroshot.output.formats import to_json, utf8

    if path.exists() and run.overwrite is False and run.out is None:
        raise UserError(f"'{path}' exists; --overwrite writes over it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb" if run.overwrite or run.out is None else "ab") as file:

        def write(results: Iterator[Any]) -> Iterator[Any]:
            for result in results:
                if result.error is None:
                    file.write(utf8(to_json(result.trace_row())) + b"\n")
                    file.flush()
                yield result

        yield write
