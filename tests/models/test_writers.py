"""What holds of every trained captioner and reader."""

import json
import pickle

import pytest
import torch
import transformers as tr
from safetensors.torch import load_file, save_file

import zeroshot as package
from tests.models import tiny, tiny_pairs
from zeroshot import models
from zeroshot.errors import UserError
from zeroshot.methods.dlc import DLC
from zeroshot.models.base import GuidedWriter, Writer
from zeroshot.models.vlm.chat import DESCRIBE
from zeroshot.models.vlm.clipcap import build_mapper
from zeroshot.models.vlm.coca import greedy
from zeroshot.models.vlm.generation import CAPTION_TOKENS

every_writer = pytest.mark.parametrize("name", tiny_pairs.WRITERS)


@pytest.fixture(scope="module")
def writer_of(loaded):
    return lambda name: loaded(name, models.load_writer)


@every_writer
def test_a_batch_gives_what_its_rows_give(name, writer_of, pictures):
    writer = writer_of(name)
    assert isinstance(writer, Writer)
    together = writer.write(pictures)
    alone = [writer.write([picture])[0] for picture in pictures]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.score for a in together] == pytest.approx([a.score for a in alone], rel=1e-3)
    assert all(0 < a.score <= 1 for a in together)
    assert len({a.score for a in together}) == len(pictures)  # each saw its own picture


@pytest.mark.parametrize("name", ["blip_caption", "blip_2", "git"])
def test_a_text_begins_with_its_prompt(name, writer_of, pictures):
    for answer in writer_of(name).write(pictures, ["a photo of"] * len(pictures)):
        assert answer.text.startswith("a photo of ")


@pytest.mark.parametrize("name", ["encoder_decoder", "coca", "clipcap"])
def test_prompts_that_would_not_be_read_are_refused(name, writer_of, pictures):
    with pytest.raises(UserError, match="prompt"):
        writer_of(name).write(pictures[:1], ["a photo of"])


@torch.no_grad()
def test_blip_captions_as_the_library_does(directory_of, writer_of, pictures):
    model, pixels, tokens = tiny_pairs.library(
        directory_of("blip_caption"), tr.BlipForConditionalGeneration
    )
    room = model.config.text_config.max_position_embeddings - 2
    for picture in pictures[:3]:
        x = pixels(images=picture, return_tensors="pt")
        ids = model.generate(**x, max_new_tokens=room, do_sample=False)[0]
        (answer,) = writer_of("blip_caption").write([picture])
        assert answer.text == tokens.decode(ids, skip_special_tokens=True).strip()


@torch.no_grad()
def test_an_encoder_and_a_decoder_write_as_the_library_does(directory_of, writer_of, pictures):
    directory = directory_of("encoder_decoder")
    model = tr.AutoModelForImageTextToText.from_pretrained(directory).eval()
    assert type(model) is tr.VisionEncoderDecoderModel
    pixels = tr.AutoImageProcessor.from_pretrained(directory, backend="pil")
    tokens = tr.AutoTokenizer.from_pretrained(directory)
    for picture in pictures[:3]:
        x = pixels(images=picture, return_tensors="pt")
        ids = model.generate(**x, max_new_tokens=63, do_sample=False)[0]
        (answer,) = writer_of("encoder_decoder").write([picture])
        assert answer.text == tokens.decode(ids, skip_special_tokens=True).strip()


def test_a_model_that_writes_nothing_is_refused(directory_of):
    for name, message in (("vilt_vqa", "writes nothing"), ("open_clip", "only coca")):
        with pytest.raises(UserError, match=message):
            models.load_writer(str(directory_of(name)), device="cpu")


# -------------------------------------------------------------------------------------- CoCa


