"""LMCap: the prompt is the authors', and the text what the library's own greedy search gives."""

from pathlib import Path

import pytest
import torch
import transformers as tr

import zeroshot as package
from tests.models import tiny
from tests.toy import ToyEncoder
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.methods import Pool
from zeroshot.methods.lmcap import LMCap, caption_prompt
from zeroshot.models.base import ChatModel, LanguageModelOutput

HEART = str(Path(__file__).parent.parent / "examples" / "scenes" / "1-red-heart.png")
CAPTIONS = ["a cat", "a dog on a mat", "two red cars", "a bus", "the sea at night", "a man"]
TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
OPTIONS = {"neighbours": 2, "examples": 1, "max_tokens": 6}


def authors_prompt(eos, retrieved, support, language=""):
    """As `RetrievalDataset` of the authors' src/dataset.py builds it, without its last space."""
    prompt = (
        "I am an intelligent image captioning bot. Similar images have the following captions: "
    )
    said = f" in {language}" if language else ""
    asked = f"A creative short caption I can generate to describe this image{said} is: "
    prefix = ""
    for captions, truth in support:
        prefix += prompt
        for _ in captions:
            prefix += "{}" + eos + " "
        prefix += asked + truth + eos + " "
        prefix = prefix.format(*captions)
    prefix += prompt
    for _ in retrieved:
        prefix += "{}" + eos + " "
    return (prefix + asked).format(*retrieved).removesuffix(" ")


@pytest.mark.parametrize("language", ["", "spanish"])
@pytest.mark.parametrize("support", [[], [(["e", "f"], "g")], [(["e", "f"], "g"), (["h"], "i")]])
def test_the_authors_prompt(support, language):
    ours = caption_prompt(["a b", "c"], support, language=language, end="</s> ")
    assert ours == authors_prompt("</s>", ["a b", "c"], support, language)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["dog"], "I think there might be a dog in this image. A creative"),
        (["dog", "car"], "I think there might be a dog or car in this image. A creative"),
        (["dog", "car", "sea"], "I think there might be a dog, car or sea in this image. A"),
    ],
)
def test_labels_in_words(labels, words):
    prompt = caption_prompt(["a b", "c"], labels=labels)
    assert f"captions: a b\nc\n{words}" in prompt
    assert prompt.endswith("describe this image is:")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    """A random language model that reads long prompts, without and with a chat template."""
    return long_model(request.param, tmp_path_factory.mktemp(request.param), None)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return long_model("llama", tmp_path_factory.mktemp("chat"), TEMPLATE)


def long_model(name, directory, template):
    tokenizer = tiny.gpt2_tokenizer() if name == "gpt2" else tiny.llama_tokenizer()
    tokenizer.chat_template = template
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if name == "gpt2":
        sizes = {"n_positions": 2048, "n_embd": 16, "n_layer": 2, "n_head": 2}
        made = tr.GPT2LMHeadModel(tr.GPT2Config(vocab_size=len(tokenizer), **sizes, **ends))
    else:
        config = tr.LlamaConfig(
            **{**tiny.TEXT, "max_position_embeddings": 2048},
            num_key_value_heads=1,
            vocab_size=len(tokenizer),
            **ends,
        )
        made = tr.LlamaForCausalLM(config)
    tiny.save(directory, tiny.randomize(made), tokenizer)
    return models.load_language_model(f"hf:{directory}")


def pool_of(captions, encoder):
    return Pool(captions, encoder.encode_texts(captions))


def pictures(count):
    return torch.nn.functional.normalize(
        torch.randn(count, 5, generator=torch.Generator().manual_seed(4)), dim=-1
    )


def nearest(row, count, captions, encoder, but=()):
    order = (encoder.encode_texts(captions) @ row).argsort(descending=True).tolist()
    return [captions[i] for i in order if captions[i] not in but][:count]


@torch.no_grad()
def greedy(model, ids):
    """The library's own loop, as plain as it can be."""
    ids = torch.tensor([ids])
    for _ in range(OPTIONS["max_tokens"]):
        token = model.model(ids).logits[0, -1].argmax()
        if token.item() in (model.end, model.turn_end):
            break
        ids = torch.cat([ids, token[None, None]], 1)
    return ids[0].tolist()


