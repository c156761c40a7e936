"""Segmentation models of transformers with prompts: CLIPSeg, GroupViT, SAM 3 and SAM 3 LiteText.

Prompts are encoded once, and an image once for all its prompts; transformers' own calls encode both
again for every pair.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.errors import UserError
from zeroshot.models.base import Segmenter, SegmenterHead
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.prompted_model import PromptedModel
from zeroshot.models.model_checks import check_numbers
from zeroshot.ops import normalize

__all__ = ["FAMILIES", "SAM3", "CLIPSeg", "GroupViT", "SAM3LiteText", "load_segmenter"]

PAIRS_AT_ONCE = 32
"""Pairs of an image and a prompt in one call of CLIPSeg's decoder."""
CONCEPTS_AT_ONCE = 4
"""The same for SAM 3, whose images are nine times as large on each side."""


class CLIPSeg(PromptedModel):
    """Lüddecke and Ecker 2022, "Image Segmentation Using Text and Image Prompts", CVPR.

    The conditional embedding of a prompt, text or image, is its embedding in CLIP's joint space.
    """

    preprocessing = "pil.1"
    head: ClassVar[SegmenterHead] = "sigmoid"

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`; not of unit length, as the decoder was trained."""

        def embed(tokens: Any) -> Tensor:
            count = len(tokens["input_ids"])
            embeddings: Tensor = self.model.get_conditional_embeddings(count, **tokens)
            return embeddings

        return self.embed_prompts(prompts, embed)

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`; best are crops of the target with a dark or blurred background."""
        with torch.inference_mode():
            embeddings = [
                self.model.get_conditional_embeddings(
                    1, conditional_pixel_values=self.pixel_values([example])
                )
                for example in examples
            ]
        return torch.cat(embeddings).float().cpu()

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """As `base.Segmenter`."""
        batches = torch.split(prompts.to(self.model.device, self.model.dtype), PAIRS_AT_ONCE)
        pixels = self.pixel_values(images)
        with torch.inference_mode():
            output = self.model.clip.vision_model(pixels, output_hidden_states=True)
            layers = [output.hidden_states[i + 1] for i in self.model.extract_layers]
            return [
                torch.cat(
                    [self._decode([layer[i] for layer in layers], batch) for batch in batches]
                )
                for i in range(len(images))
            ]

    def _decode(
        self, layers: list[Float[Tensor, "s d"]], prompts: Float[Tensor, "c e"]
    ) -> Float[Tensor, "c h w"]:
        """Maps of some prompts from one image's hidden states."""
        states = [layer.expand(len(prompts), *layer.shape) for layer in layers]
        logits: Tensor = self.model.decoder(states, prompts).logits.float().cpu()
        check_numbers(logits)
        return logits.reshape(len(prompts), *logits.shape[-2:])


