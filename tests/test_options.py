"""Options are declared once: what is given arrives, and what decides rows is in the settings."""

import dataclasses
import functools
import inspect
import json
import typing
from pathlib import Path
from types import NoneType

import pytest

import zeroshot
from zeroshot import cli
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.commands import label_commands, search_commands, video_commands
from zeroshot.commands.command import flags
from zeroshot.evaluation.evaluate_options import EvaluateOptions
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.model_set import resolve
from zeroshot.tasks import search as searching
from zeroshot.tasks.captioning.caption_options import CaptionOptions, ReadOptions
from zeroshot.tasks.captioning.caption_task import CaptionImages
from zeroshot.tasks.captioning.trained import Read
from zeroshot.tasks.classification import classify_task
from zeroshot.tasks.classification.calibrate_options import CalibrateOptions
from zeroshot.tasks.classification.classify_options import ClassifyOptions, VideoClassifyOptions
from zeroshot.tasks.classification.classify_task import Classify
from zeroshot.tasks.duplicates import dedupe as deduplication
from zeroshot.tasks.duplicates.dedupe_options import DedupeOptions
from zeroshot.tasks.embed import Embed
from zeroshot.tasks.embed_options import EmbedOptions
from zeroshot.tasks.explaining import explain as explaining
from zeroshot.tasks.explaining.explain_options import ExplainOptions
from zeroshot.tasks.filter import Filter
from zeroshot.tasks.filter_options import FilterOptions
from zeroshot.tasks.localization.detect_options import DetectOptions
from zeroshot.tasks.localization.detection import Detect
from zeroshot.tasks.localization.segment_options import SegmentOptions
from zeroshot.tasks.localization.segmentation import Segment
from zeroshot.tasks.matching.match_options import MatchOptions
from zeroshot.tasks.matching.match_task import Match
from zeroshot.tasks.options import default_of, flags_of, option_of, settings
from zeroshot.tasks.search_options import SearchOptions, VideoSearchOptions
from zeroshot.tasks.tuning.recipe import Recipe, RecipeMember
from zeroshot.tasks.vqa.ask_options import AskOptions
from zeroshot.tasks.vqa.ask_task import Ask

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
HEART = str(SCENES / "1-red-heart.png")


class CapturedError(BaseException):
    """Ends a command, or a function, where the options have arrived."""


def capture(monkeypatch, owner, name, place):
    """Make a function end the run with its argument at `place`, or the keyword `options`."""

    def end(*given, **more):
        raise CapturedError(more["options"] if "options" in more else given[place])

    whole = isinstance(owner, type)
    monkeypatch.setattr(owner, name, classmethod(end) if whole else end)


CAPTION = "zeroshot.tasks.captioning.caption_task"
COMMANDS = {
    "caption": (
        CaptionOptions,
        ("zeroshot.tasks.captioning.caption_task", "caption_task", 1),
        [HEART],
    ),
    "read": (ReadOptions, (Read, "from_options", 2), [HEART]),
    "ask": (AskOptions, (Ask, "from_options", 2), [HEART, "what?"]),
    "segment": (SegmentOptions, (Segment, "from_options", 2), [HEART]),
    "detect": (DetectOptions, (Detect, "from_options", 2), [HEART]),
    "match": (MatchOptions, (Match, "from_options", 2), [HEART]),
    "filter": (FilterOptions, (Filter, "from_options", 2), [HEART]),
    "classify": (ClassifyOptions, (Classify, "from_options", 2), [HEART]),
    "calibrate": (CalibrateOptions, (label_commands, "calibrate_on", 1), [HEART]),
    "search": (SearchOptions, (search_commands, "find", 1), ["heart", HEART]),
    "dedupe": (DedupeOptions, ("zeroshot.tasks.duplicates.dedupe", "dedupe", 2), [HEART]),
    "explain": (ExplainOptions, ("zeroshot.tasks.explaining.explain", "explain", 2), [HEART]),
    "eval": (EvaluateOptions, ("zeroshot.evaluation.experiment", "experiment", 2), [str(SCENES)]),
    "video classify": (VideoClassifyOptions, (classify_task, "video_task", 1), [HEART]),
    "video search": (VideoSearchOptions, (video_commands, "find", 1), ["heart", HEART]),
    "video calibrate": (CalibrateOptions, (video_commands, "calibrate_on", 1), [HEART]),
    "video caption": (
        video_commands.VideoCaptionOptions,
        ("zeroshot.tasks.captioning.caption_task", "caption_task", 1),
        [HEART],
    ),
}
"""The options of each command, the function they arrive at, and the arguments it needs."""
EXAMPLES = {float: 0.75, str: "some", Path: Path(HEART)}
REJECTED = {("video caption", "model")}
"""Options that a command has only to say why it takes none."""


