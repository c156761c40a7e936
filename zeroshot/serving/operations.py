"""What a request may say: read off the options of the tasks, checked, and described for OpenAPI.

An operation names the fields of a task's options that a client may set. Fields that name files,
folders or models of this machine are not among them, and where an option also takes a file's name
(labels, templates) a request has the list itself: no request names anything on the server's disk.
"""

import dataclasses
import json
import math
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from zeroshot.errors import UserError, unknown
from zeroshot.prompts import PLACEHOLDER, is_template_set, load_templates, template_sets
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.captioning.caption_task import CaptionImages
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.embed import Embed as EmbedTask
from zeroshot.tasks.embed_options import EmbedOptions
from zeroshot.tasks.localization.detect_options import DetectOptions
from zeroshot.tasks.localization.detection import Detect
from zeroshot.tasks.localization.segment_options import SegmentOptions
from zeroshot.tasks.localization.segmentation import Segment
from zeroshot.tasks.options import default_of, option_of
from zeroshot.tasks.search_options import SearchOptions
from zeroshot.tasks.task import Task
from zeroshot.tasks.vqa.ask_options import AskOptions
from zeroshot.tasks.vqa.ask_task import Ask

LONGEST = 4000
"""Characters of a text; a label has `LABEL`."""
LABEL = 300
MOST = 1000
"""Labels, answers or names in a request, and the largest number that a method's option may have:
a request may not ask for a million candidates."""
PROMPTS = 10_000
"""Labels times templates in a request: all others wait until its texts are encoded."""
CANDIDATES = 10_000
"""Candidates that a caption may compare: those of a step, times the steps."""
TOP_K = 1000
LISTS = frozenset({"labels", "against", "background", "answers", "among", "question"})
"""Fields that are lists of texts here; the command line also takes files for most of them."""
SAID_HERE = {
    "labels": "The labels.",
    "against": "With multi: negative prompts; a score is the softmax probability against them.",
    "background": "What is none of the labels, in words.",
    "answers": "The answers to choose from.",
    "among": "Names of what may be in the image, for questions whether something is there.",
    "templates": "simple, openai, none, waffle, or one template such as 'a photo of a {}'.",
    "options": "Options of the method, by name: k is 45.",
    "trace": "Add every choice of the decoding.",
}
"""What a request has instead of the help of the command line, which speaks of files."""


@dataclass(frozen=True)
class Operation:
    """A task that a request can ask for."""

    name: str
    about: str
    kind: type[Task[Any]]
    options: type[Any]
    fields: tuple[str, ...]
    required: tuple[str, ...] = ()
    questions: bool = False
    """Whether the request has questions, which are no option."""

    @property
    def known(self) -> tuple[str, ...]:
        """All that a request may say beside its image."""
        return (*self.fields, *(("question",) if self.questions else ()))

    @property
    def schema(self) -> dict[str, Any]:
        """The fields as JSON schema, by name."""
        found = {f.name: field_schema(f) for f in dataclasses.fields(self.options)}
        shown = {name: found[name] for name in self.fields}
        if self.questions:
            text = {"type": "string", "minLength": 1, "maxLength": LONGEST}
            about = "Questions about the image."
            shown["question"] = {"type": "array", "items": text, "description": about}
        return shown


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("embed", "The unit embedding of an image.", EmbedTask, EmbedOptions, ()),
        Operation(
            "classify",
            "The best labels of an image.",
            Classify,
            ClassifyOptions,
            (
                *("labels", "templates", "method", "options", "score", "top_k", "multi"),
                *("against", "threshold", "long_text", "explain"),
            ),
            ("labels",),
        ),
        Operation(
            "caption",
            "A caption of an image; with Accept: text/event-stream word by word.",
            CaptionImages,
            CaptionOptions,
            ("method", "options", "preset", "prompt", "trace"),
        ),
        Operation(
            "detect",
            "A box for each thing found in an image.",
            Detect,
            DetectOptions,
            ("labels", "threshold", "overlap", "background", "templates", "regions"),
            ("labels",),
        ),
        Operation(
            "segment",
            "A label for each pixel of an image.",
            Segment,
            SegmentOptions,
            ("labels", "background", "templates", "method", "options", "threshold"),
            ("labels",),
        ),
        Operation(
            "ask",
            "Answers to questions about an image.",
            Ask,
            AskOptions,
            ("top_k", "answers", "among", "present"),
            ("question",),
            questions=True,
        ),
    )
}
SEARCH_FIELDS = ("top_k", "min_score", "explain")


