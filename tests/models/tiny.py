"""Tiny random models of the real classes, written as their publishers write theirs."""

import io
import json
import math
import string
from pathlib import Path

import sentencepiece
import torch
import transformers as tr
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import TemplateProcessing

SCALE = 37.0
"""Not CLIP's 100, not a fresh configuration's 14.3: whoever assumes one is found out."""
BIAS = -5.0

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
PIXELS = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}
CROP = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
CROP_32 = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
LETTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + ".,!?'"


def randomize(model, seed=0):
    """Weights large enough that different inputs give clearly different embeddings."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("logit_scale"):
                weight.fill_(math.log(SCALE))
            elif name.endswith("temperature"):
                weight.fill_(1 / SCALE)
            elif name.endswith("logit_bias"):
                weight.fill_(BIAS)
            elif weight.ndim > 1:
                fan_in = weight[0].numel()
                weight.normal_(0, 1.5 / math.sqrt(fan_in), generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, 0.2, generator=generator)
    return model


def clip_tokenizer():
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return tr.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=24
    )


def bert_tokenizer():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*LETTERS, *("##" + letter for letter in LETTERS)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return tr.BertTokenizer(vocab=vocabulary, model_max_length=512)


def roberta_like_tokenizer():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, "<mask>"]
    return tr.XLMRobertaTokenizer(
        vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], model_max_length=512
    )


def save_siglip_tokenizer(directory):
    """SigLIP's two forms of one tokenizer: a SentencePiece model, and its `tokenizer.json`.

    Returns the number of pieces.
    """
    words = ["a photo of a cat", "two dogs on a sofa", "the red bicycle", "zebra jug vex fly wok"]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 4),
        model_writer=buffer,
        vocab_size=48,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "spiece.model").write_bytes(buffer.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": 24,
        "do_lower_case": True,
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "model_input_names": ["input_ids"],
    }
    write(directory / "tokenizer_config.json", settings)
    return len(vocabulary)


def gemma_tokenizer(kind=tr.GemmaTokenizer):
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    return kind(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        model_max_length=24,
        add_bos_token=False,
        add_eos_token=True,
    )


def gpt2_tokenizer(extra=("<-start_of_text->",)):
    tokens = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = tr.GPT2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=32
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    return tokenizer


def llama_tokenizer():
    tokens = ["<unk>", "<s>", "</s>", "▁", *LETTERS]
    return tr.LlamaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def save(directory, model, *companions):
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    for companion in companions:
        companion.save_pretrained(directory)
    return directory


# ---------------------------------------------------------------------------- dual encoders


def clip_text(tokenizer):
    """The text side of what is built on CLIP."""
    return {
        **TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def clip(directory, seed=0):
    tokenizer = clip_tokenizer()
    text = clip_text(tokenizer)
    config = tr.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    images = tr.CLIPImageProcessorPil(**CROP)
    return save(directory, randomize(tr.CLIPModel(config), seed), tokenizer, images)


def metaclip_2(directory):
    tokenizer = roberta_like_tokenizer()
    text = clip_text(tokenizer)
    config = tr.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=12)
    images = tr.CLIPImageProcessorPil(**CROP)
    return save(directory, randomize(tr.MetaClip2Model(config)), tokenizer, images)


def chinese_clip(directory):
    tokenizer = bert_tokenizer()
    config = tr.ChineseCLIPConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config=VISION,
        projection_dim=12,
    )
    images = tr.ChineseCLIPImageProcessorPil(**PIXELS)
    return save(directory, randomize(tr.ChineseCLIPModel(config)), tokenizer, images)


def altclip(directory):
    tokenizer = roberta_like_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "project_dim": 12, "pad_token_id": 1}
    config = tr.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    images = tr.CLIPImageProcessorPil(**CROP)
    return save(directory, randomize(tr.AltCLIPModel(config)), tokenizer, images)


def align(directory):
    tokenizer = bert_tokenizer()
    vision = {
        "image_size": 32,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "hidden_dim": 16,
        "kernel_sizes": [3, 3],
        "in_channels": [8, 8],
        "out_channels": [8, 64],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
    }
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 96}
    config = tr.AlignConfig(text_config=text, vision_config=vision, projection_dim=16)
    images = tr.EfficientNetImageProcessorPil(size={"height": 32, "width": 32})
    return save(directory, randomize(tr.AlignModel(config)), tokenizer, images)


def flava(directory):
    tokenizer = bert_tokenizer()
    multimodal = {key: value for key, value in TEXT.items() if key != "max_position_embeddings"}
    config = tr.FlavaConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        image_config=VISION,
        multimodal_config=multimodal,
        projection_dim=12,
        hidden_size=16,
    )
    images = tr.FlavaImageProcessorPil(**PIXELS)
    return save(directory, randomize(tr.FlavaModel(config)), tokenizer, images)


def siglip(directory):
    directory.mkdir(parents=True, exist_ok=True)
    pieces = save_siglip_tokenizer(directory)
    images = tr.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    return save(directory, randomize(tr.SiglipModel(siglip_config(pieces))), images)


def siglip_config(vocabulary):
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    text = {**TEXT, **special, "vocab_size": vocabulary, "projection_size": 16}
    return tr.SiglipConfig(text_config=text, vision_config=VISION)


def siglip2_fixed(directory):
    """SigLIP 2 at one resolution: SigLIP's model type, Gemma's tokenizer."""
    tokenizer = gemma_tokenizer()
    images = tr.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    model = randomize(tr.SiglipModel(siglip_config(len(tokenizer))))
    return save(directory, model, tokenizer, images)


def siglip2(directory):
    tokenizer = gemma_tokenizer(tr.Siglip2Tokenizer)
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    config = tr.Siglip2Config(
        text_config=siglip_config(len(tokenizer)).text_config.to_dict(),
        vision_config={**vision, "num_patches": 16},
    )
    images = tr.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=9)
    return save(directory, randomize(tr.Siglip2Model(config)), tokenizer, images)


def aimv2(directory):
    tokenizer = clip_tokenizer()
    config = tr.Aimv2Config(
        text_config={**clip_text(tokenizer), "num_attention_heads": 2},
        vision_config=VISION,
        projection_dim=12,
    )
    images = tr.CLIPImageProcessorPil(**CROP)
    return save(directory, randomize(tr.Aimv2Model(config)), tokenizer, images)


def tipsv2(directory):
    """Its image processor needs torchvision; the file is as that would write it."""
    tokens = ["<pad>", "<unk>", "▁", *LETTERS]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tr.Tipsv2Tokenizer(vocab=vocabulary, model_max_length=24)
    config = tr.Tipsv2Config(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config={key: v for key, v in VISION.items() if key != "intermediate_size"},
    )
    directory = save(directory, randomize(tr.Tipsv2Model(config)), tokenizer)
    settings = {"image_processor_type": "Tipsv2ImageProcessor", "size": PIXELS["size"]}
    write(directory / "preprocessor_config.json", settings)
    return directory


def vision_text(directory):
    """LiT and its like: a vision backbone and a text model, joined by projections."""
    tokenizer = bert_tokenizer()
    config = tr.VisionTextDualEncoderConfig.from_vision_text_configs(
        tr.ViTConfig(**VISION), tr.BertConfig(**TEXT, vocab_size=len(tokenizer)), projection_dim=12
    )
    images = tr.ViTImageProcessorPil(size={"height": 16, "width": 16})
    return save(directory, randomize(tr.VisionTextDualEncoderModel(config)), tokenizer, images)


DUAL = {
    "clip": clip,
    "metaclip_2": metaclip_2,
    "chinese_clip": chinese_clip,
    "altclip": altclip,
    "align": align,
    "flava": flava,
    "siglip": siglip,
    "siglip2": siglip2,
    "siglip2_fixed": siglip2_fixed,
    "vision_text": vision_text,
    "aimv2": aimv2,
    "tipsv2": tipsv2,
}


def open_clip(directory, seed=0, **changes):
    """An open_clip model as `hf-hub:` repositories hold it."""
    import open_clip as oc

    model_cfg = {
        "embed_dim": 12,
        "vision_cfg": {
            "image_size": 16,
            "layers": 2,
            "width": 16,
            "head_width": 8,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 20,
            "vocab_size": 49408,
            "width": 8,
            "heads": 2,
            "layers": 2,
        },
        **changes,
    }
    preprocess_cfg = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    directory.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    kind = oc.CustomTextCLIP if model_cfg.pop("custom_text", False) else oc.CLIP
    weights = randomize(kind(**model_cfg), seed).state_dict()
    save_file(weights, directory / "open_clip_model.safetensors")
    return directory


# ---------------------------------------------------------------------------- image encoders

SQUARE = {"size": {"height": 16, "width": 16}}


def vit(directory):
    images = tr.ViTImageProcessorPil(**SQUARE)
    return save(directory, randomize(tr.ViTModel(tr.ViTConfig(**VISION))), images)


def vit_classifier(directory):
    """As most ViTs are published: without the pooler that `ViTModel` has."""
    images = tr.ViTImageProcessorPil(**SQUARE)
    return save(directory, randomize(tr.ViTForImageClassification(tr.ViTConfig(**VISION))), images)


def dinov2(directory):
    config = tr.Dinov2Config(**VISION)
    images = tr.BitImageProcessorPil(**CROP)
    return save(directory, randomize(tr.Dinov2Model(config)), images)


def convnext(directory):
    config = tr.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2)
    images = tr.ConvNextImageProcessorPil(size={"shortest_edge": 32})
    return save(directory, randomize(tr.ConvNextModel(config)), images)


def resnet(directory):
    config = tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    images = tr.ConvNextImageProcessorPil(size={"shortest_edge": 32})
    return save(directory, randomize(tr.ResNetModel(config)), images)


def poolformer(directory):
    """A backbone without pooler and class token, whose states are a picture `[d h w]`."""
    config = tr.PoolFormerConfig(
        hidden_sizes=[8, 12],
        depths=[1, 1],
        num_encoder_blocks=2,
        patch_sizes=[4, 3],
        strides=[4, 2],
        padding=[1, 1],
        layer_scale_init_value=1.0,
    )
    images = tr.PoolFormerImageProcessorPil(**CROP_32)
    return save(directory, randomize(tr.PoolFormerModel(config)), images)


def mobilenet_v2(directory):
    config = tr.MobileNetV2Config(depth_multiplier=0.25, image_size=32)
    images = tr.MobileNetV2ImageProcessorPil(**CROP_32)
    return save(directory, randomize(tr.MobileNetV2ForImageClassification(config)), images)


IMAGE = {
    "vit": vit,
    "vit_classifier": vit_classifier,
    "dinov2": dinov2,
    "convnext": convnext,
    "resnet": resnet,
    "poolformer": poolformer,
    "mobilenet_v2": mobilenet_v2,
}

# ----------------------------------------------------------------------------- text encoders


def bert(directory):
    tokenizer = bert_tokenizer()
    config = tr.BertConfig(**TEXT, vocab_size=len(tokenizer))
    return save(directory, randomize(tr.BertModel(config)), tokenizer)


def roberta(directory):
    tokenizer = roberta_like_tokenizer()
    config = tr.XLMRobertaConfig(**TEXT, vocab_size=len(tokenizer), pad_token_id=1)
    return save(directory, randomize(tr.XLMRobertaForMaskedLM(config)), tokenizer)


def t5(directory):
    tokenizer = bert_tokenizer()
    tokenizer.model_max_length = 24
    config = tr.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return save(directory, randomize(tr.T5EncoderModel(config)), tokenizer)


def sentence(directory, pooling="mean", dense=False, **settings):
    """A BERT with the files sentence-transformers writes beside it."""
    bert(directory)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write(directory / "1_Pooling" / "config.json", {f"pooling_mode_{pooling}": True})
    if dense:
        modules.append(("2_Dense", "Dense"))
        activation = "torch.nn.modules.activation.Tanh"
        write(directory / "2_Dense" / "config.json", {"activation_function": activation})
        layer = randomize(torch.nn.Linear(16, 10)).state_dict()
        weights = {f"linear.{key}": value for key, value in layer.items()}
        save_file(weights, directory / "2_Dense" / "model.safetensors")
    modules.append(("9_Normalize", "Normalize"))
    content = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    write(directory / "modules.json", content)
    if settings:
        write(directory / "sentence_bert_config.json", settings)
    return directory


TEXTS = {"bert": bert, "roberta": roberta, "t5": t5, "sentence": sentence}

# --------------------------------------------------------------------------- language models


def gpt2(directory):
    tokenizer = gpt2_tokenizer()
    config = tr.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return save(directory, randomize(tr.GPT2LMHeadModel(config)), tokenizer)


def llama(directory):
    tokenizer = llama_tokenizer()
    config = tr.LlamaConfig(
        **{**TEXT, "max_position_embeddings": 32},
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        bos_token_id=1,
        eos_token_id=2,
    )
    return save(directory, randomize(tr.LlamaForCausalLM(config)), tokenizer)


LANGUAGE = {"gpt2": gpt2, "llama": llama}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------ segmentation and detection


def clipseg(directory):
    tokenizer = clip_tokenizer()
    config = tr.CLIPSegConfig(
        text_config=clip_text(tokenizer),
        vision_config={**VISION, "num_hidden_layers": 3},
        projection_dim=12,
        reduce_dim=8,
        extract_layers=[0, 1, 2],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    images = tr.ViTImageProcessorPil(size={"height": 16, "width": 16})
    model = randomize(tr.CLIPSegForImageSegmentation(config))
    return save(directory, model, tokenizer, images)


def xclip(directory):
    tokenizer = clip_tokenizer()
    vision = {
        **VISION,
        "image_size": 16,
        "num_frames": 4,
        "mit_hidden_size": 12,
        "mit_intermediate_size": 24,
        "mit_num_hidden_layers": 1,
        "mit_num_attention_heads": 2,
    }
    config = tr.XCLIPConfig(
        text_config=clip_text(tokenizer),
        vision_config=vision,
        projection_dim=12,
        prompt_layers=2,
        prompt_num_attention_heads=2,
        prompt_alpha=0.5,
    )
    images = tr.VideoMAEImageProcessorPil(**CROP)
    return save(directory, randomize(tr.XCLIPModel(config)), tokenizer, images)


def videoprism(directory):
    """Its video processor needs torchvision; the file is as that would write it."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    scores = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    tokenizer = tr.VideoPrismTokenizer(vocab=scores, extra_ids=0, model_max_length=24)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    vision = {"image_size": 16, "num_frames": 4, "tubelet_size": [1, 8, 8], **tower}
    layers = {"num_spatial_layers": 2, "num_temporal_layers": 1, "num_auxiliary_layers": 1}
    config = tr.VideoPrismConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)}, vision_config={**vision, **layers}
    )
    directory = save(directory, randomize(tr.VideoPrismClipModel(config)), tokenizer)
    settings = {
        "video_processor_type": "LlavaOnevisionVideoProcessor",
        "size": {"height": 16, "width": 16},
        "do_normalize": False,
        "do_sample_frames": True,
    }
    write(directory / "video_preprocessor_config.json", settings)
    return directory


