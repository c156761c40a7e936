"""Segmentation models of transformers that take prompts: CLIPSeg and GroupViT.

Prompts are encoded apart from the pictures, and a picture once for all its prompts; transformers'
own calls encode both anew for every pair.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.errors import UserError
from zeroshot.models.base import Head, Segmenter
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.hf.dual_encoder import repaired
from zeroshot.models.model_files import Files
from zeroshot.ops import normalize

__all__ = ["FAMILIES", "CLIPSeg", "GroupViT", "load_segmenter"]

PREPROCESSING = "pil.1"
PAIRS_AT_ONCE = 32
"""Pictures times prompts that CLIPSeg's decoder sees together."""
TEXTS_AT_ONCE = 256


class _Prompted:
    """What both share: a CLIP text tower, whole pictures brought to one square."""

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.side = int(model.config.vision_config.image_size)

    def _text_rows(
        self, prompts: Sequence[str], encode: Callable[[Any], Tensor]
    ) -> Float[Tensor, "c d"]:
        texts = [repaired(prompt) for prompt in prompts] or ["a"]
        positions = int(self.model.config.text_config.max_position_embeddings)
        common.refuse_long(self.tokenizer, texts, positions)
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                tokens = common.tokenize(
                    self.tokenizer, texts[start : start + TEXTS_AT_ONCE], positions
                )
                tokens.pop("token_type_ids", None)
                rows.append(encode(tokens.to(self.model.device)).float().cpu())
        return torch.cat(rows)[: len(prompts)]

    def _pixels(self, images: Sequence[Image]) -> Float[Tensor, "n 3 h w"]:
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        scaled: Tensor = pixels.to(self.model.device, self.model.dtype)
        return scaled


class CLIPSeg(_Prompted):
    """Lüddecke and Ecker 2022, "Image Segmentation Using Text and Image Prompts", CVPR.

    The conditional embedding of a prompt, text or picture, is its row in CLIP's joint space.
    """

    head: ClassVar[Head] = "sigmoid"

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`; not of unit length, as the decoder was trained."""

        def encode(tokens: Any) -> Tensor:
            count = len(tokens["input_ids"])
            rows: Tensor = self.model.get_conditional_embeddings(count, **tokens)
            return rows

        return self._text_rows(prompts, encode)

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`: best is a crop of the thing, its background dark or blurred."""
        with torch.inference_mode():
            rows = [
                self.model.get_conditional_embeddings(
                    1, conditional_pixel_values=self._pixels([example])
                )
                for example in examples
            ]
        return torch.cat(rows).float().cpu()

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """As `base.Segmenter`."""
        rows = prompts.to(self.model.device, self.model.dtype)
        found = []
        with torch.inference_mode():
            seen = self.model.clip.vision_model(self._pixels(images), output_hidden_states=True)
            layers = [seen.hidden_states[i + 1] for i in self.model.extract_layers]
            for picture in range(len(images)):
                parts = [
                    self._decode([layer[picture] for layer in layers], part)
                    for part in torch.split(rows, PAIRS_AT_ONCE)
                ]
                found.append(torch.cat(parts))
        return found

    def _decode(
        self, layers: list[Float[Tensor, "s d"]], prompts: Float[Tensor, "c e"]
    ) -> Float[Tensor, "c h w"]:
        """One picture's states with some prompts."""
        states = [layer.expand(len(prompts), *layer.shape) for layer in layers]
        logits: Tensor = self.model.decoder(states, prompts).logits.float().cpu()
        return logits.reshape(len(prompts), *logits.shape[-2:])


class GroupViT(_Prompted):
    """Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision", CVPR.

    Patches gather into groups; a pixel's logit is the mean of the groups' own, weighted by how
    much it belongs to each. transformers multiplies it by the logit scale once more, which leaves
    no probability but 0 and 1; here it is multiplied once, as the cosines of CLIP are.
    """

    head: ClassVar[Head] = "softmax"

    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "c d"]:
        """As `base.Segmenter`; unit rows."""
        return normalize(
            self._text_rows(
                prompts, lambda tokens: self.model.get_text_features(**tokens).pooler_output
            )
        )

    def encode_examples(self, examples: Sequence[Image]) -> Float[Tensor, "c d"]:
        """UserError: GroupViT was trained on texts alone."""
        raise UserError("GroupViT takes no examples, texts alone; CLIPSeg takes both")

    def maps(
        self, images: Sequence[Image], prompts: Float[Tensor, "c d"]
    ) -> list[Float[Tensor, "c h w"]]:
        """As `base.Segmenter`."""
        rows = normalize(prompts.to(self.model.device, torch.float32))
        with torch.inference_mode():
            seen = self.model.vision_model(self._pixels(images), output_attentions=True)
            states = seen.last_hidden_state  # [n, g, d]
            # Of a batch of groups: the projection's batch norm takes the second axis for channels.
            projected = self.model.visual_projection(states.flatten(0, 1)).float()
            groups = normalize(projected).view(*states.shape[:2], -1)
            logits = self.model.logit_scale.exp() * groups @ rows.T  # [n, g, c]
            belongs = self._belongs([x for x in seen.attentions if x is not None])
            return list(torch.einsum("ngc,nghw->nchw", logits, belongs).cpu())

    def _belongs(self, assignments: list[Float[Tensor, "n _g _p"]]) -> Float[Tensor, "n g h w"]:
        """How much each pixel belongs to each group of the last stage."""
        whole = assignments[0].float()  # [n, groups, patches]
        for later in assignments[1:]:
            whole = later.float() @ whole
        grid = round(whole.shape[2] ** 0.5)
        return interpolate(
            whole.view(*whole.shape[:2], grid, grid), size=(self.side, self.side), mode="bilinear"
        )

    def _pixels(self, images: Sequence[Image]) -> Float[Tensor, "n 3 h w"]:
        # Its own preprocessing cuts the borders off, and maps shall cover the whole picture.
        square = [image.resize((self.side, self.side), Resampling.BICUBIC) for image in images]
        return super()._pixels(square)


FAMILIES: dict[str, tuple[str, Callable[[str, Any, Any, Any], Segmenter]]] = {
    "clipseg": ("CLIPSegForImageSegmentation", CLIPSeg),
    "groupvit": ("GroupViTModel", GroupViT),
}


def load_segmenter(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> Segmenter:
    """The segmentation model in `files`; UserError for a checkpoint without its decoder."""
    architecture, kind = FAMILIES[str(files.read("config.json")["model_type"])]
    model, _ = common.load_model(
        common.named_class(architecture), files, device, dtype, trust_remote_code
    )
    return kind(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        common.load_image_processor(files, trust_remote_code),
        common.load_tokenizer(files, trust_remote_code),
    )
