"""What is loaded, from where, and what never is."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time

import pytest
import torch
import transformers as tr
from huggingface_hub import constants

from tests.models import tiny
from zeroshot import models
from zeroshot.errors import NotAvailableError, UserError
from zeroshot.model_set import availability
from zeroshot.model_set.spec import find_set
from zeroshot.models.files import model_files
from zeroshot.models.names import parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and a network where nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


def put(hub, repository, directory):
    """`directory` as a snapshot in the hub's cache."""
    root = hub / f"models--{repository.replace('/', '--')}"
    shutil.copytree(directory, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return root / "snapshots" / COMMIT


def to_torch_files(directory):
    """The same weights as torch once wrote them."""
    from safetensors.torch import load_file

    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")


def test_a_snapshot_of_the_hub_is_used_offline(hub, directory_of, loaded):
    put(hub, "org/tiny-clip", directory_of("clip"))
    encoder = models.load("org/tiny-clip", offline=True)
    assert encoder.name == f"hf:org/tiny-clip@{COMMIT[:12]}/pil.1/fp32"
    rows = encoder.encode_texts(["a cat"])
    torch.testing.assert_close(rows, loaded("clip").encode_texts(["a cat"]))


def test_an_open_clip_repository_of_the_hub_is_used_offline(hub, directory_of):
    put(hub, "org/tiny", directory_of("open_clip"))
    encoder = models.load("hf-hub:org/tiny", offline=True)
    assert encoder.name == f"hf-hub:org/tiny@{COMMIT[:12]}/open_clip.1/fp32"


def test_an_open_clip_tag_is_built_as_its_tag_says(hub, tmp_path, monkeypatch):
    """Architecture without QuickGELU, weights trained with it, preprocessing of the tag."""
    import open_clip as oc

    text = {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    vision = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    architecture = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(oc.factory._MODEL_CONFIGS, "ViT-B-32", architecture)
    tag = oc.pretrained._PRETRAINED["ViT-B-32"]["openai"]
    monkeypatch.setitem(tag, "mean", (0.1, 0.2, 0.3))
    put(hub, "timm/vit_base_patch32_clip_224.openai", tiny.open_clip(tmp_path / "tiny"))
    encoder = models.load("ViT-B/32", offline=True)
    assert encoder.name == f"open_clip:ViT-B-32/openai@{COMMIT[:12]}/open_clip.1/fp32"
    assert encoder.preprocess.transforms[-1].mean == (0.1, 0.2, 0.3)
    activations = [m for m in encoder.model.modules() if isinstance(m, oc.transformer.QuickGELU)]
    assert len(activations) == 4  # two layers in each tower


def test_half_a_snapshot_is_none(hub, directory_of):
    snapshot = put(hub, "org/tiny-clip", directory_of("clip"))
    shard = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(shard))
    with pytest.raises(NotAvailableError):
        models.load("org/tiny-clip", offline=True)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("hf:org/nowhere", "org/nowhere"),
        ("hf-hub:org/nowhere", "org/nowhere"),
        ("open_clip:ViT-B-32/openai", "timm/vit_base_patch32_clip_224.openai"),
    ],
)
def test_what_is_nowhere_ends_with_one_message_within_seconds(name, missing, offline, hub):
    began = time.monotonic()
    with pytest.raises(NotAvailableError) as caught:
        models.load(name, offline=offline)
    assert time.monotonic() - began < 8
    message = str(caught.value)
    assert caught.value.exit_code == 4
    assert f"'{name}' is not available: {missing} is not on this disk" in message
    assert str(hub) in message
    assert f"`zeroshot models pull {name}`" in message
    assert "HF_HOME" in message
    assert "`--models pocket` needs no download" in message
    assert ("offline by request" in message) == offline


def test_a_set_that_is_nowhere_names_all_that_is_missing(hub, directory_of):
    put(hub, "cambridgeltl/magic_mscoco", directory_of("gpt2"))
    base = find_set("base")
    assert availability.missing(base) == ["hf:openai/clip-vit-base-patch32"]
    assert not availability.describe("base").on_disk
    for offline in (True, False):
        with pytest.raises(
            NotAvailableError, match=r"'base' is not available: hf:openai/clip"
        ) as e:
            availability.require(base, offline=offline)
        assert "`zeroshot models pull base`" in str(e.value)
        assert str(e.value).count("is not available") == 1
    put(hub, "openai/clip-vit-base-patch32", directory_of("clip"))
    assert availability.missing(base) == []
    assert availability.describe("base").on_disk
    availability.require(base, offline=True)


