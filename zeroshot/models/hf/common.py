"""The one door to transformers: models, tokenizers and image processors from a directory.

Nothing is asked of the network here (`files` has been there), no code that came with a model
runs unless the caller said so, and torch files are read with `weights_only=True`.
"""

import importlib
import inspect
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

# transformers imports torchvision wherever it finds one, and fails with it where that one was
# built for another torch. It looks once, on its own first import: there it shall find none.
if "torchvision" not in sys.modules and "transformers" not in sys.modules:
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    importlib.import_module("transformers")
    del sys.modules["torchvision"]

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTextEncoding,
    AutoProcessor,
    AutoTokenizer,
    DynamicCache,
    TokenizersBackend,
)
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from zeroshot.errors import UserError
from zeroshot.models.model_files import Files
from zeroshot.models.towers.packed_linear import pack

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForTextEncoding",
    "DynamicCache",
    "DynamicLayer",
    "arguments",
    "context_length",
    "count_tokens",
    "has_tokenizer",
    "knows_pictures_in_prompts",
    "load_config",
    "load_image_processor",
    "load_model",
    "load_processor",
    "load_tokenizer",
    "named_class",
    "refuse_long",
    "refuse_remote_code",
    "tokenize",
]

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")

UNLIMITED = 10**6
"""A tokenizer that knows no limit says 10**30."""

# RoBERTa and its heirs count positions from the padding id on.
OFFSET_POSITIONS = (
    "altclip_text_model",
    "camembert",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)

CODE_HOLDERS = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def refuse_remote_code(files: Files, trust_remote_code: bool) -> None:
    """UserError if the model's own Python code would run and nobody allowed it."""
    holder = next((file for file in CODE_HOLDERS if "auto_map" in files.read(file)), None)
    if holder and not trust_remote_code:
        raise UserError(
            f"{files.name} carries Python code of its own ({holder}: auto_map), which loading "
            "would run with all your rights. Read it first; then pass trust_remote_code=True "
            "(--trust-remote-code)"
        )


def load_config(files: Files, trust_remote_code: bool) -> Any:
    """The model's configuration; UserError for a type transformers does not know."""
    try:
        return AutoConfig.from_pretrained(
            files.directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except ValueError as error:
        raise UserError(f"{files.name}: transformers cannot load it: {error}") from error


def load_model(
    auto_class: Any,
    files: Files,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    spare: tuple[str, ...] = (),
) -> tuple[Any, set[str]]:
    """The network in `eval` mode, and the names of its missing weights that are in `spare`.

    A weight whose name contains a word of `spare` may be missing: the caller does not read it.
    Any other missing one is a UserError, never a random tensor.
    """
    try:
        with quiet():
            model, report = auto_class.from_pretrained(
                files.directory,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=files.safe,
                weights_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{files.name}: {files.weights[0].name} is a pickle that holds more than tensors; "
            "such a file is never loaded, convert it to safetensors"
        ) from error
    missing = set(report["missing_keys"])
    lost = sorted(key for key in missing if not any(word in key for word in spare))
    if lost:
        raise UserError(
            f"{files.name}: {len(lost)} weights of {type(model).__name__} are not in its files: "
            f"{', '.join(lost[:3])}"
        )
    return pack(model.eval().requires_grad_(False).to(device), transposed=(Conv1D,)), missing


def has_tokenizer(files: Files) -> bool:
    """Whether a vocabulary is among the model's files."""
    return any(True for pattern in VOCABULARIES for _ in files.directory.glob(pattern))


def load_tokenizer(files: Files, trust_remote_code: bool) -> Any:
    """The model's own tokenizer, padding on the right; UserError if the directory has none."""
    if not has_tokenizer(files):  # transformers would make one up
        raise UserError(
            f"{files.name} comes without its tokenizer; it needs tokenizer.json, or the vocabulary "
            "files of its family, beside tokenizer_config.json"
        )
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                files.directory, local_files_only=True, trust_remote_code=trust_remote_code
            )
        except ImportError:  # SigLIP's asks for sentencepiece; tokenizer.json does without it
            tokenizer = TokenizersBackend.from_pretrained(files.directory, local_files_only=True)
    tokenizer.padding_side = "right"
    return tokenizer


def load_image_processor(files: Files, trust_remote_code: bool) -> Any:
    """The model's own preprocessing on PIL, the same numbers on every machine."""
    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(
                files.directory,
                backend="pil",
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{files.name} comes without its image preprocessing: {error}") from error


def load_processor(files: Files, trust_remote_code: bool) -> Any:
    """Tokenizer, preprocessing and chat template of a model that meets pictures in its prompt."""
    try:
        with quiet():
            return AutoProcessor.from_pretrained(
                files.directory,
                backend="pil",
                local_files_only=True,
                trust_remote_code=trust_remote_code,
            )
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"{files.name} comes without its processor: {error}") from error


def named_class(name: str) -> Any:
    """The model class of transformers that a configuration names; None if there is none."""
    return getattr(transformers, name, None) if name.isidentifier() else None


def knows_pictures_in_prompts(model_type: str | None) -> bool:
    """Whether `AutoModelForImageTextToText` knows such models."""
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def arguments(model: Any) -> frozenset[str]:
    """What the model's forward pass takes."""
    return frozenset(inspect.signature(model.forward).parameters)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and load reports from transformers; what matters is raised above."""
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Length of each text in tokens, uncut, special tokens included."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def refuse_long(tokenizer: Any, texts: Sequence[str], most: int) -> None:
    """UserError for a text of more tokens than the model reads."""
    for text, count in zip(texts, count_tokens(tokenizer, texts), strict=True):
        if count > most:
            raise UserError(
                f"a prompt of {count} tokens is longer than the {most} that the model reads: "
                f"'{text[:60]}'; shorten it"
            )


def context_length(tokenizer: Any, config: Any) -> int | None:
    """Tokens a text tower reads: its positions, or fewer if its tokenizer says so.

    None for relative positions (T5) without such a limit.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return int(tokenizer.model_max_length) if tokenizer.model_max_length < UNLIMITED else None
    if config.model_type in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_tokens: int | None, padding: str = "longest"
) -> Any:
    """A batch of token ids `[b s]` with its mask, cut at `max_tokens`."""
    return tokenizer(
        list(texts),
        padding=padding,
        truncation=max_tokens is not None,
        max_length=max_tokens,
        return_tensors="pt",
    )
