"""Composition: `a+b` is what doing a and then b by hand gives, or is refused."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.methods._pipeline import Pipeline
from zeroshot.methods.center import Center
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.sinkhorn import Sinkhorn
from zeroshot.methods.zpe import ZPE
from zeroshot.ops import normalize
from zeroshot.tasks.classification.arrays import score_arrays

GENERATOR = torch.Generator().manual_seed(0)
PRIOR = torch.tensor([0.5, 0.3, 0.2])


def unit(*shape):
    return normalize(torch.randn(*shape, generator=GENERATOR))


IMAGES, TEXTS, BANK = unit(7, 6), unit(3, 4, 6), unit(5, 6)
ARRAYS = {"images": IMAGES.numpy(), "texts": TEXTS.numpy()}


@dataclass(frozen=True)
class Restart:
    """A transductive scorer: halves what it starts from and adds the row's number."""

    transductive: ClassVar[bool] = True
    output: ClassVar[str] = "logit"

    def scores(self, images, texts, text_mask=None, logit_scale=100.0, initial=None):
        if initial is None:
            initial = logit_scale * Ensemble().scores(images, texts, text_mask)
        return initial / 2 + torch.arange(len(images))[:, None]


def test_refined_prompts_reach_the_method_that_scores():
    refined, mask = ZPE().refine(IMAGES, TEXTS, None, 50.0)
    expected = Ensemble().scores(IMAGES, refined, mask)
    ours = methods.pipeline(ZPE(), Ensemble()).scores(IMAGES, TEXTS, None, 50.0)
    torch.testing.assert_close(ours, expected)


def test_a_refiner_before_an_adjuster_scores():
    expected = Center().adjust(50.0 * ZPE().scores(IMAGES, TEXTS, None, 50.0))
    ours = methods.pipeline(ZPE(), Center()).scores(IMAGES, TEXTS, None, 50.0)
    torch.testing.assert_close(ours, expected)
    assert Pipeline((ZPE(), Center())).roles == ("score", "adjust")
    assert Pipeline((ZPE(), Ensemble(), Center())).roles == ("refine", "score", "adjust")


@pytest.mark.parametrize("mode", ["embed", "prob"])
def test_scores_are_handed_on_as_logits(mode):
    first = Ensemble(mode).scores(IMAGES, TEXTS, None, 50.0)
    logits = first.log() if mode == "prob" else 50.0 * first
    ours = methods.pipeline(Ensemble(mode), Restart(), Center()).scores(IMAGES, TEXTS, None, 50.0)
    expected = Center().adjust(logits / 2 + torch.arange(7)[:, None])
    torch.testing.assert_close(ours, expected)


def test_all_stages_are_fitted_and_the_bank_is_scored_by_those_before():
    stages = methods.pipeline(Ensemble(), Center(), Sinkhorn()).fit(prior=PRIOR, bank=BANK)
    assert not stages.transductive
    of_images, of_bank = (100.0 * Ensemble().scores(x, TEXTS) for x in (IMAGES, BANK))
    centred, centred_bank = (Center().adjust(x, of_bank) for x in (of_images, of_bank))
    expected = Sinkhorn().fit(prior=PRIOR).adjust(centred, centred_bank)
    torch.testing.assert_close(stages.scores(IMAGES, TEXTS), expected)
    parts = torch.cat([stages.scores(part, TEXTS) for part in IMAGES.split(3)])
    torch.testing.assert_close(parts, expected)


def test_after_a_method_that_sees_the_images_together_the_bank_has_no_logits():
    zpe = ZPE().fit(bank=BANK)
    expected = Center().adjust(100.0 * zpe.scores(IMAGES, TEXTS))
    stages = methods.pipeline(ZPE(), Center()).fit(bank=BANK)
    assert stages.transductive
    torch.testing.assert_close(stages.scores(IMAGES, TEXTS), expected)


@dataclass(frozen=True)
class FirstView:
    """Scores the first view of each row."""

    transductive: ClassVar[bool] = False
    output: ClassVar[str] = "similarity"

    def scores(self, images, texts, text_mask=None, logit_scale=100.0, *, views):
        return Ensemble().scores(views[:, 0], texts, text_mask)


def test_arrays_of_the_rows_reach_their_stage_and_leave_the_bank_unscored():
    views = unit(7, 2, 6)
    stages = methods.pipeline(FirstView(), Center())
    expected = Center().adjust(100.0 * Ensemble().scores(views[:, 0], TEXTS))
    for fitted in (stages, stages.fit(bank=BANK)):
        assert fitted.transductive
        torch.testing.assert_close(fitted.scores(IMAGES, TEXTS, views=views), expected)
    assert methods.parameters(stages, "scores")["views"]


def test_from_arrays_with_options():
    arrays = ARRAYS | {"prior": np.array([5, 3, 2])}
    options = {"zpe.temperature": "2", "lam": "0.3", "sinkhorn.iterations": "4"}
    ours = score_arrays(arrays, "zpe+center+sinkhorn", options)["scores"]
    logits = 100.0 * ZPE(temperature=2.0).scores(IMAGES, TEXTS)
    expected = Sinkhorn(iterations=4).fit(prior=PRIOR).adjust(Center(lam=0.3).adjust(logits))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    name = methods.name_of(methods.configure("zpe+center", {"lam": 0.3}))
    assert name == "zpe+center"
    values = methods.values(methods.configure("zpe+center", {"lam": 0.3}))
    assert values["center.lam"] == 0.3
    assert values["zpe.weighting"] == "softmax"


def test_arrays_of_all_stages_are_taken():
    made = methods.configure("zpe+dis", {})
    assert methods.parameters(made, "fit") == {"bank": True}
    with pytest.raises(UserError, match=r"zpe\+dis needs the array bank"):
        score_arrays(ARRAYS, "zpe+dis", {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("center+zpe", {}, "zpe cannot follow center: it chooses among prompts"),
        ("center+autoclip", {}, "autoclip cannot follow center: it neither starts"),
        ("zpe+magic", {}, "'magic' does not classify"),
        ("zpe+asif", {}, "'asif' couples two encoders"),
        ("zpe+zpe", {}, "has a method twice"),
        ("zpe+", {}, "unknown method ''"),
        ("zpe+centre", {}, "did you mean 'center'"),
        ("zpe+center", {"compt": 1}, r"unknown option of zpe\+center 'compt'"),
        ("sinkhorn+otter", {"assume": "uniform"}, "sinkhorn.assume or otter.assume"),
        ("zpe+center", {"zp.lam": 1}, r"unknown stage of zpe\+center 'zp'; did you mean 'zpe'"),
        ("zpe+center", {"zpe.lam": 1}, "unknown option of zpe 'lam'"),
    ],
)
def test_what_no_stage_could_mean_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        methods.configure(name, options)


def test_one_method_is_no_pipeline():
    with pytest.raises(UserError, match="two methods or more"):
        methods.pipeline(ZPE())
