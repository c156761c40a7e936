"""The same numbers as the libraries' own calls, family by family."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tr
from PIL import Image

from tests.models import tiny
from zeroshot import models
from zeroshot.models.towers import open_clip_towers

GOLDEN = Path(__file__).parent.parent / "data" / "magic"
TEXTS = ["a photo of cat", "two dogs", "red bike on sofa"]


def close(rows, others, atol=2e-6):
    torch.testing.assert_close(rows, others, atol=atol, rtol=1e-5)


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def by_hand(images, return_tensors):
    """TIPSv2: resized, and divided by 255."""
    rows = [
        np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)) / 255
        for image in images
    ]
    return {"pixel_values": torch.tensor(np.stack(rows), dtype=torch.float32).permute(0, 3, 1, 2)}


def reference(directory, texts, pictures):
    """Inputs and model as their documentation shows them."""
    model = tr.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    if model.config.model_type == "tipsv2":
        processor = by_hand
    else:
        processor = tr.AutoImageProcessor.from_pretrained(directory, backend="pil")
    try:
        tokenizer = tr.AutoTokenizer.from_pretrained(directory)
    except ImportError:
        tokenizer = tr.TokenizersBackend.from_pretrained(directory)
    tokenizer.padding_side = "right"
    if "siglip" in model.config.model_type:
        tokens = tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt")
        tokens = {"input_ids": tokens["input_ids"]}
    else:
        tokens = tokenizer(texts, padding="max_length", max_length=22, return_tensors="pt")
    return model, tokens, processor(images=pictures, return_tensors="pt")


@pytest.mark.parametrize("name", [name for name in tiny.DUAL if name != "flava"])
@torch.no_grad()
def test_scores_are_the_models_own_logits(name, directory_of, loaded, pictures):
    model, tokens, pixels = reference(directory_of(name), TEXTS, pictures)
    expected = model(**tokens, **pixels).logits_per_image  # [n, t]
    encoder = loaded(name)
    cosines = encoder.encode_images(pictures) @ encoder.encode_texts(TEXTS).T
    close(encoder.logit_scale * cosines + (encoder.logit_bias or 0), expected, atol=2e-4)
    assert expected.std() > 0.1


@torch.no_grad()
def test_flava_embeds_with_its_first_token(directory_of, loaded, pictures):
    model, tokens, pixels = reference(directory_of("flava"), TEXTS, pictures)
    texts = model.text_projection(model.text_model(**tokens).last_hidden_state[:, 0])
    images = model.image_projection(model.image_model(**pixels).last_hidden_state[:, 0])
    close(loaded("flava").encode_texts(TEXTS), unit(texts))
    close(loaded("flava").encode_images(pictures), unit(images))


@torch.no_grad()
def test_open_clip_gives_its_own_features(directory_of, loaded, pictures):
    import open_clip

    name = f"local-dir:{directory_of('open_clip')}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    images = model.eval().encode_image(torch.stack([preprocess(p) for p in pictures]))
    encoder = loaded("open_clip")
    close(encoder.encode_images(pictures), unit(images))
    texts = [*TEXTS, "! 0", "", "word " * 40]
    close(encoder.encode_texts(texts), unit(model.encode_text(tokenizer(texts))))
    assert open_clip_towers.can_trim(encoder.model)


@torch.no_grad()
def test_open_clip_without_a_causal_mask_is_not_trimmed(tmp_path):
    text = {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    directory = tiny.open_clip(
        tmp_path / "siglip-like",
        text_cfg={**text, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        custom_text=True,
        init_logit_bias=tiny.BIAS,
    )
    encoder = models.load(str(directory))
    assert not open_clip_towers.can_trim(encoder.model)
    assert encoder.logit_bias == tiny.BIAS
    expected = encoder.model.encode_text(encoder.tokenizer(TEXTS))
    close(encoder.encode_texts(TEXTS), unit(expected))


def test_open_clip_ends_a_text_where_transformers_does(loaded):
    encoder = loaded("open_clip")
    ended, plain = "a cat<|endoftext|> and a dog", "a cat"
    close(encoder.encode_texts([ended]), encoder.encode_texts([plain]))
    assert encoder.count_tokens([ended]) == encoder.count_tokens([plain]) == [4]


def test_siglip_ignores_capitals_and_punctuation(loaded):
    encoder = loaded("siglip")
    close(encoder.encode_texts(["A photo, of a CAT!"]), encoder.encode_texts(["a photo of a cat"]))


@pytest.mark.parametrize("name", ["siglip2", "siglip2_fixed"])
def test_siglip_2_ignores_capitals_only(name, loaded):
    encoder = loaded(name)
    rows = encoder.encode_texts(["A CAT!", "a cat!", "a cat"])
    close(rows[0], rows[1])
    assert rows[1] @ rows[2] < 0.9999


@torch.no_grad()
def test_image_encoders_take_what_the_backbone_pools(directory_of, loaded, pictures):
    for name in ("vit", "dinov2", "convnext", "resnet", "mobilenet_v2"):
        model = tr.AutoModel.from_pretrained(directory_of(name)).eval()
        pixels = tr.AutoImageProcessor.from_pretrained(directory_of(name), backend="pil")(
            images=pictures, return_tensors="pt"
        )
        expected = model(**pixels).pooler_output.flatten(1)
        close(loaded(name).encode_images(pictures), unit(expected))


@torch.no_grad()
def test_a_pooler_that_was_never_trained_is_not_used(directory_of, loaded, pictures):
    model = tr.ViTModel.from_pretrained(directory_of("vit_classifier"), add_pooling_layer=False)
    pixels = tr.AutoImageProcessor.from_pretrained(directory_of("vit_classifier"), backend="pil")(
        images=pictures, return_tensors="pt"
    )
    class_token = model.eval()(**pixels).last_hidden_state[:, 0]
    close(loaded("vit_classifier").encode_images(pictures), unit(class_token))


@torch.no_grad()
def test_a_backbone_without_pooler_and_class_token_is_averaged(directory_of, loaded, pictures):
    model = tr.AutoModel.from_pretrained(directory_of("poolformer")).eval()
    pixels = tr.AutoImageProcessor.from_pretrained(directory_of("poolformer"), backend="pil")(
        images=pictures, return_tensors="pt"
    )
    hidden = model(**pixels).last_hidden_state  # [n, d, h, w]
    close(loaded("poolformer").encode_images(pictures), unit(hidden.flatten(2).mean(dim=2)))


POOLED = {
    "mean": lambda states: states.mean(dim=0),
    "cls": lambda states: states[0],
    "max": lambda states: states.max(dim=0).values,
    "mean_sqrt_len": lambda states: states.sum(dim=0) / math.sqrt(len(states)),
    "lasttoken": lambda states: states[-1],
}
SPELLED = {
    "mean": "mean_tokens",
    "cls": "cls_token",
    "max": "max_tokens",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "lasttoken": "lasttoken",
}


def states_of(directory, text):
    """Last hidden states of one text, without any padding `[s e]`."""
    tokens = tr.AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt")
    with torch.no_grad():
        return tr.AutoModel.from_pretrained(directory).eval()(**tokens).last_hidden_state[0]


@pytest.mark.parametrize("pooling", POOLED)
def test_text_encoders_pool_as_their_directory_says(pooling, tmp_path):
    directory = tiny.sentence(tmp_path / "sentence", SPELLED[pooling])
    rows = models.load_text_encoder(str(directory)).encode_texts(TEXTS)
    for row, text in zip(rows, TEXTS, strict=True):
        close(row, unit(POOLED[pooling](states_of(directory, text))))


def test_a_dense_module_and_the_settings_are_applied(tmp_path):
    directory = tiny.sentence(
        tmp_path / "sentence", "mean_tokens", dense=True, max_seq_length=9, do_lower_case=True
    )
    encoder = models.load_text_encoder(str(directory))
    assert encoder.context_length == 9
    from safetensors.torch import load_file

    weights = load_file(directory / "2_Dense" / "model.safetensors")
    expected = torch.tanh(
        weights["linear.weight"] @ states_of(directory, "a dog").mean(dim=0)
        + weights["linear.bias"]
    )
    close(encoder.encode_texts(["A DOG"])[0], unit(expected))
    assert expected.shape == (10,)


def test_a_default_prompt_is_put_before_every_text(tmp_path):
    directory = tiny.sentence(tmp_path / "sentence", "mean_tokens")
    prompts = {"prompts": {"query": "find a "}, "default_prompt_name": "query"}
    tiny.write(directory / "config_sentence_transformers.json", prompts)
    row = models.load_text_encoder(str(directory)).encode_texts(["cat"])[0]
    close(row, unit(states_of(directory, "find a cat").mean(dim=0)))


def test_a_text_encoder_without_a_recipe_takes_the_mean(directory_of, loaded):
    row = loaded("bert").encode_texts(["two dogs"])[0]
    close(row, unit(states_of(directory_of("bert"), "two dogs").mean(dim=0)))


def test_a_checkpoint_in_half_precision_is_computed_in_float32(tmp_path):
    directory = tiny.bert(tmp_path / "bert")
    model = tr.BertModel.from_pretrained(directory)
    model.half().save_pretrained(directory)
    encoder = models.load_text_encoder(str(directory), device="cpu")
    assert encoder.model.dtype == torch.float32
    model.float()
    tokens = tr.AutoTokenizer.from_pretrained(directory)("two dogs", return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**tokens).last_hidden_state[0].mean(dim=0)
    close(encoder.encode_texts(["two dogs"])[0], unit(expected))


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "golden.json").read_text())


def test_golden_clip_embeddings(golden):
    """`golden.json` was recorded with transformers 4.30.2: un-normalised projections."""
    encoder = models.load_dual_encoder(str(GOLDEN / "clip"), device="cpu")
    assert encoder.logit_scale == pytest.approx(100, abs=1e-4)
    pictures = [Image.open(GOLDEN / f"image_{i}.png").convert("RGB") for i in range(5)]
    close(encoder.encode_images(pictures), unit(torch.tensor(golden["image_embeds"])), atol=1e-5)
    close(
        encoder.encode_texts(golden["texts"]), unit(torch.tensor(golden["text_embeds"])), atol=1e-5
    )
