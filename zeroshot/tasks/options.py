"""Options of a task: declared once, as the fields of a frozen dataclass.

The command line makes its flags from the fields (`commands.command`), the functions of `zeroshot`
have a keyword for each, and `settings` records those that decide rows. Nothing heavy is imported
here, nor by a module that declares options: `zeroshot --help` reads them.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from zeroshot.errors import UserError
from zeroshot.tasks import completion


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """What is known of an option beside its name, type and default."""

    help: str
    flags: tuple[str, ...] = ()
    """On the command line; `--name-of-the-field` if there are none."""
    env: str | None = None
    """The environment variable, `ZEROSHOT_` left out; None for no variable."""
    typed: Any = None
    """Type on the command line, if it is not the field's."""
    min: float | None = None
    max: float | None = None
    metavar: str | None = None
    parser: Callable[[str], Any] | None = None
    complete: Callable[..., Any] | None = None
    """Values that a shell completes; see `tasks.completion`."""
    on_command_line: bool = True
    hidden: bool = False
    images: bool = False
    """The value names images, which the command reads with its own input options."""
    convert: Callable[[Any], Any] | None = None
    """Turns what the command line gives into the field's value."""
    decides_rows: bool = True
    """Whether another value may give other rows; then it is part of the settings of a run."""
    recorded: str | None = None
    """The key of `resolved` settings that covers the value; the field's own name without one."""


def option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field of an options dataclass; `more` are the fields of `OptionSpec`."""
    known = OptionSpec(help, flags, **more)
    if isinstance(default, Hashable):
        return dataclasses.field(default=default, metadata={"option": known})
    return dataclasses.field(default_factory=lambda: default, metadata={"option": known})


def option_of(field: "dataclasses.Field[Any]") -> OptionSpec:
    """What `option` declared of a field."""
    found: OptionSpec = field.metadata["option"]
    return found


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The field's value if nobody gives one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def flags_of(field: "dataclasses.Field[Any]") -> tuple[str, ...]:
    """What the command line calls the option: `--top-k`, `-k`."""
    return option_of(field).flags or (f"--{field.name.replace('_', '-')}",)


def check_number(name: str, number: float, known: OptionSpec | None = None) -> None:
    """UserError for NaN, infinity, and a number out of the option's range."""
    low, high = (None, None) if known is None else (known.min, known.max)
    if not math.isfinite(number):
        wanted = "a finite number"
    elif low is not None and high is not None:
        wanted = f"between {low} and {high}"
    else:
        wanted = f"at least {low}" if low is not None else f"at most {high}"
    in_range = (low is None or number >= low) and (high is None or number <= high)
    if not (in_range and math.isfinite(number)):
        raise UserError(f"{name} is {number}, and has to be {wanted}")


def settings(options: Any, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that decides what a row says; rows of other settings do not share an output.

    `resolved` has what only the opened task knows: names of models, fingerprints of prompts,
    defaults that depend on a model. An option that is not recorded there, and differs from its
    default, is recorded under its own name: none can be forgotten, and a new option leaves older
    outputs valid.
    """
    found = dict(resolved)
    for field in dataclasses.fields(options):
        known, value = option_of(field), getattr(options, field.name)
        unchanged = not known.decides_rows or value == default_of(field)
        if not unchanged and (known.recorded or field.name) not in resolved:
            found[field.name] = as_json(value)
    return found


def as_json(value: Any) -> Any:
    """Tuples and mappings as JSON has them; paths, and whatever names an image, as text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def method_options(given: list[str] | None) -> dict[str, str]:
    """`["k=45"]` as a dict; the method's dataclass has the types.

    Raises:
        UserError: an option that is not KEY=VALUE.
    """
    options = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"-o {text}: options are written KEY=VALUE, for example -o k=45")
        options[key] = value
    return options


def several(texts: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several, as a tuple."""
    return (texts,) if isinstance(texts, str) else tuple(texts)


BATCH_SIZE = OptionSpec("Images per batch; halved when memory runs out.", min=1, max=10**9)
METHOD: Any = option(
    None,
    "The method; 'zeroshot methods' lists them.",
    env="METHOD",
    complete=completion.methods,
    typed=str,  # in Python also an object
)
BACKGROUND: Any = option(
    None,
    "For a dual encoder: what is none of the labels, in words, or none. Default: background, "
    "white background, wall, sky and ten more.",
    env="BACKGROUND",
    typed=str,
    recorded="background",
)
REFINE: Any = option(
    20,
    "For a dual encoder's map: rounds of refinement at the edges of the image; 0 for none.",
    env="REFINE",
    min=0,
    max=1000,
)
COUPLING: Any = option(
    None,
    "Replace the coupling of a coupled pair; auto chooses one.",
    env="COUPLING",
    complete=completion.couplings,
    recorded="models",
)
METHOD_OPTIONS: Any = option(
    {},
    "An option of the method: -o k=45; may be repeated.",
    "--option",
    "-o",
    metavar="KEY=VALUE",
    typed=list[str],
    convert=method_options,
)
