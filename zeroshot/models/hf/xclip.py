"""X-CLIP: Ni et al. 2022, "Expanding Language-Image Pretrained Models for General Video
Recognition", ECCV (arXiv:2208.02816).

Frames see each other inside the vision tower, and a prompt's row is changed by what a clip shows. A
clip's row here is both of what the scores need: its embedding, and after it the mean over frames
of its patches; so that clips and prompts are encoded apart, each once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.models.base import ClipScorer, Image
from zeroshot.models.devices import precision_name
from zeroshot.models.hf import common
from zeroshot.models.hf.dual_encoder import repaired
from zeroshot.models.hf.text_inputs import architecture
from zeroshot.models.model_files import Files
from zeroshot.ops import normalize

__all__ = ["XCLIP", "load_clip_scorer"]

PREPROCESSING = "frames.1"
TEXTS_AT_ONCE = 256


class XCLIP:
    """`base.ClipScorer` by `XCLIPModel`."""

    method = "x-clip"
    logit_bias = None

    def __init__(self, name: str, model: Any, image_processor: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.frames = int(model.config.vision_config.num_frames)
        self.logit_scale = float(model.logit_scale.exp())

    def pixels(self, frames: Sequence[Image]) -> Float[Tensor, "f 3 h w"]:
        """As `base.ClipScorer`."""
        seen = self.image_processor(list(frames), return_tensors="pt")["pixel_values"]
        pixels: Tensor = seen.flatten(0, -4)  # some processors put a clip into a batch of one
        return pixels

    @torch.inference_mode()
    def encode_frames(self, clips: Sequence[Float[Tensor, "f 3 h w"]]) -> Float[Tensor, "n d"]:
        """As `base.ClipScorer`."""
        model = self.model
        pixels = torch.stack(list(clips)).to(model.device, model.dtype)
        seen = model.vision_model(pixel_values=pixels.flatten(0, 1))
        frames = model.visual_projection(seen.pooler_output).view(*pixels.shape[:2], -1)
        clip = model.mit(frames).pooler_output
        patches = model.prompts_visual_layernorm(seen.last_hidden_state[:, 1:])
        patches = (patches @ model.prompts_visual_projection).view(
            *pixels.shape[:2], -1, clip.shape[-1]
        )
        return torch.cat([clip, patches.mean(1).flatten(1)], dim=1).float().cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "t d"]:
        """As `base.ClipScorer`."""
        given = [repaired(text) for text in texts]
        positions = int(self.model.config.text_config.max_position_embeddings)
        common.refuse_long(self.tokenizer, given, positions)
        rows = []
        for start in range(0, len(given), TEXTS_AT_ONCE):
            tokens = common.tokenize(
                self.tokenizer, given[start : start + TEXTS_AT_ONCE], positions
            )
            tokens.pop("token_type_ids", None)
            read = self.model.text_model(**tokens.to(self.model.device)).pooler_output
            rows.append(self.model.text_projection(read).float().cpu())
        return torch.cat(rows)

    @torch.inference_mode()
    def cosines(
        self, clips: Float[Tensor, "n d"], texts: Float[Tensor, "t e"]
    ) -> Float[Tensor, "n t"]:
        """As `base.ClipScorer`."""
        model, width = self.model, texts.shape[1]
        rows = clips.to(model.device, model.dtype)
        clip, patches = rows[:, :width], rows[:, width:].reshape(len(rows), -1, width)
        asked = texts.to(model.device, model.dtype).expand(len(clips), -1, -1)
        asked = asked + model.prompts_generator(asked, patches)
        found: Tensor = torch.einsum(
            "nd,ntd->nt", normalize(clip.float()), normalize(asked.float())
        ).cpu()
        return found


def load_clip_scorer(
    files: Files, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> ClipScorer:
    """The clip model in `files`; UserError for a model that is none."""
    kind = architecture(files)
    if kind != "XCLIPModel":
        raise UserError(
            f"{files.name} is a {kind}, which reads no clips; XCLIPModel does, and every dual "
            "encoder, frame by frame (--encoder)"
        )
    model, _ = common.load_model(common.named_class(kind), files, device, dtype, trust_remote_code)
    return XCLIP(
        f"{files.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        model,
        common.load_image_processor(files, trust_remote_code),
        common.load_tokenizer(files, trust_remote_code),
    )
