"""Tiny random models that meet a picture and a text together, as `tiny` has the others."""

import json

import torch
import transformers as tr
from safetensors.torch import save_file

from tests.models import tiny
from tests.models.tiny import CROP, SQUARE, TEXT, VISION, bert_tokenizer, randomize, save

ANSWERS = ["yes", "no", "two", "cat", "red"]
BERT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
}


def library(directory, kind):
    """Model, preprocessing and tokenizer as transformers itself loads them."""
    return (
        kind.from_pretrained(directory).eval(),
        tr.AutoImageProcessor.from_pretrained(directory, backend="pil"),
        tr.AutoTokenizer.from_pretrained(directory),
    )


def blip_config(tokenizer):
    text = {
        **BERT,
        "vocab_size": len(tokenizer),
        "encoder_hidden_size": 16,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return tr.BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=8)


def blip(directory, kind, seed=0):
    tokenizer = bert_tokenizer()
    images = tr.BlipImageProcessorPil(**SQUARE)
    return save(directory, randomize(kind(blip_config(tokenizer)), seed), tokenizer, images)


def blip_itm(directory):
    return blip(directory, tr.BlipForImageTextRetrieval)


def blip_caption(directory):
    return blip(directory, tr.BlipForConditionalGeneration, seed=2)


def blip_vqa(directory):
    return blip(directory, tr.BlipForQuestionAnswering, seed=1)


def qformer():
    return {
        **BERT,
        "encoder_hidden_size": 16,
        "vocab_size": len(bert_tokenizer()),
        "cross_attention_frequency": 1,
    }


def blip_2_itm(directory):
    tokenizer = bert_tokenizer()
    config = tr.Blip2Config(
        vision_config=VISION,
        qformer_config={**qformer(), "use_qformer_text_input": True},
        text_config=opt_config(tokenizer).to_dict(),
        num_query_tokens=3,
        image_text_hidden_size=8,
        image_token_index=None,
    )
    images = tr.BlipImageProcessorPil(**SQUARE)
    model = randomize(tr.Blip2ForImageTextRetrieval(config))
    return save(directory, model, tokenizer, images)


def opt_config(tokenizer):
    return tr.OPTConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=80,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=1,
    )


def blip_2(directory):
    tokenizer = tiny.gpt2_tokenizer()
    tokenizer.model_max_length = 64
    config = tr.Blip2Config(
        vision_config=VISION,
        qformer_config=qformer(),
        text_config=opt_config(tokenizer).to_dict(),
        num_query_tokens=3,
        image_token_index=len(tokenizer),
    )
    images = tr.BlipImageProcessorPil(**SQUARE)
    model = randomize(tr.Blip2ForConditionalGeneration(config), seed=3)
    return save(directory, model, tokenizer, images)


def git(directory):
    tokenizer = bert_tokenizer()
    config = tr.GitConfig(
        vision_config=VISION,
        **BERT,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    images = tr.CLIPImageProcessorPil(**CROP)
    return save(directory, randomize(tr.GitForCausalLM(config), seed=4), tokenizer, images)


def encoder_decoder(directory):
    """ViT-GPT2 and TrOCR; put together by hand, since transformers 5 fails to (GPT2Config)."""
    tokenizer = tiny.gpt2_tokenizer()
    decoder = tr.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = tr.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        tr.ViTConfig(**VISION), decoder
    )
    config.decoder_start_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.eos_token_id
    model = randomize(tr.VisionEncoderDecoderModel(config), seed=5)
    model.generation_config.decoder_start_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    images = tr.ViTImageProcessorPil(**SQUARE)
    return save(directory, model, tokenizer, images)


def vilt(directory, kind, **changes):
    tokenizer = bert_tokenizer()
    config = tr.ViltConfig(
        **BERT, vocab_size=len(tokenizer), image_size=16, patch_size=8, **changes
    )
    images = tr.ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
    return save(directory, randomize(kind(config)), tokenizer, images)


def vilt_vqa(directory, **changes):
    names = dict(enumerate(ANSWERS))
    return vilt(directory, tr.ViltForQuestionAnswering, id2label=names, **changes)


def vilt_itm(directory):
    return vilt(directory, tr.ViltForImageAndTextRetrieval)


def vilt_nlvr2(directory):
    return vilt(
        directory,
        tr.ViltForImagesAndTextClassification,
        num_images=2,
        modality_type_vocab_size=3,
        id2label={0: "False", 1: "True"},
    )


def vilt_entailment(directory):
    return vilt(
        directory,
        tr.ViltForImagesAndTextClassification,
        num_images=1,
        id2label={0: "entailment", 1: "neutral", 2: "contradiction"},
    )


def bridgetower_config(tokenizer):
    return tr.BridgeTowerConfig(
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=32,
        share_cross_modal_transformer_layers=True,
        contrastive_hidden_size=8,
        logit_scale_init_value=2.6592,
        text_config={
            **BERT,
            "hidden_size": 64,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 3,
            "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "patch_size": 8,
            "image_size": 16,
        },
    )


def bridgetower(directory, kind):
    tokenizer = tiny.roberta_like_tokenizer()
    images = tr.BridgeTowerImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, size_divisor=8
    )
    model = randomize(kind(bridgetower_config(tokenizer)))
    return save(directory, model, tokenizer, images)


def bridgetower_itm(directory):
    return bridgetower(directory, tr.BridgeTowerForImageAndTextRetrieval)


def bridgetower_itc(directory):
    return bridgetower(directory, tr.BridgeTowerForContrastiveLearning)