@dataclass(frozen=True)
class Asked:
    """A request without its image: the operation, and what was given."""

    operation: Operation
    given: Mapping[str, Any]

    @property
    def key(self) -> Hashable:
        """Equal for requests that differ only in their image."""
        return self.operation.name, json.dumps(self.given, sort_keys=True)

    def task(self, models: Any) -> Task[Any]:
        """The task, as the command line makes it."""
        given = {name: tuple(v) if isinstance(v, list) else v for name, v in self.given.items()}
        template = self.given.get("templates")
        if template is not None and not is_template_set(template):
            given["templates"] = (template,)  # alone, it could be the name of a file
        questions = given.pop("question", ())
        options = self.operation.options(**given)
        if self.operation.questions:
            return Ask.from_options(models, options, questions)
        return self.operation.kind.from_options(models, options)


def read_request(operation: Operation, given: Mapping[str, Any]) -> Asked:
    """A request's fields, checked.

    Raises:
        UserError: a field that is unknown, missing, of another type or too long.
    """
    where = f"field of /v1/{operation.name}"
    schema = operation.schema
    for name, value in given.items():
        if name not in schema:
            raise unknown(where, name, ("image", "id", *schema))
        check_value(name, value, schema[name])
    for name in operation.required:
        if not given.get(name):
            kind = "a list of texts" if name in LISTS else "a text"
            raise UserError(f"/v1/{operation.name} needs '{name}', {kind}")
    _check_template(given)
    _check_prompts(given)
    return Asked(operation, dict(given))


def read_search(given: Mapping[str, Any]) -> SearchOptions:
    """The options of a search, checked; UserError as for `read_request`."""
    found = {f.name: field_schema(f) for f in dataclasses.fields(SearchOptions)}
    for name, value in given.items():
        if name not in SEARCH_FIELDS:
            raise unknown("field of /v1/search", name, ("query", "plus", "minus", *SEARCH_FIELDS))
        check_value(name, value, found[name])
    return SearchOptions(**given)


def _check_template(given: Mapping[str, Any]) -> None:
    """UserError unless `templates` is the name of a set, or a template itself: never a file."""
    spec = given.get("templates")
    if spec is not None and not is_template_set(spec) and not PLACEHOLDER.search(spec):
        raise UserError(
            f"'templates' is {', '.join(template_sets())}, or one template with {{}} where the "
            f"label goes, not '{spec:.60}'"
        )


def _check_prompts(given: Mapping[str, Any]) -> None:
    spec = given.get("templates")
    count = 1 if spec and not is_template_set(spec) else len(load_templates(spec))
    names = sum(len(given.get(name, ())) for name in ("labels", "against", "background"))
    if names * count > PROMPTS:
        raise UserError(
            f"{names} labels in {count} templates are {names * count} prompts; a request has at "
            f"most {PROMPTS}"
        )


def check_candidates(options: Mapping[str, Any]) -> None:
    """UserError if a configured method would compare more candidates than a request may."""
    steps = max(options.get("max_tokens", 0), options.get("max_length", 0))
    most = options.get("k", 0) * steps
    if steps and most > CANDIDATES:
        raise UserError(
            f"'options': k={options['k']} for {steps} tokens are {most} candidates; a request has "
            f"at most {CANDIDATES}"
        )


def check_text(name: str, text: object, longest: int = LONGEST) -> str:
    """The text; UserError if it is none, is empty, too long or no valid Unicode."""
    if not isinstance(text, str):
        raise UserError(f"'{name}' is a text, not {_kind_of(text)}")
    if not text.strip():
        raise UserError(f"'{name}' is empty")
    if len(text) > longest:
        raise UserError(f"'{name}' has {len(text)} characters; at most {longest} are read")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"'{name}' is no valid text: it has half of a surrogate pair") from None
    return text


def check_value(name: str, value: object, schema: Mapping[str, Any]) -> None:
    """UserError unless the value fits its schema; the message says what would."""
    kind = schema.get("type")
    if "enum" in schema:
        if value not in schema["enum"]:
            raise UserError(f"'{name}' is one of {', '.join(schema['enum'])}, not {value!r:.60}")
    elif kind == "array":
        if not isinstance(value, list):
            raise UserError(f"'{name}' is a list of texts, not {_kind_of(value)}")
        if len(value) > MOST:
            raise UserError(f"'{name}' has {len(value)} texts; at most {MOST} are read")
        for text in value:
            check_text(name, text, LONGEST if name == "question" else LABEL)
    elif kind == "object":
        _check_options(name, value)
    elif kind == "string":
        check_text(name, value)
    elif kind == "boolean":
        if not isinstance(value, bool):
            raise UserError(f"'{name}' is true or false, not {_kind_of(value)}")
    else:
        _check_number(name, value, schema)


