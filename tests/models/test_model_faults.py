"""Folders of models that somebody else made: whatever is wrong ends with one sentence."""

import io
import json
import math
import os
import random
import shutil
import struct
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from zeroshot import models
from zeroshot.errors import NotAvailableError, UserError, ZeroshotError
from zeroshot.model_set.anchor_file import read_anchors
from zeroshot.model_set.spec import POCKET, find_set
from zeroshot.models import model_checks
from zeroshot.models.files.model_faults import check_settings, check_weights
from zeroshot.models.model_checks import check_expected_size, check_image_sides, model_errors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"
DEEP = 100_000


@pytest.fixture
def copy_of(directory_of, tmp_path):
    def copied(name):
        shutil.copytree(directory_of(name), tmp_path / name)
        return tmp_path / name

    return copied


def refusal(directory, load=models.load):
    """The sentence that loading ends with."""
    with pytest.raises((UserError, NotAvailableError)) as caught:
        load(str(directory), device="cpu")
    said = str(caught.value)
    assert "\n" not in said
    assert 20 < len(said) < 700
    return said


def sentence(act, *given, **named):
    """What an act ends with; empty if the change does not matter."""
    try:
        act(*given, **named)
    except UserError as error:
        return str(error)
    return ""


def change(file, **settings):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | settings))


# Files


SETTINGS = {
    "clip": ["config.json", "preprocessor_config.json", "tokenizer_config.json"],
    "gpt2": ["config.json", "generation_config.json"],
    "bert": ["config.json", "tokenizer_config.json"],
    "vit": ["config.json", "preprocessor_config.json"],
    "open_clip": ["open_clip_config.json"],
}
FILES = [(name, file) for name, files in SETTINGS.items() for file in files]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_settings_that_are_none(name, file, copy_of):
    directory = copy_of(name)
    whole = (directory / file).read_bytes()
    for content, reason in [
        (POINTER, "is a Git LFS pointer (fetch it with 'git lfs pull')"),
        (b"\xef\xbb\xbf" + whole, "begins with a byte-order mark; save it as UTF-8 without one"),
        (whole.decode().encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"", "is not JSON at character 1: Expecting value"),
        (whole[: len(whole) // 2], "is not JSON at character"),
        (b"[" * DEEP + b"]" * DEEP, "is nested too deeply"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer string conversion"),
        (b'{"a": ' + b"9" * 1000 + b"}", "says a 9999"),
        (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
    ]:
        (directory / file).write_bytes(content)
        said = refusal(directory)
        assert said.startswith(f"'{directory / file}' ")
        assert reason in said
    (directory / file).write_bytes(whole)
    models.load(str(directory), device="cpu")


@pytest.mark.parametrize("name", ["clip", "gpt2", "bert"])
@pytest.mark.parametrize(
    "content", [POINTER, b"\xef\xbb\xbf{}", b"", b"{}", b"[]", b"[" * DEEP, b"7"]
)
def test_tokenizers_that_are_none(name, content, copy_of):  # fmt: skip
    directory = copy_of(name)
    (directory / "tokenizer.json").write_bytes(content)
    said = refusal(directory)
    if content == POINTER:
        assert "tokenizer.json' is a Git LFS pointer" in said
    elif content.startswith(b"\xef"):
        assert "tokenizer.json' begins with a byte-order mark" in said


WEIGHTS = {
    "clip": "model.safetensors",
    "gpt2": "model.safetensors",
    "open_clip": "open_clip_model.safetensors",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none(name, copy_of):
    directory = copy_of(name)
    (file,) = directory.glob("*.safetensors")
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for content, reason in [
        (POINTER, "is a Git LFS pointer"),
        (b"", "is no safetensors file, or cut off in its header"),
        (whole[:5], "is no safetensors file, or cut off in its header"),
        (whole[:100], "is no safetensors file, or cut off in its header"),
        (whole[:-1], f"is cut off: {len(whole) - 1} of {len(whole)} bytes are there"),
        (whole[: len(whole) // 2], f"is cut off: {len(whole) // 2} of {len(whole)} bytes"),
        (struct.pack("<Q", 1 << 62) + whole[8:], "is no safetensors file, or cut off"),
        (struct.pack("<Q", 2) + b"[]" + whole[8:], "is damaged: "),
        (struct.pack("<Q", 9) + b'{"a": {}}', "is damaged: "),
        (struct.pack("<Q", DEEP) + b"[" * DEEP, "is nested too deeply"),
        (struct.pack("<Q", length) + b"\xff" * length + whole[8 + length :], "is not UTF-8"),
    ]:
        file.write_bytes(content)
        said = refusal(directory)
        assert said.startswith(f"'{file}' ")
        assert reason in said


def torch_file(packed=False, repeat=1, cut=None):
    """A file of torch's; packed, with a member many times, or cut off."""
    whole = io.BytesIO()
    torch.save({"weight": torch.zeros(100_000)}, whole)
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(out, "w", kind) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    data = bytearray(out.getvalue())
    if repeat > 1:  # the directory names the same bytes again and again
        end = data.rindex(b"PK\5\6")
        start = int.from_bytes(data[end + 16 : end + 20], "little")
        entries, count = bytes(data[start:end]), int.from_bytes(data[end + 8 : end + 10], "little")
        tail = bytearray(data[end:])
        tail[8:12] = struct.pack("<HH", count * repeat, count * repeat)
        tail[12:16] = struct.pack("<I", len(entries) * repeat)
        data = data[:start] + entries * repeat + tail
    return bytes(data[:cut])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch_file(packed=True), "is a packed archive, which may unpack to anything"),
        (torch_file(repeat=50), "is a packed archive, which may unpack to anything"),
        (torch_file(cut=-40), ""),
        (POINTER, "is a Git LFS pointer"),
        (b"", ""),
        (b"\x80\x02}q\x00.", ""),
    ],
)
@pytest.mark.parametrize("name", ["clip", "gpt2"])
def test_torch_files_that_are_none(name, content, reason, copy_of):
    directory = copy_of(name)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(content)
    assert reason in refusal(directory)


@pytest.mark.parametrize(
    "index",
    [
        *("[]", "{}", "7", '{"weight_map": []}', '{"weight_map": {"a": 7}}', "", "[" * DEEP),
        '{"weight_map": {"a": ["x"]}}',
    ],
)
def test_an_index_of_weights_that_names_none(index, copy_of):
    directory = copy_of("clip")
    (directory / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json' " in refusal(directory)


# What settings say


@pytest.mark.parametrize(
    ("file", "settings", "reason"),
    [
        ("config.json", {"attn_implementation": "org/kernel"}, "names code of the hub"),
        ("config.json", {"_attn_implementation": "org/kernel@v1:f"}, "names code of the hub"),
        ("config.json", {"_attn_implementation_internal": "a|org/k"}, "names code of the hub"),
        ("config.json", {"attn_implementation": {"": "sdpa", "text_config": "o/k"}}, "code of the"),
        ("config.json", {"text_config": {"attn_implementation": "o/k"}}, "names code of the hub"),
        ("config.json", {"x": [{"experts_implementation": "o/k"}]}, "names code of the hub"),
        ("generation_config.json", {"attn_implementation": "o/k"}, "names code of the hub"),
        ("config.json", {"num_hidden_layers": 10**6}, "says num_hidden_layers 1000000"),
        ("config.json", {"vision_config": {"depths": [600, 600]}}, "says depths 1200"),
        ("config.json", {"num_labels": 10**9}, "says num_labels 1000000000; at most 1000000"),
        ("config.json", {"vision_config": {"image_size": 10**6}}, "says image_size 1000000"),
        ("config.json", {"vocab_size": 1 << 70}, "says vocab_size"),
        ("generation_config.json", {"num_beams": 10**6}, "says num_beams 1000000; at most 64"),
        ("preprocessor_config.json", {"crop_size": 200_000}, "says crop_size 200000; at most 4096"),
        ("preprocessor_config.json", {"size": [200_000, 8]}, "says size 200000; at most 4096"),
        ("preprocessor_config.json", {"size": {"height": 8, "width": 200_000}}, "width 200000"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 200_000}}, "shortest_edge 200000"),
        ("preprocessor_config.json", {"size": {"longest_edge": 200_000}}, "longest_edge 200000"),
        ("preprocessor_config.json", {"size_divisor": 10**9}, "says size_divisor 1000000000"),
        ("preprocessor_config.json", {"max_patches": 10**9}, "says max_patches 1000000000"),
        ("processor_config.json", {"image_seq_len": 10**9}, "says image_seq_len 1000000000"),
    ],
)  # fmt: skip
def test_settings_beyond_all_models(file, settings, reason, copy_of):
    directory = copy_of("clip")
    change(directory / file, **settings)
    assert reason in refusal(directory)


def test_amounts_of_real_models_are_allowed(tmp_path):
    """Taken from published configurations."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "max_position_embeddings": 10_485_760,
                "rope_theta": 10_000_000,
                "num_hidden_layers": 126,
                "vocab_size": 262_144,
                "attn_implementation": "flash_attention_2",
                "_name_or_path": "org/model",
                "depths": [3, 3, 27, 3],
                "vision_feature_layer": -2,
                "layers_to_use": list(range(80)),
                "id2label": {str(i): "x" for i in range(21_843)},
            }
        )
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
                "max_pixels": 12_845_056,
                "image_mean": [0.5] * 3,
                "max_patches": 2048,
            }
        )
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    check_settings(tmp_path.iterdir())


class smart_resize_processor:  # noqa: N801
    """One whose sizes are numbers of pixels, as the module says that has `smart_resize`."""


def smart_resize():
    """Marks this module for `check_image_sides`."""


def test_sizes_that_are_numbers_of_pixels():
    processor = smart_resize_processor()
    processor.size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    check_image_sides("x", processor)
    processor.size = {"longest_edge": 1 << 26}
    with pytest.raises(UserError, match="longest_edge 67108864; at most 33554432"):
        check_image_sides("x", processor)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {"n_positions": 10**8}),
        ("gpt2", {"vocab_size": 10**9}),
        ("gpt2", {"n_embd": 65_536, "n_head": 2}),
        ("bert", {"hidden_size": 30_000, "num_attention_heads": 2}),
        ("bert", {"max_position_embeddings": 10**9}),
        ("vit", {"intermediate_size": 10**8}),
    ],
)
def test_a_model_is_not_made_up_where_its_weights_are_missing(name, settings, copy_of):
    from safetensors.torch import save_file

    directory = copy_of(name)
    save_file({"nothing": torch.zeros(1)}, directory / "model.safetensors", {"format": "pt"})
    change(directory / "config.json", **settings)
    said = refusal(directory)
    assert "its configuration describes a model of" in said
    assert "but its weights are" in said


def test_an_open_clip_model_is_not_made_up_either(copy_of):
    directory = copy_of("open_clip")
    file = directory / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 10**9
    file.write_text(json.dumps(config))
    assert "its configuration describes a model of" in refusal(directory)


def test_the_size_by_hand(tmp_path):
    (tmp_path / "w").write_bytes(bytes(1000))
    elements = model_checks.SPARE_ELEMENTS + 2000
    with torch.device("meta"):
        fits, larger = (torch.nn.Linear(1, n, bias=False) for n in (elements, elements + 1))
    check_expected_size("x", fits, [tmp_path / "w"])
    with pytest.raises(
        UserError, match=f"a model of {elements + 1} numbers, but its weights are 1000"
    ):
        check_expected_size("x", larger, [tmp_path / "w"])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("clip", "config.json", {"architectures": 7}),
        ("clip", "config.json", {"architectures": [None]}),
        ("clip", "config.json", {"architectures": ["NoSuchModel"]}),
        ("clip", "config.json", {"architectures": ["AutoTokenizer"]}),
        ("clip", "config.json", {"text_config": None, "vision_config": 3}),
        ("clip", "config.json", {"text_config": {"hidden_act": "\x1b[31m"}}),
        ("gpt2", "config.json", {"n_head": 0}),
        ("gpt2", "config.json", {"n_layer": -1}),
        ("gpt2", "config.json", {"n_embd": "wide"}),
        ("bert", "config.json", {"num_attention_heads": 7}),
        ("vit", "config.json", {"patch_size": 0}),
        ("vit", "config.json", {"image_size": []}),
        ("vit", "preprocessor_config.json", {"resample": 99}),
        ("clip", "preprocessor_config.json", {"image_mean": "grey"}),
        ("clip", "preprocessor_config.json", {"image_std": [0.0, None, 1]}),
        ("clip", "preprocessor_config.json", {"image_processor_type": "../x"}),
        ("clip", "tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer"}),
        ("bert", "tokenizer_config.json", {"model_max_length": "long"}),
        ("bert", "tokenizer_config.json", {"model_max_length": -5}),
    ],
)
def test_settings_of_other_types(name, file, settings, copy_of):
    directory = copy_of(name)
    change(directory / file, **settings)
    assert "\n" not in sentence(models.load, str(directory), device="cpu")


@pytest.mark.parametrize("name", ["bert", "clip", "gpt2"])
def test_a_vocabulary_that_is_larger_than_its_model_is_found_when_it_is_loaded(name, copy_of):
    directory = copy_of(name)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words[max(words, key=words.get)] = 70_000  # one word that no trial contains
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its tokenizer has ids up to 70000, its network" in refusal(directory)


def test_padding_that_has_no_embedding_is_found_when_it_is_loaded(copy_of):
    directory = copy_of("bert")
    change(directory / "tokenizer_config.json", pad_token="a/b")
    assert "cannot be used: IndexError" in refusal(directory)


# The guard


class PanicException(BaseException):
    """As the tokenizers' library has one."""


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError("a\nb"), KeyError("x"), RecursionError(), MemoryError(), TypeError("y")),
        *(PanicException("out of bounds"), AssertionError(), ImportError("z"), OSError(5, "io")),
    ],
)
def test_whatever_is_raised_is_one_sentence(error):
    with pytest.raises(UserError) as caught, model_errors("hf:x"):
        raise error
    assert str(caught.value).startswith(f"hf:x cannot be used: {type(error).__name__}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), NotAvailableError("x"), torch.OutOfMemoryError()]
)
def test_what_is_not_the_models_fault_passes(error):
    with pytest.raises(type(error)) as caught, model_errors("hf:x"):
        raise error
    assert caught.value is error


