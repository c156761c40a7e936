"""What holds of every causal language model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tr

from tests.models import tiny
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.models.base import LanguageModel
from zeroshot.models.hf.language_model import clean_up_spaces

GOLDEN = Path(__file__).parent.parent / "data" / "magic"
TOKENS = torch.tensor([[5, 9, 30, 7, 11, 4], [8, 8, 21, 6, 10, 19], [3, 2, 1, 40, 31, 17]])

every_family = pytest.mark.parametrize("name", tiny.LANGUAGE)


def close(tensor, other):
    torch.testing.assert_close(tensor, other, atol=1e-5, rtol=1e-5)


def keys_of(cache):
    return [layer.keys.clone() for layer in cache.layers]


@every_family
def test_it_is_a_language_model(name, loaded):
    assert isinstance(loaded(name), LanguageModel)


@every_family
@torch.no_grad()
def test_logits_and_states_are_the_models_own(name, directory_of, loaded):
    reference = tr.AutoModelForCausalLM.from_pretrained(directory_of(name)).eval()
    expected = reference(TOKENS, output_hidden_states=True)
    step = loaded(name).forward(TOKENS)
    close(step.hidden, expected.hidden_states[-1])
    assert expected.logits.std() > 0.1
    for position in range(TOKENS.shape[1]):
        close(loaded(name).logits(step.hidden[:, position]), expected.logits[:, position])


@every_family
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5), (2,), (4, 5)])
def test_pieces_give_what_the_whole_gives(name, cuts, loaded):
    model = loaded(name)
    whole = model.forward(TOKENS)
    cache, hidden = None, []
    for piece in torch.tensor_split(TOKENS, cuts, dim=1):
        step = model.forward(piece, cache)
        cache = step.cache
        hidden.append(step.hidden)
    close(torch.cat(hidden, dim=1), whole.hidden)


@every_family
def test_forward_leaves_the_cache_it_was_given_alone(name, loaded):
    model = loaded(name)
    start = model.forward(TOKENS[:, :3]).cache
    before = keys_of(start)
    once = model.forward(TOKENS[:, 3:4], start)
    model.forward(TOKENS[:, 4:6], start)
    again = model.forward(TOKENS[:, 3:4], start)
    torch.testing.assert_close(again.hidden, once.hidden, atol=0, rtol=0)
    assert start.get_seq_length() == 3
    for keys, now in zip(before, keys_of(start), strict=True):
        assert torch.equal(keys, now)


@every_family
def test_select_reorders_and_branches_and_changes_nothing(name, loaded):
    model = loaded(name)
    start = model.forward(TOKENS[:, :4]).cache
    before = keys_of(start)
    rows = torch.tensor([2, 0, 0, 2, 1])
    branched = model.select(start, rows)
    following = torch.tensor([[7], [12], [13], [14], [15]])
    step = model.forward(following, branched)
    whole = model.forward(torch.cat([TOKENS[rows, :4], following], dim=1))
    close(step.hidden[:, 0], whole.hidden[:, -1])
    for keys, now in zip(before, keys_of(start), strict=True):
        assert torch.equal(keys, now)


@every_family
def test_more_tokens_than_positions_are_refused(name, loaded):
    model = loaded(name)
    assert model.context_length == 32
    cache = model.forward(torch.ones(1, 32, dtype=torch.long)).cache
    with pytest.raises(UserError, match=r"33 tokens.* has 32 positions"):
        model.forward(torch.ones(1, 1, dtype=torch.long), cache)


def test_half_precision_still_speaks_float32(directory_of, loaded):
    half = models.load_language_model(str(directory_of("gpt2")), device="cpu", precision="bf16")
    step = half.forward(TOKENS)
    assert step.hidden.dtype == half.logits(step.hidden[:, -1]).dtype == torch.float32
    assert half.name == loaded("gpt2").name.replace("/fp32", "/bf16")
    exact = loaded("gpt2").forward(TOKENS).hidden
    assert torch.cosine_similarity(step.hidden, exact, dim=-1).min() > 0.98


def test_start_and_end_tokens(directory_of, loaded, tmp_path):
    captioner = loaded("gpt2")
    assert captioner.start == captioner.tokenizer.convert_tokens_to_ids("<-start_of_text->")
    assert captioner.end == captioner.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert captioner.start != captioner.end
    llama = loaded("llama")
    assert (llama.start, llama.end) == (1, 2)  # <s>, </s>
    plain = tmp_path / "plain"
    shutil.copytree(directory_of("gpt2"), plain)
    tiny.gpt2_tokenizer(extra=()).save_pretrained(plain)
    gpt2 = models.load_language_model(str(plain))
    assert gpt2.start == gpt2.end == captioner.end


@every_family
def test_text_comes_back(name, loaded):
    model = loaded(name)
    tokens = model.encode("two dogs, a cat")
    assert not {model.start, model.end} & set(tokens)
    assert model.decode(tokens).strip() == "two dogs, a cat"


def test_decoding_keeps_special_tokens(loaded):
    model = loaded("gpt2")
    tokens = [model.start, *model.encode("a cat"), model.end]
    assert model.decode(tokens) == "<-start_of_text->a cat<|endoftext|>"


def test_clean_up_is_that_of_transformers_4():
    spaced = "It 's a dog , is n't it ? We 're here ! I 'm . You 've ' so ' a . b"
    joined = "It's a dog, isn't it? We're here! I'm. You've'so'a. b"
    assert clean_up_spaces(spaced) == joined


@pytest.mark.parametrize(("setting", "expected"), [(True, "a."), (False, "a ."), (None, "a.")])
def test_clean_up_follows_the_tokenizers_configuration(setting, expected, directory_of, tmp_path):
    directory = tmp_path / "gpt2"
    shutil.copytree(directory_of("gpt2"), directory)
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("clean_up_tokenization_spaces", None)
    if setting is not None:
        settings["clean_up_tokenization_spaces"] = setting
    file.write_text(json.dumps(settings))
    model = models.load_language_model(str(directory))
    assert model.decode(model.encode("a .")) == expected


def test_a_model_whose_logits_are_not_its_head_is_refused(tmp_path):
    tokenizer = tiny.llama_tokenizer()
    config = tr.GemmaConfig(
        **{**tiny.TEXT, "max_position_embeddings": 32},
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
    )
    capped = tr.Gemma2Config(
        **{**tiny.TEXT, "max_position_embeddings": 32},
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=len(tokenizer),
        final_logit_softcapping=0.5,
    )
    good = tiny.save(tmp_path / "good", tiny.randomize(tr.GemmaForCausalLM(config)), tokenizer)
    bad = tiny.save(tmp_path / "bad", tiny.randomize(tr.Gemma2ForCausalLM(capped)), tokenizer)
    models.load_language_model(str(good))
    with pytest.raises(UserError, match="its logits are not those of its head"):
        models.load_language_model(str(bad))


def test_golden_texts():
    """Captions of `golden.json` were decoded by transformers 4.30.2, up to the end token."""
    model = models.load_language_model(str(GOLDEN / "lm"), device="cpu")
    runs = json.loads((GOLDEN / "golden.json").read_text())["runs"]
    captions = [run for run in runs if run["text"] is not None]
    assert len(captions) > 5
    for run in captions:
        tokens = run["token_ids"][len(run["prefix_ids"]) :]
        ended = tokens[: tokens.index(model.end)] if model.end in tokens else tokens
        assert " ".join(model.decode(ended).split()) == " ".join(run["text"].split())
        assert run["prefix_ids"] == [model.start]


def test_golden_probabilities():
    model = models.load_language_model(str(GOLDEN / "lm"), device="cpu")
    runs = json.loads((GOLDEN / "golden.json").read_text())["runs"]
    run = next(run for run in runs if run.get("steps"))
    first = run["steps"][0]
    hidden = model.forward(torch.tensor([run["prefix_ids"]])).hidden[:, -1]
    probabilities = model.logits(hidden).softmax(dim=-1)[0, first["tokens"]]
    close(probabilities, torch.tensor(first["probs"]))
