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
    held = write(tmp_path / "T.JSON", {"templates": ["a {c}", "the {}."]})
    assert prompts.load_templates(held) == ("a {c}", "the {}.")
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
    assert prompts.load_labels(write(tmp_path / "LABELS", "person\nred fox\nTür\n")) == expected
    rows = "n;Label\n1; person\n2;red fox\n3;Tür\n"
    assert prompts.load_labels(write(tmp_path / "D.CSV", rows)) == expected
    listed = "".join(json.dumps({"class": label}) + "\n" for label in expected)
    assert prompts.load_labels(write(tmp_path / "e.JSONL", listed)) == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"0": "cat", "1": "dog"}, ("cat", "dog")),
        (
            {"2": "cat", "10": "x", **{str(i): f"l{i}" for i in (1, *range(3, 10))}},
            ("l1", "cat", *(f"l{i}" for i in range(3, 10)), "x"),
        ),
        ({"dog": 1, "cat": 0}, ("cat", "dog")),
        (
            {"model_type": "vit", "id2label": {"1": "dog", "0": "cat"}, "label2id": {}},
            ("cat", "dog"),
        ),
        ({"names": {"0": "cat", "1": "dog"}}, ("cat", "dog")),
        ({"Classes": ["cat", "a, b"]}, ("cat", "a, b")),
        ({"cat": None, "dog": ["It barks."], "x": []}, ("cat", "dog", "x")),
    ],
)
def test_labels_in_objects(tmp_path, document, expected):
    for name in ("a.json", "A.Json"):
        assert prompts.load_labels(write(tmp_path / name, document)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"tench, Tinca tinca",cat', ("tench, Tinca tinca", "cat")),
        ('cat, "a ""big"", red dog", x', ("cat", 'a "big", red dog', "x")),
        ('5" disk,cat', ('5" disk', "cat")),
        ("tv/monitor,St. Bernard", ("tv/monitor", "St. Bernard")),
        ("cat\n", ("cat",)),
    ],
)
def test_labels_in_quotation_marks(tmp_path, text, expected):
    assert prompts.load_labels(text) == expected
    lines = write(
        tmp_path / "a.names",
        '"tench, Tinca tinca"\n 5" disk\n"say ""ah"""\n"',
    )
    assert prompts.load_labels(lines) == ("tench, Tinca tinca", '5" disk', 'say "ah"', '"')


