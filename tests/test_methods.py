"""What every method must be, whatever it computes; a new file in `methods/` is tested here."""

import contextlib
import dataclasses

import pytest
import torch

from tests.toy import ToyEncoder, ToyLanguageModel
from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.methods import Pool
from zeroshot.ops import masked_mean, normalize

GENERATOR = torch.Generator().manual_seed(0)


def unit(*shape):
    return normalize(torch.randn(*shape, generator=GENERATOR))


IMAGES = unit(9, 6)
TEXTS = unit(4, 3, 6)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
ARRAYS = {
    "anchor_images": unit(31, 6),
    "anchor_texts": unit(31, 6),
    "shots": unit(11, 6),
    "shot_labels": torch.tensor([0, 0, 1, 3, 1, 0, 3, 3, 1, 0, 1]),  # class 2 has none
    "own_shots": unit(11, 7),
    "own_images": unit(9, 7),
    "bank": unit(13, 6),
    "words": unit(40, 6),
    "prior": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "views": unit(9, 10, 6),
    "parents": torch.tensor([0, 0, 2, 2]),
}
"""What methods may learn from or be given besides; axes as in docs/embeddings.md."""
PER_IMAGE = ("views", "own_images")

SCORERS = [name for name in methods.names() if hasattr(methods.get(name), "scores")]
CAPTIONERS = [name for name in methods.names() if hasattr(methods.get(name), "caption")]
DENSE = [name for name in methods.names() if hasattr(methods.get(name), "attend")]
EXPLAINERS = [name for name in methods.names() if hasattr(methods.get(name), "decompose")]
REFINERS = [name for name in SCORERS if hasattr(methods.get(name), "refine")]
ADJUSTERS = [name for name in SCORERS if hasattr(methods.get(name), "adjust")]


def takes(name, verb):
    return [array for array in methods.parameters(methods.get(name), verb) if array in ARRAYS]


def ready(name, arrays=ARRAYS, dtype=torch.float32):
    """The method with all arrays that its `fit` takes, and a shot of each class if it must."""
    if getattr(methods.get(name), "shots_alone", False):
        labels = arrays["shot_labels"].clone()
        for absent in set(range(4)) - set(labels.tolist()):
            labels[4] = absent
        arrays = arrays | {"shot_labels": labels}
    given = {k: _as(arrays[k], dtype) for k in takes(name, "fit")}
    return methods.get(name)().fit(**given) if given else methods.get(name)()


def extras(name, arrays=ARRAYS, dtype=torch.float32):
    """The arrays that its `scores` takes besides images and texts."""
    return {k: _as(arrays[k], dtype) for k in takes(name, "scores")}


def _as(array, dtype):
    return array.to(dtype) if array.is_floating_point() else array


