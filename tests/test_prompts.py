"""Labels and prompts: against open_clip's own lists, by hand, and every mistake by its message."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from zeroshot import prompts
from zeroshot.errors import UserError


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_data_is_open_clips():
    theirs = pytest.importorskip("open_clip.zero_shot_metadata")
    assert list(prompts.load_labels("imagenet")) == list(theirs.IMAGENET_CLASSNAMES)
    for name, functions in [
        ("openai", theirs.OPENAI_IMAGENET_TEMPLATES),
        ("simple", theirs.SIMPLE_IMAGENET_TEMPLATES),
    ]:
        labels = ["electric ray", "dog"]
        ours = prompts.expand(labels, prompts.load_templates(name))
        assert ours == [[function(label) for function in functions] for label in labels]


def test_imagenet_has_1000_classes_of_which_two_pairs_share_a_name():
    labels = prompts.load_labels("imagenet")
    assert (len(labels), len(set(labels))) == (1000, 998)
    assert (labels[0], labels[999]) == ("tench", "toilet paper")
    assert len(prompts.expand(labels, prompts.load_templates("simple"))) == 1000


def test_data_carries_source_and_licence():
    data = prompts._data()
    assert "open_clip" in data["source"]
    assert data["version"]
    assert "Permission is hereby granted, free of charge" in data["licence"]


def test_expand_by_hand():
    assert prompts.expand(["cat", "red fox"], ("a {}.", "the {c} of a {}", "{}")) == [
        ["a cat.", "the cat of a cat", "cat"],
        ["a red fox.", "the red fox of a red fox", "red fox"],
    ]


def test_sentences_per_class_are_ragged_and_follow_the_labels(tmp_path):
    file = write(
        tmp_path / "own.json", {"dog": ["It barks."], "cat": ["It purrs.", "A {}."], "x": ["y"]}
    )
    assert prompts.expand(["cat", "dog"], prompts.load_templates(file)) == [
        ["It purrs.", "A cat."],
        ["It barks."],
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("none", ("{}",)),
        ("a photo of a {}.", ("a photo of a {}.",)),
        ("a {c} here", ("a {c} here",)),
    ],
)
def test_templates_by_name_or_sentence(spec, expected):
    assert prompts.load_templates(spec) == expected


def test_templates_from_files(tmp_path):
    lines = write(tmp_path / "t.txt", "\ufeffa {c}\r\n\nthe {}.\n")
    listed = write(tmp_path / "t.json", ["a {c}", "the {}."])
    assert prompts.load_templates(lines) == prompts.load_templates(listed) == ("a {c}", "the {}.")
    assert prompts.template_sets() == ["openai", "simple", "none", "waffle"]


def test_labels_from_everywhere(tmp_path):
    expected = ("person", "red fox", "Tür")
    assert prompts.load_labels("person, red fox ,Tür") == expected
    assert prompts.load_labels(["person", " red fox", "Tür"]) == expected
    assert (
        prompts.load_labels(write(tmp_path / "a.txt", "\ufeffperson\r\nred fox\n\nTür")) == expected
    )
    assert prompts.load_labels(write(tmp_path / "a.json", list(expected))) == expected
    keyed = write(tmp_path / "b.json", {label: ["a sentence"] for label in expected})
    assert prompts.load_labels(keyed) == expected
    assert prompts.load_labels(write(tmp_path / "c.json", ["a, b", "c"])) == ("a, b", "c")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cat,dog,cat,a,a", "'cat,dog,cat,a,a' has labels more than once: 'cat', 'a'"),
        ("cat,,dog", "'cat,,dog' has an empty entry"),
        ("", "'' has an empty entry"),
        ([], "the list of labels has no labels"),
        ("a photo of a {}", "label 'a photo of a {}' has braces"),
        ("missing.txt", "cannot read 'missing.txt': No such file or directory"),
    ],
)
def test_labels_refused(labels, message):
    with pytest.raises(UserError, match=re.escape(message)):
        prompts.load_labels(labels)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            "cat\nbus, coach\n",
            "line 2: 'bus, coach' has a comma; a .txt file has one label a line",
        ),
        ("a.txt", "\n \n", "a.txt' has no labels"),
        ("a.txt", "cat\n cat\n", "more than once: 'cat'"),
        ("a.json", "[1", "a.json' line 1, character 3 is not JSON: Expecting"),
        ("a.json", '"cat"', "expected a list of strings, got str"),
        ("a.json", '["cat", ["dog"]]', "expected strings, got ['dog']"),
    ],
)
def test_label_files_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        prompts.load_labels(write(tmp_path / name, content))


def test_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("Tür\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        prompts.load_labels(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("opnai", "unknown template set 'opnai'; did you mean 'openai'?"),
        ("a photo of a cat", "template 'a photo of a cat' has no {} where the label goes"),
        ("missing.json", "cannot read 'missing.json'"),
    ],
)
def test_templates_refused(spec, message):
    with pytest.raises(UserError, match=re.escape(message)):
        prompts.load_templates(spec)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "a {}\nthe cat\n", "template 'the cat' has no {}"),
        ("t.json", "[]", "has no templates"),
        ("t.json", '{"cat": []}', "class 'cat' has no prompts"),
        ("t.json", '{"cat": "It purrs."}', "class 'cat': expected a list of strings, got str"),
        ("t.json", '{"cat": ["It purrs.", ""]}', "class 'cat' has an empty entry"),
        ("t.json", "3", "expected a list of strings, got int"),
    ],
)
def test_template_files_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        prompts.load_templates(write(tmp_path / name, content))


def test_missing_classes_are_named_with_the_nearest():
    own = {"tabby cat": ("a",), "dog": ("b",)}
    with pytest.raises(UserError) as caught:
        prompts.expand(["dog", "taby cat", "ship"], own)
    assert str(caught.value) == (
        "no prompts for 2 of 3 classes: 'taby cat' (did you mean 'tabby cat'?), 'ship'"
    )
    with pytest.raises(UserError, match="and 3 more"):
        prompts.expand([f"class {number}" for number in range(13)], own)


def test_fingerprint_sees_letters_order_and_split():
    variants = [
        [["a", "b"], ["c"]],
        [["a"], ["b", "c"]],
        [["c"], ["a", "b"]],
        [["b", "a"], ["c"]],
        [["a", "b"], ["C"]],
        [["ab"], ["c"]],
    ]
    assert len({prompts.fingerprint(variant) for variant in variants}) == len(variants)
    assert prompts.fingerprint([["ä"]]) == prompts.fingerprint([("ä",)])


@given(st.lists(st.text(st.characters(exclude_characters="{},", codec="utf-8")).filter(str.strip)))
def test_every_class_gets_every_template_with_its_label_once(labels):
    templates = prompts.load_templates("openai")
    classes = prompts.expand(labels, templates)
    assert len(classes) == len(labels)
    for label, sentences in zip(labels, classes, strict=True):
        assert sentences == [template.format(label) for template in templates]


def test_waffle_descriptors_mean_nothing_and_are_the_same_for_all_classes():
    labels = ["electric ray", "dog", "great white shark"]
    templates = prompts.load_templates("waffle", labels)
    assert len(templates) == len(set(templates)) == 30
    for i, template in enumerate(templates):
        descriptor = re.fullmatch(r"A photo of a \{\}, which has (.*)\.", template)[1]
        # 6 words of 29 letters in 3 labels: two words of 5 letters
        assert [len(word) for word in descriptor.split()] == [5, 5]
        if i % 2 == 0:
            for word in descriptor.split():
                assert all((a in "aeiou") != (b in "aeiou") for a, b in pairwise(word))
    assert templates == prompts.load_templates("waffle:0", labels)
    assert templates != prompts.load_templates("waffle:1", labels)
    with pytest.raises(UserError, match="unknown template set 'waffle:x'"):
        prompts.load_templates("waffle:x", labels)
