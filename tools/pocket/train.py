"""Make the pocket model set: `python tools/pocket/train.py --out zeroshot/models/pocket`.

Draws a pool of scenes, then trains four models that share nothing but the world: an image encoder
from attributes (no text), a text encoder from paraphrases (no pictures), a language model from
captions, and CLIP from pictures and texts; and pairs the two unimodal encoders on anchor scenes.
Seeded.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from language import (
    LABEL_TEMPLATES,
    caption,
    continuations,
    distort,
    distortions,
    draw_part,
    holds,
    join,
    pick,
    say,
    sentences,
)
from muon import Muon
from PIL import Image
from pool import AXES, SIDE, Pool, held_out_scenes, render_pool, with_mirror_images
from safetensors.torch import save_file
from tokens import START, bert_tokenizer, clip_tokenizer, lm_tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
)
from world import BACKGROUNDS, SHAPES, Scene, draw_scene, labels, render

SLOTS = 3  # things a scene can hold
KINDS = [
    len(names) + 1 for names in AXES
]  # classes of size, colour, shape; the last one is "nothing there"
MEAN = STD = 0.5  # pixel normalisation


# ----------------------------------------------------------------------------- shared by all models


def fit(
    name: str, modules: list[nn.Module], steps: int, rate: float, loss_at: Callable[[int], Tensor]
) -> None:
    """Muon for matrices, AdamW for the rest, warm-up and cosine decay.

    `loss_at(step)` draws its own batch. On the vision tower Muon reached in 400 steps the loss
    that AdamW had after 700.
    """
    parameters = [p for module in modules for p in module.parameters()]
    tables = {
        m.weight for module in modules for m in module.modules() if isinstance(m, nn.Embedding)
    }
    matrices = [p for p in parameters if p.ndim == 2 and p not in tables]
    others = [p for p in parameters if p.ndim != 2 or p in tables]
    optimisers = [
        Muon(matrices, lr=rate, weight_decay=0.02),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    warm = min(200, steps // 10 + 1)

    def share(step: int) -> float:
        return min((step + 1) / warm, 0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, share) for o in optimisers]
    start, recent = time.time(), 0.0
    for step in range(steps):
        loss = loss_at(step)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            print(
                f"{name} {step + 1}/{steps} loss {recent:.4f} {time.time() - start:.0f} s",
                flush=True,
            )


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 inside the towers on a GPU; float32 on CPUs, of which few are fast in less."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """[n 64 64 3] uint8 to what the image processors give: [n 3 64 64] float."""
    return (torch.from_numpy(images).to(device).permute(0, 3, 1, 2) / 255 - MEAN) / STD


def save_half(model: PreTrainedModel, tokenizer_or_none, folder: Path) -> None:
    """Write weights in float16 with their configuration and, where there is one, the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.float16).save_pretrained(folder)
    model.float()
    if tokenizer_or_none is not None:
        tokenizer_or_none.save_pretrained(folder)


def save_processor(folder: Path) -> None:
    """The picture preparation all pocket image encoders share."""
    CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    ).save_pretrained(folder)