@torch.no_grad()
def test_coca_takes_the_likeliest_token_again_and_again(directory_of, writer_of, pictures):
    """open_clip's own forward pass over the whole text, without the cached picture."""
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(
        f"local-dir:{directory_of('coca')}", weights_only=True
    )
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory_of('coca')}")
    for picture in pictures[:2]:
        pixels, tokens = preprocess(picture)[None], [tokenizer.sot_token_id]
        while len(tokens) < 20 and tokens[-1] != tokenizer.eot_token_id:
            logits = model(pixels, torch.tensor([tokens]), output_labels=False)["logits"][0, -1]
            if len(tokens) < 5:
                logits[tokenizer.eot_token_id] = -torch.inf
            tokens.append(int(logits.argmax()))
        (answer,) = writer_of("coca").write([picture])
        assert answer.text == tokenizer.decode(tokens[1:]).replace("<end_of_text>", "").strip()


def test_rows_that_have_ended_wait_and_cost_nothing():
    """Row 0 ends at once after the least length; row 1 goes on; by hand."""

    def logits(tokens):
        first = torch.tensor([0.0, 0.0, 5.0, 0.0])  # the end is token 2
        second = torch.tensor([0.0, 4.0, 0.0, 0.0])
        return torch.stack([first, second]).clone()

    tokens, mean = greedy(logits, torch.zeros(2, 1, dtype=torch.long), end=2, max_tokens=8)
    assert tokens[0].tolist() == [0, 0, 0, 0, 0, 2, 2, 2]
    assert tokens[1].tolist() == [0] + [1] * 7
    chance = torch.tensor([0.0, 0.0, 5.0, 0.0]).softmax(0)
    assert mean[0].item() == pytest.approx(float((chance[0] ** 4 * chance[2]) ** (1 / 5)))
    assert mean[1].item() == pytest.approx(float(torch.tensor([0.0, 4.0, 0, 0]).softmax(0)[1]))


# ----------------------------------------------------------------------------------- ClipCap


class AuthorsMLP(torch.nn.Module):
    """`MLP` of the authors' predict.py."""

    def __init__(self, sizes):
        super().__init__()
        layers = []
        for i in range(len(sizes) - 1):
            layers.append(torch.nn.Linear(sizes[i], sizes[i + 1]))
            if i < len(sizes) - 2:
                layers.append(torch.nn.Tanh())
        self.model = torch.nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class AuthorsAttention(torch.nn.Module):
    """`MultiHeadAttention` of the authors' train.py: einsum over heads, scaled."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.to_queries = torch.nn.Linear(dim, dim, bias=False)
        self.to_keys_values = torch.nn.Linear(dim, dim * 2, bias=False)
        self.project = torch.nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        queries = self.to_queries(x).reshape(b, n, self.heads, c // self.heads)
        both = self.to_keys_values(x).reshape(b, n, 2, self.heads, c // self.heads)
        keys, values = both[:, :, 0], both[:, :, 1]
        attention = torch.einsum("bnhd,bmhd->bnmh", queries, keys) * self.scale
        out = torch.einsum("bnmh,bmhd->bnhd", attention.softmax(dim=2), values)
        return self.project(out.reshape(b, n, c))


class AuthorsTransformer(torch.nn.Module):
    """`TransformerMapper` of the authors' train.py."""

    def __init__(self, dim, width, prefix, length, layers, heads):
        super().__init__()
        self.length = length
        self.linear = torch.nn.Linear(dim, length * width)
        self.prefix_const = torch.nn.Parameter(torch.randn(prefix, width))
        block = lambda: torch.nn.ModuleDict(  # noqa: E731
            {
                "norm1": torch.nn.LayerNorm(width),
                "attn": AuthorsAttention(width, heads),
                "norm2": torch.nn.LayerNorm(width),
                "mlp": torch.nn.ModuleDict(
                    {
                        "fc1": torch.nn.Linear(width, 2 * width),
                        "fc2": torch.nn.Linear(2 * width, width),
                    }
                ),
            }
        )
        self.transformer = torch.nn.ModuleDict(
            {"layers": torch.nn.ModuleList([block() for _ in range(layers)])}
        )

    def forward(self, x):
        x = self.linear(x).view(x.shape[0], self.length, -1)
        prefix = self.prefix_const.unsqueeze(0).expand(x.shape[0], *self.prefix_const.shape)
        x = torch.cat((x, prefix), dim=1)
        for layer in self.transformer["layers"]:
            x = x + layer["attn"](layer["norm1"](x))
            hidden = torch.relu(layer["mlp"]["fc1"](layer["norm2"](x)))
            x = x + layer["mlp"]["fc2"](hidden)
        return x[:, self.length :]


