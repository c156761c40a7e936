import re

import pytest

from tests.models import tiny
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.models import open_clip
from zeroshot.models.names import parse
from zeroshot.models.systems import systems

B32 = "open_clip:ViT-B-32/openai"


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("hf:openai/clip-vit-base-patch32", "hf:openai/clip-vit-base-patch32"),
        ("openai/clip-vit-base-patch32", "hf:openai/clip-vit-base-patch32"),
        ("hf_clip:openai/clip-vit-base-patch32", "hf:openai/clip-vit-base-patch32"),
        ("hf:gpt2", "hf:gpt2"),
        ("hf-hub:laion/some-model", "hf-hub:laion/some-model"),
        ("open_clip:ViT-B-32/openai", B32),
        ("open_clip:ViT-B-32,openai", B32),
        ("open_clip:ViT-B/32", B32),
        ("ViT-B-32/openai", B32),
        ("ViT-B-32,openai", B32),
        ("ViT-B-32::openai", B32),
        ("ViT-B/32", B32),
        ("ViT-L/14@336px", "open_clip:ViT-L-14-336/openai"),
        ("RN50", "open_clip:RN50/openai"),
        ("RN50/yfcc15m", "open_clip:RN50/yfcc15m"),
        ("ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
    ],
)
def test_spellings_of_other_projects_have_one_canonical_form(spelling, canonical):
    assert str(parse(spelling)) == canonical
    assert str(parse(canonical)) == canonical


def test_directories(tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "open_clip_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for spelling in ("hf:./plain", "hf:plain", "plain", "./plain", f"hf:{tmp_path}/plain"):
        name = parse(spelling)
        assert str(name) == f"hf:{tmp_path}/plain"
        assert name.label == "hf:plain"
        assert parse(str(name)) == name
    for spelling in ("native", "./native", "local-dir:native", "local-dir:./native"):
        assert str(parse(spelling)) == f"local-dir:{tmp_path}/native"
    monkeypatch.chdir("/")
    assert parse("hf:plain", root=tmp_path).directory == tmp_path / "plain"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "unknown model 'gpt2'.*hf:org/model"),
        ("ViT-B-23", "unknown model 'ViT-B-23'; did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-23/openai", "unknown open_clip architecture 'ViT-B-23'.*ViT-B-32"),
        ("open_clip:ViT-B-32", "lacks the weights' tag"),
        ("ViT-B-32", "lacks the weights' tag"),
        ("open_clip:ViT-B-32/openia", "unknown tag.*'openia'; did you mean 'openai'"),
        ("hf:one/two/three", "'one/two/three' is no repository of the hub"),
        ("hf:", "is no repository of the hub"),
        ("", "unknown model ''"),
        ("siglip2", "'siglip2' is a system.*--encoder hf:google/siglip2-base-patch16-224"),
        ("pe_core", "'pe_core' is a system.*open_clip:PE-Core-B-16/meta"),
        ("mobileclip-2", "'mobileclip-2' is a system.*open_clip:MobileCLIP2-S0/dfndr2b"),
        ("siglp", "'siglp' is close to SigLIP, a system"),
    ],
)
def test_wrong_names_end_with_what_is_possible(name, message):
    with pytest.raises(UserError, match=message):
        models.load(name, offline=True)


def test_the_encoders_of_the_table_have_weights_in_open_clip():
    for system in systems():
        for name in system.encoders:
            if name.startswith("open_clip:"):
                assert open_clip.repositories(parse(name)), name


@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt", "safetensors", "pth"])
@pytest.mark.parametrize("prefix", ["", "hf:", "local-dir:./"])
def test_a_bare_weight_file_is_refused(prefix, suffix):
    with pytest.raises(UserError, match=r"bare weight file.*tokenizer must come with it"):
        models.load(f"{prefix}weights.{suffix}")


ROLES = {
    "dual encoder": models.load_dual_encoder,
    "image encoder": models.load_image_encoder,
    "text encoder": models.load_text_encoder,
    "language model": models.load_language_model,
}
SERVES = {
    "clip": {"dual encoder", "image encoder", "text encoder"},
    "open_clip": {"dual encoder", "image encoder", "text encoder"},
    "vit": {"image encoder"},
    "bert": {"text encoder"},
    "gpt2": {"language model"},
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", SERVES)
def test_every_loader_insists_on_its_role(name, role, directory_of, loaded):
    directory = str(directory_of(name))
    if role in SERVES[name]:
        assert ROLES[role](directory).name == loaded(name).name
    else:
        with pytest.raises(
            UserError, match=rf"{re.escape(directory)} is an? \w+ \w+, not an? {role}"
        ):
            ROLES[role](directory)


def test_a_text_encoder_made_from_a_language_model(tmp_path):
    directory = tiny.llama(tmp_path / "llama")
    assert "TransformersLanguageModel" in str(models.load(str(directory)))
    module = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    tiny.write(directory / "modules.json", [module])
    tiny.write(directory / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True})
    assert models.load(str(directory)).encode_texts(["a cat", "dogs"]).shape == (2, 16)
    assert models.load_language_model(str(directory)).end == 2