class GroupViT(PromptedModel):
    """Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision", CVPR.

    Patches are assigned to groups; a pixel's logit is the mean of the groups' logits, weighted by
    its assignment to each. transformers multiplies it by the logit scale once more, which leaves
    only the probabilities 0 and 1; here it is multiplied once, as the cosines of CLIP are.
    """

    preprocessing = "pil.1"
    head: ClassVar[SegmenterHead] = "softmax"

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`; unit vectors."""

        def embed(tokens: Any) -> Tensor:
            embeddings: Tensor = self.model.get_text_features(**tokens).pooler_output
            return embeddings

        return normalize(self.embed_prompts(prompts, embed))

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """UserError: GroupViT was trained only on texts."""
        raise UserError("GroupViT takes no example images, only texts; CLIPSeg takes both")

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """As `base.Segmenter`."""
        prompts = normalize(prompts.to(self.model.device, torch.float32))
        # Its own preprocessing crops the borders, but maps must cover the whole image.
        square = [image.resize((self._side, self._side), Resampling.BICUBIC) for image in images]
        pixels = self.pixel_values(square)
        with torch.inference_mode():
            output = self.model.vision_model(pixels, output_attentions=True)
            states = output.last_hidden_state  # [n, g, d]
            # Flattened, because the projection's batch norm takes the second axis for channels.
            projected = self.model.visual_projection(states.flatten(0, 1)).float()
            groups = normalize(projected).view(*states.shape[:2], -1)
            logits = self.model.logit_scale.exp() * groups @ prompts.T  # [n, g, c]
            assignment = self._assignment([x for x in output.attentions if x is not None])
            maps = torch.einsum("ngc,nghw->nchw", logits, assignment).cpu()
        check_numbers(maps)
        return list(maps)

    def _assignment(self, stages: list[Float[Tensor, "n _g _p"]]) -> Float[Tensor, "n g h w"]:
        """Assignment of each pixel to each group of the last stage."""
        total = stages[0].float()  # [n, groups, patches]
        for stage in stages[1:]:
            total = stage.float() @ total
        grid = round(total.shape[2] ** 0.5)
        return interpolate(
            total.view(*total.shape[:2], grid, grid), size=(self._side, self._side), mode="bilinear"
        )

    @property
    def _side(self) -> int:
        return int(self.model.config.vision_config.image_size)


class SAM3(PromptedModel):
    """Carion et al. 2025, "SAM 3: Segment Anything with Concepts", arXiv:2511.16719.

    Its maps are those of the head that marks all of a concept; the masks of single objects are not
    used. A prompt's embedding is the state of each of its tokens, and after them their mask.
    """

    preprocessing = "pil.1"
    head: ClassVar[SegmenterHead] = "sigmoid"

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`."""

        def embed(tokens: Any) -> Tensor:
            states = self.model.get_text_features(**tokens).pooler_output
            return torch.cat([states.flatten(1), tokens["attention_mask"].to(states.dtype)], dim=1)

        return self.embed_prompts(prompts, embed, padding="max_length")

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """UserError: SAM 3 takes boxes in the same image, not other images."""
        raise UserError("SAM 3 takes no example images, only texts; CLIPSeg takes both")

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """As `base.Segmenter`; UserError for the mean of several prompts."""
        length = self.context_length
        states, mask = prompts[:, :-length], prompts[:, -length:]
        if ((mask != 0) & (mask != 1)).any():
            raise UserError("SAM 3 takes one prompt for each label: --templates none")
        states = states.reshape(len(prompts), length, -1).to(self.model.device, self.model.dtype)
        parts = (torch.split(rows, CONCEPTS_AT_ONCE) for rows in (states, mask))
        pairs = list(zip(*parts, strict=True))
        with torch.inference_mode():
            return [
                torch.cat([self._decode(vision, *pair) for pair in pairs])
                for image in images
                for vision in [self.model.get_vision_features(self.pixel_values([image]))]
            ]

    def _decode(
        self, vision: Any, states: Float[Tensor, "c t d"], mask: Float[Tensor, "c t"]
    ) -> Float[Tensor, "c h w"]:
        """Maps of some prompts from what the vision tower makes of one image."""
        keys = ("fpn_hidden_states", "fpn_position_encoding")
        each = {
            key: tuple(part.expand(len(states), -1, -1, -1) for part in vision[key]) for key in keys
        }
        output = self.model(
            vision_embeds=type(vision)(**each),
            text_embeds=SimpleNamespace(pooler_output=states),
            attention_mask=mask.to(self.model.device, torch.long),
        )
        logits: Tensor = output.semantic_seg[:, 0].float().cpu()
        check_numbers(logits)
        return logits


class SAM3LiteText(SAM3):
    """Zeng et al. 2026, "SAM3-LiteText: An Anatomical Study of the SAM3 Text Encoder for Efficient
    Vision-Language Segmentation", arXiv:2602.12173: SAM 3 with the text tower of a MobileCLIP.

    The tower reads padding too, and interpolates its positions to the padded length; so each prompt
    has the length that transformers' processor gives it, whatever the number of positions.
    """

    context_length = 32


FAMILIES: dict[str, tuple[str, type[CLIPSeg | GroupViT | SAM3]]] = {
    "clipseg": ("CLIPSegForImageSegmentation", CLIPSeg),
    "groupvit": ("GroupViTModel", GroupViT),
    "sam3": ("Sam3Model", SAM3),
    "sam3_lite_text": ("Sam3LiteTextModel", SAM3LiteText),
    "sam3_video": ("Sam3Model", SAM3),  # as published: with a tracker, which is not loaded
}


def load_segmenter(checkpoint: Checkpoint) -> Segmenter:
    """The segmentation model in `checkpoint`; UserError if its files lack the decoder."""
    model_class, segmenter = FAMILIES[checkpoint.files.model_type]
    return segmenter.load(checkpoint, model_class)