@torch.no_grad()
def test_the_mappers_are_the_authors():
    torch.manual_seed(0)
    features = torch.randn(3, 12)
    mlp = AuthorsMLP((12, 32, 64))
    torch.testing.assert_close(
        build_mapper(mlp.state_dict())(features, 16), mlp(features).view(3, 4, 16)
    )
    turned = AuthorsTransformer(12, 16, prefix=4, length=3, layers=2, heads=8)
    torch.testing.assert_close(
        build_mapper(turned.state_dict())(features, 16), turned(features), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_clipcap_writes_from_features_at_their_own_length(directory_of, writer_of, pictures):
    """The whole route once more, with the library's classes and the file's weights."""
    directory = directory_of("clipcap")
    held = torch.load(directory / "coco.pt", weights_only=True)
    clip = tr.CLIPModel.from_pretrained(directory / "clip").eval()
    pixels = tr.AutoImageProcessor.from_pretrained(directory / "clip", backend="pil")
    features = clip.get_image_features(**pixels(images=pictures[0], return_tensors="pt"))
    gpt = tr.GPT2LMHeadModel.from_pretrained(directory / "gpt2").eval()
    own = {k.removeprefix("gpt."): v for k, v in held.items() if k.startswith("gpt.")}
    own.pop("transformer.h.0.attn.masked_bias")
    gpt.load_state_dict(own)
    mlp = AuthorsMLP((12, 32, 64))
    mlp.load_state_dict(
        {
            k.removeprefix("clip_project."): v
            for k, v in held.items()
            if k.startswith("clip_project.")
        }
    )
    tokens = tr.AutoTokenizer.from_pretrained(directory / "gpt2")
    stop = tokens.encode(".")[0]
    out = gpt.generate(
        inputs_embeds=mlp(features.pooler_output).view(1, 4, 16),
        num_beams=5,
        do_sample=False,
        max_new_tokens=28,
        eos_token_id=stop,
        pad_token_id=stop,
    )[0].tolist()
    out = out[: out.index(stop) + 1] if stop in out else out
    (answer,) = writer_of("clipcap").write([pictures[0]])
    assert answer.text == writer_of("clipcap").language_model.decode(out).strip()


@pytest.mark.parametrize(("kind", "suffix"), [("transformer", ".pt"), ("mlp", ".safetensors")])
def test_either_mapper_in_either_file(kind, suffix, tmp_path, pictures):
    directory = tiny_pairs.clipcap(tmp_path / "clipcap", kind, suffix=suffix)
    writer = models.load_writer(str(directory), device="cpu")
    assert writer.name.startswith("clipcap:clipcap@")
    assert len(writer.write(pictures[:2])) == 2


def test_a_mapper_of_unit_features_gets_them(tmp_path, pictures):
    directory = tiny_pairs.clipcap(tmp_path / "clipcap")
    told = json.loads((directory / "clipcap.json").read_text())
    plain = models.load_writer(str(directory), device="cpu")
    (directory / "clipcap.json").write_text(json.dumps(told | {"normalize": True}))
    unit = models.load_writer(str(directory), device="cpu")
    assert plain.write(pictures[:1]) != unit.write(pictures[:1])


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "clipcap.json").write_text("{"), "is not JSON"),
        (lambda d: (d / "clipcap.json").write_text('{"weights": "coco.pt"}'), "needs encoder"),
        (lambda d: _told(d, weights=3), "is 3, which is no str"),
        (lambda d: _told(d, weights="../coco.pt"), "must be a file beside it"),
        (lambda d: _told(d, weights="none.pt"), "no weights at"),
        (lambda d: _told(d, more=1), "needs encoder"),
        (lambda d: (d / "coco.pt").write_bytes(b"PK"), "cannot be read as tensors"),
        (lambda d: (d / "coco.pt").write_bytes(pickle.dumps(Evil())), "cannot be read as tensors"),
        (lambda d: torch.save([torch.zeros(1)], d / "coco.pt"), "something else than named"),
        (lambda d: torch.save({"a": torch.zeros(1)}, d / "coco.pt"), "is no ClipCap"),
        (lambda d: _weights(d, drop="clip_project.model.0.bias"), "neither those of"),
        (lambda d: _weights(d, drop="gpt.transformer.ln_f.bias"), "another one than named"),
        (lambda d: _weights(d, halve="clip_project.model.0.weight"), "its mapper takes 6 numbers"),
        (lambda d: _weights(d, halve="gpt.transformer.wpe.weight"), "another one than named"),
    ],
)
def test_a_wrong_clipcap_is_refused(change, message, tmp_path, capsys):
    directory = tiny_pairs.clipcap(tmp_path / "clipcap")
    change(directory)
    with pytest.raises(UserError, match=message):
        models.load_writer(str(directory), device="cpu")
    assert "run" not in capsys.readouterr().out