def test_a_file_is_no_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pbtxt", "cat.jpg", "in/labels", "names.txt", "openai"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a {}\n")
    (tmp_path / "dog").mkdir()
    for spec, message in (
        ("a.pbtxt", "'a.pbtxt' is a file, and labels are read from"),
        ("cat.jpg", "'cat.jpg' is a file, and labels are read from"),
        ("in/", "'in/' is a folder, and labels are read from"),
        ("dog,cat.jpg", "'dog,cat.jpg': 'cat.jpg' is a file; a file of labels is named alone"),
        ("dog, in/labels", "'in/labels' is a file; a file of labels is named alone"),
        ("names.txt,dog", "'names.txt' is a file; a file of labels is named alone"),
        ("./labels", "'./labels' is no file, and labels are read from"),
        ("~/labels", "'~/labels' is no file, and labels are read from"),
        ("/nowhere/labels", "'/nowhere/labels' is no file, and labels are read from"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            prompts.load_labels(spec)
    assert prompts.load_labels("dog") == ("dog",)
    assert len(prompts.load_templates("openai")) == 80
    assert prompts.load_templates("in/labels") == ("a {}",)
    with pytest.raises(UserError, match=r"'a.pbtxt' is a file, and templates are read from"):
        prompts.load_templates("a.pbtxt")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cat,dog,cat,a,a", "'cat,dog,cat,a,a' has labels more than once: 'cat', 'a'"),
        ("cat,,dog", "'cat,,dog' has an empty entry"),
        ('cat,"dog', "a label with a comma or a quotation mark is in quotation marks (unexpected"),
        ('cat,"a"b', "a label with a comma or a quotation mark is in quotation marks ("),
        ("cat\ndog", r"'cat\ndog': commas separate labels, and these have line breaks"),
        ('cat\r"dog"', "commas separate labels, and these have line breaks"),
        ("", "'' has an empty entry"),
        ([], "the list of labels has no labels"),
        ("a photo of a {}", "label 'a photo of a {}' has braces"),
        ("missing.txt", "no such file 'missing.txt'"),
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
        ("a.json", '["cat", ["dog"]]', 'expected strings, got ["dog"]'),
        ("a.txt", "cat\n1\tdog\n", "line 2: '1\tdog' has a tab; a .txt file has one label a line"),
        ("a.txt", '"cat"\n"bus","coach"\n', 'line 2: \'"bus","coach"\' has a comma'),
        ("a.txt", '"cat"\n"bus" x"\n', "line 2: commas separate labels, and a label with"),
        ("a.csv", "id;name\n1;cat\n", "expected a column named label, labels, class, cls,"),
        ("a.csv", "label\n", "a.csv' has column names and no rows"),
        ("a.tsv", "label\nx\ncat\ncat\n", "a.tsv' has labels more than once: 'cat'"),
        ("a.csv", "n,label\n1,\n", "a.csv' line 2, column 'label': expected a text, got \"\""),
        ("a.jsonl", '{"label": 3}\n', "a.jsonl' line 1, column 'label': expected a text, got 3"),
        ("a.json", "[1, 2]", "a.json': expected strings, got 1"),
        ("a.json", '["cat", ""]', "a.json' has an empty entry"),
        ("a.json", '{"cat": [], "dog": [], "cat": []}', 'a.json\' has the key "cat" twice'),
        ("a.json", '{"cat": "a cat", "dog": "a dog"}', "a.json': which of its texts are labels?"),
        ("a.json", '{"cat": {"lynx": []}}', "a.json': which of its texts are labels?"),
        ("a.json", '{"labels": ["cat"], "templates": ["{}"]}', "which of its texts are labels?"),
        ("a.json", '{"0": ["n01440764", "tench"]}', "which of its texts are labels?"),
        ("a.json", '{"images": [], "categories": [{"name": "x"}]}', "which of its texts"),
        ("a.json", '{"0": "cat", "2": "dog"}', "a.json': the numbers of 2 labels are 0 to 1"),
        ("a.json", '{"cat": 1, "dog": 1}', "a.json': the numbers of 2 labels are 0 to 1"),
        ("a.json", '{"id2label": {"x": "cat"}}', "a.json', id2label: which of its texts"),
        ("a.json", '{"0": "cat", "1": ""}', "a.json' has an empty entry"),
        ("a.json", "{}", "a.json' has no labels"),
        ("a.xlsx", "PK", "a.xlsx' is a file, and labels are read from .txt and .names"),
        ("a.yaml", "- cat\n", "a.yaml' is a file, and labels are read from .txt and .names"),
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
        ("missing.json", "no such file 'missing.json'"),
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
        ("t.json", "{}", "t.json' has no prompts"),
        ("t.json", '{" ": ["a"]}', "class ' ': the name is blank"),
        ("t.json", '{"cat": ["a"], "cat ": ["b"]}', "class 'cat ': comes twice"),
        ("t.json", '{"cat": ["a"], "cat": ["b"]}', 't.json\' has the key "cat" twice in one'),
        ("t.csv", "a {}\n", "t.csv' is a file, and templates are read from .txt"),
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


def test_background_by_default():
    """Given words are taken as they are; the default leaves out what shares a word with a label."""
    assert prompts.load_background("sky,wall", ["sky"]) == ("sky", "wall")
    assert prompts.load_background(("sky",), []) == ("sky",)
    assert prompts.load_background("none", []) == prompts.load_background((), []) == ()
    assert prompts.load_background(None, ["cat"]) == prompts.BACKGROUND
    left = prompts.load_background(None, ["Blue Sky", "a tree", "walls"])
    assert set(prompts.BACKGROUND) - set(left) == {"sky", "trees", "wall"}
    with pytest.raises(UserError):
        prompts.load_background("sky,sky", [])


def test_prompts_by_class_need_none_for_the_background_by_default():
    by_class = {"cat": ("a cat",), "sky": ("the sky",)}
    assert prompts.expand_background(["sky"], by_class) == [["the sky"]]
    assert len(prompts.expand_background(["wall"], by_class)[0]) == 7
    with pytest.raises(UserError, match="no prompts for 1 of 1"):
        prompts.expand_background(["sofa"], by_class)


def test_other_colours():
    """Every other colour once, none that is a label, and nothing of labels without a colour."""
    assert prompts.other_colours(["cat", "orangery"]) == ()
    found = prompts.other_colours(["red  car", "blue car"])
    assert len(found) == len(prompts.COLOURS) - 2
    assert set(found) == {f"{c} car" for c in prompts.COLOURS} - {"red car", "blue car"}
    assert "black and white cat" not in prompts.other_colours(["black and white cat"])