def alternatives(typed):
    """The types of a union and the choices of a Literal, in their order."""
    if typing.get_origin(typed) is list:
        return [typed]
    parts = [x for part in typing.get_args(typed) for x in alternatives(part)]
    return parts or ([] if typed is NoneType else [typed])


def given_on_command_line(field):
    """Words for the command line, and the value that has to arrive."""
    known, flag = option_of(field), flags_of(field)[0]
    [parameter] = flags(_only(field))
    kinds = alternatives(typing.get_args(parameter.annotation)[0])
    if kinds == [bool]:
        return [flag], True
    if typing.get_origin(kinds[0]) is list:
        words, value = [flag, "k=1", flag, "j=2"], ["k=1", "j=2"]
    else:
        choices = [kind for kind in kinds if isinstance(kind, str) and kind != default_of(field)]
        count = min(max(3, known.min or 0), known.max or 3)
        value = choices[0] if choices else EXAMPLES.get(kinds[0], int(count))
        words = [flag, str(value)]
    return words, known.convert(value) if known.convert else value


def _only(field):
    """An options class with one field, for `flags`."""
    return dataclasses.make_dataclass(
        "One", [(field.name, field.type, dataclasses.field(default=None, metadata=field.metadata))]
    )


def fields(kind):
    return [f for f in dataclasses.fields(kind) if option_of(f).on_command_line]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, field.name)
        for command, (kind, *_) in COMMANDS.items()
        for field in fields(kind)
        if (command, field.name) not in REJECTED
    ],
)
def test_what_the_command_line_gives_arrives(command, name, monkeypatch):
    kind, (owner, function, place), arguments = COMMANDS[command]
    if isinstance(owner, str):
        owner = __import__(owner, fromlist=[function])
    [field] = [f for f in dataclasses.fields(kind) if f.name == name]
    words, value = given_on_command_line(field)
    if option_of(field).images:
        words = [words[0], HEART]
    capture(monkeypatch, owner, function, place)
    line = [*command.split(), *arguments, "--models", "pocket", "--offline", *words]
    with pytest.raises(CapturedError) as ended:
        cli.run([str(word) for word in line])
    arrived = getattr(ended.value.args[0], name)
    if option_of(field).images:
        assert [source.path for source in arrived] == [HEART]
    else:
        assert arrived == value


