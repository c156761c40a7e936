"""Tokens and texts that are looked up are those of the tokenizers themselves."""

import pytest
from hypothesis import given, settings, strategies as st

from zeroshot import models
from zeroshot.models.hf import language_model
from zeroshot.models.towers import word_tokens
from zeroshot.models.towers.word_tokens import WordTokens

ASCII = st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=12)
TEXTS = st.one_of(
    st.lists(
        st.sampled_from(["a", "CAT", "cat's", "dogs.", "1234", "it's", "'s", "-", "..", ""])
    ).map(" ".join),
    ASCII,
    st.text("a b<>&;\u00e9\u4e2d\t\n'sS1!", max_size=12),
    st.sampled_from(["a <|endoftext|> b", "&amp; b", "a " * 90, "<start_of_text> a"]),
)


@pytest.mark.parametrize("name", ["clip", "open_clip"])
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_word_by_word_as_the_whole_text(name, loaded, texts):
    encoder = loaded(name)
    assert encoder._words is not None
    ours = encoder._paths(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_tokens, "WORDS", False)
        assert ours == encoder._paths(texts)


def test_each_word_is_tokenized_once_and_other_texts_go_the_whole_way():
    asked = []

    def of_word(word):
        asked.append(word)
        return [ord(letter) for letter in word]

    words = WordTokens(of_word, 1, 2, limit=6)
    assert words("ab  a ab") == (1, 97, 98, 97, 97, 2), "cut before the end"
    assert words("") == (1, 2)
    assert asked == ["ab", "a"]
    assert [words(text) for text in ("a\tb", "a&b", "a<b", "\u00e9")] == [None] * 4
    rows = word_tokens.token_rows(words, ["a", "\u00e9", "ab"], lambda texts: [[9]] * len(texts))
    assert rows == [(1, 97, 2), [9], (1, 97, 98, 2)]


def test_tokenizers_that_may_do_otherwise_are_left_alone(loaded, directory_of, tmp_path):
    assert loaded("metaclip_2")._words is None
    encoder = models.load(str(directory_of("clip")), device="cpu")
    own = encoder.tokenizer.backend_tokenizer
    own.normalizer = type(own.normalizer)([])
    assert encoder._words is None
    added = models.load(str(directory_of("clip")), device="cpu")
    added.tokenizer.add_tokens(["cat sat"])
    assert added._words is None


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_texts_that_are_joined_are_those_that_are_decoded(name, loaded, data):
    """Half characters, special tokens and ids of no token included; each beginning twice."""
    model = loaded(name)
    tokens = st.integers(0, model.model.config.vocab_size + 3)
    before = data.draw(st.lists(tokens, max_size=6))
    candidates = data.draw(st.lists(tokens, min_size=1, max_size=5))
    ours = [model.decode([*before, token]) for token in candidates]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "PIECES", False)
        assert ours == [model.decode([*before, token]) for token in candidates]
        assert model.decode(before) == model.decode(tuple(before))


def test_a_candidate_is_one_look_up(loaded):
    model = loaded("gpt2")
    assert model._bytewise
    before, raw = [5, 9, 30], []
    model.decode([*before, 7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_raw", raw.append)
        for token in (7, 7, 7):
            model.decode([*before, token])
    assert raw == []
