"""What holds of every encoder, whatever its family."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny
from tests.models.tiny_prompted import PROMPTED
from zeroshot import models
from zeroshot.errors import ZeroshotError
from zeroshot.models.base import DualEncoder, ImageEncoder, TextEncoder
from zeroshot.models.deferred import deferred, facts_of
from zeroshot.models.encoding import encode_images, encode_texts
from zeroshot.models.hf import model_inputs

DUAL = [*tiny.DUAL, *PROMPTED, "open_clip"]
WITH_IMAGES = [*DUAL, *tiny.IMAGE]
WITH_TEXTS = [*DUAL, *tiny.TEXTS]

TEXTS = ["a cat", "two dogs on a sofa", "red bike", "Zebra!", "my big bad fox, fly", "a dog"]


def close(rows, others):
    torch.testing.assert_close(rows, others, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", DUAL)
def test_dual_encoder_has_every_role(name, loaded):
    encoder = loaded(name)
    assert isinstance(encoder, DualEncoder)
    assert isinstance(encoder, ImageEncoder)
    assert isinstance(encoder, TextEncoder)


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_images_become_unit_float32_rows_on_the_cpu(name, loaded, pictures):
    rows = loaded(name).encode_images(pictures)
    assert rows.dtype == torch.float32
    assert rows.device.type == "cpu"
    assert not rows.requires_grad
    assert not rows.is_inference()
    close(rows.norm(dim=1), torch.ones(len(pictures)))


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_an_image_has_the_same_row_alone_and_in_any_batch(name, loaded, pictures):
    encoder = loaded(name)
    rows = encoder.encode_images(pictures)
    assert (rows @ rows.T).fill_diagonal_(0).max() < 0.9999
    close(torch.cat([encoder.encode_images([picture]) for picture in pictures]), rows)
    close(encoder.encode_images(pictures[::-1]), rows.flip(0))


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_texts_become_unit_float32_rows_on_the_cpu(name, loaded):
    rows = loaded(name).encode_texts(TEXTS)
    assert rows.dtype == torch.float32
    assert rows.device.type == "cpu"
    assert not rows.requires_grad
    assert not rows.is_inference()
    close(rows.norm(dim=1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_a_text_has_the_same_row_alone_in_any_batch_and_twice(name, loaded):
    encoder = loaded(name)
    rows = encoder.encode_texts(TEXTS)
    assert (rows @ rows.T).fill_diagonal_(0).max() < 0.9999
    close(torch.cat([encoder.encode_texts([text]) for text in TEXTS]), rows)
    close(encoder.encode_texts(TEXTS[::-1]), rows.flip(0))
    close(encoder.encode_texts([TEXTS[1], TEXTS[0], TEXTS[1]]), rows[[1, 0, 1]])


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_no_image_gives_no_row_of_the_right_width(name, loaded, pictures):
    encoder = loaded(name)
    assert encoder.encode_images([]).shape == (0, encoder.encode_images(pictures[:1]).shape[1])


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_no_text_gives_no_row_of_the_right_width(name, loaded):
    encoder = loaded(name)
    assert encoder.encode_texts([]).shape == (0, encoder.encode_texts(["a cat"]).shape[1])
    assert encoder.count_tokens([]) == []


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_a_text_is_cut_at_the_context_length_and_counted_uncut(name, loaded):
    encoder = loaded(name)
    stem = "ab " * encoder.context_length
    long, longer = stem + "cat", stem + "dog sofa bike"
    counts = encoder.count_tokens(["ab", long, longer])
    assert counts[0] < encoder.context_length < counts[1] < counts[2]
    rows = encoder.encode_texts([long, longer, "ab"])
    close(rows[0], rows[1])
    assert rows[0] @ rows[2] < 0.9999


@pytest.mark.parametrize("name", DUAL)
def test_the_scale_is_read_from_the_model(name, loaded):
    own = 100 if name in PROMPTED else tiny.SCALE  # CLIP's for those without one
    assert loaded(name).logit_scale == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("name", DUAL)
def test_what_is_remembered_of_it_stands_for_a_dual_encoder(name, loaded):
    facts = facts_of(loaded(name))
    assert facts["role"] == "dual encoder"
    assert facts["trained_scale"] == (name not in PROMPTED)
    stand_in = deferred(
        facts, lambda: loaded(name), lambda fresh, texts, *_: fresh(texts), lambda: None
    )
    assert isinstance(stand_in, DualEncoder)
    assert stand_in.trained_scale == facts["trained_scale"]


@pytest.mark.parametrize("name", DUAL)
def test_only_sigmoid_models_have_a_bias(name, loaded):
    bias = loaded(name).logit_bias
    assert bias == (pytest.approx(tiny.BIAS) if name.startswith("siglip") else None)


@pytest.mark.parametrize("name", ["clip", "siglip", "open_clip"])
def test_half_precision_keeps_the_scale_and_returns_float32(name, directory_of, loaded, pictures):
    half = models.load(str(directory_of(name)), device="cpu", precision="bf16")
    assert half.logit_scale == loaded(name).logit_scale
    assert half.name != loaded(name).name
    assert half.name.endswith("/bf16")
    rows, exact = half.encode_images(pictures), loaded(name).encode_images(pictures)
    assert rows.dtype == torch.float32
    assert (rows * exact).sum(dim=1).min() > 0.98
    rows, exact = half.encode_texts(TEXTS), loaded(name).encode_texts(TEXTS)
    assert (rows * exact).sum(dim=1).min() > 0.98
    assert not torch.equal(rows, exact)


def test_tipsv2_as_transformers_5_saves_it(directory_of, tmp_path, loaded, pictures):
    """Without a temperature, which is in the configuration; preprocessing in the processor's."""
    shutil.copytree(directory_of("tipsv2"), tmp_path / "tipsv2")
    weights = load_file(tmp_path / "tipsv2" / "model.safetensors")
    del weights["temperature"]
    save_file(weights, tmp_path / "tipsv2" / "model.safetensors", {"format": "pt"})
    settings = json.loads((tmp_path / "tipsv2" / "preprocessor_config.json").read_text())
    (tmp_path / "tipsv2" / "preprocessor_config.json").unlink()
    processor = {"processor_class": "Tipsv2Processor", "image_processor": settings}
    (tmp_path / "tipsv2" / "processor_config.json").write_text(json.dumps(processor))
    encoder = models.load(str(tmp_path / "tipsv2"), device="cpu")
    assert torch.equal(encoder.encode_images(pictures), loaded("tipsv2").encode_images(pictures))
    assert encoder.logit_scale == pytest.approx(1 / 0.005065968260169029)
    assert torch.equal(encoder.encode_texts(TEXTS), loaded("tipsv2").encode_texts(TEXTS))


