"""What every method must be, whatever it computes; a new file in `methods/` is tested here."""

import dataclasses

import pytest
import torch

from tests.toy import ToyEncoder, ToyLanguageModel
from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.methods import Pool
from zeroshot.ops import normalize

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = normalize(torch.randn(9, 6, generator=GENERATOR))
TEXTS = normalize(torch.randn(4, 3, 6, generator=GENERATOR))
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
ANCHORS = {
    "anchor_images": normalize(torch.randn(31, 6, generator=GENERATOR)),
    "anchor_texts": normalize(torch.randn(31, 6, generator=GENERATOR)),
}
SCORERS = [name for name in methods.names() if hasattr(methods.get(name), "scores")]
CAPTIONERS = [name for name in methods.names() if hasattr(methods.get(name), "caption")]


def ready(name):
    method = methods.get(name)()
    return method.fit(**ANCHORS) if hasattr(method, "fit") else method


def test_every_file_is_a_method():
    assert sorted(SCORERS + CAPTIONERS) == methods.names()


@pytest.mark.parametrize("name", methods.names())
def test_is_a_frozen_dataclass_that_tells_its_source(name):
    method = methods.get(name)
    assert dataclasses.is_dataclass(method)
    assert methods.name_of(method()) == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        method().anything = 1
    described = methods.describe(name)
    assert described.about.count("\n") > 3
    assert all(option.about for option in described.options)
    assert methods.configure(name, {}) == method()


@pytest.mark.parametrize("name", SCORERS)
class TestScorer:
    def test_is_one(self, name):
        assert isinstance(ready(name), methods.Scorer)

    def test_shape_and_kind(self, name):
        scores = ready(name).scores(IMAGES, TEXTS, MASK)
        assert scores.shape == (9, 4)
        assert scores.dtype == torch.float32
        assert scores.isfinite().all()
        double = ready(name).scores
        if not hasattr(methods.get(name), "fit"):
            assert double(IMAGES.double(), TEXTS.double()).dtype == torch.float64

    def test_order_of_classes_does_not_matter(self, name):
        order = torch.tensor([2, 0, 3, 1])
        scores = ready(name).scores(IMAGES, TEXTS, MASK)
        shuffled = ready(name).scores(IMAGES, TEXTS[order], MASK[order])
        torch.testing.assert_close(shuffled, scores[:, order])

    def test_batches_agree_with_the_whole(self, name):
        method = ready(name)
        if method.transductive:
            return
        parts = torch.cat([method.scores(part, TEXTS, MASK) for part in IMAGES.split(2)])
        torch.testing.assert_close(parts, method.scores(IMAGES, TEXTS, MASK))

    def test_inputs_stay_as_they_were(self, name):
        given = [x.clone() for x in (IMAGES, TEXTS, MASK)]
        ready(name).scores(*given)
        assert all(torch.equal(a, b) for a, b in zip(given, (IMAGES, TEXTS, MASK), strict=True))

    def test_no_mask_means_every_prompt(self, name):
        method = ready(name)
        everything = torch.ones(4, 3, dtype=torch.bool)
        torch.testing.assert_close(
            method.scores(IMAGES, TEXTS), method.scores(IMAGES, TEXTS, everything)
        )

    def test_a_planted_class_is_found(self, name):
        """Pictures that coincide with a class's only prompt belong to it."""
        images = normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(3)))
        method = methods.get(name)()
        if hasattr(method, "fit"):
            pairs = normalize(torch.randn(300, 6, generator=torch.Generator().manual_seed(4)))
            method = method.fit(anchor_images=pairs, anchor_texts=pairs)
        scores = method.scores(images, images[:, None])
        assert torch.equal(scores.argmax(0), torch.arange(4))


@pytest.mark.parametrize("name", CAPTIONERS)
class TestCaptioner:
    def caption(self, name, rows):
        method, encoder = methods.get(name)(), ToyEncoder()
        texts = ["ab", "ba", "cde"]
        given = {
            "language_model": ToyLanguageModel(),
            "pool": Pool(texts, encoder.encode_texts(texts)),
        }
        return method.caption(rows, encoder, **{k: given[k] for k in method.needs})

    def test_is_one(self, name):
        assert isinstance(methods.get(name)(), methods.Captioner)

    def test_one_caption_per_row_alone_or_together(self, name):
        rows = normalize(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
        together = self.caption(name, rows)
        alone = [self.caption(name, row[None])[0] for row in rows]
        assert [c.text for c in together] == [c.text for c in alone]
        encoded = ToyEncoder().encode_texts([c.text for c in together])
        cosine = (encoded * rows).sum(1)
        torch.testing.assert_close(torch.tensor([c.score for c in together]), cosine)

    def test_no_rows(self, name):
        assert self.caption(name, torch.zeros(0, 5)) == []


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("asf", {}, "did you mean 'asif'"),
        ("asif", {"kk": "3"}, "unknown option of asif 'kk'; did you mean 'k'"),
        ("asif", {"anchor_images_": "3"}, "unknown option of asif"),
        ("asif", {"k": "3.5"}, "k=3.5; k is of type int"),
        ("asif", {"k": "1e999"}, "k is of type int"),
        ("asif", {"center": "maybe"}, "center is of type bool"),
        ("asif", {"templates": "min"}, "possible: mean, max"),
        ("ensemble", {"mode": "median"}, "possible: embed, score, prob, max"),
    ],
)
def test_options_that_are_wrong(name, given, message):
    with pytest.raises(UserError, match=message):
        methods.configure(name, given)


def test_options_are_read_as_their_type():
    assert methods.configure("asif", {"k": "30", "p": "2", "center": "true"}) == methods.get(
        "asif"
    )(k=30, p=2.0, center=True)