@pytest.mark.parametrize("labels", ["", "cat, dog,sea,"])
def test_the_prompt_and_its_continuation(model, labels):
    encoder, images = ToyEncoder(), pictures(3)
    method = LMCap(**OPTIONS, labels=labels, things=2)
    found = method.caption(images, encoder, language_model=model, pool=pool_of(CAPTIONS, encoder))
    # The caption whose sha256 is smallest: its own nearest captions, itself left out.
    example = "the sea at night"
    own = nearest(encoder.encode_texts([example])[0], 2, CAPTIONS, encoder, [example])
    names = ["cat", "dog", "sea"]
    for image, caption in zip(images, found, strict=True):
        seen = nearest(image, 2, names, encoder) if labels else []
        text = caption_prompt(
            nearest(image, 2, CAPTIONS, encoder),
            [(own, example)],
            seen,
            end=f"{model.decode([model.end])} ",
        )
        prefix = [model.start, *model.encode(text)]
        assert [*prefix, *caption.tokens] == greedy(model, prefix)
        (cosine,) = encoder.encode_texts([caption.text]) @ image
        assert caption.score == pytest.approx(float(cosine), abs=1e-6)


def test_a_chat_model_reads_a_message(chat, model):
    assert isinstance(chat, ChatModel)
    assert model.encode_chat("hello") is None
    assert model.turn_end == model.end
    assert chat.encode_chat("hello") == chat.encode("<user>hello<answer>")
    encoder, images = ToyEncoder(), pictures(1)
    method = LMCap(2, 0, max_tokens=6)
    (caption,) = method.caption(
        images, encoder, language_model=chat, pool=pool_of(CAPTIONS, encoder)
    )
    message = caption_prompt(nearest(images[0], 2, CAPTIONS, encoder))
    prefix = chat.encode(f"<user>{message}<answer>")
    assert [*prefix, *caption.tokens] == greedy(chat, prefix)


class Scripted:
    """Answers every prompt with one text; a token is a character."""

    name, context_length, start, end, turn_end = "script", 5000, 0, 1, 2

    def __init__(self, answer):
        self.answer = [*map(ord, answer), 1]

    def encode(self, text):
        return [ord(c) for c in text]

    def encode_chat(self, message):
        self.read = message
        return self.encode(message)

    def decode(self, tokens):
        return "".join("<e>" if t == 1 else chr(t) for t in tokens)

    def forward(self, tokens, cache=None):
        place = torch.zeros(len(tokens)) if cache is None else cache + 1
        return LanguageModelOutput(place[:, None, None].expand(-1, tokens.shape[1], 1), place)

    def logits(self, hidden):
        answer = [self.answer[int(place)] for place in hidden[:, 0]]
        return torch.nn.functional.one_hot(torch.tensor(answer), 300).float()

    def select(self, cache, rows):
        return cache[rows]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("\n a  dog runs\nand more", "a dog runs"),
        ("a dog\x02\nuser", "a dog"),  # the end of a turn
        ("", ""),
    ],
)
def test_the_answers_first_line(answer, text):
    encoder = ToyEncoder()
    script = Scripted(answer)
    (caption,) = LMCap(2, 0).caption(
        pictures(1), encoder, language_model=script, pool=pool_of(CAPTIONS, encoder)
    )
    assert caption.text == text
    assert script.read.startswith("I am an intelligent image captioning bot.")


def test_neither_the_pools_order_nor_other_images_change_a_caption(model):
    encoder, images = ToyEncoder(), pictures(3)

    def run(captions, rows):
        more = {"language_model": model, "pool": pool_of(captions, encoder)}
        return [c.text for c in LMCap(**OPTIONS).caption(rows, encoder, **more)]

    once = run(CAPTIONS, images)
    assert run([*CAPTIONS[::-1], *CAPTIONS[:2]], images) == once
    assert [run(CAPTIONS, image[None])[0] for image in images] == once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": -1}, "examples=-1"),
        ({"things": 0}, "things=0"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 1900}, r"lmcap's prompt of \d+ tokens .* has 2048: take a model"),
    ],
)
def test_options_out_of_range(model, options, message):
    encoder = ToyEncoder()
    with pytest.raises(UserError, match=message):
        LMCap(**options).caption(
            pictures(1), encoder, language_model=model, pool=pool_of(CAPTIONS, encoder)
        )


def test_a_short_memory_is_said():
    pocket, encoder = package.load("pocket"), ToyEncoder()
    more = {"language_model": pocket.language_model, "pool": pool_of(CAPTIONS, encoder)}
    with pytest.raises(UserError, match="has 64: take a model that reads longer prompts"):
        LMCap().caption(pictures(1), encoder, **more)
    with pytest.raises(UserError, match="takes no prompts"):
        package.caption(HEART, pocket, "lmcap", prompt="a")