def test_every_file_is_a_method():
    assert sorted(SCORERS + CAPTIONERS + DENSE + EXPLAINERS) == methods.names()


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

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_kind(self, name, dtype):
        method = ready(name, dtype=dtype)
        scores = method.scores(IMAGES.to(dtype), TEXTS.to(dtype), MASK, **extras(name, dtype=dtype))
        assert scores.shape == (9, 4)
        assert scores.dtype == dtype
        assert scores.isfinite().all()
        if method.output == "probability":
            assert ((scores >= 0) & (scores <= 1 + 1e-5)).all()

    def test_order_of_classes_does_not_matter(self, name):
        order = torch.tensor([2, 0, 3, 1])
        place = order.argsort()
        moved = ARRAYS | {
            "shot_labels": place[ARRAYS["shot_labels"]],
            "prior": ARRAYS["prior"][order],
            "parents": place[ARRAYS["parents"][order]],
        }
        scores = ready(name).scores(IMAGES, TEXTS, MASK, **extras(name))
        shuffled = ready(name, moved).scores(
            IMAGES, TEXTS[order], MASK[order], **extras(name, moved)
        )
        torch.testing.assert_close(shuffled, scores[:, order])

    def test_batches_agree_with_the_whole(self, name):
        method, more = ready(name), extras(name)
        if method.transductive:
            return
        parts = []
        for rows in torch.arange(9).split(2):
            own = {k: v[rows] if k in PER_IMAGE else v for k, v in more.items()}
            parts.append(method.scores(IMAGES[rows], TEXTS, MASK, **own))
        whole = method.scores(IMAGES, TEXTS, MASK, **more)
        torch.testing.assert_close(torch.cat(parts), whole)

    def test_inputs_stay_as_they_were(self, name):
        given = {"images": IMAGES, "texts": TEXTS, "mask": MASK} | ARRAYS
        before = {k: v.clone() for k, v in given.items()}
        ready(name).scores(IMAGES, TEXTS, MASK, **extras(name))
        assert all(torch.equal(before[k], given[k]) for k in given)

    def test_no_mask_means_every_prompt(self, name):
        method, more = ready(name), extras(name)
        everything = torch.ones(4, 3, dtype=torch.bool)
        torch.testing.assert_close(
            method.scores(IMAGES, TEXTS, **more), method.scores(IMAGES, TEXTS, everything, **more)
        )

    def test_a_planted_class_is_found(self, name):
        """Pictures that coincide with a class's only prompt belong to it."""
        images = normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(3)))
        pairs = normalize(torch.randn(300, 6, generator=torch.Generator().manual_seed(4)))
        planted = {
            "anchor_images": pairs,
            "anchor_texts": pairs,
            "shots": images,
            "shot_labels": torch.arange(4),
            "own_shots": images,
            "own_images": images,
            "bank": images,
            "words": pairs,
            "prior": torch.full((4,), 0.25),
            "views": images[:, None].expand(4, 10, 6),
            "parents": torch.arange(4),
        }
        scores = ready(name, planted).scores(images, images[:, None], **extras(name, planted))
        assert torch.equal(scores.argmax(0), torch.arange(4))

    def test_unfitted_it_works_or_says_what_it_needs(self, name):
        method = methods.get(name)()
        if any(methods.parameters(method, "fit").values()):
            return
        with contextlib.suppress(UserError):
            assert method.scores(IMAGES, TEXTS, MASK, **extras(name)).isfinite().all()
            return
        needed = "|".join(takes(name, "fit"))
        with pytest.raises(UserError, match=f"array ({needed})"):
            method.scores(IMAGES, TEXTS, MASK, **extras(name))

    def test_starts_where_it_is_told(self, name):
        """Of methods that take `initial`: the zero-shot logits are what they start from anyway."""
        if "initial" not in methods.parameters(methods.get(name), "scores"):
            return
        method, more = ready(name), extras(name)
        zero_shot = 100.0 * IMAGES @ normalize(masked_mean(TEXTS, MASK)).T
        plain = method.scores(IMAGES, TEXTS, MASK, **more)
        same = method.scores(IMAGES, TEXTS, MASK, initial=zero_shot, **more)
        other = method.scores(IMAGES, TEXTS, MASK, initial=zero_shot.roll(1, 1), **more)
        torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(other, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", REFINERS)
def test_refined_prompts_are_prompts(name):
    texts, mask = ready(name).refine(IMAGES, TEXTS, MASK)
    assert texts.shape[0] == 4
    assert texts.shape[2] == 6
    present = torch.ones(texts.shape[:2], dtype=torch.bool) if mask is None else mask
    assert present.any(1).all()
    torch.testing.assert_close(texts[present].norm(dim=-1), torch.ones(int(present.sum())))


@pytest.mark.parametrize("name", ADJUSTERS)
class TestAdjuster:
    def test_scores_are_adjusted_zero_shot_logits(self, name):
        unfitted = {k: v for k, v in ARRAYS.items() if k != "bank"}
        given = {k: v for k, v in unfitted.items() if k in takes(name, "fit")}
        method = methods.get(name)()
        method = method.fit(**given) if given else method
        zero_shot = 100.0 * IMAGES @ normalize(masked_mean(TEXTS, MASK)).T
        torch.testing.assert_close(
            method.adjust(zero_shot), method.scores(IMAGES, TEXTS, MASK), rtol=1e-4, atol=1e-4
        )

    def test_with_a_bank_rows_stand_alone(self, name):
        if "bank" not in takes(name, "fit"):
            return
        method = ready(name)
        assert not method.transductive
        logits, bank = 20 * torch.rand(9, 4), 20 * torch.rand(13, 4)
        parts = torch.cat([method.adjust(part, bank) for part in logits.split(2)])
        torch.testing.assert_close(parts, method.adjust(logits, bank))


class LongReader(ToyLanguageModel):
    """Reads prompts, whatever they say."""

    context_length = 2048

    def encode(self, text):
        return [(ord(c) - ord("a")) % len(self.table) for c in text]


@pytest.mark.parametrize("name", CAPTIONERS)
class TestCaptioner:
    def caption(self, name, rows):
        method, encoder = methods.get(name)(), ToyEncoder()
        texts = ["ab", "ba", "cde"]
        given = {
            "language_model": LongReader(),
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
        ("asif", {"k": [1]}, r"k=\[1\]; k is of type int"),
        ("asif", {"p": {"a": 1}}, "p={'a': 1}; p is a finite number"),
        ("asif", {"p": "nan"}, "p=nan; p is a finite number"),
        ("asif", {"p": "9" * 400}, "p=9{60}; p is a finite number"),
        ("asif", {"center": ["true"]}, "center is of type bool"),
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