def test_pull_fetches_what_loading_needs_in_one_format(hub, monkeypatch):
    import huggingface_hub

    asked = []
    published = [
        "README.md",
        "config.json",
        "model.safetensors",
        "open_clip_model.safetensors",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "tf_model.h5",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "1_Pooling/config.json",
    ]

    class Hub:
        def model_info(self, repository, timeout):
            siblings = [type("File", (), {"rfilename": name}) for name in published]
            return type("Info", (), {"siblings": siblings, "sha": COMMIT})

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, set(allow_patterns)))
        return f"/cache/{repository}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    fetched = availability.pull("base")
    assert [str(path) for path in fetched] == [
        "/cache/openai/clip-vit-base-patch32",
        "/cache/cambridgeltl/magic_mscoco",
    ]
    unread = {"README.md", "open_clip_model.safetensors", "onnx/model.onnx"}
    unread |= {"pytorch_model.bin", "tf_model.h5"}
    assert asked[0] == ("openai/clip-vit-base-patch32", COMMIT, set(published) - unread)
    published.remove("model.safetensors")
    availability.pull("hf:org/older")
    assert asked[-1][2] == set(published) - unread | {"pytorch_model.bin"}


def test_hf_hub_offline_is_honoured(tmp_path):
    code = "from zeroshot import models; models.load('hf:org/nowhere')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert "offline by request" in run.stderr
    assert str(tmp_path) in run.stderr


def test_torch_files_are_read_as_tensors_only(directory_of, loaded, tmp_path):
    directory = tmp_path / "clip"
    shutil.copytree(directory_of("clip"), directory)
    to_torch_files(directory)
    encoder = models.load(str(directory))
    torch.testing.assert_close(
        encoder.encode_texts(["a cat"]), loaded("clip").encode_texts(["a cat"])
    )


class Bomb:
    """Creates the file it is given, when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("clip", "pytorch_model.bin"),
        ("vit", "pytorch_model.bin"),
        ("bert", "pytorch_model.bin"),
        ("gpt2", "pytorch_model.bin"),
        ("open_clip", "open_clip_pytorch_model.bin"),
    ],
)
def test_a_pickle_that_runs_code_is_refused(name, weights, zipped, directory_of, tmp_path):
    directory, traces = tmp_path / name, tmp_path / "it ran"
    shutil.copytree(directory_of(name), directory)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    if zipped:
        torch.save({"weight": Bomb(traces)}, directory / weights)
    else:
        (directory / weights).write_bytes(pickle.dumps({"weight": Bomb(traces)}, protocol=2))
    with pytest.raises(UserError, match="pickle that holds more than tensors"):
        models.load(str(directory))
    assert not traces.exists()


@pytest.mark.parametrize(
    "holder", ["config.json", "tokenizer_config.json", "processor_config.json"]
)
def test_a_models_own_code_does_not_run(holder, directory_of, tmp_path):
    directory, traces = tmp_path / "clip", tmp_path / "it ran"
    shutil.copytree(directory_of("clip"), directory)
    (directory / "modeling_own.py").write_text(f"open({str(traces)!r}, 'w')")
    file = directory / holder
    settings = json.loads(file.read_text()) if file.exists() else {}
    settings["auto_map"] = {"AutoModel": "modeling_own.Own"}
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"Python code of its own.*--trust-remote-code"):
        models.load(str(directory))
    assert not traces.exists()


OWN_MODEL = """
from transformers import CLIPConfig, CLIPModel

class Own(CLIPModel):
    config_class = CLIPConfig

    def get_text_features(self, **inputs):
        features = super().get_text_features(**inputs)
        features.pooler_output = -features.pooler_output
        return features
