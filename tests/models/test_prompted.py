"""Encoders that read an instruction, against transformers' own processors and forward passes."""

import ast
import inspect
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tr
from PIL import Image
from transformers.models.neomme.processing_neomme import NeoMMEProcessor
from transformers.video_processing_utils import VideoProcessorMixin

from tests.models.tiny_prompted import PROMPTED, qwen3_vl
from zeroshot import models
from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.models.vlm.prompted_encoder import PagePatches

TEXTS = ["a cat", "two dogs on a sofa", "A"]


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def close(rows, others):
    torch.testing.assert_close(rows, others, atol=1e-5, rtol=0)


def parts(directory, model_class):
    return (
        model_class.from_pretrained(directory, dtype=torch.float32).eval(),
        tr.AutoTokenizer.from_pretrained(directory),
    )


@torch.no_grad()
def qwen_rows(directory, pictures):
    """As the authors: a system's instruction, their limits of pixels, the last token's state."""
    model, tokenizer = parts(directory, tr.Qwen3VLModel)
    images = tr.AutoImageProcessor.from_pretrained(directory, backend="pil")
    images.size = {"shortest_edge": 4096, "longest_edge": 1800 * 32 * 32}
    clips = VideoProcessorMixin()  # which needs torchvision, and is not used
    processor = tr.Qwen3VLProcessor(images, tokenizer, clips, tokenizer.chat_template)

    def row(instruction, content, **inputs):
        conversation = [
            {"role": "system", "content": [{"type": "text", "text": instruction}]},
            {"role": "user", "content": [content]},
        ]
        text = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False
        )
        batch = processor(text=[text], return_tensors="pt", padding=True, **inputs)
        assert batch["input_ids"][0, -1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
        return model(**batch).last_hidden_state[0, -1]

    query = "Retrieve images or text relevant to the user's query."
    seen = "Represent the user's input."
    texts = [row(query, {"type": "text", "text": text}) for text in TEXTS]
    views = [row(seen, {"type": "image"}, images=[picture]) for picture in pictures]
    return torch.stack(texts), torch.stack(views)


@torch.no_grad()
def gemma_rows(directory, pictures):
    """Padded, under a mask, as sentence-transformers does it."""
    model, tokenizer = parts(directory, tr.EmbeddingGemma2Model)
    images = tr.AutoImageProcessor.from_pretrained(directory, backend="pil")

    def mean(batch):
        states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        return (states * mask).sum(1) / mask.sum(1)

    asked = ["task: search result | query: " + text for text in TEXTS]
    texts = mean(dict(tokenizer(asked, padding=True, return_tensors="pt")))
    views = images(images=pictures, return_tensors="pt")
    counts = views.pop("num_soft_tokens_per_image").tolist()
    shown = [f"<boi>{'<|image|>' * count}<eoi>" for count in counts]
    batch = tokenizer(shown, padding=True, return_tensors="pt")
    return texts, mean({**batch, **views})


def theirs(file, name, **names):
    """A function of a module of transformers that needs torchvision, alone."""
    path = Path(inspect.getfile(tr)).parent / "models" / "neomme" / file
    body = ast.parse(path.read_text("utf-8")).body
    (found,) = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    found.args.args[-1].annotation = found.returns = None
    exec(compile(ast.Module([found], []), str(path), "exec"), names)
    return names[name]


def page_size(height, width, side, **limits):
    size = tr.image_utils.SizeDict(**limits) if limits else None
    function = theirs("image_processing_neomme.py", "get_resize_output_size", math=math)
    return function(height, width, side, size)


def patches_of(picture):
    """NeoMME's preprocessing by torch."""
    height, width = page_size(picture.height, picture.width, 40)
    image = picture.resize((width, height), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    values = torch.nn.functional.pad(values, (0, -width % 8, 0, -height % 8)) / 127.5 - 1
    cut = theirs("image_processing_neomme.py", "convert_image_to_patches")(values, 8)
    return cut[0], values.shape[2] // 8, values.shape[3] // 8


@torch.no_grad()
def page_rows(directory, pictures):
    """Queries as its template has them, padded; images one by one with its own positions."""
    model, tokenizer = parts(directory, tr.NeoMMEForRetrieval)
    asked = [f"<query>{text}{'<mask>' * 10}" for text in TEXTS]
    batch = tokenizer(asked, padding=True, padding_side="right", return_tensors="pt")
    texts = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).dense_embeddings
    rows = []
    for picture in pictures:
        patches, height, width = patches_of(picture)
        text = "<doc><img>" + ("<img>" * width + "<row>") * height
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        positions = NeoMMEProcessor._image_positions(height, width).T[:, None]
        found = model(input_ids=ids, position_ids=positions, pixel_values=patches)
        rows.append(found.dense_embeddings[0])
    return texts, torch.stack(rows)


OWN = {"qwen3_vl": qwen_rows, "embedding_gemma2": gemma_rows, "neomme": page_rows}


@pytest.mark.parametrize("name", PROMPTED)
def test_rows_are_those_of_its_own_processor_and_forward_pass(name, directory_of, loaded, pictures):
    pictures = [*pictures, pictures[0].resize((150, 90))]
    texts, images = OWN[name](directory_of(name), pictures)
    encoder = loaded(name)
    assert (unit(texts) @ unit(images).T).std() > 0.01
    close(encoder.encode_texts(TEXTS), unit(texts))
    close(encoder.encode_images(pictures), unit(images))


def test_large_images_have_the_pixels_that_the_authors_of_qwen3_vl_embedding_allow(loaded):
    grid = loaded("qwen3_vl").pixels(Image.new("RGB", (1600, 1500)))["image_grid_thw"]
    assert 0.95 * 1_843_200 < int(grid.prod()) * 16**2 <= 1_843_200


def test_the_sizes_of_pages_are_transformers():
    """Small, large, long and thin ones, within limits of sides and areas."""
    sides = [1, 2, 7, 31, 64, 100, 333, 999]
    limits = [(None, {}), (50, {}), (None, {"min_pixels": 900, "max_pixels": 5000})]
    limits += [(90, {"min_pixels": 4097, "max_pixels": 7001})]
    for side, size in limits:
        pages = PagePatches({"patch_size": 8, "max_side": side, "size": size}, 10**6)
        for width in sides:
            for height in sides:
                own = page_size(height, width, side, **size)
                assert pages._size(width, height) == own[::-1], (width, height, side, size)


def test_pages_without_a_limit_take_half_of_the_positions():
    pages = PagePatches({"patch_size": 8}, 100)
    found = pages([Image.new("RGB", (300, 300))])
    assert len(found["pixel_values"]) <= 64  # 56 pixels on each side
    assert found["image_grid_hw"].tolist() == [[7, 7]]


@pytest.mark.parametrize("name", ["qwen3_vl", "embedding_gemma2"])
def test_an_image_that_is_far_too_long_is_unreadable_and_no_more(name, loaded):
    line = Image.new("RGB", (3000, 1))
    if name == "qwen3_vl":
        with pytest.raises(UnreadableImageError, match="cannot read its shape: absolute aspect"):
            loaded(name).pixels(line)
    else:
        assert len(loaded(name).encode_images([line])) == 1


def test_the_same_without_its_pooling_writes_and_is_no_encoder(directory_of, tmp_path, pictures):
    """Its processor of clips exists for torchvision alone, and is not needed."""
    shutil.copytree(directory_of("qwen3_vl"), tmp_path / "chat")
    (tmp_path / "chat" / "modules.json").unlink()
    with pytest.raises(UserError, match="writes about images and is no encoder"):
        models.load_dual_encoder(str(tmp_path / "chat"))
    chat = models.load_answerer(str(tmp_path / "chat"), device="cpu")
    ((answer,),) = chat.answer(pictures[:1], ["what?"])
    assert 0 < answer.score <= 1


def test_neomme_before_its_training_for_search_is_refused(directory_of, tmp_path):
    shutil.copytree(directory_of("neomme"), tmp_path / "neomme")
    file = tmp_path / "neomme" / "config.json"
    config = json.loads(file.read_text()) | {"architectures": ["NeoMMEForMaskedLM"]}
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"not trained to compare; hf:Hcompany/NeoMME-260M-Retrie"):
        models.load(str(tmp_path / "neomme"))


def test_the_files_of_the_model_say_what_precedes_a_text(tmp_path, loaded):
    directory = qwen3_vl(tmp_path / "other")
    own = {"prompts": {"query": "Find it."}}
    (directory / "config_sentence_transformers.json").write_text(json.dumps(own))
    encoder = models.load(str(directory), device="cpu")
    assert encoder.frame[0] == "<|im_start|>system\nFind it.<|im_end|>\n<|im_start|>user\n"
    rows = encoder.encode_texts(TEXTS)
    assert (rows - loaded("qwen3_vl").encode_texts(TEXTS)).abs().max() > 1e-3
