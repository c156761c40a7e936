"""Dual encoders of open_clip: `open_clip:ARCH/TAG`, `hf-hub:org/repo`, `local-dir:./directory`.

open_clip imports torchvision, so it is imported only when such a model is loaded.
"""

import logging
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError, unknown
from zeroshot.models.base import Pixels
from zeroshot.models.devices import precision_name
from zeroshot.models.files import model_files
from zeroshot.models.model_checks import check_expected_size
from zeroshot.models.names import ModelName
from zeroshot.models.preprocessing import from_transform
from zeroshot.models.towers.cached_text_encoder import CachedTextEncoder
from zeroshot.models.towers.open_clip_towers import (
    can_trim,
    pool_type,
    text_module,
    text_tower,
    trimmed_text_features,
    vision_tower,
)
from zeroshot.models.towers.packed_linear import pack
from zeroshot.models.towers.text_tower import Tokens, Tower
from zeroshot.models.towers.vision_tower import DensePatches, VisionTower
from zeroshot.models.towers.word_tokens import WordTokens, token_rows

__all__ = ["OpenClipDualEncoder", "load_dual_encoder"]

PREPROCESSING = "open_clip.1"
"""Names open_clip's preprocessing and tokenizer, and the version of this file's own steps."""

END_OF_TEXT = "<|endoftext|>"


class OpenClipDualEncoder(CachedTextEncoder, DensePatches):
    """An open_clip model with its own tokenizer, preprocessing and scale."""

    def __init__(
        self,
        name: str,
        model: Any,
        preprocess: Any,
        tokenizer: Any,
        logit_scale: float,
        logit_bias: float | None,
    ) -> None:
        self.name = name
        self.model = model
        self.preprocess = preprocess
        self.preprocessing = from_transform(preprocess)
        self.tokenizer = tokenizer
        self.device, self.dtype = model.logit_scale.device, model.logit_scale.dtype
        self.context_length: int = tokenizer.context_length
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As `base.TextEncoder`."""
        return [self._count(text) for text in self._prepare(texts)]

    def _vision_tower(self) -> VisionTower | None:
        return vision_tower(self.model.visual, self.device, self.dtype)

    def _image_features(self, pixels: list[Pixels]) -> Float[Tensor, "b d"]:
        inputs = self.preprocessing.batch(pixels, self.device, self.dtype)
        features: Tensor = self.model.encode_image(*inputs.values())  # CoCa's calls it `images`
        return features

    def _text_features(self, texts: list[str]) -> Float[Tensor, "b d"]:
        tokens = self.tokenizer(self._prepare(texts)).to(self.device)
        encode = trimmed_text_features if can_trim(self.model) else type(self.model).encode_text
        features: Tensor = encode(self.model, tokens)
        return features

    def _tower(self) -> Tower | None:
        return text_tower(self.model, self.device)

    def _paths(self, texts: Sequence[str]) -> list[Tokens]:
        text = text_module(self.model)
        end = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        rows = token_rows(self._words, texts, lambda t: self.tokenizer(self._prepare(t)).tolist())
        if pool_type(text) == "argmax":
            return [tuple(ids[: ids.index(max(ids)) + 1]) for ids in rows]
        return [tuple(ids[: (ids.index(end) if end in ids else 0) + 1]) for ids in rows]

    @cached_property
    def _words(self) -> WordTokens | None:
        own: Any = self.tokenizer
        if type(own) is not import_open_clip().SimpleTokenizer or own.reduction_fn is not None:
            return None
        if any(not token.startswith("<") for token in map(own.decoder.get, own.all_special_ids)):
            return None
        return WordTokens(own.encode, own.sot_token_id, own.eot_token_id, own.context_length)

    def _prepare(self, texts: Sequence[str]) -> list[str]:
        """Texts up to a literal end token.

        There the tokenizers of transformers end a text; open_clip's would spell the token out.
        """
        return [text.partition(END_OF_TEXT)[0] for text in texts]

    def _count(self, text: str) -> int:
        if hasattr(self.tokenizer, "encode"):
            return len(self.tokenizer.encode(text)) + 2
        return len(self.tokenizer.tokenizer(self.tokenizer.clean_fn(text))["input_ids"])


@dataclass(frozen=True)
class OpenClipSource:
    """A model's canonical name, and the arguments with which open_clip builds it."""

    identity: str
    architecture: str
    """An architecture of open_clip, or `local-dir:/directory`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of `open_clip.create_model_from_pretrained`."""
    weights: tuple[Path, ...] = ()
    """The weight files of a directory, which anybody may have made."""


