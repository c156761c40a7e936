"""The loop and its shortcuts against the plain algorithm of `benchmarks/`: the same tokens."""

import importlib
import re
import sys
from functools import cache
from pathlib import Path

import pytest

from benchmarks import random_models
from benchmarks.plain_magic import plain_magic
from tests.models import tiny
from zeroshot import models
from zeroshot.decoding import generate
from zeroshot.images.reading import open_image
from zeroshot.methods.magic import MagicGuide
from zeroshot.model_set.model_set import resolve

ROOT = Path(__file__).parent.parent
SETTINGS = {"k": 20, "alpha": 0.1}
STEPS, BETA = 9, 2.0


@cache
def language_model():
    return random_models.language_model(small=True, end_after=6.0)


@cache
def rows():
    """Pictures of several kinds, as unit rows of width 64."""
    return random_models.clip(small=True).encode_images(random_models.pictures(7))


def expected(lm, encode, images, scale, **changes):
    given = {"k": 20, "alpha": 0.1, "beta": BETA, "steps": STEPS} | changes
    return [
        plain_magic(
            lm.model,
            lm.decode,
            encode,
            row,
            prefix=[lm.start],
            end=lm.end,
            logit_scale=scale,
            **given,
        )
        for row in images
    ]


def ours(lm, encoder, images, batch, **changes):
    given = SETTINGS | {"max_tokens": STEPS} | changes
    out = []
    for part in images.split(batch):
        guide = MagicGuide(part, encoder, lm, BETA)
        out += generate(lm, [[lm.start]] * len(part), guide, **given)
    return out


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize(("k", "alpha"), [(20, 0.1), (7, 0.6)])
def test_transformers(batch, k, alpha):
    encoder = random_models.clip(small=True)

    def encode(texts):
        tokens = encoder.tokenizer(
            encoder._prepare(texts), padding=True, truncation=True, return_tensors="pt"
        )
        return encoder.model.get_text_features(**tokens).pooler_output

    wanted = expected(language_model(), encode, rows(), 100.0, k=k, alpha=alpha)
    assert len({tuple(tokens) for tokens in wanted}) > 3
    assert len({len(tokens) for tokens in wanted}) > 1, "some end early"
    assert ours(language_model(), encoder, rows(), batch, k=k, alpha=alpha) == wanted


@pytest.fixture(scope="module")
def open_clip_encoder(tmp_path_factory):
    text = {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
    directory = tiny.open_clip(tmp_path_factory.mktemp("oc"), seed=3, embed_dim=64, text_cfg=text)
    return models.load(str(directory), device="cpu")


@pytest.mark.parametrize("batch", [1, 7])
def test_open_clip(batch, open_clip_encoder):
    encoder = open_clip_encoder

    def encode(texts):
        return encoder.model.encode_text(encoder.tokenizer(encoder._prepare(texts)))

    wanted = expected(language_model(), encode, rows(), encoder.logit_scale)
    assert len({tuple(tokens) for tokens in wanted}) > 3
    assert encoder._causal_tower is not None
    assert ours(language_model(), encoder, rows(), batch) == wanted


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_pocket(batch):
    pocket = resolve("pocket")
    encoder, lm = pocket.encoder, pocket.language_model
    options = pocket.spec.caption
    images = encoder.encode_images(
        [open_image(path) for path in sorted((ROOT / "examples" / "scenes").glob("*.png"))]
    )
    given = {"k": options["k"], "alpha": options["alpha"]}
    guide_beta = options["beta"]

    def encode(texts):
        tokens = encoder.tokenizer(
            encoder._prepare(texts), padding=True, truncation=True, return_tensors="pt"
        )
        return encoder.model.get_text_features(**tokens).pooler_output

    wanted = expected(lm, encode, images, encoder.logit_scale, **given, beta=guide_beta, steps=24)
    out = []
    for part in images.split(batch):
        guide = MagicGuide(part, encoder, lm, guide_beta)
        out += generate(lm, [[lm.start]] * len(part), guide, max_tokens=24, **given)
    assert out == wanted


@pytest.mark.parametrize("more", [[], ["--early-end"], ["--growth"]], ids=str)
def test_the_benchmark_runs_and_finds_equal_tokens(more, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    small = ["--small", "--images", "4", "--batches", "1", "4", "--steps", "5", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["magic.py", *small, *more])
    try:
        importlib.import_module("magic").main()
    finally:
        for name in ("magic", "plain_magic", "random_models"):
            sys.modules.pop(name, None)
    out = capsys.readouterr().out
    assert "DIFFERENT" not in out
    assert out.count("| equal |") == (0 if "--growth" in more else 2)


def test_words_of_many_text_tokens_are_run_a_sixth_of_the_times_or_less(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    small = ["--small", "--images", "3", "--batches", "3", "--reference-images", "1"]
    monkeypatch.setattr(sys, "argv", ["magic.py", *small, "--split-words", "--threads", "1"])
    try:
        importlib.import_module("magic").main()
    finally:
        for name in ("magic", "plain_magic", "random_models"):
            sys.modules.pop(name, None)
    out = capsys.readouterr().out
    plain, ours = map(int, re.findall(r"(\d+) text tokens an image", out))
    assert "| equal |" in out
    assert ours > 15 * 45, "no candidate is known from an earlier step"
    assert plain / ours > 6


@pytest.mark.parametrize("encoder", [None, "coupled"])
def test_the_benchmark_runs_on_a_model_set(encoder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scenes = str(ROOT / "examples" / "scenes")
    monkeypatch.setattr(sys, "argv", ["magic.py", "--models", "pocket", scenes, "--threads", "1"])
    try:
        magic = importlib.import_module("magic")
        monkeypatch.setattr(magic, "resolve", lambda name: resolve(name, encoder=encoder))
        magic.main()
    finally:
        for name in ("magic", "plain_magic", "random_models"):
            sys.modules.pop(name, None)
    out = capsys.readouterr().out
    assert "images/s" in out
    assert ("text encoder" if encoder else "text tower") in out