def flava_itm(directory):
    tokenizer = bert_tokenizer()
    multimodal = {key: value for key, value in TEXT.items() if key != "max_position_embeddings"}
    config = tr.FlavaConfig(
        text_config={**BERT, "vocab_size": len(tokenizer)},
        image_config={**VISION, "vocab_size": 16},
        multimodal_config=multimodal,
        image_codebook_config={"vocab_size": 16, "hidden_size": 4, "num_groups": 4},
        projection_dim=12,
        hidden_size=16,
    )
    images = tr.FlavaImageProcessorPil(**tiny.PIXELS)
    return save(directory, randomize(tr.FlavaForPreTraining(config)), tokenizer, images)


PAIRS = {
    "blip_itm": blip_itm,
    "blip_2_itm": blip_2_itm,
    "vilt_itm": vilt_itm,
    "vilt_nlvr2": vilt_nlvr2,
    "vilt_entailment": vilt_entailment,
    "bridgetower_itm": bridgetower_itm,
    "bridgetower_itc": bridgetower_itc,
    "flava_itm": flava_itm,
}


def lxmert(directory, names=True):
    tokenizer = bert_tokenizer()
    config = tr.LxmertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        l_layers=1,
        x_layers=1,
        r_layers=1,
        visual_feat_dim=12,
        max_position_embeddings=40,
        num_qa_labels=len(ANSWERS),
        **({"id2label": dict(enumerate(ANSWERS))} if names else {}),
    )
    return save(directory, randomize(tr.LxmertForQuestionAnswering(config)), tokenizer)


def visual_bert(directory, names=True):
    tokenizer = bert_tokenizer()
    config = tr.VisualBertConfig(
        **BERT,
        vocab_size=len(tokenizer),
        visual_embedding_dim=12,
        **({"id2label": dict(enumerate(ANSWERS))} if names else {"num_labels": len(ANSWERS)}),
    )
    return save(directory, randomize(tr.VisualBertForQuestionAnswering(config)), tokenizer)


def llava(directory):
    tokenizer = tiny.llama_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<unk>"})
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    text = tr.LlamaConfig(
        **{**TEXT, "max_position_embeddings": 256},
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = tr.LlavaConfig(
        vision_config=tr.CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = tr.LlavaProcessor(
        image_processor=tr.CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}USER:{% for c in m.content %}"
            "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
            "{% endfor %}{% endfor %}ASSISTANT:"
        ),
    )
    model = randomize(tr.LlavaForConditionalGeneration(config), seed=6)
    return save(directory, model, processor)


ANSWERERS = {
    "vilt_vqa": vilt_vqa,
    "blip_vqa": blip_vqa,
    "blip_2": blip_2,
    "git": git,
    "llava": llava,
}


def coca(directory):
    """As open_clip publishes it: a text tower with a class token, and a decoder on top."""
    import open_clip as oc

    text = {"context_length": 20, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}
    vision = {
        "image_size": 16,
        "layers": 2,
        "width": 16,
        "head_width": 8,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    model_cfg = {
        "embed_dim": 8,
        "vision_cfg": vision,
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text,
    }
    tiny.open_clip(directory)
    content = json.loads((directory / "open_clip_config.json").read_text())
    content["model_cfg"] = {**model_cfg, "custom_text": True}
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    weights = randomize(oc.CoCa(**model_cfg), seed=8).state_dict()
    save_file(weights, directory / "open_clip_model.safetensors")
    return directory


def clipcap(directory, kind="mlp", prefix=4, suffix=".pt"):
    """As released: the mapper and a whole GPT-2 in one file."""
    tiny.clip(directory / "clip")
    tiny.gpt2(directory / "gpt2")
    generator = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.5

    width = 16
    if kind == "mlp":
        half = width * prefix // 2
        weights = {
            "model.0.weight": draw(half, 12),
            "model.0.bias": draw(half),
            "model.2.weight": draw(width * prefix, half),
            "model.2.bias": draw(width * prefix),
        }
    else:
        weights = {
            "linear.weight": draw(3 * width, 12),
            "linear.bias": draw(3 * width),
            "prefix_const": draw(prefix, width),
        }
        for layer in range(2):
            own = {
                "norm1.weight": 1 + draw(width),
                "norm1.bias": draw(width),
                "attn.to_queries.weight": draw(width, width),
                "attn.to_keys_values.weight": draw(2 * width, width),
                "attn.project.weight": draw(width, width),
                "attn.project.bias": draw(width),
                "norm2.weight": 1 + draw(width),
                "norm2.bias": draw(width),
                "mlp.fc1.weight": draw(2 * width, width),
                "mlp.fc1.bias": draw(2 * width),
                "mlp.fc2.weight": draw(width, 2 * width),
                "mlp.fc2.bias": draw(width),
            }
            weights |= {f"transformer.layers.{layer}.{name}": w for name, w in own.items()}
    config = tr.GPT2Config.from_pretrained(directory / "gpt2")
    own = randomize(tr.GPT2LMHeadModel(config), seed=11).state_dict()
    held = {f"clip_project.{name}": weight for name, weight in weights.items()}
    held |= {f"gpt.{name}": weight.clone() for name, weight in own.items()}
    held["gpt.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    (save_file if suffix == ".safetensors" else torch.save)(held, directory / f"coco{suffix}")
    told = {
        "weights": f"coco{suffix}",
        "encoder": str(directory / "clip"),
        "language_model": str(directory / "gpt2"),
    }
    (directory / "clipcap.json").write_text(json.dumps(told))
    return directory


WRITERS = {
    "blip_caption": blip_caption,
    "blip_2": blip_2,
    "git": git,
    "encoder_decoder": encoder_decoder,
    "llava": llava,
    "coca": coca,
    "clipcap": clipcap,
}
REGIONS = {"lxmert": lxmert, "visual_bert": visual_bert}
ALL = {**PAIRS, **ANSWERERS, **WRITERS, **REGIONS}
