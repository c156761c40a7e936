"""X-CLIP on tiny random weights, against the model's own forward pass."""

import pytest
import torch
import transformers as tr
from PIL import Image

from tests.models import tiny
from zeroshot import models
from zeroshot.errors import UserError

TEXTS = ["a cat", "two dogs on a sofa", "a"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.xclip(tmp_path_factory.mktemp("xclip"))


@pytest.fixture(scope="module")
def scorer(directory):
    return models.load_clip_scorer(str(directory), device="cpu")


def clip(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (4, 20, 24, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(frame.numpy()) for frame in values]


def test_cosines_are_those_of_the_models_own_forward_pass(directory, scorer):
    """Also of texts of different lengths, and of clips that change the texts' rows."""
    model = tr.XCLIPModel.from_pretrained(directory, dtype=torch.float32).eval()
    pixels = [scorer.pixels(clip(seed)) for seed in range(3)]
    assert pixels[0].shape == (4, 3, 16, 16)
    tokenizer = tr.AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        logits = torch.cat(
            [
                torch.cat(
                    [
                        model(
                            pixel_values=each[None],
                            **{
                                k: v
                                for k, v in tokenizer([text], return_tensors="pt").items()
                                if k in ("input_ids", "attention_mask")
                            },
                        ).logits_per_video
                        for text in TEXTS
                    ],
                    dim=1,
                )
                for each in pixels
            ]
        )
    found = scorer.cosines(scorer.encode_frames(pixels), scorer.encode_texts(TEXTS))
    torch.testing.assert_close(scorer.logit_scale * found, logits, atol=1e-4, rtol=1e-4)
    assert logits.std(0).min() > 1e-3
    assert scorer.frames == 4


def test_batched_as_one_by_one(scorer):
    pixels = [scorer.pixels(clip(seed)) for seed in range(3)]
    alone = torch.cat([scorer.encode_frames([each]) for each in pixels])
    torch.testing.assert_close(scorer.encode_frames(pixels), alone, atol=1e-5, rtol=1e-5)
    texts = torch.cat([scorer.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(scorer.encode_texts(TEXTS), texts, atol=1e-5, rtol=1e-5)


def test_what_it_refuses(scorer, tmp_path):
    with pytest.raises(UserError, match="tokens, but the model reads"):
        scorer.encode_texts(["a cat " * 100])
    tiny.clip(tmp_path)
    with pytest.raises(UserError, match="reads no clips"):
        models.load_clip_scorer(str(tmp_path), device="cpu")