class SceneHeads(nn.Module):
    """What the renderer knows, asked of one vector: attributes, relation, background."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = [*KINDS * SLOTS, 4, len(BACKGROUNDS)]
        self.net = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, sum(self.widths)))

    def forward(self, features: Tensor, pool: Pool, rows: np.ndarray) -> Tensor:
        """Mean cross-entropy of all questions."""
        answers = self.net(features).split(self.widths, -1)
        things = pool.things[rows].reshape(len(rows), -1)  # [n 9]: thing by thing
        rest = np.stack([pool.relation[rows], pool.background[rows]], 1)
        truth = np.concatenate([things, rest], 1).astype(np.int64)
        truth = np.where(truth < 0, np.array(self.widths) - 1, truth)
        goal = torch.from_numpy(truth).to(features.device)
        losses = [F.cross_entropy(a.float(), goal[:, i]) for i, a in enumerate(answers)]
        return torch.stack(losses).mean()


# -------------------------------------------------------------------- image encoder: never saw text


def train_image_encoder(
    pool: Pool, rng: np.random.Generator, device: torch.device, steps: int
) -> ResNetModel:
    """A small ResNet learns which colour-and-shape pairs are there, and the scene, from labels."""
    config = ResNetConfig(
        embedding_size=24, hidden_sizes=[24, 48, 96, 128], depths=[1, 1, 1, 1], layer_type="basic"
    )
    model = ResNetModel(config).to(device)
    names = nn.Linear(128, len(labels())).to(device)
    heads = SceneHeads(128).to(device)
    present = torch.from_numpy(present_labels(pool)).float()

    def loss_at(step: int) -> Tensor:
        rows = rng.integers(len(pool), size=256)
        with half_precision(device):
            features = model(pixels(pool.images[rows], device)).pooler_output.flatten(1)
            found, scene = (
                names(F.normalize(features.float(), dim=-1) * 12),
                heads(features, pool, rows),
            )
        goal = present[rows].to(device)
        return 20 * F.binary_cross_entropy_with_logits(found.float(), goal) + scene

    model.train()
    fit("image_encoder", [model, names, heads], steps, 3e-3, loss_at)
    return model.eval()


def present_labels(pool: Pool) -> np.ndarray:
    """bool [n c]: which colour-and-shape names are true of each scene."""
    colour, shape = pool.things[..., 1].astype(int), pool.things[..., 2].astype(int)
    present = np.zeros((len(pool), len(labels()) + 1), bool)
    index = np.where(colour >= 0, colour * len(SHAPES) + shape, len(labels()))
    np.put_along_axis(present, index, True, 1)
    return present[:, :-1]


# ---------------------------------------------------------------- text encoder: never saw a picture


def train_text_encoder(
    rng: np.random.Generator, device: torch.device, steps: int
) -> tuple[BertModel, Callable]:
    """A small BERT learns that two ways to describe one scene match, and a part to its whole."""
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=384,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config).to(device)
    model.set_attn_implementation("eager")

    def encode(texts: list[str]) -> Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return F.normalize(((hidden * mask).sum(1) / mask.sum(1)).float(), dim=-1)

    def loss_at(step: int) -> Tensor:
        scenes = [draw_scene(rng) for _ in range(160)]
        things = scene_indices(scenes)
        background = np.array([BACKGROUNDS.index(s.background) for s in scenes])
        parts, part_texts = draw_parts(rng, things, background)
        wrong = [pick(rng, sentences(distort(rng, scene))[:1]) for scene in scenes]
        texts = (
            [say(rng, s) for s in scenes]
            + [say(rng, s) for s in scenes]
            + part_texts
            + [join(w) for w in wrong]
        )
        with half_precision(device):
            one, other, part, false = encode(texts).split(len(scenes))
        twin = torch.tensor([[a == b for b in scenes] for a in scenes], device=device)
        true = torch.from_numpy(holds(parts, things, background)).to(device)
        falsity = torch.tensor(
            [join(w) != caption(s) for w, s in zip(wrong, scenes, strict=True)], device=device
        )
        against = (20 * (one * false).sum(-1)).masked_fill(~falsity, -1e4)
        return (
            soft_match(20 * one @ other.T, twin, against)
            + soft_match(20 * other @ one.T, twin)
            + soft_match(20 * part @ one.T, true)
        )

    model.train()
    fit("text_encoder", [model], steps, 2e-3, loss_at)
    model.eval()
    return model, encode


def scene_indices(scenes: list) -> np.ndarray:
    """[n 3 3]: size, colour, shape of each thing, -1 where there is none; as in `Pool.things`."""
    things = np.full((len(scenes), SLOTS, 3), -1)
    for i, scene in enumerate(scenes):
        for o, thing in enumerate(scene.things):
            things[i, o] = [
                a.index(v)
                for a, v in zip(AXES, (thing.size, thing.colour, thing.shape), strict=True)
            ]
    return things


def draw_parts(
    rng: np.random.Generator, things: np.ndarray, background: np.ndarray
) -> tuple[list, list[str]]:
    """One partial description per scene, of one of its things."""
    counts = (things[..., 0] >= 0).sum(1)
    chosen = [
        draw_part(rng, things[i, rng.integers(counts[i])], int(background[i]))
        for i in range(len(things))
    ]
    return [part for part, _ in chosen], [text for _, text in chosen]


def soft_match(scores: Tensor, true: Tensor, against: Tensor | None = None) -> Tensor:
    """Cross-entropy of each row with all its true columns; `against [n]` is one more, false."""
    goal = true.float() / true.sum(-1, keepdim=True)
    if against is not None:
        scores, goal = torch.cat([scores, against[:, None]], 1), F.pad(goal, (0, 1))
    return F.cross_entropy(scores, goal)


# ----------------------------------------------------------------------------------- language model


def train_lm(seed: np.random.SeedSequence, device: torch.device, steps: int) -> GPT2LMHeadModel:
    """A small GPT-2 reads captions alone: most whole, some without sizes or background."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(int(rng.integers(2**31)))
    tokenizer = lm_tokenizer()
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=96,
        n_layer=3,
        n_head=3,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).to(device)
    model.set_attn_implementation("eager")

    def loss_at(step: int) -> Tensor:
        texts = []
        for _ in range(256):
            text = say(rng, draw_scene(rng), plain=True)
            texts.append(
                START
                + (text.rsplit(" on a ", 1)[0] if rng.random() < 0.1 else text)
                + tokenizer.eos_token
            )
        batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        goal = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with half_precision(device):
            logits = model(**batch).logits[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), goal[:, 1:].flatten())

    model.train()
    fit("lm", [model], steps, 2e-3, loss_at)
    return model.eval()


