"""Methods of others: objects that are passed, and distributions that register an entry point."""

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import zeroshot as package
from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.methods import Caption, Ensemble, Method, Procrustes, _plugins, pipeline
from zeroshot.methods.center import Center
from zeroshot.methods.otter import OTTER

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
LABELS = ["red heart", "blue star", "green ring"]
SOURCE = """
from dataclasses import dataclass
from typing import ClassVar

from zeroshot.methods import Method


@dataclass(frozen=True)
class Nearest(Method):
    \"\"\"The best sentence of each class.\"\"\"

    p: float = 1.0
    transductive: ClassVar[bool] = False
    output: ClassVar[str] = "similarity"

    def scores(self, images, texts, text_mask=None, logit_scale=100.0):
        cosine = (images @ texts.flatten(0, 1).T).view(len(images), *texts.shape[:2])
        return self.p * cosine.amax(-1)
"""


@dataclass(frozen=True)
class Mine(Method):
    """Reads the classes backwards."""

    p: float = 1.0
    transductive: ClassVar[bool] = False

    @property
    def output(self):
        return "similarity"

    def scores(self, images, texts, text_mask=None, logit_scale=100.0):
        return -self.p * images @ texts.mean(1).T


@dataclass(frozen=True)
class Constant:
    """Says one thing."""

    text: str = "a scene"
    needs: ClassVar[frozenset[str]] = frozenset()
    takes: ClassVar[frozenset[str]] = frozenset()

    def caption(
        self, images, encoder, *, language_model=None, pool=None, prompts=None, trace=False
    ):
        return [Caption(self.text, 0.5) for _ in images]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path: its module and its entry points."""

    def add(name, source, points):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}" for key, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[zeroshot.methods]", *lines, ""]))
        (tmp_path / f"{name}_module.py").write_text(source)
        _plugins.plugins.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    yield add
    _plugins.plugins.cache_clear()


# Objects


def test_an_object_classifies():
    results = package.classify(SCENES, LABELS, "pocket", Mine(p=2.0), score="cosine", top_k=3)
    plain = package.classify(SCENES, LABELS, "pocket", "ensemble", score="cosine", top_k=3)
    assert [x.label for x in results[0].labels] == [x.label for x in plain[0].labels][::-1]
    assert {r.method for r in results} == {"Mine"}
    assert json.loads(json.dumps(results.rows()))[0]["method"] == "Mine"


def test_an_object_of_ours_is_the_method_by_its_name():
    given = package.classify(SCENES, LABELS, "pocket", OTTER(), prior=[0.5, 0.25, 0.25])
    named = package.classify(SCENES, LABELS, "pocket", "otter", prior=[0.5, 0.25, 0.25])
    assert given.rows() == named.rows()


def test_a_pipeline_is_an_object():
    found = package.classify(SCENES, LABELS, "pocket", pipeline(Ensemble(), Center()))
    assert found.rows() == package.classify(SCENES, LABELS, "pocket", "ensemble+center").rows()


def test_a_class_takes_options():
    found = package.classify(SCENES, LABELS, "pocket", Mine, score="cosine", p="3")
    twice = package.classify(SCENES, LABELS, "pocket", Mine(p=3.0), score="cosine")
    assert found.rows() == twice.rows()


def test_objects_of_videos_captions_and_segments():
    [row] = package.caption(SCENES / "1-red-heart.png", "pocket", Constant("it"))
    assert (row.caption, row.method) == ("it", "Constant")
    found = package.segment(SCENES / "1-red-heart.png", LABELS, "pocket", methods.SCLIP())
    assert found[0].method == "sclip"


def test_a_coupling_is_an_object():
    models = package.load("pocket", encoder="coupled")
    found = package.classify(SCENES, LABELS, models, Procrustes())
    assert found[0].method == "procrustes"
    assert found[0].labels[0].label == "red heart"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Mine(), {"p": 2}, "Mine is an object with options of its own, so p cannot be given"),
        (3, {}, "method is 3, and has to be a text, a Scorer or None"),
        (methods.SCLIP(), {}, "method is SCLIP.*, and has to be"),
        ("mine", {}, "unknown method 'mine'"),
    ],
)
def test_what_is_no_method(method, options, message):
    with pytest.raises(UserError, match=message):
        package.classify(SCENES, LABELS, "pocket", method, **options)


def test_an_object_without_options_is_no_dataclass():
    class Loose(Method):
        transductive = False
        output = "similarity"

        def scores(self, images, texts, text_mask=None, logit_scale=100.0):
            return images @ texts.mean(1).T

    with pytest.raises(UserError, match="is no dataclass: CONTRIBUTING"):
        package.classify(SCENES, LABELS, "pocket", Loose())


def test_a_preset_goes_with_a_name():
    with pytest.raises(UserError, match="a preset is for a method by its name"):
        package.caption(SCENES, "pocket", Constant(), preset="coco")


def test_what_an_object_has_learned_is_no_option():
    @dataclass(frozen=True)
    class Learned(Mine):
        rows_: torch.Tensor | None = field(default=None, repr=False)

    assert methods.values(Learned()) == {"p": 1.0}


# Distributions


def test_a_distribution_has_a_method(install, zeroshot, printed):
    install("good", SOURCE, {"nearest": "good_module:Nearest"})
    assert "nearest" in methods.names()
    assert methods.configure("nearest", {"p": "2"}).p == 2.0
    assert methods.name_of(methods.get("nearest")) == "nearest"
    line = ["classify", SCENES, "--labels", "red heart,blue star", "--models", "pocket"]
    code, rows, err = zeroshot(*line, "--method", "nearest", "-o", "p=2")
    assert code == 0, err
    assert {row["method"] for row in rows} == {"nearest"}
    code, out, _ = printed("methods", "nearest")
    assert code == 0
    assert "The best sentence of each class" in out
    assert "of the distribution good 1.0" in out
    assert methods.configure("nearest+center", {}).stages[0].p == 1.0


def test_a_broken_one_is_a_sentence_and_breaks_no_other(install, printed):
    install("broken", "import no_such_library", {"shattered": "broken_module:X"})
    install("good", SOURCE, {"nearest": "good_module:Nearest"})
    with pytest.raises(UserError) as caught:
        methods.get("shattered")
    message = str(caught.value)
    assert message == (
        "method 'shattered' of the distribution broken 1.0 (broken_module:X) cannot be imported "
        "(ModuleNotFoundError: No module named 'no_such_library')"
    )
    assert "nearest" in methods.with_verb("scores")
    assert "shattered" not in methods.with_verb("scores")
    code, out, _ = printed("methods")
    assert code == 0
    assert "shattered" in out
    line = ["classify", SCENES, "--labels", "a,b", "--models", "pocket"]
    code, _, err = printed(*line, "--method", "shattered")
    assert code == 2
    assert "the distribution broken 1.0" in err
    with pytest.raises(UserError, match=r"does not classify; these do: .*nearest"):
        package.classify(SCENES, LABELS, "pocket", "magic")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("class X: pass", "is no dataclass"),
        ("X = 3", "is no dataclass"),
        ("", "AttributeError"),
        ("import dataclasses\n@dataclasses.dataclass\nclass X: pass", "has none of scores, cap"),
        ("raise SystemError('a\\nb')", "SystemError: a b"),
    ],
)
def test_what_is_no_method_in_a_distribution(install, source, fault):
    install("odd", source, {"odd": "odd_module:X"})
    import sys

    sys.modules.pop("odd_module", None)
    with pytest.raises(UserError, match=rf"distribution odd 1.0 .*{fault}"):
        methods.get("odd")
    assert methods.describe("odd").does == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ensemble", "the name of a built-in method"),
        ("a+b", "no name"),
        ("_hidden", "no name"),
    ],
)
def test_a_name_that_cannot_be(install, name, why):
    install("taker", SOURCE, {name: "taker_module:Nearest"})
    with pytest.warns(UserWarning, match=f"distribution taker 1.0 calls a method .*{why}"):
        found = methods.names()
    assert found == methods.names()  # and only once
    assert methods.get("ensemble") is Ensemble


def test_two_distributions_with_one_name(install):
    install("first", SOURCE, {"nearest": "first_module:Nearest"})
    install("second", SOURCE, {"nearest": "second_module:Nearest"})
    with pytest.warns(UserWarning, match=r"'nearest', which (first|second) 1.0 has too"):
        assert "nearest" in methods.names()


def test_nothing_is_imported_before_it_is_asked_for(install):
    install("loud", "raise RuntimeError('imported')", {"loud": "loud_module:X"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "loud" in methods.names()
        assert methods.get("ensemble") is Ensemble