@pytest.mark.parametrize("name", ["clip", "vit", "bert", "gpt2", "open_clip"])
def test_the_name_follows_the_content_and_not_the_place(name, directory_of, loaded, tmp_path):
    moved = tmp_path / "elsewhere" / name
    shutil.copytree(directory_of(name), moved)
    assert models.load(str(moved)).name == loaded(name).name
    (moved / "README.md").write_text("words")
    assert models.load(str(moved)).name == loaded(name).name
    weights = next(moved.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert models.load(str(moved)).name != loaded(name).name


def test_the_name_follows_the_preprocessing(directory_of, loaded, tmp_path):
    changed = tmp_path / "clip"
    shutil.copytree(directory_of("clip"), changed)
    settings = next(changed.glob("*processor*.json"))
    text = settings.read_text()
    settings.write_text(text.replace("0.48145466", "0.5"))
    assert settings.read_text() != text
    assert models.load(str(changed)).name != loaded("clip").name


def test_the_name_follows_the_version_of_our_own_preprocessing(directory_of, loaded, monkeypatch):
    from zeroshot.models.hf import dual_encoder

    monkeypatch.setattr(dual_encoder, "PREPROCESSING", "pil.next")
    assert models.load(str(directory_of("clip"))).name != loaded("clip").name


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
def test_an_embedding_without_direction_is_an_error(broken, pictures):
    def features(batch):
        rows = torch.ones(len(batch), 3)
        rows[-1] = broken
        return rows

    with pytest.raises(ZeroshotError, match=r"zero or not finite for 1 of 2 inputs.*'two'"):
        encode_texts(["two", "a"], features)
    with pytest.raises(ZeroshotError, match="zero or not finite"):
        encode_images(pictures, lambda image: image, features)


def test_texts_are_encoded_once_each_in_batches_of_like_length():
    batches = []

    def features(batch):
        batches.append(batch)
        return torch.tensor([[1.0, len(text)] for text in batch])

    texts = ["x" * (1 + n % 300) for n in range(900)]
    rows = encode_texts(texts, features)
    assert sum(map(len, batches)) == 300
    assert max(map(len, batches)) <= 256
    lengths = [len(text) for batch in batches for text in batch]
    assert lengths == sorted(lengths)
    assert (rows[:, 1] / rows[:, 0]).round().tolist() == [len(text) for text in texts]


CANDIDATES = [
    *(f"a {one} cat {end}" for one in ("a", "b", "the") for end in "abcdefghijklmnopqrst"),
    *(f"a dog and {end}" for end in "abcdefghijklmnopqrst"),
    *("a", "a cat and a dog and a cat and a dog"),
]


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "sentence", "chinese_clip", "flava"])
def test_texts_of_one_length_go_without_padding_and_the_same_tokens_once(name, loaded, monkeypatch):
    encoder, batches = loaded(name), []
    tokenize = model_inputs.tokenize

    def counted(*args):
        batches.append(tokenize(*args))
        return batches[-1]

    monkeypatch.setattr(model_inputs, "tokenize", counted)
    monkeypatch.setattr(model_inputs, "FEWEST_TOKENS", 100)
    texts = [*CANDIDATES, *(text.upper() for text in CANDIDATES)]
    rows = encoder.encode_texts(texts)
    paths = {tuple(ids) for ids in encoder.tokenizer(texts)["input_ids"]}
    assert sum(len(batch["input_ids"]) for batch in batches) == len(paths)
    padding = [int((batch["attention_mask"] == 0).sum()) for batch in batches]
    assert not any(padding[1:-1]), "only where tokens are few"
    assert len(batches) > 2
    each = torch.cat([encoder.encode_texts([text]) for text in texts])
    torch.testing.assert_close(rows, each, atol=2e-6, rtol=0)