def groupvit(directory):
    tokenizer = clip_tokenizer()
    vision = {
        **VISION,
        "image_size": 32,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_group_tokens": [6, 3, 0],
        "num_output_groups": [6, 3, 0],
    }
    config = tr.GroupViTConfig(
        text_config=clip_text(tokenizer),
        vision_config=vision,
        projection_dim=12,
        projection_intermediate_dim=24,
    )
    images = tr.CLIPImageProcessorPil(**CROP_32)
    return save(directory, randomize(tr.GroupViTModel(config)), tokenizer, images)


def _sam3(directory, tokenizer, config_class, model_class, text):
    """Its image processor needs torchvision; the file is as that would write it."""
    small = {"hidden_size": 32, "num_attention_heads": 2}
    layers = {**small, "num_layers": 2, "intermediate_size": 32}
    backbone = tr.Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=4,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=16,
    )
    config = config_class(
        vision_config=tr.Sam3VisionConfig(
            backbone_config=backbone,
            fpn_hidden_size=32,
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        ),
        text_config=text,
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 5},
        mask_decoder_config=small,
    )
    directory = save(directory, randomize(model_class(config)), tokenizer)
    settings = {
        "image_processor_type": "Sam3ImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    write(directory / "processor_config.json", {"image_processor": settings})
    return directory


def sam3(directory):
    tokenizer = clip_tokenizer()
    text = tr.CLIPTextConfig(**clip_text(tokenizer), projection_dim=16)
    return _sam3(directory, tokenizer, tr.Sam3Config, tr.Sam3Model, text)


def sam3_lite_text(directory):
    """Its positions are of another number than the tokens of a prompt."""
    tokenizer = clip_tokenizer()
    text = {**TEXT, "num_hidden_layers": 3, "vocab_size": len(tokenizer), "projection_dim": 16}
    config = tr.Sam3LiteTextConfig
    return _sam3(directory, tokenizer, config, tr.Sam3LiteTextModel, text)


SEGMENTERS = {
    "clipseg": clipseg,
    "groupvit": groupvit,
    "sam3": sam3,
    "sam3_lite_text": sam3_lite_text,
}


def _owl(directory, config, model, images):
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 16
    text = {**clip_text(tokenizer), "max_position_embeddings": 16}
    made = config(text_config=text, vision_config={**VISION, "image_size": 32}, projection_dim=16)
    return save(directory, randomize(model(made)), tokenizer, images)


def owlvit(directory):
    images = tr.OwlViTImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    return _owl(directory, tr.OwlViTConfig, tr.OwlViTForObjectDetection, images)


def owlv2(directory):
    images = tr.Owlv2ImageProcessorPil(size={"height": 32, "width": 32})
    return _owl(directory, tr.Owlv2Config, tr.Owlv2ForObjectDetection, images)


def grounding_dino(directory):
    return _grounding_dino(directory, tr.GroundingDinoConfig, tr.GroundingDinoForObjectDetection)


def mm_grounding_dino(directory):
    return _grounding_dino(
        directory, tr.MMGroundingDinoConfig, tr.MMGroundingDinoForObjectDetection
    )


def _grounding_dino(directory, config_class, model_class):
    tokenizer = bert_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    backbone = tr.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3"],
    )
    config = config_class(
        backbone_config=backbone,
        text_config=tr.BertConfig(**text),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        num_feature_levels=3,
        max_text_len=48,
    )
    images = tr.GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96})
    return save(directory, randomize(model_class(config)), tokenizer, images)


def omdet_turbo(directory):
    tokenizer = clip_tokenizer()
    backbone = tr.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = tr.OmDetTurboConfig(
        text_config=tr.CLIPTextConfig(**clip_text(tokenizer)),
        backbone_config=backbone,
        apply_layernorm_after_vision_backbone=False,
        image_size=64,
        text_projection_in_dim=16,
        text_projection_out_dim=16,
        task_encoder_hidden_dim=16,
        class_embed_dim=16,
        num_queries=12,
        encoder_hidden_dim=32,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=2,
        encoder_dim_feedforward=32,
        decoder_hidden_dim=32,
        decoder_num_heads=2,
        decoder_num_layers=2,
        decoder_dim_feedforward=32,
    )
    images = tr.DetrImageProcessorPil(size={"height": 64, "width": 64}, do_pad=False)
    model = randomize(tr.OmDetTurboForObjectDetection(config))
    return save(directory, model, tokenizer, images)


DETECTORS = {
    "omdet_turbo": omdet_turbo,
    "owlvit": owlvit,
    "owlv2": owlv2,
    "grounding_dino": grounding_dino,
    "mm_grounding_dino": mm_grounding_dino,
}

CLIPS = {"xclip": xclip, "videoprism": videoprism}
