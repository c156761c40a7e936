"""Heads of transformers that score an image and a text together: ITM, NLVR2, entailment.

BLIP (Li et al. 2022, arXiv:2201.12086), BLIP-2 (Li et al. 2023, arXiv:2301.12597), ViLT (Kim et al.
2021, arXiv:2102.03334), BridgeTower (Xu et al. 2022, arXiv:2206.08657), FLAVA (Singh et al. 2022,
arXiv:2112.04482). No Auto class knows these heads; the configuration names the class. `HEADS` says
how they differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import Image
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.model_inputs import image_inputs
from zeroshot.models.vlm.image_text_inputs import ModelBatch, ModelRow, UnpaddedTexts, score_rows
from zeroshot.ops import normalize

__all__ = ["HEADS", "TransformersPairScorer", "load_pair_scorer"]

PREPROCESSING = "pairs.1"

MATCH = ("no match", "match")
POSITIVE = ("match", "true", "yes", "entailment", "1")
"""Labels in published heads of the column that says that the text fits."""


def blip(model: Any, batch: ModelBatch) -> Float[Tensor, "b 2"]:
    """Not BLIP's own forward, which makes its image mask on the CPU, wherever the model is."""
    states = model.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
    hidden = model.text_encoder(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        encoder_hidden_states=states,
        encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=states.device),
    ).last_hidden_state
    logits: Tensor = model.itm_head(hidden[:, 0])
    return logits


def blip_2(model: Any, batch: ModelBatch) -> Float[Tensor, "b 2"]:
    """The head needs an image for each text, and placeholders of the queries before the text."""
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


def plain(model: Any, batch: ModelBatch) -> Float[Tensor, "b k"]:
    """ViLT and BridgeTower: the logits of the forward pass."""
    logits: Tensor = model(**batch).logits
    return logits


def flava(model: Any, batch: ModelBatch) -> Float[Tensor, "b 2"]:
    """The head on FLAVA's multimodal states; its pre-training forward needs masked inputs too."""
    states = model.flava(**batch, skip_multimodal_encoder=False).multimodal_embeddings
    logits: Tensor = model.itm_head(states)
    return logits


def contrastive(model: Any, batch: ModelBatch) -> Float[Tensor, "b 1"]:
    """BridgeTower's contrastive head: the cosine of its image and text embeddings."""
    out = model(**batch)
    return (normalize(out.image_embeds.float()) * normalize(out.text_embeds.float())).sum(
        1, keepdim=True
    )


@dataclass(frozen=True)
class MatchingHead:
    """What distinguishes one head."""

    logits: Callable[[Any, ModelBatch], Tensor]
    labels: tuple[str, ...] | None = MATCH
    """Names of the columns; None for those of the model's configuration."""
    scored: str = "probability"
    several: bool = False
    """Whether it reads several images for each text, `[b p 3 h w]` (ViLT's NLVR2 head)."""
    optional: tuple[str, ...] = ()
    """Weights that may be missing because the score does not depend on them."""


HEADS = {
    "BlipForImageTextRetrieval": MatchingHead(blip),
    "Blip2ForImageTextRetrieval": MatchingHead(blip_2),
    "BridgeTowerForImageAndTextRetrieval": MatchingHead(plain),
    "BridgeTowerForContrastiveLearning": MatchingHead(contrastive, ("cosine",), "cosine"),
    "FlavaForPreTraining": MatchingHead(flava, optional=("image_codebook", "mmm_", "mim_", "mlm_")),
    # One output, trained to rank the captions of an image: no probability.
    "ViltForImageAndTextRetrieval": MatchingHead(plain, ("match",), "logit"),
    "ViltForImagesAndTextClassification": MatchingHead(plain, None, several=True),
}


class TransformersPairScorer(UnpaddedTexts):
    """A matching head with its own tokenizer and preprocessing."""

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, head: MatchingHead
    ) -> None:
        super().__init__(name, model, tokenizer)
        self.image_processor = image_processor
        self.head = head
        names = model.config.id2label or {}
        self.labels = head.labels or tuple(str(names[i]) for i in range(len(names)))
        self.scored = head.scored
        positive = [i for i, label in enumerate(self.labels) if label.lower() in POSITIVE]
        self.positive: int = positive[0] if positive else len(self.labels) - 1
        self.pictures: int = model.config.num_images if head.several else 1

    def score_pairs(
        self, pictures: Sequence[Sequence[Image]], texts: Sequence[str]
    ) -> Float[Tensor, "n k"]:
        """As `base.PairScorer`; UserError for long texts and for a wrong number of images."""
        for images in pictures:
            if len(images) != self.pictures:
                raise UserError(
                    f"{self.name} reads {self.pictures} images with each text, not {len(images)}"
                )
        self.check_length(texts)
        rows: list[ModelRow] = [
            {**self._image_inputs(images), **self.tokens(text)}
            for images, text in zip(pictures, texts, strict=True)
        ]
        return score_rows(rows, len(self.labels), self._scores)

    def _image_inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        inputs = image_inputs(self.image_processor, images, self.model)
        return {key: value[None] if self.head.several else value for key, value in inputs.items()}

    def _scores(self, batch: ModelBatch) -> Float[Tensor, "b k"]:
        logits = self.head.logits(self.model, batch).float().cpu()
        return logits.softmax(1) if self.scored == "probability" else logits


def load_pair_scorer(checkpoint: Checkpoint) -> TransformersPairScorer:
    """The matching head in `checkpoint`; UserError for a model that has none."""
    files = checkpoint.files
    if files.architecture not in HEADS:
        raise UserError(
            f"{files.name} is a {files.architecture}, which does not score an image with a text; "
            f"these do: {', '.join(HEADS)}, and every dual encoder (--encoder)"
        )
    head = HEADS[files.architecture]
    model = checkpoint.load_model(optional=head.optional)
    if hasattr(model.config, "max_image_length"):
        model.config.max_image_length = -1  # else ViLT drops patches at random
    image_processor = checkpoint.load_image_processor()
    crop = getattr(image_processor, "crop_size", None) or {}
    if files.architecture.startswith("BridgeTower") and crop.get("height"):
        # Published as a square; BridgeTower's processor in transformers 5 reads only the edge.
        image_processor.crop_size = type(crop)(shortest_edge=crop["height"])
    return TransformersPairScorer(
        checkpoint.name(PREPROCESSING), model, image_processor, checkpoint.load_tokenizer(), head
    )
