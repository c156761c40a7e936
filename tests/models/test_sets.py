from pathlib import Path

import pytest

from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.model_set.availability import describe, list_sets, missing
from zeroshot.model_set.spec import CouplingSpec, find_set, is_set

FULL = """
name = "mine"
about = "for a test"
licence = "MIT"

[encoder]
model = "openai/clip-vit-base-patch32"

[image_encoder]
model = "hf:vit"

[text_encoder]
model = "hf:./bert"

[coupling]
method = "asif"
anchors = "anchors.safetensors"
k = 50
p = 2

[language_model]
model = "hf:org/lm"

[caption]
method = "magic"
k = 10

[classify]
method = "ensemble"
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "models.toml"
        file.write_text(text)
        return file

    return write


def test_every_table(write, tmp_path):
    (tmp_path / "vit").mkdir()
    spec = find_set(str(write(FULL)))
    assert spec.name == "mine"
    assert spec.root == tmp_path
    assert spec.models == {
        "encoder": "hf:openai/clip-vit-base-patch32",
        "image_encoder": f"hf:{tmp_path}/vit",
        "text_encoder": f"hf:{tmp_path}/bert",
        "language_model": "hf:org/lm",
    }
    options = {"k": 50, "p": 2}
    assert spec.coupling == CouplingSpec("asif", tmp_path / "anchors.safetensors", options)
    assert spec.caption == {"method": "magic", "k": 10}
    assert spec.classify == {"method": "ensemble"}
    assert (spec.about, spec.licence) == ("for a test", "MIT")
    assert find_set(str(tmp_path)) == spec


def test_a_set_may_be_small_and_is_named_after_its_directory(write, tmp_path):
    spec = find_set(str(write('[language_model]\nmodel = "hf:org/lm"')))
    assert spec.name == tmp_path.name
    assert spec.models == {"language_model": "hf:org/lm"}
    assert spec.coupling is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[encoder", "models.toml' is not TOML"),
        ('[encodr]\nmodel = "a/b"', r"unknown key 'encodr'; did you mean 'encoder'"),
        ('[encoder]\nmodle = "a/b"', r"\[encoder\]: unknown key 'modle'; did you mean 'model'"),
        ("[encoder]", r"\[encoder\] needs the key model"),
        ("[encoder]\nmodel = 3", r"\[encoder\] model must be a text, not 3"),
        ('encoder = "a/b"', r"encoder must be a table"),
        ("name = 3", "needs at least one of encoder"),
        ("", "needs at least one of encoder"),
        ('[encoder]\nmodel = "x.bin"', "bare weight file"),
        (FULL.replace('method = "asif"\n', ""), r"\[coupling\] needs the key method"),
        (FULL.replace("anchors.safetensors", "anchors.npz"), "must be a .safetensors file"),
        (FULL.replace("[text_encoder]", "[x]"), "unknown key 'x'"),
        (
            '[encoder]\nmodel = "a/b"\n[coupling]\nmethod = "asif"\nanchors = "a.safetensors"',
            r"\[coupling\] needs \[image_encoder\] and \[text_encoder\]",
        ),
    ],
)
def test_mistakes_name_the_file_and_what_is_possible(text, message, write):
    file = write(text)
    with pytest.raises(UserError, match=message) as caught:
        find_set(str(file))
    assert "models.toml" in str(caught.value) or "bare weight" in str(caught.value)


def test_an_unknown_set(tmp_path):
    with pytest.raises(
        UserError, match=r"unknown model set 'bas'; did you mean 'base'.*models.toml"
    ):
        find_set("bas")
    with pytest.raises(UserError, match="unknown model set"):
        find_set(str(tmp_path))


def test_what_is_a_set(write, tmp_path):
    assert is_set("base")
    assert is_set("pocket")
    assert not is_set(str(tmp_path))
    assert not is_set("hf:openai/clip-vit-base-patch32")
    file = write(FULL)
    assert is_set(str(tmp_path))
    assert is_set(str(file))


def test_built_in_sets_name_whole_tasks():
    assert find_set("base").encoder == "hf:openai/clip-vit-base-patch32"
    assert find_set("base").language_model == "hf:cambridgeltl/magic_mscoco"
    for name in ("fast", "base", "best"):
        spec = find_set(name)
        assert spec.name == name
        assert spec.models.keys() == {"encoder", "language_model"}
        assert spec.licence
        assert spec.about
        assert spec.megabytes > 100


def test_the_pocket_set_is_on_this_disk():
    status = describe("pocket")
    assert status.spec.name == "pocket"
    assert status.spec.root == Path(models.__file__).parent / "pocket"
    assert status.on_disk
    assert {part.part for part in status.parts} >= {"image_encoder", "language_model"}
    assert all(part.megabytes is not None for part in status.parts)


def test_every_built_in_set_is_listed():
    assert [status.spec.name for status in list_sets()] == ["pocket", "base", "fast", "best"]


def test_a_directory_is_described_part_by_part(write, tmp_path, directory_of):
    file = write(f'[encoder]\nmodel = "hf:{directory_of("clip")}"\n[text_encoder]\nmodel = "./no"')
    status = describe(str(file))
    assert [(part.part, part.directory) for part in status.parts] == [
        ("encoder", directory_of("clip")),
        ("text_encoder", None),
    ]
    assert not status.on_disk
    assert missing(status.spec) == [f"hf:{tmp_path}/no"]


def test_canonical_names_of_a_set_load(write, directory_of, loaded):
    spec = find_set(str(write(f'[encoder]\nmodel = "{directory_of("clip")}"')))
    assert models.load(spec.encoder).name == loaded("clip").name
