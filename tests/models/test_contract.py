"""What each family that docs/models.md names has to pass, whatever it is for.

A family is tried on a tiny random model of its class, saved by `save_pretrained`. Two checks are in
the files of their kind, and are looked up here: the numbers are the model's own, in any batch.
"""

import json
import re
import shutil
from inspect import getsource
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tests.models import (
    test_clip_scorers,
    test_detectors,
    test_encoders,
    test_parity,
    test_prompted,
    test_segmenters,
)
from zeroshot import models
from zeroshot.errors import NotAvailableError, UserError

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

ENCODERS = {
    "clip": "CLIP",
    "metaclip_2": "MetaCLIP 2",
    "chinese_clip": "Chinese-CLIP",
    "altclip": "AltCLIP",
    "align": "ALIGN",
    "flava": "FLAVA",
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2 (NaFlex)",
    "siglip2_fixed": "SigLIP 2",
    "vision_text": "LiT",
    "aimv2": "AIMv2 (LiT)",
    "tipsv2": "TIPSv2",
    "embedding_gemma2": "EmbeddingGemma 2",
    "qwen3_vl": "Qwen3-VL-Embedding",
    "neomme": "NeoMME",
}
DETECTORS = {
    "owlvit": "OWL-ViT",
    "owlv2": "OWLv2",
    "grounding_dino": "Grounding DINO",
    "mm_grounding_dino": "MM-Grounding-DINO, LLMDet",
    "omdet_turbo": "OmDet-Turbo",
}
SEGMENTERS = {
    "clipseg": "CLIPSeg",
    "groupvit": "GroupViT",
    "sam3": "SAM 3",
    "sam3_lite_text": "SAM 3 LiteText",
}
CLIPS = {"xclip": "X-CLIP", "videoprism": "VideoPrism (LvT)"}

USES = {
    "--encoder": (
        ENCODERS,
        models.load_dual_encoder,
        "embeddings",
        [
            test_parity.test_scores_are_the_models_own_logits,
            test_parity.test_flava_embeds_with_its_first_token,
            test_prompted.test_rows_are_those_of_its_own_processor_and_forward_pass,
        ],
        [
            test_encoders.test_an_image_has_the_same_row_alone_and_in_any_batch,
            test_encoders.test_a_text_has_the_same_row_alone_in_any_batch_and_twice,
        ],
    ),
    "detect --model": (
        DETECTORS,
        models.load_detector,
        "boxes and their scores",
        [
            test_detectors.test_owl_is_transformers,
            test_detectors.test_grounding_dino_is_transformers,
            test_detectors.test_omdet_turbo_is_transformers,
        ],
        [test_detectors.test_batched_as_one_by_one],
    ),
    "segment --model": (
        SEGMENTERS,
        models.load_segmenter,
        "maps",
        [
            test_segmenters.test_clipseg_is_transformers,
            test_segmenters.test_groupvit_is_transformers,
            test_segmenters.test_sam3_is_transformers,
        ],
        [test_segmenters.test_batched_as_one_by_one],
    ),
    "video classify --model": (
        CLIPS,
        models.load_clip_scorer,
        "cosines of clips and texts",
        [
            test_clip_scorers.test_cosines_of_xclip_are_those_of_its_own_forward_pass,
            test_clip_scorers.test_videoprism_is_transformers,
        ],
        [test_clip_scorers.test_batched_as_one_by_one],
    ),
}
FAMILIES = {name: use[1] for use in USES.values() for name in use[0]}


def families_of(test):
    """The families that a test runs on: its parameters, or those that it names."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    values = [value for mark in marks for value in mark.args[1]]
    names = [value[0] if isinstance(value, tuple) else value for value in values]
    return set(names or re.findall(r'"(\w+)"', getsource(test)))


@pytest.mark.parametrize("use", USES)
def test_numbers_are_compared_for_each_family(use):
    families, _, _, own, batch = USES[use]
    assert not families.keys() - set().union(*map(families_of, own))
    for test in batch:
        assert not families.keys() - families_of(test)


def test_the_page_names_these_families():
    rows = [
        f"| `{use}` | {', '.join(families.values())} | {numbers} |"
        for use, (families, _, numbers, *_) in USES.items()
    ]
    page = PAGE.read_text("utf-8").splitlines()
    assert [row for row in rows if row not in page] == []


def refusal(load, name):
    with pytest.raises((UserError, NotAvailableError)) as caught:
        load(name, device="cpu", offline=True)
    said = str(caught.value)
    assert "\n" not in said
    assert 20 < len(said) < 900
    return said


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_its_contract(name, directory_of, tmp_path, monkeypatch):
    """By name, in shards of half precision: with the numbers of these weights in float32.

    And refused in one sentence if a file is not there, or cut off.
    """
    load = FAMILIES[name]
    whole = load(str(directory_of(name)), device="cpu").model
    root = tmp_path / "models--org--tiny"
    here = root / "snapshots" / COMMIT
    shutil.copytree(directory_of(name), here)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    architecture = json.loads((here / "config.json").read_text())["architectures"]
    (here / "model.safetensors").unlink()
    whole.half().save_pretrained(here, max_shard_size="20KB")
    config = here / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": architecture}))
    assert len(list(here.glob("model-*.safetensors"))) > 1
    model = load("hf:org/tiny", device="cpu", precision="fp32", offline=True)
    assert model.name.startswith(f"hf:org/tiny@{COMMIT[:12]}/")
    expected, own = whole.float().state_dict(), model.model.state_dict()
    assert not [key for key in own if not torch.equal(own[key], expected[key])]

    def without(file, act):
        content = file.read_bytes()
        try:
            act(file, content)
            return refusal(load, "hf:org/tiny")
        finally:
            file.write_bytes(content)

    def remove(file, _):
        file.unlink()

    def cut(file, content):
        file.write_bytes(content[: len(content) // 2])

    shard, tokenizer = min(here.glob("model-*.safetensors")), here / "tokenizer.json"
    images = next(f for f in here.iterdir() if re.search("process", f.name))
    assert "is not available: org/tiny is not on this disk" in without(config, remove)
    assert "config.json' is not JSON" in without(config, cut)
    assert "is not available: org/tiny is not on this disk" in without(shard, remove)
    assert "is cut off" in without(shard, cut)
    assert f"{images.name}' is not JSON" in without(images, cut)
    assert "cannot be used" in without(tokenizer, cut)
    assert "comes without its image preprocessing" in without(images, remove)