def _told(directory, **changes):
    told = json.loads((directory / "clipcap.json").read_text())
    (directory / "clipcap.json").write_text(json.dumps(told | changes))


def _weights(directory, drop=None, halve=None):
    held = torch.load(directory / "coco.pt", weights_only=True)
    held.pop(drop, None)
    if halve:
        held[halve] = held[halve][:, : held[halve].shape[1] // 2].clone()
    torch.save(held, directory / "coco.pt")


def test_weights_without_a_language_model_use_the_one_that_is_named(tmp_path, pictures):
    directory = tiny_pairs.clipcap(tmp_path / "clipcap", suffix=".safetensors")
    held = load_file(directory / "coco.safetensors")
    mapper_alone = {k: v for k, v in held.items() if k.startswith("clip_project.")}
    save_file(mapper_alone, directory / "coco.safetensors")
    writer = models.load_writer(str(directory), device="cpu")
    own = models.load_language_model(str(tiny.gpt2(tmp_path / "again")), device="cpu")
    a = writer.language_model.model.state_dict()["transformer.ln_f.weight"]
    torch.testing.assert_close(a, own.model.state_dict()["transformer.ln_f.weight"])


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        ("llava", "Describe the picture in one short sentence."),
        ("florence2", "<CAPTION>"),
        ("paligemma", "caption en"),
        ("kosmos-2", "An image of"),
    ],
)
def test_a_family_that_follows_no_instructions_has_its_own_prompt(
    family, prompt, writer_of, pictures, monkeypatch
):
    writer, read = writer_of("llava"), []

    def rows(images, texts):
        read.extend(texts)
        raise UserError("enough")

    monkeypatch.setattr(writer.model.config, "model_type", family)
    monkeypatch.setattr(writer, "_rows", rows)
    for prompts, expected in ((None, prompt), (["mine"] * 5, "mine")):
        read.clear()
        with pytest.raises(UserError, match="enough"):
            writer.write(pictures, prompts)
        assert read == [expected] * 5


# ------------------------------------------------------------------------- corrected by an encoder


def favouring(word):
    """Guidance by which each row says its own token of `word`, at its second place."""

    def guidance(decode, ends):
        def correct(rows, generated, logits):
            for i, (row, tokens) in enumerate(zip(rows, generated, strict=True)):
                if len(tokens) == 1:
                    logits[i, word + row] = 1000.0
            return logits

        return correct

    return guidance


