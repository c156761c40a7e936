"""Growing texts against the model's own full forward pass, and what growing them costs."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.models.clip import modeling_clip

from tests.models import tiny
from zeroshot import models
from zeroshot.models.towers import cached_text_encoder, text_tower
from zeroshot.models.towers.cached_text_encoder import EmbeddingMemory
from zeroshot.models.towers.text_tower import TokenTree, encode_paths, is_causal

CAUSAL = ["clip", "metaclip_2", "open_clip", "open_clip eos", "open_clip quick"]
BIDIRECTIONAL = ["chinese_clip", "altclip", "align", "flava", "siglip", "siglip2", "vision_text"]

STEPS = [
    ["a", "b", "the"],
    ["a c", "a d", "a", "b c"],
    ["a ca", "a ce", "a cab and", "a c"],  # a growing word is split anew
    ["a cat", "a cats", "a cat.", "a cab"],
    ["dogs", "a cat and a dog", "a cat", "a cat and"],  # a fresh one beside grown ones
    ["a cat " * 30, "a cat " * 30 + "dog", "a"],  # beyond the context
    ["", "a cat<|endoftext|> and more", "a cat"],  # nothing, and an end within
]


@pytest.fixture(scope="session")
def encoder_of(loaded, tmp_path_factory):
    variants = {
        "open_clip eos": {"custom_text": True, "text_cfg": "eos"},
        "open_clip quick": {"quick_gelu": True},
    }
    built = {}

    def get(name):
        if name not in variants:
            return loaded(name)
        if name not in built:
            changes = dict(variants[name])
            if "text_cfg" in changes:
                changes["text_cfg"] = {
                    "context_length": 20,
                    "vocab_size": 49408,
                    "width": 8,
                    "heads": 2,
                    "layers": 3,
                    "pool_type": "eos",
                    "eos_id": 49407,
                    "proj_bias": True,
                    "ls_init_value": 0.3,
                }
            directory = tiny.open_clip(tmp_path_factory.mktemp("open_clip"), seed=5, **changes)
            built[name] = models.load(str(directory), device="cpu")
        return built[name]

    return get


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_tower_is_taken_apart_and_the_others_are_not(name, encoder_of):
    assert encoder_of(name)._causal_tower is not None


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_bidirectional_tower_is_never_taken_for_a_causal_one(name, loaded):
    assert loaded(name)._causal_tower is None


@pytest.mark.parametrize("name", [*CAUSAL, *BIDIRECTIONAL])
def test_growing_texts_have_the_rows_of_full_ones(name, encoder_of):
    encoder = encoder_of(name)
    session = encoder.session()
    for texts in STEPS[:-1] if name not in CAUSAL else STEPS:
        rows = session(texts)
        assert rows.dtype == torch.float32
        assert not rows.is_inference()
        torch.testing.assert_close(rows, encoder.encode_texts(texts), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip", "open_clip"])
@settings(max_examples=25, deadline=None)
@given(
    calls=st.lists(
        st.lists(st.text("ab c", max_size=9), min_size=1, max_size=7), min_size=1, max_size=4
    )
)
def test_any_texts_in_any_order(name, encoder_of, calls):
    encoder = encoder_of(name)
    tree = TokenTree(encoder._causal_tower)
    for texts in calls:
        rows = tree(encoder._paths(texts)).float()
        rows = torch.nn.functional.normalize(rows, dim=-1)
        torch.testing.assert_close(rows, encoder.encode_texts(texts), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["clip", "open_clip"])
def test_half_precision_grows_too(name, directory_of):
    encoder = models.load(str(directory_of(name)), device="cpu", precision="bf16")
    assert encoder._causal_tower is not None
    session = encoder.session()
    for texts in STEPS[:4]:
        rows = session(texts)
        assert rows.dtype == torch.float32
        assert (rows * encoder.encode_texts(texts)).sum(1).min() > 0.99


def test_a_matcher_gives_the_cosines_of_each_picture_with_its_own_texts(loaded, pictures):
    encoder = loaded("clip")
    images = encoder.encode_images(pictures[:2])
    cosine = encoder.matcher()(images, [["a", "b", "cat"], ["dog", "a", "sofa"]])
    own = [encoder.encode_texts(texts) for texts in (["a", "b", "cat"], ["dog", "a", "sofa"])]
    expected = torch.stack([rows @ image for rows, image in zip(own, images, strict=True)])
    torch.testing.assert_close(cosine, expected, atol=2e-6, rtol=0)


def test_only_what_is_new_runs_through_the_tower(loaded):
    tree = TokenTree(loaded("clip")._causal_tower)
    tree([(0, 5, 6, 99), (0, 5, 7, 99), (0, 5, 99)])
    assert tree.nodes_run == 4 + 3, "start, 5, 6, 7 and an end after each of 5, 6, 7"
    tree([(0, 5, 6, 8, 99), (0, 5, 6, 9, 99), (0, 5, 6, 8, 99)])
    assert tree.nodes_run == 7 + 4, "8 and 9 with their ends"
    tree([(0, 5, 6, 8, 3, 4, 99)])
    assert tree.nodes_run == 11 + 3
    tree([(0, 5, 7, 99)])
    assert tree.nodes_run == 14 + 2, "7 was forgotten as no text of the last calls had it"


def test_a_text_that_comes_back_costs_nothing(loaded):
    encoder = models.load(f"hf:{loaded('clip').model.config._name_or_path}", device="cpu")
    asked = []
    paths = encoder._paths
    encoder._paths = lambda texts: asked.append(list(texts)) or paths(texts)
    first, second = encoder.session(), encoder.session()
    encoder._causal_tower  # noqa: B018  its probes are no part of the count
    asked.clear()
    first(["a", "b", "a"])
    second(["b", "c"])
    first(["a", "c"])
    assert asked == [["a", "b"], ["c"]]


def test_memory_forgets_what_was_not_asked_for_longest():
    memory, asked = EmbeddingMemory(capacity=3), []

    def encode(texts):
        asked.append(texts)
        return torch.tensor([[float(ord(text)), 1.0] for text in texts])

    def codes(texts):
        return "".join(chr(int(row[0])) for row in memory(texts, encode))

    assert codes("abc") == "abc"
    assert codes("a") == "a"
    assert codes("dd") == "dd"  # b goes
    assert codes("acd") == "acd"
    assert codes("bca") == "bca"
    assert asked == [["a", "b", "c"], ["d"], ["b"]]
    assert codes("vwxyzv") == "vwxyzv"  # more than it holds
    assert codes("xyz") == "xyz"
    assert len(asked) == 4


def test_a_tower_that_looks_ahead_is_found_out(loaded, monkeypatch):
    """A library that dropped the causal mask, as one did for another model's text tower."""
    encoder = models.load(f"hf:{loaded('clip').model.config._name_or_path}", device="cpu")
    encoder.model.set_attn_implementation("eager")
    monkeypatch.setattr(modeling_clip, "create_causal_mask", lambda **_: None)
    assert encoder._causal_tower is None
    texts = ["a cat", "a cats"]
    torch.testing.assert_close(encoder.session()(texts), encoder.encode_texts(texts))


