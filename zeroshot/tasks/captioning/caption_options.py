"""The options of `caption` and `read`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeroshot.errors import UserError, counted
from zeroshot.tasks.options import COUPLING, METHOD, METHOD_OPTIONS, option

if TYPE_CHECKING:
    from zeroshot.inputs.source import Source


@dataclass(frozen=True)
class CaptionOptions:
    """By which method, and what captions begin with."""

    method: Any = METHOD
    options: Mapping[str, Any] = METHOD_OPTIONS
    preset: str | None = option(
        None, "Named settings of magic: coco, flickr30k, story.", env="PRESET", recorded="options"
    )
    lm: str | None = option(None, "Replace the set's language model.", env="LM", recorded="models")
    model: str | None = option(
        None,
        "With --method native or dlc: BLIP, BLIP-2, GIT, ViT-GPT2, CoCa, ClipCap, LLaVA, ...",
        env="CAPTIONER",
        recorded="models",
    )
    coupling: str | None = COUPLING
    recipe: Any = option(
        None,
        "File that 'tune --captions' wrote: method, its options and coupling.",
        env="CAPTION_RECIPE",
        typed=Path,
        recorded="options",
    )
    prompt: str | Sequence[str] | Mapping[str, str] | None = option(
        None,
        "What every text begins with; a story's title.",
        env="PROMPT",
        typed=str,
        recorded="prompts",
    )
    remember_texts: bool = option(
        False,
        "Keep the texts that magic tries in the cache, up to 65536, for later runs.",
        env="REMEMBER_TEXTS",
        decides_rows=False,
    )
    box: Any = option(
        (),
        "Caption this part of each image: LEFT,TOP,RIGHT,BOTTOM in pixels; may be repeated.",
        env="BOX",
        metavar="X0,Y0,X1,Y1",
        typed=list[str],
        recorded="boxes",
    )
    margin: float = option(
        0.25,
        "With boxes: what is seen around a box on each side, as a share of its width and height.",
        env="MARGIN",
        min=0,
        max=10,
    )
    trace: bool = option(False, "Record every choice.", on_command_line=False, decides_rows=False)

    @property
    def prompts(self) -> Mapping[str, str] | Mapping[int, str]:
        """A prompt for each image, by path or by its place in a run; none without any."""
        if self.prompt is None or isinstance(self.prompt, str):
            return {}
        return self.prompt if isinstance(self.prompt, Mapping) else dict(enumerate(self.prompt))

    def check_prompts(self, sources: "Sequence[Source]") -> None:
        """UserError unless there is a prompt for each image of a run, if each has its own."""
        given = self.prompt
        if isinstance(given, Mapping):
            lacking = [source for source in sources if (source.path or "") not in given]
            if lacking:
                images = counted(len(sources), "image")
                raise UserError(
                    f"there is no prompt for {len(lacking)} of {images}, first for "
                    f"'{lacking[0].path or 'an image in memory'}'"
                )
        elif given is not None and not isinstance(given, str) and len(given) != len(sources):
            raise UserError(f"{counted(len(given), 'prompt')} for {counted(len(sources), 'image')}")

    def prompt_of(self) -> "Callable[[Source], str] | None":
        """The prompt of each image of a run in its order; None if there are no prompts."""
        given = self.prompt
        if given is None:
            return None
        if isinstance(given, str):
            return lambda source: given
        if isinstance(given, Mapping):
            return lambda source: given[source.path or ""]
        each = iter(given)
        return lambda source: next(each)


@dataclass(frozen=True)
class ReadOptions:
    """Which model reads."""

    model: str = option(
        "hf:microsoft/trocr-base-printed",
        "An image encoder with a text decoder (TrOCR).",
        env="READER",
        recorded="models",
    )