# --------------------------------------------------------------------------------------------- CLIP


def make_clip(tokenizer) -> CLIPModel:
    """CLIP in small: causal text tower, pooled at the end token, learnt logit scale."""
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
    }
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={**tower, **ids, "num_hidden_layers": 3, "vocab_size": len(tokenizer)},
        vision_config={**tower, "num_hidden_layers": 6, "image_size": SIDE, "patch_size": 8},
        projection_dim=128,
        **ids,
    )
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # at these sizes twice as fast as sdpa
    return model


class GridHeads(nn.Module):
    """What the renderer knows of each patch, asked of its token: attributes and pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = [len(names) for names in AXES]
        self.net = nn.Linear(width, sum(self.widths) + 64)

    def forward(self, tokens: Tensor, pool: Pool, rows: np.ndarray) -> Tensor:
        """Mean cross-entropy, attributes only where a thing is; `tokens [n 65 d]`, class first."""
        *answers, inside = self.net(tokens[:, 1:]).float().split([*self.widths, 64], -1)
        grid = pool.grid[rows].astype(np.int64)  # [n 64]
        things = pool.things[rows].astype(np.int64)
        things = np.take_along_axis(things, np.maximum(grid, 0)[..., None], 1)  # [n 64 3]
        goal = torch.from_numpy(np.where(grid[..., None] < 0, -100, things)).to(tokens.device)
        mask = torch.from_numpy(np.unpackbits(pool.mask[rows], axis=-1)).to(tokens.device)
        losses = [
            F.cross_entropy(a.flatten(0, 1), goal[..., i].flatten()) for i, a in enumerate(answers)
        ]
        outlines = F.binary_cross_entropy_with_logits(inside, mask.float())
        return torch.stack(losses).mean() + 3 * outlines


class ClipTrainer:
    """The losses of the dual encoder; the heads are dropped afterwards."""

    def __init__(
        self, pool: Pool, rng: np.random.Generator, device: torch.device, batch: int = 128
    ) -> None:
        self.pool, self.rng, self.device, self.batch = pool, rng, device, batch
        self.tokenizer = clip_tokenizer()
        lm = lm_tokenizer(more=())
        self.lm_tokens = [lm.decode([i]) for i in range(len(lm)) if i not in lm.all_special_ids]
        self.model = make_clip(self.tokenizer).to(device)
        self.grid_heads, self.scene_heads = GridHeads(128).to(device), SceneHeads(128).to(device)
        self.present = torch.from_numpy(present_labels(pool)).float().to(device)

    def modules(self) -> list[nn.Module]:
        """What learns."""
        return [self.model, self.grid_heads, self.scene_heads]

    def see(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Unit image embeddings [b d] of some pool rows, and the loss of the heads on them."""
        with half_precision(self.device):
            out = self.model.vision_model(pixels(self.pool.images[rows], self.device))
            image = self.model.visual_projection(out.pooler_output)
            aside = self.grid_heads(out.last_hidden_state, self.pool, rows)
            aside = aside + self.scene_heads(image, self.pool, rows)
        return F.normalize(image.float(), dim=-1), aside

    def read(self, texts: list[str], parts: int = 4) -> Tensor:
        """Unit text embeddings [t d]; texts of like length go together, to pad little."""
        ids = self.tokenizer(texts, truncation=True)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found = []
        for chunk in np.array_split(np.array(order), parts):
            batch = self.tokenizer.pad(
                {"input_ids": [ids[i] for i in chunk]}, return_tensors="pt"
            ).to(self.device)
            with half_precision(self.device):
                found.append(
                    self.model.text_projection(self.model.text_model(**batch).pooler_output)
                )
        back = torch.tensor(np.argsort(order), device=self.device)
        return F.normalize(torch.cat(found)[back].float(), dim=-1)

    def look(self, step: int) -> Tensor:
        """First lesson: pictures only, so that the vision tower is worth contrasting with."""
        return self.see(self.rng.integers(len(self.pool), size=self.batch))[1]

    def match(self, step: int) -> Tensor:
        """Second lesson: captions, parts, labels, and the choices of captioning word by word."""
        rows = self.rng.integers(len(self.pool), size=self.batch)
        things, background = self.pool.things[rows], self.pool.background[rows]
        scenes = [self.pool.scene(i) for i in rows]
        image, aside = self.see(rows)

        parts, part_texts = draw_parts(self.rng, things, background)
        others = 6
        choices = [t for s in scenes for t in continuations(self.rng, s, others, self.lm_tokens)]
        falsehoods = [t for s in scenes for t in distortions(self.rng, s, 3)[1:]]
        template = pick(self.rng, LABEL_TEMPLATES)
        texts = [say(self.rng, s) for s in scenes] + part_texts + falsehoods + choices
        encoded = self.read(texts + [template.format(name) for name in labels()])
        b = self.batch
        whole, part, false, choice, name = encoded.split([b, b, 2 * b, others * b, len(labels())])

        scale = self.model.logit_scale.exp().clamp(max=100)
        twin = torch.tensor([[x == y for y in scenes] for x in scenes], device=self.device)
        true = torch.from_numpy(holds(parts, things, background)).to(self.device)
        present = self.present[rows] > 0
        # An image also meets what is nearly true of the others.
        scores = scale * image @ torch.cat([whole, false]).T
        known = F.pad(twin, (0, 2 * b))
        near = scale * torch.einsum(
            "bd,btd->bt", image, torch.cat([whole[:, None], false.view(b, 2, -1)], 1)
        )
        steps = scale * torch.einsum("bd,btd->bt", image, choice.view(b, others, -1))
        first = torch.zeros(b, dtype=torch.long, device=self.device)
        return (
            soft_match(scores, known)
            + soft_match(scale * whole @ image.T, twin)
            + 0.5 * soft_match(scale * part @ image.T, true)
            + 0.5 * soft_match(scale * image @ name.T, present)
            + F.cross_entropy(near, first)
            + 2 * F.cross_entropy(steps, first)
            + aside
        )


