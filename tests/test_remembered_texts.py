"""Texts that guided decoding tried, kept in the cache for later runs."""

from pathlib import Path

import pytest
import torch

import zeroshot
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference import remembered_models
from zeroshot.inference.remembered_models import CANDIDATES
from zeroshot.model_set.model_set import resolve
from zeroshot.models.towers.cached_text_encoder import EmbeddingMemory

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))[:2]


@pytest.fixture(scope="module")
def pocket():
    models = resolve("pocket")
    assert models.encoder._causal_tower is not None, "its probes are no part of the count"
    return models


@pytest.fixture
def run(tmp_path, pocket, monkeypatch):
    """Captions by the pocket set that remembers nothing, and how many texts it encoded."""
    encoded, paths = [], pocket.encoder._paths
    monkeypatch.setattr(
        pocket.encoder, "_paths", lambda texts: encoded.extend(texts) or paths(texts)
    )

    def run(remember=True, **given):
        encoded.clear()
        vars(pocket.encoder).pop("memory", None)
        with EmbeddingCache(tmp_path / "cache") as cache:
            options = {"k": 4, "max_tokens": 4} | given
            results = zeroshot.caption(
                SCENES, pocket, "magic", cache=cache, remember_texts=remember, **options
            )
            captions = [result.caption for result in results]
            kept = [space.rows for space in cache.info().spaces if space.kind == CANDIDATES]
        return captions, len(encoded), sum(kept)

    return run


def test_a_later_run_encodes_only_what_none_before_had(run):
    captions, encoded, kept = run()
    assert encoded >= kept > 10
    again, encoded_again, kept_again = run()
    assert (again, kept_again) == (captions, kept)
    assert encoded_again < 0.4 * encoded, "the captions themselves, and one to see the device"
    plain, encoded_plain, _ = run(remember=False)
    assert (plain, encoded_plain) == (captions, encoded)


def test_no_more_are_kept_than_there_is_room(run, monkeypatch):
    monkeypatch.setattr(remembered_models, "MOST_TEXTS", 7)
    captions, _, kept = run()
    assert kept == 7
    assert run(k=5)[2] == 7
    assert run()[0] == captions


def test_a_method_that_tries_no_texts_is_named(pocket):
    with pytest.raises(UserError, match="--remember-texts: method 'retrieve' tries no texts"):
        list(zeroshot.caption(SCENES, pocket, "retrieve", cache=False, remember_texts=True))
    with pytest.raises(UserError, match="remember"):
        zeroshot.caption(SCENES, method="native", model="hf:x", remember_texts=True, cache=False)


def test_vectors_from_before_and_new_ones_lie_in_the_order_of_their_texts():
    earlier, asked = {"b": 2.0, "d": 4.0}, []

    def before(texts):
        hits = [text in earlier for text in texts]
        rows = [[earlier[text], 0.0] for text in texts if text in earlier]
        return torch.tensor(rows or torch.empty(0, 0).tolist()), torch.tensor(hits)

    def encode(texts):
        asked.append(texts)
        return torch.tensor([[float(ord(text) - ord("a") + 1), 0.0] for text in texts])

    memory = EmbeddingMemory(before=before)
    assert memory(["d", "b", "a", "d"], encode)[:, 0].tolist() == [4, 2, 1, 4]
    assert asked == [["d", "a"]], "the first of all is encoded, to see the device"
    assert memory(["c", "b", "a"], encode)[:, 0].tolist() == [3, 2, 1]
    assert asked[1:] == [["c"]]
    texts, rows = memory.taken()
    assert (texts, rows[:, 0].tolist()) == (["d", "a", "c"], [4, 1, 3])
    assert memory.taken()[0] == []
