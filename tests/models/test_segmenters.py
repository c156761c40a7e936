"""CLIPSeg and GroupViT against transformers' own calls, and what each is encoded how often."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.models import tiny
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.models.base import Segmenter
from zeroshot.models.hf.model_inputs import tokenize

PROMPTS = ["a cat", "two dogs on a sofa", "sky"]


@pytest.mark.parametrize("name", tiny.SEGMENTERS)
def test_is_one(name, directory_of):
    segmenter = models.load_segmenter(f"hf:{directory_of(name)}", device="cpu")
    assert isinstance(segmenter, Segmenter)
    assert segmenter.name.startswith(f"hf:{name}@")


def test_another_role_is_refused(directory_of):
    with pytest.raises(UserError, match="is a segmenter, not a language model"):
        models.load_language_model(str(directory_of("clipseg")), device="cpu")
    with pytest.raises(UserError, match="is a dual encoder, not a segmenter"):
        models.load_segmenter(str(directory_of("clip")), device="cpu")


@pytest.mark.parametrize("name", tiny.SEGMENTERS)
def test_batched_as_one_by_one(name, loaded, pictures):
    segmenter = loaded(name)
    rows = segmenter.encode_prompts(PROMPTS)
    alone = torch.cat([segmenter.encode_prompts([p]) for p in PROMPTS])
    torch.testing.assert_close(rows, alone, atol=1e-5, rtol=1e-5)
    together = segmenter.maps(pictures, rows)
    side = segmenter.model.config.vision_config.image_size
    assert {tuple(found.shape) for found in together} == {(3, side, side)}
    for picture, found in zip(pictures, together, strict=True):
        torch.testing.assert_close(found, segmenter.maps([picture], rows)[0], atol=1e-4, rtol=1e-4)
        one = torch.cat([segmenter.maps([picture], row[None])[0] for row in rows])
        torch.testing.assert_close(found, one, atol=1e-4, rtol=1e-4)


def tokens(segmenter, prompts):
    held = tokenize(segmenter.tokenizer, prompts, 24)
    held.pop("token_type_ids", None)
    return held


def test_clipseg_is_transformers(loaded, pictures):
    """Its own call takes a picture for each prompt, and encodes both anew for every pair."""
    segmenter = loaded("clipseg")
    picture = pictures[0]
    pixels = segmenter.image_processor(images=[picture] * 3, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        theirs = segmenter.model(pixel_values=pixels, **tokens(segmenter, PROMPTS)).logits
    ours = segmenter.maps([picture], segmenter.encode_prompts(PROMPTS))[0]
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_clipseg_takes_pictures_as_prompts(loaded, pictures):
    segmenter = loaded("clipseg")
    shown = segmenter.encode_examples(pictures[1:3])
    pixels = segmenter.image_processor(images=pictures[1:3], return_tensors="pt")["pixel_values"]
    seen = segmenter.image_processor(images=[pictures[0]] * 2, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        theirs = segmenter.model(pixel_values=seen, conditional_pixel_values=pixels).logits
    torch.testing.assert_close(segmenter.maps(pictures[:1], shown)[0], theirs, atol=1e-5, rtol=1e-5)


def test_a_single_prompt_keeps_its_axis(loaded, pictures):
    """The decoder drops the axis of one prompt."""
    segmenter = loaded("clipseg")
    found = segmenter.maps(pictures[:1], segmenter.encode_prompts(["a cat"]))
    assert found[0].shape == (1, 16, 16)


@pytest.mark.parametrize(("name", "length"), [("sam3", 24), ("sam3_lite_text", 32)])
def test_sam3_is_transformers(name, length, loaded, pictures):
    """Its own call takes a picture for each prompt, and encodes both anew for every pair."""
    segmenter, picture = loaded(name), pictures[0]
    values = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32)
    pixels = torch.from_numpy(values).permute(2, 0, 1)[None].repeat(3, 1, 1, 1) / 127.5 - 1
    asked = tokenize(segmenter.tokenizer, PROMPTS, length, "max_length")
    with torch.inference_mode():
        theirs = segmenter.model(
            pixel_values=pixels,
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
        ).semantic_seg[:, 0]
    ours = segmenter.maps([picture], segmenter.encode_prompts(PROMPTS))[0]
    assert theirs.std() > 0.01
    assert (theirs[0] - theirs[1]).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    many = segmenter.encode_prompts([*PROMPTS, "dog", "fox", "fly"])
    torch.testing.assert_close(segmenter.maps([picture], many)[0][:3], ours, atol=1e-5, rtol=1e-5)


def test_sam3_as_published_has_a_tracker_too(directory_of, loaded, pictures, tmp_path):
    """The detector is a part of its configuration and of its weights."""
    shutil.copytree(directory_of("sam3"), tmp_path / "sam3")
    file = tmp_path / "sam3" / "config.json"
    detector = json.loads(file.read_text())
    whole = {"architectures": ["Sam3VideoModel"], "model_type": "sam3_video"}
    file.write_text(json.dumps(whole | {"detector_config": detector}))
    weights = tmp_path / "sam3" / "model.safetensors"
    parts = {f"detector_model.{key}": value for key, value in load_file(weights).items()}
    tracker = {"tracker_model.memory.weight": torch.zeros(3)}
    save_file(parts | tracker, weights, {"format": "pt"})
    whole = models.load_segmenter(f"hf:{tmp_path / 'sam3'}", device="cpu")
    segmenter = loaded("sam3")
    prompts = segmenter.encode_prompts(PROMPTS)
    assert torch.equal(whole.encode_prompts(PROMPTS), prompts)
    assert torch.equal(
        whole.maps(pictures[:1], prompts)[0], segmenter.maps(pictures[:1], prompts)[0]
    )


@pytest.mark.parametrize("name", ["sam3", "sam3_lite_text"])
def test_sam3_takes_one_prompt_a_label_and_no_picture(name, loaded, pictures):
    segmenter = loaded(name)
    mean = segmenter.encode_prompts(["a cat", "two dogs"]).mean(0, keepdim=True)
    with pytest.raises(UserError, match="one prompt for each label: --templates none"):
        segmenter.maps(pictures[:1], mean)
    with pytest.raises(UserError, match="takes no example images"):
        segmenter.encode_examples(pictures[:1])


def test_groupvit_is_transformers(loaded):
    """But for the logit scale, which transformers multiplies by once more."""
    segmenter = loaded("groupvit")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
    pixels = segmenter.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        seen = segmenter.model(
            pixel_values=pixels, output_segmentation=True, **tokens(segmenter, PROMPTS)
        )
    ours = segmenter.maps([picture], segmenter.encode_prompts(PROMPTS))[0]
    assert ours.std() > 0.01
    theirs = seen.segmentation_logits[0] / tiny.SCALE
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_groupvit_sees_the_borders(loaded):
    """Its own preprocessing would cut a quarter off each end of this picture."""
    segmenter = loaded("groupvit")
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste(Image.new("RGB", (12, 32), "blue"), (0, 0))
    rows = segmenter.encode_prompts(PROMPTS)
    plain = segmenter.maps([Image.new("RGB", (64, 32), "red")], rows)[0]
    assert (segmenter.maps([wide], rows)[0] - plain).abs().max() > 1e-3


def test_groupvit_takes_no_examples(loaded, pictures):
    with pytest.raises(UserError, match="only texts"):
        loaded("groupvit").encode_examples(pictures[:1])


@pytest.mark.parametrize("name", tiny.SEGMENTERS)
def test_each_is_encoded_once(name, loaded, pictures, monkeypatch):
    """Three prompts and five pictures: three texts and five pictures through the towers."""
    segmenter, seen = loaded(name), {"texts": 0, "pictures": 0}
    clip, towers = getattr(segmenter.model, "clip", segmenter.model), ("text_model", "vision_model")
    if name.startswith("sam3"):
        towers = ("text_encoder", "vision_encoder")
    reader, viewer = (getattr(clip, tower) for tower in towers)
    texts, vision = reader.forward, viewer.forward

    def read(input_ids=None, **more):
        seen["texts"] += len(input_ids)
        return texts(input_ids=input_ids, **more)

    def look(pixel_values=None, **more):
        seen["pictures"] += len(pixel_values)
        return vision(pixel_values=pixel_values, **more)

    monkeypatch.setattr(reader, "forward", read)
    monkeypatch.setattr(viewer, "forward", lambda pixels, **more: look(pixel_values=pixels, **more))
    rows = segmenter.encode_prompts(PROMPTS)
    for picture in pictures:
        segmenter.maps([picture], rows)
    assert seen == {"texts": 3, "pictures": 5}


@pytest.mark.parametrize("name", tiny.SEGMENTERS)
def test_long_prompts_are_refused(name, loaded):
    with pytest.raises(UserError, match=r"the model reads (24|32): 'many words"):
        loaded(name).encode_prompts(["a cat", "many words " * 9])


@pytest.mark.parametrize("name", tiny.SEGMENTERS)
def test_no_prompts_are_no_rows(name, loaded):
    assert len(loaded(name).encode_prompts([])) == 0


def test_a_clip_saved_as_clipseg_is_refused(directory_of, tmp_path):
    """AutoModelForZeroShotImageClassification would load such a directory without its decoder."""
    import transformers as tr

    config = tr.CLIPSegConfig.from_pretrained(directory_of("clipseg"))
    for file in directory_of("clipseg").iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tr.CLIPSegModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="weights of CLIPSegForImageSegmentation are not in"):
        models.load_segmenter(str(tmp_path), device="cpu")