def test_our_own_errors_are_of_one_line_too_and_never_internal():
    for error, kind in [
        (ZeroshotError("a"), UserError),
        (NotAvailableError("a\nb"), NotAvailableError),
    ]:
        with pytest.raises(kind) as caught, model_errors("hf:x"):
            raise error
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code in (2, 4)


@pytest.mark.parametrize(
    "name", ["hf:a\0b", "\0", "x" * 5000, "~nobody-of-that-name/x", "hf:../" + "y" * 300]
)
def test_names_that_no_directory_has(name):
    with pytest.raises((UserError, NotAvailableError)):
        models.load(name, offline=True)


# Sets and anchors


@pytest.mark.parametrize(
    "content",
    [
        *(POINTER, b"x = " + b"[" * DEEP, b"x = " + b"9" * 5000, b"\xff", b"[encoder]\nmodel = 7"),
        *(b"[encoder]\nmodel = 'hf:a\\0b'", b'[encoder]\nmodel = "\\u0000"', b"coupling = 3"),
        b"[encoder]\nmodel = 'x.safetensors'",
    ],
)
def test_a_set_that_is_none(content, tmp_path):
    (tmp_path / "models.toml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        find_set(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_set_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "models.toml").write_bytes(b"\xef\xbb\xbf[encoder]\nmodel = 'hf:a/b'\n")
    assert find_set(str(tmp_path)).encoder == "hf:a/b"


def anchors_with(tmp_path, header=None, data=None):
    content = (POCKET / "anchors.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length] if header is None else header
    body = content[8 + length :] if data is None else data
    (tmp_path / "anchors.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    return tmp_path / "anchors.safetensors"


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        b"[" * DEEP,
        b"7",
        b"\xff",
        {"images": 7, "texts": []},
        {"images": entry("F32", [1 << 40, 1 << 40], 0, 64), "texts": entry("F32", [1, 16], 0, 64)},
        {"images": entry("F32", ["x", 4], 0, 64), "texts": entry("F32", [4, 4], 0, 64)},
        {"images": entry("F32", [4, 4], 0, math.inf), "texts": entry("F32", [4, 4], 0, 64)},
        {"images": entry("F32", [4, 4], -64, 0), "texts": entry("F32", [4, 4], 0, 64)},
        {"images": entry("F32", 4, 0, 64), "texts": entry("F32", [4, 4], 0, 64)},
        {"images": entry("F32", [0, 4], 0, 0), "texts": entry("F32", [0, 4], 0, 0)},
        {"images": entry([], [4, 4], 0, 64), "texts": entry("F32", [4, 4], 0, 64)},
        {"__metadata__": 7, "images": entry("I8", [4, 4], 0, 16), "texts": entry("I8", [4], 0, 4)},
        {"__metadata__": 7} | dict.fromkeys(("images", "texts"), entry("I8", [4, 4], 0, 16)),
    ],
)  # fmt: skip
def test_anchors_that_are_none(header, tmp_path):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = anchors_with(tmp_path, text, bytes([1]) * 64)
    assert "\n" not in sentence(read_anchors, file)


# Any damage


@pytest.mark.parametrize("name", ["clip", "gpt2", "bert", "vit"])
def test_flipped_bytes_are_a_sentence_or_nothing(name, directory_of, tmp_path):
    """Twelve damaged folders each, of a fixed seed."""
    source = random.Random(7)
    names = [file for file in os.listdir(directory_of(name)) if not file.startswith(".")]
    for number in range(12):
        directory = tmp_path / str(number)
        shutil.copytree(directory_of(name), directory)
        file = directory / source.choice(sorted(names))
        data = bytearray(file.read_bytes())
        for _ in range(source.randrange(1, 12)):
            data[source.randrange(min(len(data), 2000))] = source.randrange(256)
        file.write_bytes(data)
        assert "\n" not in sentence(models.load, str(directory), device="cpu")
        shutil.rmtree(directory)


def test_files_are_only_read(copy_of):
    directory = copy_of("clip")
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    check_settings(path for path in directory.iterdir() if path.suffix == ".json")
    check_weights([directory / "model.safetensors"])
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


# Models that load, and fail when they are used


def used(directory, name):
    """Load a model that is no encoder, and use it once."""
    image, how = Image.new("RGB", (20, 20), "gray"), {"device": "cpu"}
    if name in ("clipseg", "groupvit"):
        segmenter = models.load_segmenter(str(directory), **how)
        segmenter.maps([image], segmenter.encode_prompts(["a"]))
    elif name in ("owlvit", "owlv2"):
        detector = models.load_detector(str(directory), **how)
        detector.detect([image], detector.encode_prompts(["a"]), 0.0)
    elif name.endswith("_itm"):
        models.load_pair_scorer(str(directory), **how).score_pairs([[image]], ["a"])
    elif name.endswith("_vqa"):
        models.load_answerer(str(directory), **how).answer([image], ["a"])
    else:
        models.load_writer(str(directory), **how).write([image])


USED = ("clipseg", "owlvit", "blip_itm", "vilt_vqa", "blip_caption", "git")


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.5, [0.5], {}]},
        {"image_mean": ["/etc/passwd", 0, 0]},
        {"image_std": []},
        {"size": {"longest_edge": 5}},
        {"resample": -3},
    ],
)
def test_a_preprocessing_that_cannot_be_done_is_one_sentence(name, settings, copy_of):
    directory = copy_of(name)
    used(directory, name)
    change(directory / "preprocessor_config.json", **settings)
    with pytest.raises(UserError) as caught:
        used(directory, name)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_one_sentence(name, value, copy_of):
    directory = copy_of(name)
    weights = load_file(directory / "model.safetensors")
    for weight in weights.values():
        if weight.ndim == 1 and weight.is_floating_point():
            weight[0] = value
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"not finite|is not a number|cannot be used") as caught:
        used(directory, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_want_of_memory_stays_what_it_is(error, copy_of, monkeypatch):
    """Batches are halved for it."""
    scorer = models.load_pair_scorer(str(copy_of("blip_itm")), device="cpu")

    def fail(_):
        raise error

    monkeypatch.setattr(scorer, "_scores", fail)
    with pytest.raises(type(error)) as caught:
        scorer.score_pairs([[Image.new("RGB", (20, 20))]], ["a"])
    assert caught.value is error


def test_errors_of_our_own_models_stay_what_they_are(monkeypatch):
    encoder = models.load_dual_encoder(str(POCKET / "clip"), device="cpu")
    monkeypatch.setattr(encoder, "model", None)
    with pytest.raises((AttributeError, TypeError)):
        encoder.encode_images([Image.new("RGB", (20, 20))])


# Models that are known by name and not loaded


def made(directory, architecture, **config):
    """A folder that looks like such a model."""
    change(directory / "config.json", architectures=[architecture], **config)
    return directory


SIDES = {"vision_config": {}, "text_config": {}}


@pytest.mark.parametrize("load", [models.load_dual_encoder, models.load_detector, models.load])
@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("Sam4Model", {"model_type": "sam4", **SIDES}, "clipseg-rd64-refined"),
        ("PeVideoModel", {"model_type": "pe_video", **SIDES}, "xclip-base-patch32"),
        (
            "WordsForObjectDetection",
            {"model_type": "of 2028", "backbone_config": {}, "text_config": {}},
            "grounding-dino-tiny",
        ),
        ("NewModel", {"model_type": "of 2027", **SIDES}, "siglip2-base-patch16-224"),
    ],
)
def test_a_model_that_is_not_loaded_is_named(copy_of, load, architecture, config, said):
    """And not taken for the text encoder that its tokenizer would make of it."""
    reason = refusal(made(copy_of("clip"), architecture, **config), load)
    assert f"is a {architecture}, which zeroshot does not load; what comes nearest" in reason
    assert said in reason
    assert "text encoder" not in reason


def test_a_detector_of_fixed_labels_and_a_chat_model_are_named(copy_of):
    vit = made(copy_of("vit"), "DetrForObjectDetection", model_type="detr")
    assert "is a DetrForObjectDetection, whose labels are fixed" in refusal(vit)
    chat = made(copy_of("clip"), "LlavaForConditionalGeneration", model_type="llava", **SIDES)
    reason = refusal(chat)
    assert "writes about images and is no encoder: `zeroshot ask photos/" in reason


def test_half_a_download_says_what_to_do(copy_of):
    directory = copy_of("clip")
    weights = directory / "model.safetensors"
    data = weights.read_bytes()
    for part in (data[: len(data) // 2], data[:100]):
        weights.write_bytes(part)
        reason = refusal(directory)
        assert "cut off" in reason
        assert "copy or download it again" in reason