def train_clip(
    pool: Pool, seed: np.random.SeedSequence, device: torch.device, scaled: Callable
) -> ClipTrainer:
    """Pictures first, then pictures and texts."""
    first, second = map(np.random.default_rng, seed.spawn(2))
    torch.manual_seed(int(first.integers(2**31)))
    trainer = ClipTrainer(pool, first, device, batch=64)
    trainer.model.train()
    fit("clip look", trainer.modules(), scaled(2000), 2e-3, trainer.look)
    trainer.rng, trainer.batch = second, 128
    fit("clip match", trainer.modules(), scaled(1500), 2e-3, trainer.match)
    with torch.no_grad():
        trainer.model.logit_scale.clamp_(max=math.log(100))
    trainer.model.eval()
    return trainer


# ------------------------------------------------------------------------------------------ anchors


def draw_anchors(rng: np.random.Generator, banned: frozenset[Scene]) -> list[Scene]:
    """1200 scenes: each colour-and-shape name alone ten times, and 560 of two and three things."""
    alone = []
    for name in labels() * 10:
        scene = draw_scene(rng, 1)
        colour, shape = name.split()
        alone.append(replace(scene, things=(replace(scene.things[0], colour=colour, shape=shape),)))
    crowds = (
        s
        for s in iter(lambda: draw_scene(rng, 2 if rng.random() < 0.65 else 3), None)
        if s not in banned
    )
    return [*alone, *islice(crowds, 560)]