"""


def test_a_models_own_code_runs_when_asked_to(directory_of, loaded, tmp_path, monkeypatch):
    directory = tmp_path / "own"
    shutil.copytree(directory_of("clip"), directory)
    (directory / "modeling_own.py").write_text(OWN_MODEL)
    settings = json.loads((directory / "config.json").read_text())
    settings["auto_map"] = {"AutoModel": "modeling_own.Own"}
    (directory / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(tr.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    encoder = models.load(str(directory), trust_remote_code=True)
    expected = -loaded("clip").encode_texts(["a cat"])
    torch.testing.assert_close(encoder.encode_texts(["a cat"]), expected)


@pytest.mark.parametrize("name", ["clip", "bert", "gpt2"])
def test_a_model_without_its_tokenizer_is_refused(name, directory_of, tmp_path):
    directory = tmp_path / name
    shutil.copytree(directory_of(name), directory)
    for file in directory.glob("tokenizer*.json"):
        file.unlink()
    load = {
        "clip": models.load_dual_encoder,
        "bert": models.load_text_encoder,
        "gpt2": models.load_language_model,
    }
    with pytest.raises(UserError, match=r"comes without its tokenizer|is an image encoder, not"):
        load[name](str(directory))


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_a_model_without_its_preprocessing_is_refused(name, directory_of, tmp_path):
    directory = tmp_path / name
    shutil.copytree(directory_of(name), directory)
    for file in directory.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(UserError, match="comes without its image preprocessing"):
        models.load(str(directory))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_an_incomplete_directory_is_refused(file, directory_of, tmp_path):
    directory = tmp_path / "clip"
    shutil.copytree(directory_of("clip"), directory)
    (directory / file).unlink()
    with pytest.raises(UserError, match=r"no complete model: it needs config\.json and weights"):
        models.load(str(directory))


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(NotAvailableError, match="no such directory"):
        models.load(f"hf:{tmp_path}/nothing")


def test_a_missing_weight_is_an_error_and_never_random(directory_of, tmp_path):
    from safetensors.torch import load_file, save_file

    directory = tmp_path / "clip"
    shutil.copytree(directory_of("clip"), directory)
    weights = load_file(directory / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights of CLIPModel.*text_projection\.weight"):
        models.load(str(directory))


def test_open_clip_weights_that_do_not_fit(directory_of, tmp_path):
    directory = tmp_path / "open_clip"
    shutil.copytree(directory_of("open_clip"), directory)
    file = directory / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["embed_dim"] = 14
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="open_clip cannot build it"):
        models.load(str(directory))


def test_a_sentence_transformers_module_nobody_knows(tmp_path):
    directory = tiny.sentence(tmp_path / "sentence", "mean_tokens")
    tiny.write(directory / "modules.json", [{"path": "", "type": "x.models.WordEmbeddings"}])
    with pytest.raises(UserError, match=r"unknown sentence-transformers module.*WordEmbeddings"):
        models.load(str(directory))
    directory = tiny.sentence(tmp_path / "other", "weightedmean_tokens")
    with pytest.raises(UserError, match="unknown pooling 'weightedmean'"):
        models.load(str(directory))


def test_loading_says_nothing(directory_of, capfd, recwarn):
    names = ("clip", "vit_classifier", "bert", "gpt2", "open_clip")
    directories = [directory_of(name) for name in names]
    capfd.readouterr()  # saving them may have shown a progress bar
    recwarn.clear()
    for directory in directories:
        models.load(str(directory))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_needed_files_are_told_by_their_names():
    names = ["config.json", "model-00001-of-00002.safetensors", "model.fp16.safetensors"]
    names += [
        "chat_template.jinja",
        "2_Dense/pytorch_model.bin",
        "checkpoint/model.safetensors",
        "training_args.bin",
    ]
    assert model_files.needed(names, model_files.TRANSFORMERS) == [
        "2_Dense/pytorch_model.bin",
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
    ]


def test_locate_hashes_what_it_reads(tmp_path):
    directory = tiny.bert(tmp_path / "bert")
    before = model_files.locate(parse(str(directory)), model_files.TRANSFORMERS).revision
    (directory / "vocab.txt").write_text("x")
    assert model_files.locate(parse(str(directory)), model_files.TRANSFORMERS).revision != before