FUNCTIONS = {
    "caption": CaptionOptions,
    "classify": ClassifyOptions,
    "search": SearchOptions,
    "dedupe": DedupeOptions,
    "explain": ExplainOptions,
    "embed": EmbedOptions,
    "segment": SegmentOptions,
    "detect": DetectOptions,
    "match": MatchOptions,
    "ask": AskOptions,
    "read": ReadOptions,
    "evaluate": EvaluateOptions,
    "video.classify": VideoClassifyOptions,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_python_has_the_fields_as_keywords(name):
    function = zeroshot.video.classify if name.startswith("video") else getattr(zeroshot, name)
    parameters = dict(inspect.signature(function).parameters)
    assert parameters.pop("options", None) or "options" not in {
        f.name for f in dataclasses.fields(FUNCTIONS[name])
    }
    declared = {
        f.name: default_of(f)
        for f in dataclasses.fields(FUNCTIONS[name])
        if f.name != "options" and not (name == "video.classify" and f.name in ("views", "recipe"))
    }
    assert {n: parameters[n].default for n in declared} == declared
    common = {"images", "clips", "pairs", "query", "question", "data", "methods", "judge"}
    assert parameters.keys() - declared.keys() <= common | {"models", "batch_size", "cache"}


# Settings


CLASSIFY = {
    "labels": "red heart,green tree",
    "templates": "none",
    "method": "zpe",
    "options": {"mode": "max"},
    "score": "cosine",
    "top_k": 1,
    "multi": True,
    "against": ("a dog",),
    "threshold": 0.5,
    "shots": "shots.csv",
    "bank": [HEART],
    "prior": (0.25, 0.75),
    "hierarchy": "kinds.json",
    "calibration": "calibration.json",
    "abstain": 0.25,
    "none_of_these": True,
    "words": "car,ship,tree,house,dog,cat,bird,lake",
    "sets": 0.75,
    "set_rule": "aps",
    "explain": 2,
    "views": 3,
}
BESIDE = {
    "options": {"method": "ensemble"},
    "against": {"multi": True},
    "threshold": {"multi": True},
    "shots": {"method": "tip_adapter"},
    "bank": {"method": "center"},
    "prior": {"method": "otter"},
    "hierarchy": {"method": "chils", "labels": ()},
    "abstain": {"calibration": "calibration.json"},
    "words": {"none_of_these": True},
    "sets": {"calibration": "labelled.json"},
    "set_rule": {"calibration": "labelled.json", "sets": 0.5},
    "views": {"method": "zero"},
}
"""What an option needs beside it."""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blue = SCENES / "2-blue-star.png"
    (tmp_path / "shots.csv").write_text(f"path,label\n{HEART},red heart\n{blue},blue star\n")
    (tmp_path / "kinds.json").write_text(json.dumps({"red heart": ["heart"], "blue": ["star"]}))
    line = ["calibrate", SCENES, "--labels", "red heart,blue star", "--out", "calibration.json"]
    assert cli.run([*map(str, line), "--models", "pocket", "--offline", "--quiet"]) == 0
    names = ["red heart", "blue star"] + ["red heart"] * 6
    rows = zip(sorted(SCENES.glob("*.png")), names, strict=True)
    truth = "".join(f"{path},{name}\n" for path, name in rows)
    (tmp_path / "truth.csv").write_text(f"path,label\n{truth}")
    line[1:2], line[-1] = ["--truth", "truth.csv"], "labelled.json"
    assert cli.run([*map(str, line), "--models", "pocket", "--offline", "--quiet"]) == 0
    return tmp_path


@functools.cache
def pocket(encoder=None):
    return resolve("pocket", encoder=encoder)


def settings_of(kind, options, *more, encoder=None):
    """Of an opened task on the pocket set."""
    task = kind.from_options(pocket(encoder), options, *more)
    return task.open(NullCache(), Meter()).settings()


@pytest.mark.parametrize("name", CLASSIFY)
def test_what_decides_labels_is_in_the_settings(name, files):
    beside = {"labels": "red heart,blue star"} | BESIDE.get(name, {})
    before = dict(beside)
    encoder = "coupled" if name == "explain" else None

    def found(**given):
        return settings_of(Classify, ClassifyOptions(**given), encoder=encoder)

    given = before | {name: CLASSIFY[name]}
    if name in ("shots", "prior", "hierarchy"):  # the method needs one: another one then
        other = found(**before | {"method": None, "labels": "red heart,blue star"})
    elif name == "views":
        other = found(**before | {name: 2})
    elif name == "bank":
        other = found(**before | {name: [HEART, HEART]})
    else:
        other = found(**before)
    assert found(**given) != other


DETECT = {
    "labels": "red heart,tree",
    "threshold": 0.25,
    "overlap": 0.25,
    "background": "sky",
    "templates": "none",
    "regions": "windows",
    "resolution": 96,
    "refine": 3,
    "draw": "drawn",
}
SEGMENT = {
    "labels": "red heart,tree",
    "background": "sky",
    "templates": "none",
    "method": "sclip",
    "options": {"std": 2.0},
    "threshold": 0.25,
    "resolution": 128,
    "window": 32,
    "refine": 3,
    "masks": "masks",
    "draw": "drawn",
}
LABELS = {"labels": "red heart,blue star"}


@pytest.mark.parametrize(
    ("kind", "options", "name", "value"),
    [(Detect, DetectOptions, n, v) for n, v in DETECT.items()]
    + [(Segment, SegmentOptions, n, v) for n, v in SEGMENT.items()],
)
def test_what_decides_boxes_and_masks_is_in_the_settings(kind, options, name, value, files):
    one, other = options(**LABELS), options(**LABELS | {name: value})
    assert settings_of(kind, one) != settings_of(kind, other)


FOR_CAPTIONS = Recipe(task="caption", members=(RecipeMember("retrieve"),))
OTHERS = [
    (CaptionImages, CaptionOptions(), CaptionOptions(method="retrieve")),
    (CaptionImages, CaptionOptions(), CaptionOptions(method="magic", options={"k": 5})),
    (CaptionImages, CaptionOptions(method="magic"), CaptionOptions(method="magic", preset="coco")),
    (CaptionImages, CaptionOptions(method="magic"), CaptionOptions(method="magic", prompt="a")),
    (CaptionImages, CaptionOptions(), CaptionOptions(recipe=FOR_CAPTIONS)),
    (CaptionImages, CaptionOptions(prompt={"a": "b"}), CaptionOptions(prompt={"a": "c"})),
    (Match, MatchOptions(), MatchOptions(texts=("a",))),
    (Match, MatchOptions(texts=("a",)), MatchOptions(texts=("a",), against=("b",))),
    (Filter, FilterOptions(0.25), FilterOptions(0.5)),
    (Filter, FilterOptions(0.25), FilterOptions(keep=0.25)),
    (Filter, FilterOptions(0.25), FilterOptions(0.25, long_text="error")),
    (Filter, FilterOptions(0.25), FilterOptions(0.25, dedupe=True)),
    (Filter, FilterOptions(0.25), FilterOptions(0.25, score="negclip")),
    (
        Filter,
        FilterOptions(0.25, score="normsim", targets=[HEART]),
        FilterOptions(0.25, score="normsim", targets=[HEART, HEART]),
    ),
    (Match, MatchOptions(texts=("a",)), MatchOptions(texts=("a",), score="fclip")),
    (Embed, EmbedOptions(), EmbedOptions(captions=True)),
]


@pytest.mark.parametrize(("kind", "one", "other"), OTHERS)
def test_what_decides_other_rows_is_in_the_settings(kind, one, other):
    assert settings_of(kind, one) != settings_of(kind, other)


@pytest.mark.parametrize(
    ("kind", "options", "more"),
    [
        (CaptionImages, CaptionOptions(method="retrieve"), ()),
        (Classify, ClassifyOptions(labels="heart,star"), ()),
        (Detect, DetectOptions(labels="heart,star"), ()),
        (Match, MatchOptions(texts=("a heart",)), ()),
        (Filter, FilterOptions(0.25), ()),
        (Ask, AskOptions(), ("is there a heart?",)),
    ],
)
def test_another_coupling_is_in_the_settings(kind, options, more):
    other = dataclasses.replace(options, coupling="procrustes")
    found = [settings_of(kind, one, *more, encoder="coupled") for one in (options, other)]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "more",
    [
        {"top_k": 2},
        {"answers": "red,green"},
        {"among": "heart,star"},
        {"among": "heart,star", "present": 0.25},
    ],
)
def test_what_decides_answers_is_in_the_settings(more):
    first = AskOptions(among="heart,star") if "present" in more else AskOptions()
    question = "how many hearts are there?"
    assert settings_of(Ask, first, question) != settings_of(Ask, AskOptions(**more), question)