@torch.no_grad()
def write_anchors(
    scenes: list[Scene],
    rng: np.random.Generator,
    image_encoder: ResNetModel,
    encode: Callable,
    out: Path,
) -> None:
    """Pair the unimodal encoders: raw pooler outputs, unit means of captions, the captions."""
    device = image_encoder.device
    drawn = [
        render(rng, scene).image.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for scene in scenes
    ]
    images = image_encoder(
        pixels(np.stack([np.asarray(image) for image in drawn]), device)
    ).pooler_output.flatten(1)
    captions = [list(dict.fromkeys(map(join, sentences(scene)))) for scene in scenes]
    texts = torch.stack([F.normalize(encode(several).mean(0), dim=0) for several in captions])
    save_file(
        {"images": images.cpu().half(), "texts": texts.cpu().half()}, out / "anchors.safetensors"
    )
    rows = [
        json.dumps({"id": f"{i:04d}", "captions": several}) for i, several in enumerate(captions)
    ]
    (out / "anchors.jsonl").write_text("\n".join(rows) + "\n")


# --------------------------------------------------------------------------------------- everything

MODELS_TOML = """\
name = "pocket"
about = "bundled: small models of a world of coloured shapes, to try everything offline"
licence = "MIT"

[encoder]
model = "hf:clip"

[image_encoder]
model = "hf:image_encoder"

[text_encoder]
model = "hf:text_encoder"

[coupling]
method = "asif"
anchors = "anchors.safetensors"
k = 200
p = 4

[language_model]
model = "hf:lm"

[caption]
k = 10
alpha = 0.05
beta = 0.6
max_tokens = 32
"""
POOLING = {
    "word_embedding_dimension": 96,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {
        "idx": 2,
        "name": "2",
        "path": "2_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]


def write_text_encoder(model: BertModel, out: Path) -> None:
    """The encoder, and the files that say "mean pooling, unit length" as sentence-transformers."""
    save_half(model, bert_tokenizer(), out)
    (out / "1_Pooling").mkdir(exist_ok=True)
    (out / "1_Pooling" / "config.json").write_text(json.dumps(POOLING, indent=2) + "\n")
    (out / "modules.json").write_text(json.dumps(MODULES, indent=2) + "\n")


def main() -> None:
    """Train every part and write the model set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model set")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the work (0.01: a dry run)"
    )
    parser.add_argument("--only", choices=("coupling", "lm", "clip"), help="make just this part")
    options = parser.parse_args()
    out, device = options.out, torch.device(options.device)
    out.mkdir(parents=True, exist_ok=True)
    coupling, lm, clip = np.random.SeedSequence(options.seed).spawn(
        3
    )  # parts do not depend on each other

    def scaled(n: int) -> int:
        return max(4, int(n * options.scale))

    start = time.time()
    if options.only in (None, "lm"):  # which needs no pictures
        save_half(train_lm(lm, device, scaled(800)), lm_tokenizer(), out / "lm")
    if options.only != "lm":
        pool = with_mirror_images(
            render_pool(scaled(40_000), options.seed, workers=os.cpu_count() or 2)
        )
        print(f"pool of {len(pool)} pictures {time.time() - start:.0f} s", flush=True)
    if options.only in (None, "coupling"):
        make_coupling(pool, coupling, device, scaled, out)
    if options.only in (None, "clip"):
        trainer = train_clip(pool, clip, device, scaled)
        save_half(trainer.model, trainer.tokenizer, out / "clip")
        save_processor(out / "clip")
    (out / "models.toml").write_text(MODELS_TOML)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)
    print(f"{out} written {time.time() - start:.0f} s", flush=True)


def make_coupling(
    pool: Pool, seed: np.random.SeedSequence, device: torch.device, scaled: Callable, out: Path
) -> None:
    """The two unimodal encoders and the anchors that couple them."""
    one, other, third = map(np.random.default_rng, seed.spawn(3))
    torch.manual_seed(int(one.integers(2**31)))
    text_encoder, encode = train_text_encoder(one, device, scaled(600))
    image_encoder = train_image_encoder(pool, other, device, scaled(1600))
    write_anchors(draw_anchors(third, held_out_scenes()), third, image_encoder, encode, out)
    write_text_encoder(text_encoder, out / "text_encoder")
    save_half(image_encoder, None, out / "image_encoder")
    save_processor(out / "image_encoder")


if __name__ == "__main__":
    main()
