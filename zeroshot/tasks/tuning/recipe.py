"""A recipe: what `tune` chose, and what that was measured to be worth, as TOML that people read.

schema, task, labels, seed    what was asked; without a `task` it is classify
[models]                      the encoders, with their fingerprints
[[members]]                   methods, each with its weight and temperature
shots                         the labelled images that methods learn from
templates, [prompts]          the default prompts; those that only this recipe has
bank                          the queries that a search re-ranks with
[figures]                     accuracy with its interval, and that of plain zero-shot; for search
                              the mean reciprocal rank, for captions CIDEr, and that of the default
[[tried]], [[curve]]          all that was tried; accuracy by the number of labels
[held_out]                    answers for images that took no part in them, for the report
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from zeroshot.errors import UserError
from zeroshot.inputs.text_files import is_number, read_toml
from zeroshot.output import atomic
from zeroshot.prompts import Templates, expand, load_templates
from zeroshot.tasks.options import default_of, flags_of

SCHEMA = "zeroshot.recipe/1"
TunedTask = Literal["classify", "search", "caption"]
MEASURES: Mapping[TunedTask, str] = {
    "classify": "balanced accuracy",
    "search": "mean reciprocal rank",
    "caption": "CIDEr",
}
"""What the figures of a task are; like tables, they are shown times 100."""
COLUMNS: Mapping[str, Mapping[str, type]] = {
    "tried": {"name": str, "accuracy": float, "error": float, "share": float},
    "curve": {"labels": float, "accuracy": float, "error": float},
}


@dataclass(frozen=True)
class RecipeMember:
    """A method with its options, prompts and coupling; its softmax is at this temperature."""

    method: str
    weight: float = 1.0
    temperature: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    templates: str = ""
    """Empty for those of the recipe."""
    coupling: str = ""
    """Empty for the default of the model set."""


@dataclass(frozen=True)
class RecipeFigures:
    """In the measure of the task, of images that took no part in the choice.

    `plain` is plain zero-shot; for search and captions it is the default, and `gain` and `p` are
    those of what would have been taken instead, if the default is taken.
    """

    accuracy: float
    low: float
    high: float
    plain: float
    plain_low: float
    plain_high: float
    gain: float
    p: float
    """That the gain is none, one-sided."""
    images: int
    """Those that share a query count as one."""
    folds: int
    repeats: int


@dataclass(frozen=True)
class HeldOut:
    """Answers for the labelled images, each learned without the image."""

    paths: tuple[str, ...]
    classes: tuple[int, ...]
    answers: tuple[int, ...]
    confidences: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """The result of `zeroshot tune`."""

    labels: tuple[str, ...] = ()
    """Empty for search and captions, which have none."""
    verdict: str = ""
    """One sentence: what was chosen and why."""
    members: tuple[RecipeMember, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    templates: str = ""
    """Of members without a name of their own; empty for `simple`."""
    prompts: Mapping[str, Templates] = field(default_factory=dict)
    """Templates, or prompts by class, by their name; others are known by name."""
    shots: str = ""
    """The labelled images to learn from, relative to the recipe; empty for none."""
    shots_fingerprint: str = ""
    seed: int = 0
    figures: RecipeFigures | None = None
    """None if nothing could be measured."""
    tried: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()
    agreement: Mapping[str, float] = field(default_factory=dict)
    """Share of the images on which a method answers as the recipe does; a hint, no accuracy."""
    suggested: tuple[str, ...] = ()
    held_out: HeldOut | None = None
    task: TunedTask = "classify"
    default: str = ""
    """For search and captions: what is used without a recipe."""
    bank: tuple[str, ...] = ()
    """Queries that a search re-ranks with."""

    def check_task(self, task: TunedTask) -> None:
        """UserError for a recipe of another task."""
        if self.task != task:
            raise UserError(
                f"the recipe is for '{self.task}', not for '{task}': zeroshot {self.task} --recipe"
            )

    def check_models(self, used: Mapping[str, str]) -> None:
        """UserError for other models than those that the recipe was tuned with.

        A coupling is part of the names only if the recipe has the set's own.
        """
        named, found = dict(self.models), dict(used)
        if self.members[0].coupling:
            named.pop("coupling", None)
            found.pop("coupling", None)
        if named and found != named:
            was, now = (", ".join(names.values()) for names in (named, found))
            raise UserError(f"the recipe was tuned with {was}, and these models are {now}")

    def prompts_of(self, member: RecipeMember) -> list[list[str]]:
        """The prompts of each class."""
        name = member.templates or self.templates or "simple"
        return expand(self.labels, self.prompts.get(name) or load_templates(name, self.labels))

    @property
    def fingerprint(self) -> str:
        """A hash of what decides the answers."""
        deciding = [self.labels, self.members, sorted(self.models.items()), self.shots_fingerprint]
        if self.templates or self.prompts:
            deciding += [self.templates, sorted(self.prompts.items())]
        if self.bank:
            deciding.append(self.bank)
        return hashlib.sha256(repr(tuple(deciding)).encode()).hexdigest()[:12]


def to_toml(recipe: Recipe) -> str:
    """The text of the file."""
    import tomli_w

    table: dict[str, Any] = {"schema": SCHEMA}
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        if value not in (None, "", (), {}) and (entry.name, value) != ("task", "classify"):
            table[entry.name] = _plain(value)
    return tomli_w.dumps(table)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write it whole, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(path, to_toml(recipe).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, RecipeMember | RecipeFigures | HeldOut):
        return {k: _plain(v) for k, v in asdict(value).items() if v not in ("", {}, None)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def read_recipe(path: Path) -> Recipe:
    """A recipe that `tune` wrote, every value checked.

    Raises:
        UserError: no such file, or not a recipe.
    """
    table = read_toml(path)
    try:
        if table.pop("schema", None) != SCHEMA:
            raise ValueError(f'no schema = "{SCHEMA}"')
        recipe = _recipe(table)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{path}' is no recipe of zeroshot tune: {error}") from error
    return recipe


def recipe_of(given: "str | Path | Recipe", task: TunedTask) -> Recipe:
    """A recipe, or that of a file, for this task.

    Raises:
        UserError: no such file, not a recipe, or one of another task.
    """
    recipe = given if isinstance(given, Recipe) else read_recipe(Path(given))
    recipe.check_task(task)
    if task != "classify" and len(recipe.members) > 1:
        raise UserError(f"the recipe has {len(recipe.members)} members, and one can {task}")
    return recipe


def check_beside_recipe(options: Any, own: Sequence[str], without: Sequence[str] = ()) -> None:
    """UserError for options that a recipe decides (`own`), or has no use for (`without`)."""
    for entry in fields(options):
        if entry.name in (*own, *without) and getattr(options, entry.name) != default_of(entry):
            why = "the recipe has its own" if entry.name in own else "a recipe has no use for it"
            raise UserError(f"--recipe and {flags_of(entry)[0]}: {why}; leave one of them out")


def _recipe(table: dict[str, Any]) -> Recipe:
    _check_keys(table, Recipe, "a recipe")
    given = dict(table)
    if given.get("task", "classify") not in MEASURES:
        raise ValueError(f"task is none of {', '.join(MEASURES)}")
    for name in ("labels", "left_out", "suggested", "bank"):
        given[name] = _texts(given.get(name, []), name)
    if bool(given["labels"]) != (given.get("task", "classify") == "classify"):
        raise ValueError("labels are for a recipe of classify, which needs them")
    given["members"] = tuple(_built(RecipeMember, m, "members") for m in _list(given, "members"))
    if not given["members"] or sum(m.weight for m in given["members"]) <= 0:
        raise ValueError("no members with a weight")
    if any(m.weight < 0 or m.temperature <= 0 for m in given["members"]):
        raise ValueError("a member has a weight below 0, or a temperature that is not above 0")
    for name, kind in (("figures", RecipeFigures), ("held_out", HeldOut)):
        if name in given:
            given[name] = _built(kind, given[name], name)
    for name in ("seed", "verdict", "templates", "shots", "shots_fingerprint", "default"):
        if name in given:
            given[name] = _typed(Recipe.__dataclass_fields__[name].type, given[name], name)
    for name, values in (("models", str), ("agreement", float)):
        given[name] = {k: _typed(values, v, name) for k, v in _table(given, name).items()}
    given["prompts"] = {k: _prompts(v) for k, v in _table(given, "prompts").items()}
    for name, columns in COLUMNS.items():
        given[name] = tuple(_row(row, columns, name) for row in _list(given, name))
    if "held_out" in given:
        _check_held_out(given["held_out"], len(given["labels"]))
    return Recipe(**given)


def _row(row: Mapping[str, Any], columns: Mapping[str, type], where: str) -> dict[str, Any]:
    """A row with these columns; a standard error may be infinite."""
    if set(row) != set(columns):
        raise ValueError(f"{where} needs {', '.join(columns)}")
    return {
        key: value if key == "error" and value == math.inf else _typed(kind, value, where)
        for key, kind in columns.items()
        for value in [row[key]]
    }


def _check_held_out(held_out: HeldOut, labels: int) -> None:
    columns = (held_out.paths, held_out.classes, held_out.answers, held_out.confidences)
    if len({len(column) for column in columns}) > 1:
        raise ValueError("the columns of held_out differ in length")
    if any(not 0 <= c < labels for c in (*held_out.classes, *held_out.answers)):
        raise ValueError(f"held_out has a class that is none of {labels}")
    if any(not 0 <= c <= 1 for c in held_out.confidences):
        raise ValueError("held_out has a confidence that is not between 0 and 1")


def _table(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no table")
    return value


def _prompts(value: object) -> Templates:
    if not isinstance(value, dict):
        return _texts(value, "prompts")
    return {label: _texts(texts, "prompts") for label, texts in value.items()}


def _list(table: Mapping[str, Any], name: str) -> list[Any]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{name} is no list of tables")
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is no list of texts")
    return tuple(value)


def _built(kind: type[Any], value: object, name: str) -> Any:
    """`RecipeMember`, `RecipeFigures` or `HeldOut`, its values of the declared types."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no table")
    _check_keys(value, kind, name)
    given = {}
    for key, item in value.items():
        declared = kind.__dataclass_fields__[key].type
        given[key] = _typed(declared, item, f"{name}.{key}")
    return kind(**given)


def _typed(declared: Any, item: Any, where: str) -> Any:
    if declared is float and is_number(item):
        return float(item)
    if declared is int and is_number(item) and isinstance(item, int):
        return item
    if declared is str and isinstance(item, str):
        return item
    if declared == Mapping[str, Any] and isinstance(item, dict):
        return item
    inner = getattr(declared, "__args__", (None,))[0]
    if isinstance(item, list) and inner in (str, int, float) and declared != Mapping[str, Any]:
        return tuple(_typed(inner, x, where) for x in item)
    raise ValueError(f"{where} = {str(item)[:40]} is of another kind")


def _check_keys(table: Mapping[str, Any], kind: type[Any], where: str) -> None:
    known = {entry.name for entry in fields(kind)}
    if strange := sorted(set(table) - known):
        raise ValueError(f"{where} has no '{strange[0]}'")


def shots_fingerprint(paths: Sequence[str], classes: Sequence[int]) -> str:
    """A hash of labelled images by their names and classes."""
    names = [Path(path).name for path in paths]
    return hashlib.sha256(repr(list(zip(names, classes, strict=True))).encode()).hexdigest()[:12]
