"""Models of video clips and texts: X-CLIP and VideoPrism."""

import string
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import ClipScorer, Image
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.hf.prompted_model import PromptedModel
from zeroshot.ops import normalize

__all__ = ["ARCHITECTURES", "XCLIP", "VideoPrism", "load_clip_scorer"]

PUNCTUATION = str.maketrans(string.punctuation, " " * len(string.punctuation))


class XCLIP(PromptedModel):
    """Ni et al. 2022, "Expanding Language-Image Pretrained Models for General Video Recognition",
    ECCV (arXiv:2208.02816).

    Frames attend to each other inside the vision tower, and the clip's content changes a prompt's
    embedding. Here a clip's vector contains all that the scores need: its embedding, and after it
    the mean over frames of its patches. So clips and prompts are encoded separately, each once.
    """

    preprocessing = "frames.1"
    method = "x-clip"
    logit_bias = None

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, image_processor, tokenizer)
        self.frames = int(model.config.vision_config.num_frames)
        self.logit_scale = float(model.logit_scale.exp())

    def pixels(self, frames: Sequence[Image]) -> Float[Tensor, "f 3 h w"]:
        """As `base.ClipScorer`."""
        values = self.image_processor(list(frames), return_tensors="pt")["pixel_values"]
        pixels: Tensor = values.flatten(0, -4)  # some processors put a clip into a batch of one
        return pixels

    @torch.inference_mode()
    def encode_frames(self, clips: Sequence[Float[Tensor, "f 3 h w"]]) -> Float[Tensor, "n d"]:
        """As `base.ClipScorer`."""
        model = self.model
        pixels = torch.stack(list(clips)).to(model.device, model.dtype)
        output = model.vision_model(pixel_values=pixels.flatten(0, 1))
        frames = model.visual_projection(output.pooler_output).view(*pixels.shape[:2], -1)
        clip = model.mit(frames).pooler_output
        patches = model.prompts_visual_layernorm(output.last_hidden_state[:, 1:])
        patches = (patches @ model.prompts_visual_projection).view(
            *pixels.shape[:2], -1, clip.shape[-1]
        )
        return torch.cat([clip, patches.mean(1).flatten(1)], dim=1).float().cpu()

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "t d"]:
        """As `base.ClipScorer`."""

        def embed(tokens: Any) -> Tensor:
            pooled = self.model.text_model(**tokens).pooler_output
            embeddings: Tensor = self.model.text_projection(pooled)
            return embeddings

        return self.embed_prompts(texts, embed)

    @torch.inference_mode()
    def cosines(
        self, clips: Float[Tensor, "n d"], texts: Float[Tensor, "t e"]
    ) -> Float[Tensor, "n t"]:
        """As `base.ClipScorer`."""
        model, width = self.model, texts.shape[1]
        clips = clips.to(model.device, model.dtype)
        clip, patches = clips[:, :width], clips[:, width:].reshape(len(clips), -1, width)
        prompts = texts.to(model.device, model.dtype).expand(len(clips), -1, -1)
        prompts = prompts + model.prompts_generator(prompts, patches)
        cosines: Tensor = torch.einsum(
            "nd,ntd->nt", normalize(clip.float()), normalize(prompts.float())
        ).cpu()
        return cosines


class VideoPrism(PromptedModel):
    """Zhao et al. 2024, "VideoPrism: A Foundational Visual Encoder for Video Understanding", ICML
    (arXiv:2402.13217), with the text tower of its LvT models.

    A checkpoint has no scale; 100 is that of the authors' demonstration.
    """

    preprocessing = "frames.1"
    method = "videoprism"
    logit_bias = None
    logit_scale = 100.0

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, image_processor, tokenizer)
        self.frames = int(model.config.vision_config.num_frames)

    def pixels(self, frames: Sequence[Image]) -> Float[Tensor, "f 3 h w"]:
        """As `base.ClipScorer`."""
        pixels: Tensor = self.image_processor(list(frames), return_tensors="pt")["pixel_values"]
        return pixels

    @torch.inference_mode()
    def encode_frames(self, clips: Sequence[Float[Tensor, "f 3 h w"]]) -> Float[Tensor, "n d"]:
        """As `base.ClipScorer`."""
        pixels = torch.stack(list(clips)).to(self.model.device, self.model.dtype)
        clip: Tensor = self.model.get_video_features(pixels).pooler_output
        return normalize(clip.flatten(1).float()).cpu()

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "t d"]:
        """As `base.ClipScorer`, written as in training: lower case, no punctuation, a period."""

        def embed(tokens: Any) -> Tensor:
            embeddings: Tensor = self.model.get_text_features(**tokens).pooler_output
            return embeddings

        plain = [" ".join(text.translate(PUNCTUATION).lower().split()) + "." for text in texts]
        return normalize(self.embed_prompts(plain, embed, padding="max_length"))

    def cosines(
        self, clips: Float[Tensor, "n d"], texts: Float[Tensor, "t e"]
    ) -> Float[Tensor, "n t"]:
        """As `base.ClipScorer`."""
        return clips @ texts.T


ARCHITECTURES: dict[str, type[XCLIP | VideoPrism]] = {
    "XCLIPModel": XCLIP,
    "VideoPrismClipModel": VideoPrism,
}


def load_clip_scorer(checkpoint: Checkpoint) -> ClipScorer:
    """The clip model in `checkpoint`; UserError for another model."""
    architecture = checkpoint.files.architecture
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{checkpoint.files.name} is a {architecture}, which reads no clips; "
            f"{' and '.join(ARCHITECTURES)} do, and every dual encoder, frame by frame (--encoder)"
        )
    return ARCHITECTURES[architecture].load(checkpoint, architecture)
