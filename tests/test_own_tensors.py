"""Methods on somebody's own tensors: right, or one sentence that says what to do."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from tests.test_methods import ARRAYS, IMAGES, MASK, SCORERS, TEXTS, extras, ready, takes, unit
from tests.toy import ToyEncoder
from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.methods import APE, ASIF, OTTER, Ensemble, MaGiC, Method, StatA
from zeroshot.ops import normalize

STUB = Path(methods.__file__).with_name("__init__.pyi")
COUPLINGS = [name for name in SCORERS if hasattr(methods.get(name), "map_images")]
OTHERS = [name for name in SCORERS if name not in COUPLINGS]
ANY_LENGTH = [n for n in OTHERS if hasattr(methods.get(n), "wants_unnormalized")]
ALONE = [n for n in OTHERS if getattr(methods.get(n), "shots_alone", False)]
UNIT = [name for name in OTHERS if name not in (*ANY_LENGTH, *ALONE)]


def score(name, images=IMAGES, texts=TEXTS, mask=MASK, **more):
    return ready(name).scores(images, texts, mask, **extras(name) | more)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_the_door(name):
    assert issubclass(methods.get(name), Method)


@pytest.mark.parametrize("name", SCORERS)
def test_arrays_of_numpy_and_lists_are_tensors(name):
    arrays = {k: v.numpy() for k, v in ARRAYS.items()}
    given = {k: v.numpy() for k, v in extras(name).items()}
    if getattr(methods.get(name), "shots_alone", False):
        arrays["shot_labels"] = np.array([0, 0, 1, 3, 2, 0, 3, 3, 1, 0, 1])
    fitted = methods.get(name)()
    if takes(name, "fit"):
        fitted = fitted.fit(**{k: arrays[k] for k in takes(name, "fit")})
    found = fitted.scores(IMAGES.numpy(), TEXTS.numpy(), MASK.numpy().tolist(), **given)
    torch.testing.assert_close(found, score(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCORERS)
def test_one_text_a_class_needs_no_axis(name):
    found = score(name, texts=TEXTS[:, 0], mask=None)
    torch.testing.assert_close(found, score(name, texts=TEXTS[:, :1], mask=None))


@pytest.mark.parametrize("name", OTHERS)
def test_float32_beside_float64(name):
    both = ready(name).scores(IMAGES.double(), TEXTS, MASK, **extras(name))
    torch.testing.assert_close(both.float(), score(name), rtol=1e-4, atol=1e-5)


def test_the_widest_type_decides_unless_something_was_learned():
    assert Ensemble().scores(IMAGES.double(), TEXTS).dtype == torch.float64
    fitted = ready("tip_adapter")
    assert fitted.scores(IMAGES.double(), TEXTS, MASK).dtype == torch.float32


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_no_number_is_refused(name, wrong):
    images = IMAGES.clone()
    images[2, 1] = wrong
    with pytest.raises(UserError, match=r"\.scores: images: has NaN or infinity"):
        score(name, images)


@pytest.mark.parametrize("name", SCORERS)
def test_another_width_is_refused(name):
    wrong = unit(9, 5)
    with pytest.raises(UserError, match=r"shape \[|width"):
        score(name, wrong)


@pytest.mark.parametrize("name", UNIT)
def test_other_lengths_are_refused(name):
    with pytest.raises(UserError, match=r"images: lengths .* zeroshot.ops.normalize\(images\)"):
        score(name, 3 * IMAGES)
    with pytest.raises(UserError, match="texts: lengths"):
        score(name, texts=3 * TEXTS)


@pytest.mark.parametrize("name", [*ANY_LENGTH, *ALONE, *COUPLINGS])
def test_some_methods_read_any_length(name):
    assert score(name, 3 * IMAGES).shape == (9, 4)


def test_a_missing_prompt_may_be_zero_and_a_prompt_may_not():
    zero = TEXTS.masked_fill(~MASK[..., None], 0)
    torch.testing.assert_close(
        Ensemble().scores(IMAGES, zero, MASK), Ensemble().scores(IMAGES, TEXTS, MASK)
    )
    with pytest.raises(UserError, match="texts: an embedding is zero"):
        Ensemble().scores(IMAGES, zero)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_no_other_length(dtype):
    rows = unit(200, 768)
    assert Ensemble().scores(rows.to(dtype), rows[:3].to(dtype)).shape == (200, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Ensemble().scores("photo.png", TEXTS), r"images: str; expected .* \[n d\]"),
        (lambda: Ensemble().scores(IMAGES[0], TEXTS), r"images: shape \[6\], expected \[n d\]"),
        (lambda: Ensemble().scores(np.array(["a"]), TEXTS), "images: <U1 values"),
        (lambda: Ensemble().scores([[1.0], [1.0, 2.0]], TEXTS), "images: list; expected"),
        (lambda: Ensemble().scores(IMAGES), r"Ensemble\.scores: missing .*'texts'"),
        (lambda: Ensemble().scores(IMAGES, TEXTS, mask=MASK), "unexpected keyword argument 'mask'"),
        (lambda: Ensemble().scores(IMAGES, TEXTS, MASK[:, :2]), "text_mask: shape .* but t is 3"),
        (lambda: Ensemble().scores(IMAGES, TEXTS, MASK * 2.5), "text_mask: .* True and False"),
        (lambda: Ensemble().scores(IMAGES, TEXTS, MASK & False), "class 0 has no prompt"),
        (lambda: Ensemble().scores(IMAGES, TEXTS, None, "much"), "logit_scale: much"),
        (
            lambda: Ensemble().scores(IMAGES, TEXTS, None, -1),
            "logit_scale: -1, and has",
        ),
        (lambda: APE().fit(ARRAYS["shots"], torch.ones(11) / 2), "whole numbers"),
        (lambda: APE().fit(ARRAYS["shots"], [0, 1]), "shot_labels: shape .* but m is 11"),
        (lambda: ready("ape").scores(IMAGES[:, :5], TEXTS[..., :5]), "what it was fitted with"),
        (lambda: MaGiC().caption(2 * IMAGES, ToyEncoder()), r"MaGiC\.caption: images: lengths"),
        (lambda: OTTER().fit([0.5, float("nan")]), "prior: has NaN"),
        (lambda: StatA().scores(IMAGES.to("meta"), TEXTS), "images on meta, texts on cpu; move"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_scale_may_be_a_tensor():
    learned = torch.nn.Parameter(torch.tensor(100.0))
    found = StatA().scores(IMAGES, TEXTS, MASK, learned)
    torch.testing.assert_close(found, StatA().scores(IMAGES, TEXTS, MASK))


def test_what_a_method_calls_is_not_checked_again(monkeypatch):
    from zeroshot.methods import _door

    calls = []
    before = _door._Door.checked
    counted = lambda self, *a: calls.append(self.name) or before(self, *a)  # noqa: E731
    monkeypatch.setattr(_door._Door, "checked", counted)
    score("stata")
    assert calls == ["StatA.fit", "StatA.scores"]
    with pytest.raises(UserError, match="lengths"):
        Ensemble().scores(IMAGES * 2, TEXTS)
    score("stata")  # the door is open again after an error
    assert calls[2:] == ["Ensemble.scores", "StatA.fit", "StatA.scores"]


def test_threads_have_a_door_each():
    def wrong(_):
        with pytest.raises(UserError):
            Ensemble().scores(IMAGES, TEXTS * 2)
        return Ensemble().scores(IMAGES, TEXTS)

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(wrong, range(40)))) == 40


def test_a_pipeline_takes_arrays_too():
    both = methods.pipeline(methods.ZPE(), StatA())
    found = both.scores(IMAGES.numpy(), TEXTS[:, 0].numpy())
    torch.testing.assert_close(found, both.scores(IMAGES, TEXTS[:, :1]))


def test_a_method_of_your_own_has_the_door():
    @dataclass(frozen=True)
    class Mine(Method):
        transductive: ClassVar[bool] = False
        output = "similarity"

        def scores(self, images, texts, text_mask=None, logit_scale=100.0):
            return images @ texts[:, 0].T

    # Without annotations there is nothing to hold the arguments against.
    assert Mine().scores(IMAGES, TEXTS, logit_scale=np.float32(2)).shape == (9, 4)
    with pytest.raises(UserError, match=r"Mine\.scores: missing"):
        Mine().scores(IMAGES)


# By their names


def test_classes_are_imported_from_the_package():
    assert StatA is methods.get("stata")
    for name in methods.names():
        kind = methods.get(name)
        assert getattr(methods, kind.__name__) is kind
        line = f"from .{name} import {kind.__name__} as {kind.__name__}\n"
        assert line in STUB.read_text("utf-8"), f"{STUB} needs the line: {line}"


def test_a_bare_import_stays_cheap():
    code = "import sys, zeroshot.methods as m; dir(m); print({'torch', 'numpy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_asif_is_fitted_from_arrays():
    fitted = ASIF(k=5).fit(ARRAYS["anchor_images"].numpy(), ARRAYS["anchor_texts"].numpy())
    assert fitted.scores(IMAGES.numpy(), TEXTS.numpy()).shape == (9, 4)


def test_normalize_is_what_the_message_says():
    images = 3 * IMAGES
    torch.testing.assert_close(
        Ensemble().scores(normalize(images), TEXTS), Ensemble().scores(IMAGES, TEXTS)
    )
