"""DLC against the authors' formula, written as loops, and against decoding by hand."""

import math
from pathlib import Path

import pytest
import torch

import zeroshot as package
from tests.toy import ToyEncoder, ToyLanguageModel
from zeroshot.errors import UserError
from zeroshot.methods.dlc import DLC

HEART = str(Path(__file__).parent.parent / "examples" / "scenes" / "1-red-heart.png")


def authors(logit, context, alone, base, weight, scale):
    """The end of `DLCLogitsProcessor.__call__`, for one candidate."""
    sim = weight * context + (1 - weight) * alone
    dynamic_lambda = scale * (1 - base) ** 2
    penalty = 1 / (1 + math.exp(-(sim - base) / (1 - base + 1e-6)))
    return logit * math.exp(dynamic_lambda * penalty)


@pytest.mark.parametrize(("weight", "strength"), [(0.5, 1.0), (0.2, 0.3), (1.0, 2.5), (0.0, 0.0)])
def test_positive_logits_are_the_authors(weight, strength):
    generator = torch.Generator().manual_seed(2)
    logits = 20 * torch.rand(3, 6, generator=generator)
    context, alone = (2 * torch.rand(2, 3, 6, generator=generator) - 1).unbind()
    base = 2 * torch.rand(3, generator=generator) - 1
    ours = DLC(weight=weight, strength=strength).calibrated(logits, context, alone, base)
    theirs = [
        [
            authors(
                *(float(x[i, j]) for x in (logits, context, alone)),
                float(base[i]),
                weight,
                strength,
            )
            for j in range(6)
        ]
        for i in range(3)
    ]
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-4, atol=1e-4)


def test_negative_and_impossible_logits_by_hand():
    """base 0, weight 1/2, cosines 0: advantage 0, sigmoid 1/2, growth exp(1/2) - 1."""
    logits, zero = torch.tensor([[2.0, -2.0, 0.0, -torch.inf]]), torch.zeros(1, 4)
    (found,) = DLC().calibrated(logits, zero, zero, torch.zeros(1)).tolist()
    growth = math.exp(0.5) - 1
    assert found == pytest.approx([2 + 2 * growth, -2 + 2 * growth, 0, -math.inf])


def test_a_better_fit_never_falls():
    fits = torch.linspace(-1, 1, 9)[None]
    for level in (5.0, -5.0):
        found = DLC().calibrated(torch.full((1, 9), level), fits, fits, torch.tensor([0.3]))
        assert (found.diff() > 0).all()
        assert (found > level).all()


def by_hand(method, image, encoder, model):
    """One caption, token by token, without caches, batches or matchers."""
    tokens, seen = [], []
    while len(tokens) < method.max_tokens:
        states = model.states(torch.tensor([[model.start, *tokens]]))
        logits = model.logits(states[:, -1])[0].tolist()
        if len(tokens) >= method.start:
            recent = tokens[-method.window :]

            def cosine(ids):
                return float(encoder.encode_texts([model.decode(ids)])[0] @ image)

            now = cosine(recent)
            seen.append(now)
            last = seen[-method.history :]
            base = now if len(last) <= 3 else sum(last) / len(last)
            best = sorted(range(len(logits)), key=logits.__getitem__)[-method.k :]
            for v in best:
                context = now if v == model.end else cosine([*recent, v])
                alone = now if v == model.end else cosine([v])
                changed = authors(
                    abs(logits[v]), context, alone, base, method.weight, method.strength
                )
                logits[v] += changed - abs(logits[v])
        token = max(range(len(logits)), key=logits.__getitem__)
        if token == model.end:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize(
    "options",
    [
        {"start": 1},
        {"start": 2, "window": 2, "history": 5, "weight": 0.8},
        {"start": 4, "window": 3, "k": 3},
    ],
)
def test_a_language_model_by_hand(options):
    encoder, model = ToyEncoder(), ToyLanguageModel(seed=3)
    images = torch.nn.functional.normalize(
        torch.randn(4, 5, generator=torch.Generator().manual_seed(5)), dim=-1
    )
    method = DLC(**{"k": 8, "strength": 2.0, "max_tokens": 12} | options)
    found = method.caption(images, encoder, language_model=model)
    assert [list(c.tokens) for c in found] == [by_hand(method, x, encoder, model) for x in images]
    assert len({c.tokens for c in found}) > 1
    plain = DLC(strength=0.0, max_tokens=12).caption(images, encoder, language_model=model)
    assert len({c.tokens for c in plain}) == 1
    assert plain[0].tokens[: method.start] == found[0].tokens[: method.start]
    for caption, image in zip(found, images, strict=True):
        (cosine,) = encoder.encode_texts([caption.text]) @ image
        assert caption.score == pytest.approx(float(cosine), abs=1e-6)


def test_texts_that_ended_are_left_alone_and_blank_candidates_are_the_text_so_far():
    encoder = ToyEncoder()
    images = torch.eye(5)[:2]
    words = {0: "a", 1: "<end>", 2: " ", 3: "b"}
    referee = DLC(k=4, start=1).referee(
        images, encoder, lambda ids: "".join(words[i] for i in ids), [1]
    )
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
    found = referee([0, 1], [[0], [3, 1]], logits)
    assert found[1].tolist() == logits[1].tolist()
    assert set(encoder.encoded) == {"a", "aa", "ab", "b"}
    assert found[0, 1] / 3 == pytest.approx(float(found[0, 2] / 2))
    assert logits[0].tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"window": 0},
        {"start": 0},
        {"history": 0},
        {"weight": 1.5},
        {"weight": -0.1},
        {"strength": -1.0},
    ],
)
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(UserError, match=f"dlc: .*{name}="):
        DLC(**options).caption(torch.eye(5), ToyEncoder(), language_model=ToyLanguageModel())


def test_what_it_needs():
    with pytest.raises(UserError, match="language model, or a model that writes"):
        DLC().caption(torch.eye(5), ToyEncoder())
    with pytest.raises(UserError, match="takes no trace"):
        package.caption(HEART, "pocket", "dlc", trace=True)


def test_the_pocket_set_sees_by_it():
    found = package.caption(HEART, "pocket", "dlc", start=1, cache=False)
    assert "red heart" in found[0].caption
    assert found[0].row()["method"] == "dlc"