def _check_number(name: str, value: object, schema: Mapping[str, Any]) -> None:
    whole = schema.get("type") == "integer"
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number:
        raise UserError(f"'{name}' is a {'whole ' * whole}number, not {_kind_of(value)}")
    assert isinstance(value, int | float)
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if not (abs(value) < 1e300 and low <= value <= high):
        above = f"at least {low:g}" if low > -math.inf else ""
        below = f"at most {high:g}" if high < math.inf else ""
        limits = " and ".join(filter(None, (above, below))) or "finite"
        raise UserError(f"'{name}' is {limits}, not {str(value)[:20]}")


def _check_options(name: str, value: object) -> None:
    """Options of a method: texts, numbers and flags, none of them large."""
    if not isinstance(value, dict):
        raise UserError(f"'{name}' is an object such as {{\"k\": 45}}, not {_kind_of(value)}")
    for key, one in value.items():
        if not isinstance(one, str | int | float | bool):
            kind = _kind_of(one)
            raise UserError(f"'{name}': {key:.60} is a number, a text or true, not {kind}")
        try:
            large = not isinstance(one, bool) and abs(float(one)) > MOST
        except (ValueError, OverflowError):
            large = isinstance(one, int)
        if large or len(str(one)) > LABEL:
            raise UserError(f"'{name}': {key:.60}={str(one)[:40]} is too large; at most {MOST}")


def _kind_of(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
    names |= {list: "a list", dict: "an object", types.NoneType: "null"}
    return names.get(type(value), type(value).__name__)


# From an option's declaration to JSON schema


def field_schema(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    """The schema of an option, with its help text, default and limits."""
    known = option_of(field)
    hint = known.typed if field.type in (Any, "Any") and known.typed is not None else field.type
    schema = _schema_of(field.name, hint)
    schema["description"] = SAID_HERE.get(field.name, known.help)
    if schema.get("type") in ("integer", "number"):
        schema |= {} if known.min is None else {"minimum": known.min}
        most = TOP_K if field.name in ("top_k", "explain") else known.max
        schema |= {} if most is None else {"maximum": most}
    default = default_of(field)
    if isinstance(default, str | int | float) and schema.get("type") != "array":
        schema["default"] = default
    return schema


def _schema_of(name: str, hint: Any) -> dict[str, Any]:
    if name in LISTS:
        text = {"type": "string", "minLength": 1, "maxLength": LABEL}
        return {"type": "array", "items": text, "maxItems": MOST}
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
        literals = [value for kind in kinds for value in get_args(kind) if isinstance(value, str)]
        if len(literals) > 1:
            return {"type": "string", "enum": literals}
        return _schema_of(name, str if str in kinds else kinds[0])
    if get_origin(hint) is Literal:
        return {"type": "string", "enum": list(get_args(hint))}
    simple: dict[Any, dict[str, Any]] = {
        str: {"type": "string", "minLength": 1, "maxLength": LONGEST},
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"type": "number"},
    }
    if hint in simple:
        return dict(simple[hint])
    values = {"anyOf": [{"type": kind} for kind in ("string", "number", "boolean")]}
    return {"type": "object", "additionalProperties": values}


def from_query(operation: Operation, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The fields of a request whose image is its body: `?labels=cat&labels=dog&top_k=2`.

    Raises:
        UserError: a value that is not of the field's type, or a field that is given twice.
    """
    schema, given = operation.schema, dict[str, Any]()
    for name, text in pairs:
        if name not in schema:
            raise unknown(f"field of /v1/{operation.name}", name, schema)
        kind = schema[name].get("type")
        if kind == "array":
            given.setdefault(name, []).append(text)
        elif name in given:
            raise UserError(f"'{name}' is given twice")
        else:
            given[name] = _converted(name, text, kind)
    return given


def _converted(name: str, text: str, kind: Any) -> Any:
    convert: Mapping[str, Callable[[str], Any]] = {
        "integer": int,
        "number": float,
        "boolean": lambda text: {"true": True, "false": False}[text.lower()],
        "object": json.loads,
    }
    if kind not in convert:
        return text
    try:
        return convert[kind](text)
    except (ValueError, KeyError, RecursionError):
        raise UserError(f"'{name}': '{text[:60]}' is not of type {kind}") from None
