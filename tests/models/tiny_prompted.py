"""Tiny random models that embed a text or an image after an instruction."""

import torch
import transformers as tr
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from tests.models.tiny import LETTERS, randomize, save, write

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's, without its tools."""
PAGES = (
    "{% if task == 'query' %}{{ query_token + messages[0].content + mask_token * 10 }}"
    "{% else %}{{ document_token + messages[0].content }}{% endif %}"
)
"""NeoMME's, without its checks."""
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def pooled(directory, pooling, **prompts):
    """The files that sentence-transformers writes beside a model."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write(
        directory / "modules.json",
        [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules],
    )
    write(directory / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True})
    write(directory / "config_sentence_transformers.json", {"prompts": prompts})
    return directory


def qwen3_vl(directory):
    """Saved as the class that writes, as published; its tokenizer ends each text."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
    special += ["<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    vocabulary = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = tr.Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=200)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT
    end = special[0]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    config = tr.Qwen3VLConfig(
        text_config={
            **TOWER,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 400,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 16,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
    )
    images = tr.Qwen2VLImageProcessorPil(patch_size=16)
    model = randomize(tr.Qwen3VLForConditionalGeneration(config))
    return pooled(save(directory, model, tokenizer, images), "lasttoken")


def embedding_gemma2(directory):
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<boi>", "<eoi>", "<|image|>"]
    tokens = [*special, "▁", *LETTERS, ":", "|"]
    tokenizer = tr.GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        model_max_length=80,
        add_eos_token=True,
        extra_special_tokens={
            "boi_token": "<boi>",
            "eoi_token": "<eoi>",
            "image_token": "<|image|>",
        },
    )
    config = tr.EmbeddingGemma2Config(
        text_config={
            **TOWER,
            "vocab_size": len(tokenizer),
            "hidden_size_per_layer_input": 8,
            "embedding_dim": 12,
            "global_head_dim": 16,
            "sliding_window_pattern": 2,
            "sliding_window": 4,
        },
        vision_config={
            "model_type": "gemma4_vision",
            **TOWER,
            "num_key_value_heads": 2,
            "patch_size": 4,
            "position_embedding_size": 640,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<boi>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<eoi>"),
        video_token_id=None,
        audio_token_id=None,
    )
    images = tr.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    directory = save(directory, randomize(tr.EmbeddingGemma2Model(config)), tokenizer, images)
    return pooled(directory, "mean", **{"Retrieval-query": "task: search result | query: "})


def neomme(directory):
    """Its image processor needs torchvision; the file is as that would write it."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>", "<mask>", "<doc>", "<img>", "<query>", "<row>"]
    tokens = [*special, "▁", *LETTERS]
    tokenizer = tr.GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        model_max_length=100,
        add_bos_token=False,
        extra_special_tokens={
            "document_token": "<doc>",
            "image_token": "<img>",
            "query_token": "<query>",
            "row_token": "<row>",
        },
    )
    tokenizer.chat_template = PAGES
    config = tr.NeoMMEConfig(
        vocab_size=len(tokenizer),
        embedding_rank=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=100,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        sliding_window=4,
        patch_size=8,
        embedding_dim=6,
    )
    model = randomize(tr.NeoMMEForRetrieval(config))
    with torch.no_grad():  # whose branches begin as zeros
        for weight in model.parameters():
            if weight.ndim < 2:
                weight.add_(0.3)
    directory = save(directory, model, tokenizer)
    settings = {"image_processor_type": "NeoMMEImageProcessor", "patch_size": 8, "max_side": 40}
    write(directory / "preprocessor_config.json", settings)
    return directory


PROMPTED = {
    "qwen3_vl": qwen3_vl,
    "embedding_gemma2": embedding_gemma2,
    "neomme": neomme,
}