def load_dual_encoder(
    name: ModelName, device: torch.device, dtype: torch.dtype, offline: bool
) -> OpenClipDualEncoder:
    """The open_clip model called `name`.

    UserError for an unknown tag or weights that do not fit. NotAvailableError for files that are
    neither on this disk nor downloadable.
    """
    open_clip = import_open_clip()
    by_tag = name.scheme == "open_clip"
    source = _tag_source(name, offline) if by_tag else _directory_source(name, offline)
    try:
        if source.weights:
            with _without_logging(), torch.device("meta"):
                network = open_clip.create_model(
                    source.architecture, device="meta", load_weights=False
                )
            check_expected_size(name, network, source.weights)
        model, preprocess = open_clip.create_model_from_pretrained(
            source.architecture, weights_only=True, **source.options
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name}: its weights are a pickle that holds more than tensors; such a file is "
            "never loaded, convert it to safetensors"
        ) from error
    except RuntimeError as error:
        raise UserError(f"{name}: open_clip cannot build it: {error}") from error
    model.eval().requires_grad_(False)
    # Before half precision, which would turn a scale of 100 into 98.9.
    scale, bias = float(model.logit_scale.exp()), model.logit_bias
    bias = None if bias is None else float(bias)
    return OpenClipDualEncoder(
        f"{source.identity}/{PREPROCESSING}/{precision_name(dtype)}",
        pack(model.to(device, dtype)),
        preprocess,
        _tokenizer(source.architecture, str(name), offline),
        logit_scale=scale,
        logit_bias=bias,
    )


@contextmanager
def _without_logging() -> Iterator[None]:
    """open_clip warns of a model without weights, on standard error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def import_open_clip() -> Any:
    """The package; UserError if it, or the torchvision that it needs, does not import."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"open_clip does not import ({error}); it needs a torchvision built for torch "
            f"{torch.__version__}: `pip install open_clip_torch torchvision` from torch's own "
            "index. Models named hf:... do not need it"
        ) from error
    return open_clip


def repositories(name: ModelName) -> list[tuple[str, model_files.FileLayout]]:
    """Hub repositories of the weights and the tokenizer (`open_clip:ARCH/TAG`, `hf-hub:...`)."""
    if name.scheme == "hf-hub":
        return [(name.target, model_files.OPEN_CLIP)]
    text = import_open_clip().get_model_config(name.target.partition("/")[0])["text_cfg"]
    tokenizer = text.get("hf_tokenizer_name")
    return [_weights(name), *([(tokenizer, model_files.TOKENIZER)] if tokenizer else [])]


def _weights(name: ModelName) -> tuple[str, model_files.FileLayout]:
    repository, _, file = _tag(name)["hf_hub"].rpartition("/")
    if not file:
        return repository, model_files.FileLayout(
            None, model_files.OPEN_CLIP.safetensors, model_files.OPEN_CLIP.torch
        )
    stem = re.escape(Path(file).stem)
    return repository, model_files.FileLayout(None, rf"{stem}\.safetensors", re.escape(file))


def _tag(name: ModelName) -> dict[str, Any]:
    open_clip = import_open_clip()
    architecture, _, tag = name.target.partition("/")
    config: dict[str, Any] = open_clip.get_pretrained_cfg(architecture, tag)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise unknown(f"tag of open_clip:{architecture}", tag, tags)
    return config


def _tag_source(name: ModelName, offline: bool) -> OpenClipSource:
    tag, architecture = _tag(name), name.target.partition("/")[0]
    repository, layout = _weights(name)
    snapshot = model_files.fetch(repository, layout, model=str(name), offline=offline)
    return OpenClipSource(
        f"{name.label}@{snapshot.name[:12]}",
        architecture,
        {
            "pretrained": str(model_files.weights_in(snapshot, layout)[0]),
            # OpenAI's weights need the other GELU than the architecture of their name has.
            "force_quick_gelu": tag.get("quick_gelu", False),
            "image_mean": tag["mean"],
            "image_std": tag["std"],
            "image_interpolation": tag["interpolation"],
            "image_resize_mode": tag["resize_mode"],
        },
    )


def _directory_source(name: ModelName, offline: bool) -> OpenClipSource:
    files = model_files.locate(name, model_files.OPEN_CLIP, offline=offline)
    return OpenClipSource(files.identity, f"local-dir:{files.directory}", weights=files.weights)


def _tokenizer(architecture: str, model: str, offline: bool) -> Any:
    """The architecture's tokenizer; one of transformers is fetched from the hub if necessary."""
    open_clip = import_open_clip()
    text = open_clip.get_model_config(architecture)["text_cfg"]
    repository = text.get("hf_tokenizer_name")
    if not repository:
        return open_clip.get_tokenizer(architecture)
    directory = Path(architecture.removeprefix("local-dir:"))
    if not (directory / "tokenizer_config.json").is_file():
        directory = model_files.fetch(
            repository, model_files.TOKENIZER, model=model, offline=offline
        )
    return open_clip.tokenizer.HFTokenizer(
        str(directory),
        context_length=text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )
