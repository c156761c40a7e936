"""MaGiC against the authors' code: every token of every recorded run, and each step's terms.

`data/magic/golden.json` was made by the authors' unmodified `SimCTG.magic_search` on tiny random
models whose vocabularies split words and characters in the middle.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.toy import ToyEncoder, ToyLanguageModel
from zeroshot import models
from zeroshot.decoding import generate
from zeroshot.errors import UserError
from zeroshot.methods import Pool
from zeroshot.methods.magic import MaGiC, MagicGuide
from zeroshot.methods.retrieve import Retrieve

DATA = Path(__file__).parent / "data" / "magic"
GOLDEN = json.loads((DATA / "golden.json").read_text())
RUNS = GOLDEN["runs"]
IMAGES = sorted({run["image"] for run in RUNS})


@cache
def clip():
    return models.load_dual_encoder(f"hf:{DATA / 'clip'}")


@cache
def language_model():
    return models.load_language_model(f"hf:{DATA / 'lm'}")


@cache
def image_rows():
    return clip().encode_images([Image.open(DATA / name).convert("RGB") for name in IMAGES])


def alike(run):
    """Runs that differ by their image alone."""
    return tuple(run["prefix_ids"]), run["k"], run["alpha"], run["beta"], run["decoding_len"]


SETTINGS = sorted({alike(run) for run in RUNS})


def until_the_end(tokens):
    end = language_model().end
    return tokens[: tokens.index(end)] if end in tokens else tokens


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
def test_authors_tokens(setting, together):
    """All five pictures as one batch, and alone."""
    prefix, k, alpha, beta, length = setting
    runs = [run for run in RUNS if alike(run) == setting]
    rows = image_rows()[[IMAGES.index(run["image"]) for run in runs]]
    options = {"k": k, "alpha": alpha, "max_tokens": length - len(prefix)}
    batches = [rows] if together else rows.split(1)
    ours = []
    for batch in batches:
        guide = MagicGuide(batch, clip(), language_model(), beta)
        ours += generate(language_model(), [prefix] * len(batch), guide, **options)
    assert ours == [until_the_end(run["token_ids"][len(prefix) :]) for run in runs]


@pytest.mark.parametrize(
    "run", [r for r in RUNS if r["text"] is not None], ids=lambda r: r["image"]
)
def test_authors_texts(run):
    method = MaGiC(run["k"], run["alpha"], run["beta"], run["decoding_len"] - 1)
    image = image_rows()[[IMAGES.index(run["image"])]]
    [caption] = method.caption(image, clip(), language_model=language_model())
    assert caption.text == run["text"]
    expected = float(clip().encode_texts([caption.text])[0] @ image[0])
    assert caption.score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("run", [r for r in RUNS if r["steps"]], ids=lambda r: f"k={r['k']}")
def test_authors_terms_of_the_score(run):
    """Candidates, probability, penalty and magic score of every step up to the end."""
    seen = []
    image = image_rows()[[IMAGES.index(run["image"])]]

    guide = MagicGuide(image, clip(), language_model(), run["beta"]) if run["beta"] else None
    generate(
        language_model(),
        [run["prefix_ids"]],
        guide,
        k=run["k"],
        alpha=run["alpha"],
        max_tokens=run["decoding_len"] - len(run["prefix_ids"]),
        observe=seen.append,
    )
    assert len(seen) >= 4
    for choice, step in zip(seen, run["steps"], strict=False):
        place = {token: i for i, token in enumerate(choice.candidates[0].tolist())}
        assert place.keys() == set(step["tokens"])
        order = [place[token] for token in step["tokens"]]
        expected = torch.tensor([step["probs"], step["penalty"]])
        ours = torch.stack([choice.probability[0, order], choice.penalty[0, order]])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        if run["beta"]:
            magic = choice.guide[0, order] / run["beta"]
            torch.testing.assert_close(magic, torch.tensor(step["clip"]), rtol=1e-3, atol=1e-5)
        assert int(choice.candidates[0, choice.chosen[0]]) == step["tokens"][step["chosen"]]


@pytest.mark.parametrize(
    "run", [r for r in RUNS if r["text"] is None], ids=lambda r: f"{r['image']} k={r['k']}"
)
def test_authors_stories(run):
    """Texts under a title, which an end token closes; the length counts the title."""
    title = language_model().decode(run["prefix_ids"][:-1])
    length = run["decoding_len"]
    method = MaGiC(run["k"], run["alpha"], run["beta"], length, max_length=length, title=True)
    image = image_rows()[[IMAGES.index(run["image"])]]
    [story] = method.caption(image, clip(), language_model=language_model(), prompts=[title])
    assert list(story.tokens) == until_the_end(run["token_ids"][len(run["prefix_ids"]) :])


def test_a_beginning_is_part_of_the_text_and_a_title_is_not():
    model, encoder = ToyLanguageModel(end=-1), ToyEncoder()  # texts never end
    rows = torch.nn.functional.normalize(
        torch.tensor([[1.0, 2, 0, -1, 1], [0, 1, -2, 1, 3]]), dim=-1
    )

    def say(**options):
        method = MaGiC(k=4, max_tokens=5, **options)
        return method.caption(rows, encoder, language_model=model, prompts=["abc", "d"])

    for prompt, text in zip(["abc", "d"], say(), strict=True):
        assert text.text == prompt + model.decode(text.tokens)
    for text in say(title=True):
        assert text.text == model.decode(text.tokens)
    with pytest.raises(UserError, match="1 prompt for 2 images"):
        MaGiC().caption(rows, encoder, language_model=model, prompts=["a"])
    with pytest.raises(UserError, match="leaves nothing of max_length=3"):
        say(max_length=3)
    assert [len(text.tokens) for text in say(max_length=5)] == [1, 3]
    assert [len(text.tokens) for text in say()] == [5, 5]


def test_sentences_are_counted():
    assert MaGiC(sentences=2)._text("", " One two.  Three?\nFour! ") == "One two. Three?"
    assert MaGiC()._text("A", " b.  C") == "A b. C"
    assert MaGiC(sentences=3)._text("", "No end 3.5 here") == "No end 3.5 here"


def test_a_trace_shows_every_choice_and_changes_none():
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    method, model = MaGiC(k=6, alpha=0.3, max_tokens=5), ToyLanguageModel()
    plain = method.caption(rows, ToyEncoder(), language_model=model)
    traced = method.caption(rows, ToyEncoder(), language_model=model, trace=True)
    assert [c.tokens for c in plain] == [c.tokens for c in traced]
    assert [c.trace for c in plain] == [None] * 3
    for caption in traced:
        said = ""
        for step, token in zip(caption.trace.steps, caption.tokens, strict=False):
            best = step.candidates[0]
            assert (step.text, best.token, best.text) == (said, token, model.decode([token]))
            assert best.total == max(c.total for c in step.candidates)
            for c in step.candidates:
                score = 0.7 * c.probability - 0.3 * c.penalty + c.guide
                assert c.total == pytest.approx(score, abs=1e-6)
            said += best.text
        ended = len(caption.tokens) < 5
        assert len(caption.trace) == len(caption.tokens) + ended


def test_a_trace_becomes_a_picture(tmp_path):
    rows = torch.ones(1, 5) / 5**0.5
    method = MaGiC(k=6, max_tokens=3)
    [caption] = method.caption(rows, ToyEncoder(), language_model=ToyLanguageModel(), trace=True)
    caption.trace.save(tmp_path / "trace.png")
    with Image.open(tmp_path / "trace.png") as picture:
        assert picture.size[1] > 200
    assert len(caption.trace.figure().axes) == len(caption.trace)


def test_presets_are_options():
    assert set(MaGiC.presets) == {"coco", "flickr30k", "story"}
    assert MaGiC(**MaGiC.presets["coco"]) == MaGiC()
    for options in MaGiC.presets.values():
        MaGiC(**options)


def test_without_beta_the_picture_is_never_looked_at():
    encoder = ToyEncoder()
    rows = torch.nn.functional.normalize(torch.randn(3, 5), dim=-1)
    captions = MaGiC(k=4, beta=0.0, max_tokens=6).caption(
        rows, encoder, language_model=ToyLanguageModel()
    )
    assert len({caption.text for caption in captions}) == 1
    assert len(encoder.encoded) == 3, "only the final texts are encoded, for their score"


def test_a_candidate_that_ends_the_text_is_scored_as_the_text_so_far():
    model, encoder = ToyLanguageModel(), ToyEncoder()
    image = torch.nn.functional.normalize(torch.randn(1, 5), dim=-1)
    guide = MagicGuide(image, encoder, model, beta=2.0)
    scores = guide([0], [[3, 4]], torch.tensor([[model.end, 5]]))
    assert encoder.encoded == ["de", "def"]
    cosine = encoder.encode_texts(["de", "def"]) @ image[0]
    torch.testing.assert_close(scores[0], 2 * (10.0 * cosine).softmax(0))


def test_the_encoder_sees_the_last_sixty_tokens():
    model, encoder = ToyLanguageModel(), ToyEncoder()
    guide = MagicGuide(torch.ones(1, 5), encoder, model, beta=1.0)
    guide([0], [[2] * 50 + [3] * 50], torch.tensor([[4, model.end]]))
    assert encoder.encoded == ["c" * 9 + "d" * 50 + "e", "c" * 9 + "d" * 50]


def test_missing_parts():
    with pytest.raises(UserError, match="language model"):
        MaGiC().caption(torch.eye(1, 5), ToyEncoder())
    with pytest.raises(UserError, match="pool"):
        Retrieve().caption(torch.eye(1, 5), ToyEncoder())


def test_retrieve_by_hand():
    pool = Pool(["one", "two", "three"], torch.eye(3))
    rows = torch.tensor([[0.0, 0.8, 0.6], [0.6, 0.0, 0.8]])
    captions = Retrieve().caption(rows, ToyEncoder(), pool=pool)
    assert [c.text for c in captions] == ["two", "three"]
    assert [c.score for c in captions] == [pytest.approx(0.8), pytest.approx(0.8)]