@pytest.mark.parametrize(
    "more",
    [
        {"top_k": 2},
        {"half": True},
        {"hide_duplicates": True},
        {"index": "ivf"},
        {"method": "dis"},
        {"method": "csls", "options": {"k": 3}},
    ],
)
def test_what_decides_hits_is_in_the_settings(more):
    models, bank = pocket(), [searching.query(searching.term("text:a star"))]

    def found(**given):
        others = bank if "method" in given else []
        return searching.settings([], models, SearchOptions(**given), others)

    first = {"method": "csls"} if "options" in more else {}
    assert found(**first) != found(**more)


@pytest.mark.parametrize("more", [{"threshold": 0.9}, {"whole_threshold": 0.6}])
def test_what_decides_copies_is_in_the_settings(more):
    def found(**given):
        options = DedupeOptions(**given)
        return deduplication.dedupe([], pocket(), options, NullCache(), Meter()).settings

    assert found(**more) != found()


EXPLAIN = {
    "words": "red,blue,star",
    "texts": ("a star",),
    "mean": True,
    "bank": [HEART] * 20,
    "top_k": 2,
    "options": {"penalty": 0.1},
}


@pytest.mark.parametrize("name", EXPLAIN)
def test_what_decides_words_is_in_the_settings(name):
    def found(**given):
        options = ExplainOptions(**{"words": "red,blue"} | given)
        return explaining.explain([Source(HEART)], pocket(), options, NullCache(), Meter()).settings

    assert found(**{name: EXPLAIN[name]}) != found()


