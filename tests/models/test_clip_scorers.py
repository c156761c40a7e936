"""X-CLIP and VideoPrism on tiny random weights, against the models' own forward passes."""

import numpy as np
import pytest
import torch
import transformers as tr
from PIL import Image

from tests.models import tiny
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.models.base import ClipScorer

TEXTS = ["a cat", "two dogs on a sofa", "a"]


def clip(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (4, 20, 24, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(frame.numpy()) for frame in values]


def test_cosines_of_xclip_are_those_of_its_own_forward_pass(directory_of, loaded):
    """Also of texts of different lengths, and of clips that change the texts' rows."""
    directory, scorer = directory_of("xclip"), loaded("xclip", models.load_clip_scorer)
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


def test_videoprism_is_transformers(directory_of, loaded):
    """Frames by PIL and 255; texts as the authors write them: lower case, a period at the end."""
    directory, scorer = directory_of("videoprism"), loaded("videoprism", models.load_clip_scorer)
    model = tr.VideoPrismClipModel.from_pretrained(directory, dtype=torch.float32).eval()
    clips = [clip(seed) for seed in range(3)]
    values = [
        [np.asarray(frame.resize((16, 16), Image.Resampling.BICUBIC)) / 255 for frame in frames]
        for frames in clips
    ]
    videos = torch.tensor(np.stack(values), dtype=torch.float32).permute(0, 1, 4, 2, 3)
    tokenizer = tr.AutoTokenizer.from_pretrained(directory)
    plain = ["a cat.", "two dogs on a sofa.", "a."]
    tokens = tokenizer(plain, padding="max_length", max_length=24, return_tensors="pt")
    with torch.inference_mode():
        own = model(
            pixel_values_videos=videos,
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    expected = own.video_embeds @ own.text_embeds.T
    rows = scorer.encode_frames([scorer.pixels(frames) for frames in clips])
    written = ["A  cat!", "Two dogs, on a sofa.", "a"]
    found = scorer.cosines(rows, scorer.encode_texts(written))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    assert (scorer.frames, scorer.logit_scale, scorer.logit_bias) == (4, 100.0, None)


@pytest.mark.parametrize("name", tiny.CLIPS)
def test_batched_as_one_by_one(name, loaded):
    scorer = loaded(name, models.load_clip_scorer)
    assert isinstance(scorer, ClipScorer)
    assert scorer.method.replace("-", "") == name
    pixels = [scorer.pixels(clip(seed)) for seed in range(3)]
    alone = torch.cat([scorer.encode_frames([each]) for each in pixels])
    torch.testing.assert_close(scorer.encode_frames(pixels), alone, atol=1e-5, rtol=1e-5)
    texts = torch.cat([scorer.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(scorer.encode_texts(TEXTS), texts, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", tiny.CLIPS)
def test_a_text_that_is_too_long_is_refused(name, loaded):
    with pytest.raises(UserError, match="tokens, but the model reads"):
        loaded(name, models.load_clip_scorer).encode_texts(["a cat " * 100])


def test_a_model_that_reads_no_clips_is_refused(directory_of):
    with pytest.raises(UserError, match="reads no clips; XCLIPModel and VideoPrismClipModel do"):
        models.load_clip_scorer(str(directory_of("clip")), device="cpu")
