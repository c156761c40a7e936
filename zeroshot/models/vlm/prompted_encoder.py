"""Dual encoders that are one network, which reads what it is to do: a text, or an image in a text.

EmbeddingGemma 2, Qwen3-VL-Embedding and NeoMME. Texts are queries and images documents, as in
search. Nothing is padded: inputs of the same shapes run together.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor

from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.models.base import Pixels
from zeroshot.models.files.model_files import Files
from zeroshot.models.hf import model_inputs
from zeroshot.models.hf.checkpoint import Checkpoint
from zeroshot.models.preprocessing import from_processor
from zeroshot.models.towers.cached_text_encoder import CachedTextEncoder
from zeroshot.models.towers.vision_tower import DensePatches
from zeroshot.models.vlm.image_text_inputs import ModelBatch, ModelRow, same_shape_batches

__all__ = ["EmbeddingGemma", "NeoMME", "QwenEmbedding", "load_prompted_encoder", "prompted"]

ROWS_AT_ONCE = 8
TEXT = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands for a text in a template."""
COUNTS = ("num_soft_tokens_per_image", "image_grid_hw")
"""What an image processor says that the network does not read."""


class PromptedEncoder(CachedTextEncoder, DensePatches):
    """`base.DualEncoder`, by a network with a tokenizer and an image processor.

    Such models have no scale of their own: CLIP's stands for it, until a calibration finds one.
    """

    model_class: ClassVar[str]
    query: ClassVar[str]
    """What is said about a text, unless the model's own files say something."""
    longest: ClassVar[int]
    """Tokens of a text at most, with what is said about it."""
    logit_scale = 100.0
    logit_bias = None
    trained_scale = False

    def __init__(
        self, name: str, model: Any, image_processor: Any, tokenizer: Any, query: str
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.preprocessing = from_processor(image_processor)
        self.context_length: int = min(
            self.longest,
            model_inputs.context_length(tokenizer, model.config.get_text_config()) or self.longest,
        )
        self.frame = self._frame(query)
        ends = [ids[::-1] for ids in self._whole(["a", "b"])]
        same = next(i for i, (one, other) in enumerate(zip(*ends, strict=False)) if one != other)
        self.end = ends[0][:same][::-1]
        """Ids of the tokens after every text."""

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> "PromptedEncoder":
        """The encoder in `checkpoint`."""
        prompts = checkpoint.files.read("config_sentence_transformers.json").get("prompts", {})
        images, tokenizer = cls._image_processor(checkpoint), checkpoint.load_tokenizer()
        return cls(
            checkpoint.name("prompted.1"),
            checkpoint.load_model(cls.model_class),
            images,
            tokenizer,
            prompts.get("query") or prompts.get("Retrieval-query") or cls.query,
        )

    @classmethod
    def _image_processor(cls, checkpoint: Checkpoint) -> Any:
        return checkpoint.load_image_processor()

    @abstractmethod
    def _frame(self, query: str) -> tuple[str, str]:
        """What precedes a text, and what follows it."""

    @abstractmethod
    def _picture(self, inputs: ModelRow) -> str:
        """The text with a token for each part of an image."""

    def _more(self, ids: Tensor, inputs: ModelRow) -> ModelRow:
        """Further inputs of the network for an image."""
        return {}

    @abstractmethod
    def _pooled(self, batch: ModelBatch) -> Float[Tensor, "b d"]:
        """Embeddings of inputs of the same shapes."""

    def pixels(self, image: Image) -> Pixels:
        """As `base.PixelEncoder`; UnreadableImageError for one that is too long for the model."""
        try:
            return self.preprocessing.pixels(image)
        except ValueError as error:
            raise UnreadableImageError(f"this model cannot read its shape: {error}") from error

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.TextEncoder`, with what is said about a text."""
        return [len(ids) for ids in self._whole(texts)]

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts in their frame."""
        if not texts:
            return []
        before, after = self.frame
        framed = [before + text + after for text in texts]
        ids: list[list[int]] = self.tokenizer(framed, verbose=False)["input_ids"]
        return ids

    def _text_features(self, texts: list[str]) -> Float[Tensor, "b d"]:
        most = self.context_length
        cut = [
            ids if len(ids) <= most else ids[: most - len(self.end)] + self.end
            for ids in self._whole(texts)
        ]
        return self._run([{"input_ids": torch.tensor([ids])} for ids in cut])

    def _image_features(self, pixels: list[Pixels]) -> Float[Tensor, "b d"]:
        return self._run([self._image_row(inputs) for inputs in pixels])

    def _image_row(self, inputs: ModelRow) -> ModelRow:
        ids = torch.tensor([self.tokenizer(self._picture(inputs), verbose=False)["input_ids"]])
        read = {name: value for name, value in inputs.items() if name not in COUNTS}
        return {"input_ids": ids, **read, **self._more(ids, inputs)}

    def _run(self, rows: Sequence[ModelRow]) -> Float[Tensor, "b d"]:
        found: dict[int, Tensor] = {}
        for indices, batch in same_shape_batches(rows, ROWS_AT_ONCE):
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            here = {
                name: value.to(
                    self.model.device, self.model.dtype if value.is_floating_point() else None
                )
                for name, value in batch.items()
            }
            found |= zip(indices, self._pooled(here).float(), strict=True)
        return torch.stack([found[i] for i in range(len(rows))])


class EmbeddingGemma(PromptedEncoder):
    """Google DeepMind 2026, EmbeddingGemma 2 (model card): the mean over all tokens."""

    model_class = "EmbeddingGemma2Model"
    query = "task: search result | query: "
    longest = 8192

    def _frame(self, query: str) -> tuple[str, str]:
        return query, ""

    def _picture(self, inputs: ModelRow) -> str:
        tokenizer, count = self.tokenizer, int(inputs["num_soft_tokens_per_image"])
        picture: str = tokenizer.boi_token + tokenizer.image_token * count + tokenizer.eoi_token
        return picture

    def _pooled(self, batch: ModelBatch) -> Float[Tensor, "b d"]:
        pooled: Tensor = self.model(**batch).last_hidden_state.float().mean(1)
        return pooled


class QwenEmbedding(PromptedEncoder):
    """Li et al. 2026, "Qwen3-VL-Embedding and Qwen3-VL-Reranker", arXiv:2601.04720; authors' code:
    github.com/QwenLM/Qwen3-VL-Embedding. The state of the last token, with their instructions.
    """

    model_class = "Qwen3VLModel"
    query = "Retrieve images or text relevant to the user's query."
    document = "Represent the user's input."
    longest = 8192

    @classmethod
    def _image_processor(cls, checkpoint: Checkpoint) -> Any:
        processor = checkpoint.load_image_processor()
        processor.size = {"shortest_edge": 4096, "longest_edge": 1_843_200}  # pixels; theirs
        return processor

    def _conversation(self, instruction: str, content: Mapping[str, str]) -> str:
        turns = [("system", {"type": "text", "text": instruction}), ("user", content)]
        said: str = self.tokenizer.apply_chat_template(
            [{"role": role, "content": [what]} for role, what in turns],
            add_generation_prompt=True,
            tokenize=False,
        )
        return said

    def _frame(self, query: str) -> tuple[str, str]:
        before, _, after = self._conversation(query, {"type": "text", "text": TEXT}).partition(TEXT)
        return before, after

    def _picture(self, inputs: ModelRow) -> str:
        merged = int(self.model.config.vision_config.spatial_merge_size) ** 2
        count = int(inputs["image_grid_thw"].prod()) // merged
        token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        picture = self._conversation(self.document, {"type": "image"})
        return picture.replace(token, token * count)

    def _more(self, ids: Tensor, inputs: ModelRow) -> ModelRow:
        return {"mm_token_type_ids": (ids == self.model.config.image_token_id).long()}

    def _pooled(self, batch: ModelBatch) -> Float[Tensor, "b d"]:
        pooled: Tensor = self.model(**batch).last_hidden_state[:, -1]
        return pooled


class NeoMME(PromptedEncoder):
    """H Company 2026, "NeoMME: A Single-Tower Multimodal-Native Multilingual Foundation Encoder",
    arXiv:2609.01657: its dense embedding, the mean over all tokens.
    """

    model_class = "NeoMMEForRetrieval"
    query = ""
    longest = 16384

    @classmethod
    def _image_processor(cls, checkpoint: Checkpoint) -> Any:
        config, settings = checkpoint.files.read("config.json"), checkpoint.image_settings
        if not settings:
            raise UserError(
                f"{checkpoint.files.name} comes without its image preprocessing: it needs "
                "preprocessor_config.json or processor_config.json"
            )
        positions = int(config.get("max_position_embeddings", cls.longest))
        return PagePatches({"patch_size": config.get("patch_size", 32)} | settings, positions)

    def _frame(self, query: str) -> tuple[str, str]:
        said: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": query + TEXT}], task="query", tokenize=False
        )
        before, _, after = said.partition(TEXT)
        return before, after

    def _picture(self, inputs: ModelRow) -> str:
        (height, width), tokenizer = inputs["image_grid_hw"][0].tolist(), self.tokenizer
        row = tokenizer.image_token * width + tokenizer.row_token
        picture: str = tokenizer.document_token + tokenizer.image_token + row * height
        return picture

    def _more(self, ids: Tensor, inputs: ModelRow) -> ModelRow:
        height, width = inputs["image_grid_hw"][0].tolist()
        start, row = torch.arange(2), torch.arange(height).repeat_interleave(width + 1)
        column = torch.arange(width + 1).repeat(height)
        positions = torch.stack([torch.cat([start, 2 + row]), torch.cat([start, 2 + column])])
        return {"position_ids": positions[None]}

    def _pooled(self, batch: ModelBatch) -> Float[Tensor, "b d"]:
        inputs = dict(batch)
        if "position_ids" in inputs:
            inputs["position_ids"] = inputs["position_ids"].transpose(0, 1)
        pooled: Tensor = self.model(**inputs, output_multivector=False).dense_embeddings
        return pooled


class PagePatches:
    """NeoMME's preprocessing, which transformers has for torchvision alone, by PIL.

    An image keeps its size, within limits; its right and lower edges are filled with black up to
    whole patches. Without a limit in the model's files, half of the model's positions are one.
    """

    def __init__(self, settings: Mapping[str, Any], positions: int) -> None:
        self.patch = int(settings["patch_size"])
        size = settings.get("size") or {}
        self.side = float(settings.get("max_side") or math.inf)
        self.least = int(size.get("min_pixels") or 0)
        self.most = min(size.get("max_pixels") or math.inf, positions // 2 * self.patch**2)
        self.resample = Resampling(settings.get("resample", Resampling.BILINEAR))
        self.mean, self.std = (
            np.asarray(settings.get(key) or [0.5] * 3, np.float32)
            for key in ("image_mean", "image_std")
        )

    def __call__(self, images: Sequence[Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        """Patches `[p 3*s*s]` of all images, and rows and columns `[n 2]` of each."""
        grids, patches = [], []
        for image in images:
            width, height = self._size(*image.size)
            values = np.asarray(image.resize((width, height), self.resample))
            rows, columns, side = -(-height // self.patch), -(-width // self.patch), self.patch
            space = ((0, rows * side - height), (0, columns * side - width), (0, 0))
            filled = (np.pad(values, space) / np.float32(255) - self.mean) / self.std
            cut = filled.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
            patches.append(torch.from_numpy(cut.reshape(rows * columns, -1).astype(np.float32)))
            grids.append([rows, columns])
        return {"pixel_values": torch.cat(patches), "image_grid_hw": torch.tensor(grids)}

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height within the limits, rounded as in transformers."""
        sides, area = (width, height), width * height
        scale = math.sqrt(self.least / area) if area < self.least else 1.0
        scale = min(scale, self.side / max(sides), math.sqrt(self.most / area))
        near, down, up = (
            (max(1, rounded(width * scale)), max(1, rounded(height * scale)))
            for rounded in (round, math.floor, math.ceil)
        )
        if self._fits(*near):
            small = area < self.least and math.prod(near) < self.least
            return up if small and self._fits(*up) else near
        wide, high = down
        if wide * high > self.most:  # a line of one pixel
            return (
                (wide, int(self.most // wide)) if high >= wide else (int(self.most // high), high)
            )
        return wide, high

    def _fits(self, width: int, height: int) -> bool:
        return max(width, height) <= self.side and width * height <= self.most


FAMILIES: dict[str, type[PromptedEncoder]] = {
    "embedding_gemma2": EmbeddingGemma,
    "qwen3_vl": QwenEmbedding,
    "neomme": NeoMME,
}


def prompted(files: Files) -> bool:
    """Whether a model is one of these: it was trained to embed, and has the part for images.

    UserError for NeoMME before its training for search.
    """
    if files.model_type == "neomme" and files.architecture != NeoMME.model_class:
        raise UserError(
            f"{files.name} is a {files.architecture}, which was not trained to compare; "
            "hf:Hcompany/NeoMME-260M-Retriever was"
        )
    if files.model_type == "qwen3_vl":  # else a model that writes
        return (files.directory / "modules.json").is_file()
    if files.model_type == "embedding_gemma2":
        return bool(files.read("config.json").get("vision_config"))
    return files.model_type in FAMILIES


def load_prompted_encoder(checkpoint: Checkpoint) -> PromptedEncoder:
    """The encoder in `checkpoint`."""
    return FAMILIES[checkpoint.files.model_type].load(checkpoint)
