"""Heads of transformers that score a picture and a text together: ITM, NLVR2, entailment.

BLIP (Li et al. 2022, arXiv:2201.12086), BLIP-2 (Li et al. 2023, arXiv:2301.12597), ViLT (Kim et al.
2021, arXiv:2102.03334), BridgeTower (Xu et al. 2022, arXiv:2206.08657), FLAVA (Singh et al. 2022,
arXiv:2112.04482). No Auto class knows these heads: the class is the one the configuration names.
What tells one head from another is a row of `HEADS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Image
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.hf.text_inputs import Reading, architecture, pixels_of
from zeroshot.models.model_files import Files
from zeroshot.models.vlm.generation import Row, grouped
from zeroshot.ops import normalize

__all__ = ["HEADS", "TransformersPairScorer", "load_pair_scorer"]

PREPROCESSING = "pairs.1"

MATCH = ("no match", "match")
POSITIVE = ("match", "true", "yes", "entailment", "1")
"""What published heads call the column that says that the text fits."""

Batch = Mapping[str, Tensor]


def blip(model: Any, batch: Batch) -> Float[Tensor, "b 2"]:
    """BLIP's own forward makes its picture mask on the CPU, wherever the model is."""
    states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
    said = model.text_encoder(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
    ).last_hidden_state
    logits: Tensor = model.itm_head(said[:, 0])
    return logits


def blip_2(model: Any, batch: Batch) -> Float[Tensor, "b 2"]:
    """The head wants as many pictures as texts, and place for the queries before the text."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if model.config.image_token_index is not None:
        queries = ids.new_full((len(ids), model.config.num_query_tokens), 1)
        mask = torch.cat([queries, mask], dim=1)
        ids = torch.cat([queries * model.config.image_token_index, ids], dim=1)
    logits: Tensor = model(
        pixel_values=batch["pixel_values"],
        input_ids=ids,
        attention_mask=mask,
        use_image_text_matching_head=True,
    ).logits_per_image
    return logits


def plain(model: Any, batch: Batch) -> Float[Tensor, "b k"]:
    """ViLT and BridgeTower: the logits are what the forward pass gives."""
    logits: Tensor = model(**batch).logits
    return logits


def flava(model: Any, batch: Batch) -> Float[Tensor, "b 2"]:
    """The head on FLAVA's multimodal states; its pre-training forward wants masked inputs too."""
    states = model.flava(**batch, skip_multimodal_encoder=False).multimodal_embeddings
    logits: Tensor = model.itm_head(states)
    return logits


def contrastive(model: Any, batch: Batch) -> Float[Tensor, "b 1"]:
    """BridgeTower's contrastive head: the cosine of its picture and text embeddings."""
    out = model(**batch)
    return (normalize(out.image_embeds.float()) * normalize(out.text_embeds.float())).sum(
        1, keepdim=True
    )


@dataclass(frozen=True)
class Head:
    """What sets one head apart."""

    logits: Callable[[Any, Batch], Tensor]
    labels: tuple[str, ...] | None = MATCH
    """None: those of the model's configuration."""
    scored: str = "probability"
    several: bool = False
    """Whether it reads a batch of rows of pictures, `[b p 3 h w]` (ViLT's NLVR2 head)."""
    spare: tuple[str, ...] = ()
    """Weights that may be missing since the score does not pass them."""


HEADS = {
    "BlipForImageTextRetrieval": Head(blip),
    "Blip2ForImageTextRetrieval": Head(blip_2),
    "BridgeTowerForImageAndTextRetrieval": Head(plain),
    "BridgeTowerForContrastiveLearning": Head(contrastive, ("cosine",), "cosine"),
    "FlavaForPreTraining": Head(flava, spare=("image_codebook", "mmm_", "mim_", "mlm_")),
    # One output, trained to rank the captions of a picture: no probability.
    "ViltForImageAndTextRetrieval": Head(plain, ("match",), "logit"),
    "ViltForImagesAndTextClassification": Head(plain, None, several=True),
}


class TransformersPairScorer(Reading):
    """A matching head with its own tokenizer and preprocessing."""

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, head: Head
    ) -> None:
        super().__init__(tokenizer, model.config)
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.head = head
        own = model.config.id2label or {}
        self.labels = head.labels or tuple(str(own[i]) for i in range(len(own)))
        self.scored = head.scored
        known = [i for i, label in enumerate(self.labels) if label.lower() in POSITIVE]
        self.positive: int = known[0] if known else len(self.labels) - 1
        self.pictures: int = model.config.num_images if head.several else 1

    def score_pairs(
        self, pictures: Sequence[Sequence[Image]], texts: Sequence[str]
    ) -> Float[Tensor, "n k"]:
        """As `base.PairScorer`; UserError for a text that is too long or a wrong count."""
        for shown in pictures:
            if len(shown) != self.pictures:
                raise UserError(f"{self.name} reads {self.pictures} pictures, not {len(shown)}")
        self.refuse_long(texts)
        rows: list[Row] = [
            {**self._seen(shown), **self.tokens(text)}
            for shown, text in zip(pictures, texts, strict=True)
        ]
        scores = torch.zeros(len(rows), len(self.labels))
        with torch.inference_mode():
            for places, batch in grouped(rows):
                logits = self.head.logits(self.model, batch).float().cpu()
                scores[places] = logits.softmax(1) if self.scored == "probability" else logits
        return scores

    def _seen(self, shown: Sequence[Image]) -> dict[str, Tensor]:
        pixels = pixels_of(self.image_processor, shown, self.model)
        return {k: v[None] if self.head.several else v for k, v in pixels.items()}


def load_pair_scorer(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> TransformersPairScorer:
    """The matching head in `files`; UserError for a model that has none."""
    kind = architecture(files)
    if kind not in HEADS:
        raise UserError(
            f"{files.name} is a {kind}, which does not score a picture with a text; these do: "
            f"{', '.join(HEADS)}, and every dual encoder (--encoder)"
        )
    head = HEADS[kind]
    model, _ = common.load_model(
        common.named_class(kind), files, device, dtype, trust_remote_code, spare=head.spare
    )
    if hasattr(model.config, "max_image_length"):
        model.config.max_image_length = -1  # else ViLT drops patches at random
    image_processor = common.load_image_processor(files, trust_remote_code)
    crop = getattr(image_processor, "crop_size", None) or {}
    if kind.startswith("BridgeTower") and crop.get("height"):
        # Published as a square; BridgeTower's processor in transformers 5 reads the edge alone.
        image_processor.crop_size = type(crop)(shortest_edge=crop["height"])
    return TransformersPairScorer(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        image_processor,
        common.load_tokenizer(files, trust_remote_code),
        head,
    )