@pytest.mark.parametrize("name", ["blip_caption", "blip_2", "git", "encoder_decoder", "llava"])
def test_each_picture_gets_its_own_correction(name, directory_of, writer_of, pictures, monkeypatch):
    writer = writer_of(name)
    assert isinstance(writer, GuidedWriter)
    seen = []

    def decoded(ids):
        seen.append(list(ids))
        return "x"

    guided = writer.guided_by(favouring(20))
    monkeypatch.setattr(guided.tokenizer, "decode", lambda ids, **more: decoded(ids))
    answers = guided.write(pictures)
    monkeypatch.undo()
    assert [ids[1] for ids in sorted(seen, key=lambda ids: ids[1])] == [
        20 + i for i in range(len(pictures))
    ]
    assert all(0 <= answer.score < 1 for answer in answers)  # the model's own, not the correction's
    assert writer.guidance is None


@torch.no_grad()
def test_dlc_corrects_llava_as_by_hand(directory_of, writer_of, pictures):
    """The whole model again for every token, and the formula on its logits."""
    writer = writer_of("llava")
    encoder = models.load_dual_encoder(f"hf:{directory_of('clip')}")
    method = DLC(k=6, window=2, start=2, strength=3.0)
    embeddings = encoder.encode_images(pictures[:2])
    guided = writer.guided_by(lambda *how: method.referee(embeddings, encoder, *how))
    answers = guided.write(pictures[:2])
    assert [a.text for a in answers] != [a.text for a in writer.write(pictures[:2])]
    decode = lambda ids: writer.tokenizer.decode(ids, skip_special_tokens=True).strip()  # noqa: E731
    for picture, embedding, answer in zip(pictures, embeddings, answers, strict=False):
        (row,) = writer._rows([picture], [DESCRIBE])
        prompt, tokens, seen = row["input_ids"], [], []

        def cosine(text, embedding=embedding):
            return float(encoder.encode_texts([text])[0] @ embedding)

        for _ in range(CAPTION_TOKENS):
            ids = torch.cat([prompt, torch.tensor([tokens], dtype=torch.long)], 1)
            logits = writer.model(
                **{**row, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            ).logits[0, -1]
            if len(tokens) >= 2:
                recent = tokens[-2:]
                seen.append(cosine(decode(recent)))
                last = seen[-8:]
                base = last[-1] if len(last) <= 3 else sum(last) / len(last)
                for v in logits.topk(6).indices.tolist():
                    spoken = v != 2 and decode([v])
                    context = cosine(decode([*recent, v])) if spoken else seen[-1]
                    fit = (context + (cosine(decode([v])) if spoken else seen[-1])) / 2
                    rise = 3.0 * (1 - base) ** 2
                    rise *= torch.tensor((fit - base) / (1 - base + 1e-6)).sigmoid()
                    logits[v] += logits[v].abs() * (rise.exp() - 1)
            token = int(logits.argmax())
            tokens.append(token)
            if token == 2:
                break
        assert answer.text == decode(tokens)


def test_captions_corrected_by_dlc(directory_of, pictures):
    encoder, llava = f"hf:{directory_of('clip')}", f"hf:{directory_of('llava')}"
    own = package.load("pocket", encoder=encoder)
    more = {"model": llava, "cache": False}
    found = package.caption(pictures, own, "dlc", start=1, strength=3.0, **more)
    plain = package.caption(pictures, own, "native", **more)
    assert [x.caption for x in found] != [x.caption for x in plain]
    row = found[0].row()
    assert (row["method"], row["scored"]) == ("dlc", "probability")
    assert set(row["models"]) == {"captioner", "encoder"}
    assert found[0].models["captioner"] == plain[0].models["captioner"]
    region = package.caption(pictures[0], own, "dlc", box=(0, 0, 9, 9), **more)[0]
    assert region.regions[0].caption
    with pytest.raises(UserError, match=r"has no -o"):
        package.caption(pictures, own, "native", k=3, **more)
    with pytest.raises(UserError, match="cannot be corrected"):
        package.caption(pictures, own, "dlc", model=f"hf:{directory_of('clipcap')}", cache=False)
    with pytest.raises(UserError, match="dlc: k=0"):
        package.caption(pictures, own, "dlc", k=0, **more)