def test_the_tokens_that_run_are_those_of_the_texts():
    """By hand: two lengths with tokens enough, a third without, and a text twice."""
    texts, ran = ["a b", "A B", "a", "c d e", "b"], []

    def tokenizer(batch, **_):
        return {"input_ids": [text.lower().split() for text in batch]}

    def tokenize(_, batch, limit):
        words = tokenizer(batch)["input_ids"]
        return torch.tensor([[ord(w[0]) for w in row] + [0] * (9 - len(row)) for row in words])

    def features(tokens):
        ran.append(len(tokens))
        return tokens.sum(1, keepdim=True).float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_inputs, "tokenize", tokenize)
        patch.setattr(model_inputs, "FEWEST_TOKENS", 3)
        rows = model_inputs.features_by_length(
            tokenizer, texts, None, features, torch.device("cpu")
        )
    assert ran == [3, 1], "a and b do not fill a batch, c d e has one of its own"
    assert rows[:, 0].tolist() == [195, 195, 97, 300, 98]


def test_the_transformers_path_never_imports_torchvision(directory_of, tmp_path):
    """Nor models whose own preprocessing, of images or of clips, exists for it alone."""
    chat = shutil.copytree(directory_of("qwen3_vl"), tmp_path / "chat")
    (chat / "modules.json").unlink()
    code = """if True:
        import sys
        from PIL import Image
        from zeroshot import models
        picture = Image.new("RGB", (20, 30), "red")
        for directory in sys.argv[2:]:
            encoder = models.load(directory)
            encoder.encode_images([picture])
            encoder.encode_texts(["a cat"])
        models.load_answerer(sys.argv[1]).answer([picture], ["a cat?"])
        assert "transformers" in sys.modules
        assert not [name for name in sys.modules if name.startswith("torchvision")]
        assert "open_clip" not in sys.modules
    """
    encoders = [str(directory_of(name)) for name in ("clip", "neomme", "qwen3_vl")]
    command = [sys.executable, "-W", "error", "-c", code, str(chat), *encoders]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


def test_the_numbers_do_not_depend_on_whether_torchvision_is_there(directory_of):
    code = """if True:
        import sys
        import torchvision
        from zeroshot import models
        from transformers.utils import is_torchvision_available
        assert is_torchvision_available()
        processor = models.load(sys.argv[1]).image_processor
        assert type(processor).__name__ == "CLIPImageProcessorPil", type(processor)
    """
    subprocess.run([sys.executable, "-c", code, str(directory_of("clip"))], check=True, timeout=120)


def test_importing_the_package_is_cheap():
    code = """if True:
        import sys
        import zeroshot.models, zeroshot.model_set.spec
        zeroshot.model_set.spec.find_set("base")
        heavy = {"torch", "transformers", "open_clip"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