def test_the_probe_tells_rounding_from_other_texts(loaded):
    encoder = loaded("clip")
    paths = encoder._paths(["a cat", "a cat and a dog"])
    features = encoder.encode_texts(["a cat", "a cat and a dog"])
    assert is_causal(encoder._causal_tower, paths, features * 3 + 1e-6)
    assert not is_causal(encoder._causal_tower, paths, features.flip(0))


# Many texts at once


WORDS = ["a", "cat", "dogs", "the photo", "of", "cat and", "tiger", "dog.", "an", "elephant"]
PROMPTS = [
    template.format(f"{first} {second}")
    for template in ("a photo of a {}.", "the {} in a photo", "{}", "a photo of the small {}!")
    for first in WORDS
    for second in WORDS[::3]
]


@pytest.mark.parametrize("room", [1, 40, 10**6])
@pytest.mark.parametrize("name", CAUSAL)
def test_prompts_that_begin_alike_are_those_of_one_by_one(encoder_of, monkeypatch, name, room):
    """Whatever the size of a chunk, against the model's own pass over each text alone."""
    encoder = encoder_of(name)
    texts = [*PROMPTS, PROMPTS[3], "", "a cat " * 40]
    monkeypatch.setattr(text_tower, "NODES_AT_ONCE", room)
    expected = torch.cat([encoder.encode_texts([text]) for text in texts])
    assert encoder._causal_tower is not None, "tried before its runs are counted"
    runs = []
    run = TokenTree.__call__
    monkeypatch.setattr(TokenTree, "__call__", lambda s, paths: runs.append(paths) or run(s, paths))
    torch.testing.assert_close(encoder.encode_texts(texts), expected, atol=2e-5, rtol=0)
    assert sum(map(len, runs)) == len(set(texts)), "each text once"


def test_what_prompts_share_runs_once(encoder_of, monkeypatch):
    """As many nodes as the prompts' tokens make a tree, counted here by a set of beginnings."""
    encoder = encoder_of("clip")
    encoder.encode_texts(PROMPTS)  # tries whether it is causal
    monkeypatch.setattr(text_tower, "NODES_AT_ONCE", 30)
    trees = []
    remember = TokenTree._remember
    monkeypatch.setattr(
        TokenTree, "_remember", lambda self, *rest: trees.append(self) or remember(self, *rest)
    )
    paths = encoder._paths(PROMPTS)
    encode_paths(encoder._causal_tower, paths)
    inner = {path[:end] for path in paths for end in range(1, len(path))}
    assert len(set(map(id, trees))) == 1
    assert len(trees) > 5
    shared = len(inner) + len(set(paths))
    total = sum(map(len, paths))
    assert shared <= trees[0].nodes_run < shared + 0.1 * total < 0.8 * total


def test_few_texts_and_towers_that_see_ahead_go_the_plain_way(encoder_of, monkeypatch):
    monkeypatch.setattr(cached_text_encoder, "encode_paths", None)
    few = encoder_of("clip").encode_texts(PROMPTS[: cached_text_encoder.TREE_FROM - 1])
    assert len(few) == cached_text_encoder.TREE_FROM - 1
    assert len(encoder_of("siglip").encode_texts(PROMPTS)) == len(PROMPTS)


def test_a_sorted_chunk_holds_no_more_new_tokens_than_there_is_room(monkeypatch):
    monkeypatch.setattr(text_tower, "NODES_AT_ONCE", 5)
    paths = [(1, 2, 3), (1, 2, 3, 4), (1, 2, 9), (1, 7), (5,), (6, 1, 2, 3, 4, 5, 6), (7,)]
    chunks = list(text_tower._chunks(paths))
    assert [path for chunk in chunks for path in chunk] == paths
    assert chunks == [paths[:3], paths[3:5], paths[5:6], paths[6:]]
    assert list(text_tower._chunks([])) == []