TESTED_HERE = {
    ExplainOptions: {*EXPLAIN, "coupling"},
    DedupeOptions: {"threshold", "whole_threshold"},
    ClassifyOptions: {*CLASSIFY, "coupling", "recipe"},  # recipe: `test_recipes.py`
    DetectOptions: {*DETECT, "coupling"},
    SegmentOptions: set(SEGMENT),
    CaptionOptions: {
        *("method", "options", "preset", "coupling", "prompt", "recipe"),
        *("box", "margin"),  # `test_region_captions.py`
    },
    MatchOptions: {"texts", "against", "coupling"},
    FilterOptions: {
        *("min_score", "keep", "long_text", "coupling", "dedupe", "score", "targets"),
    },
    EmbedOptions: {"captions"},
    AskOptions: {"top_k", "answers", "among", "present", "coupling"},
    ReadOptions: set(),
}
OF_OTHER_MODELS = {
    CaptionOptions: {"model", "lm"},
    DetectOptions: {"model", "query_images", "sentence", "word_threshold"},
    SegmentOptions: {"model", "examples", "mix"},
    MatchOptions: {"model", "score", "thresholds"},
    AskOptions: {"model", "regions"},
    ReadOptions: {"model"},
}
"""Options that need another model or another file of it: the commands of `test_settings.py`."""


@pytest.mark.parametrize("kind", TESTED_HERE, ids=lambda kind: kind.__name__)
def test_no_deciding_option_is_left_out(kind):
    deciding = {f.name for f in dataclasses.fields(kind) if option_of(f).decides_rows}
    assert deciding == TESTED_HERE[kind] | OF_OTHER_MODELS.get(kind, set())


def test_an_option_that_nobody_resolves_is_recorded_under_its_name():
    assert settings(DetectOptions(word_threshold=0.5), {}) == {"word_threshold": 0.5}
    assert settings(DetectOptions(overwrite=True), {}) == {}  # decides no row
    assert settings(DetectOptions(model="m"), {"models": {"detector": "m@1"}}) == {
        "models": {"detector": "m@1"}
    }
    assert settings(ClassifyOptions(abstain=0.5), {"method": "ensemble"})["abstain"] == 0.5
