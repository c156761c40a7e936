"""The only import of transformers: models, tokenizers and image processors from a directory.

Nothing here needs the network (`model_files` has fetched the files). Code that came with a model
runs only if the caller allows it, and torch files are read with `weights_only=True`.
"""

import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

# transformers imports torchvision if it is installed, and fails if that was built for another
# torch. It looks once, on its own first import: hide torchvision until then.
if "torchvision" not in sys.modules and "transformers" not in sys.modules:
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    importlib.import_module("transformers")
    del sys.modules["torchvision"]

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTextEncoding,
    AutoTokenizer,
    CLIPTokenizer,
    DynamicCache,
    TokenizersBackend,
    processing_utils,
)
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging
from transformers.video_processing_utils import VideoProcessorMixin

from zeroshot.errors import UserError
from zeroshot.models.devices import precision_name
from zeroshot.models.files import model_files
from zeroshot.models.files.model_files import Files
from zeroshot.models.isolation import SharedChange
from zeroshot.models.model_checks import check_expected_size, check_image_sides
from zeroshot.models.names import ModelName
from zeroshot.models.towers.packed_linear import pack

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForTextEncoding",
    "CLIPTokenizer",
    "Checkpoint",
    "DynamicCache",
    "DynamicLayer",
    "quiet",
]

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")

PROCESSORS_FOR_PIL = {
    "Tipsv2ImageProcessor": (
        "ViTImageProcessorPil",
        {"size": {"height": 448, "width": 448}, "resample": 2, "do_normalize": False},
    ),
    "Sam3ImageProcessor": (
        "ViTImageProcessorPil",
        {"size": {"height": 1008, "width": 1008}, "resample": 2},
    ),
    "LlavaOnevisionVideoProcessor": (  # VideoPrism's
        "ViTImageProcessorPil",
        {"size": {"height": 288, "width": 288}, "resample": 3, "do_normalize": False},
    ),
}
"""Image processors that transformers has for torchvision alone: the class that does the same by
PIL, and the defaults in which the two differ."""

MAY_NAME_CODE = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A model's files, with the device and the precision to load them in."""

    files: Files
    device: torch.device
    dtype: torch.dtype
    trust_remote_code: bool = False

    @classmethod
    def locate(
        cls,
        name: ModelName,
        device: torch.device,
        dtype: torch.dtype,
        *,
        offline: bool = False,
        trust_remote_code: bool = False,
    ) -> "Checkpoint":
        """The files of the model called `name`.

        UserError if the model's own Python code would run and `trust_remote_code` is false.
        """
        files = model_files.locate(name, model_files.TRANSFORMERS, offline=offline)
        holder = next((file for file in MAY_NAME_CODE if "auto_map" in files.read(file)), None)
        if holder and not trust_remote_code:
            raise UserError(
                f"{files.name} comes with Python code of its own ({holder}: auto_map), which would "
                "run with all your rights. Read it first, then pass trust_remote_code=True "
                "(--trust-remote-code)"
            )
        return cls(files, device, dtype, trust_remote_code)

    def name(self, preprocessing: str) -> str:
        """Canonical name of the model, loaded with this version of our preprocessing."""
        return f"{self.files.identity}/{preprocessing}/{precision_name(self.dtype)}"

    @property
    def has_tokenizer(self) -> bool:
        """Whether a vocabulary is among the files."""
        return any(True for pattern in VOCABULARIES for _ in self.files.directory.glob(pattern))

    @property
    def is_chat_model(self) -> bool:
        """Whether `AutoModelForImageTextToText` knows such models."""
        return self.files.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def load_config(self) -> Any:
        """The model's configuration; UserError for a type that transformers does not know."""
        try:
            return AutoConfig.from_pretrained(self.files.directory, **self._options)
        except ValueError as error:
            raise UserError(f"{self.files.name}: transformers cannot load it: {error}") from error

    def load_model(
        self,
        model_class: Any = None,
        *,
        optional: tuple[str, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> Any:
        """The network in `eval` mode; see `load_model_and_missing`."""
        return self.load_model_and_missing(model_class, optional=optional, dtype=dtype)[0]

    def load_model_and_missing(
        self,
        model_class: Any = None,
        *,
        optional: tuple[str, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> tuple[Any, set[str]]:
        """The network in `eval` mode, and the names of its missing optional weights.

        `model_class` is a class of transformers or the name of one; by default, that of the
        configuration. A weight whose name contains a word of `optional` may be missing: the caller
        does not use it. If another one is missing, that is a UserError, never a random tensor.
        """
        if model_class is None:
            model_class = self.files.architecture
        if isinstance(model_class, str):
            model_class = getattr(transformers, model_class)
        self._check_expected_size(model_class)
        try:
            with quiet():
                model, report = model_class.from_pretrained(
                    self.files.directory,
                    dtype=dtype or self.dtype,
                    use_safetensors=self.files.safe,
                    weights_only=True,
                    output_loading_info=True,
                    **self._options,
                )
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{self.files.name}: {self.files.weights[0].name} is a pickle that holds more than "
                "tensors; such a file is never loaded, convert it to safetensors"
            ) from error
        missing = set(report["missing_keys"])
        lost = sorted(key for key in missing if not any(word in key for word in optional))
        if lost:
            raise UserError(
                f"{self.files.name}: {len(lost)} weights of {type(model).__name__} are not in its "
                f"files: {', '.join(lost[:3])}"
            )
        model = model.eval().requires_grad_(False).to(self.device)
        return pack(model, transposed=(Conv1D,)), missing

    def _check_expected_size(self, model_class: Any) -> None:
        """UserError if the configuration describes a far larger model than the weights are."""
        if self.files.name.directory is None or self.trust_remote_code:
            return
        with quiet(), torch.device("meta"):
            if hasattr(model_class, "from_config"):
                network = model_class.from_config(self.load_config())
            else:
                network = model_class(
                    model_class.config_class.from_pretrained(
                        self.files.directory, local_files_only=True
                    )
                )
        check_expected_size(self.files.name, network, self.files.weights)

    def load_tokenizer(self) -> Any:
        """The model's own tokenizer, padding on the right; UserError if it has none."""
        if not self.has_tokenizer:  # transformers would make one up
            raise UserError(
                f"{self.files.name} comes without its tokenizer; the directory needs "
                "tokenizer.json, or the vocabulary files of its family, beside "
                "tokenizer_config.json"
            )
        with quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.files.directory, **self._options)
            except ImportError:  # SigLIP's needs sentencepiece; its tokenizer.json does not
                tokenizer = TokenizersBackend.from_pretrained(
                    self.files.directory, local_files_only=True
                )
        tokenizer.padding_side = "right"
        return tokenizer

    @property
    def image_settings(self) -> dict[str, Any]:
        """What the model's files say about its preprocessing of images, or else of clips."""
        both = self.files.read("processor_config.json")
        return (
            self.files.read("preprocessor_config.json")
            or both.get("image_processor", {})
            or self.files.read("video_preprocessor_config.json")
            or both.get("video_processor", {})
        )

    def load_image_processor(self) -> Any:
        """The model's own preprocessing by PIL, which gives the same numbers on every machine."""
        own = self.image_settings
        kind = str(own.get("image_processor_type", own.get("video_processor_type")))
        named = PROCESSORS_FOR_PIL.get(kind)
        try:
            with quiet():
                if named is not None:
                    processor = getattr(transformers, named[0])(**named[1] | own)
                else:
                    processor = transformers.AutoImageProcessor.from_pretrained(
                        self.files.directory, backend="pil", **self._options
                    )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.files.name} comes without its image preprocessing: {error}"
            ) from error
        check_image_sides(self.files.name, processor)
        return processor

    def load_processor(self) -> Any:
        """Tokenizer, preprocessing and chat template of a model with images in its prompt."""
        try:
            with quiet(), self._no_clips():
                processor = transformers.AutoProcessor.from_pretrained(
                    self.files.directory, backend="pil", **self._options
                )
        except (ImportError, OSError, ValueError) as error:
            raise UserError(f"{self.files.name} comes without its processor: {error}") from error
        check_image_sides(self.files.name, getattr(processor, "image_processor", processor))
        return processor

    @contextmanager
    def _no_clips(self) -> Iterator[None]:
        """A processor's part for clips has its settings and does nothing: it needs torchvision."""
        settings = self.files.read("video_preprocessor_config.json")
        settings = settings or self.files.read("processor_config.json").get("video_processor", {})
        module: Any = processing_utils
        loaders, bases = (
            module.MODALITY_TO_AUTOPROCESSOR_MAPPING,
            module.MODALITY_TO_BASE_CLASS_MAPPING,
        )
        stub = SimpleNamespace(from_pretrained=lambda *_, **__: VideoProcessorMixin(**settings))
        kinds = set(loaders.keys()) - {"video_processor"}
        module.MODALITY_TO_AUTOPROCESSOR_MAPPING = {kind: loaders[kind] for kind in kinds} | {
            "video_processor": stub
        }
        module.MODALITY_TO_BASE_CLASS_MAPPING = bases | {"video_processor": "ImageProcessingMixin"}
        try:
            yield
        finally:
            module.MODALITY_TO_AUTOPROCESSOR_MAPPING = loaders
            module.MODALITY_TO_BASE_CLASS_MAPPING = bases

    @property
    def _options(self) -> dict[str, Any]:
        return {"local_files_only": True, "trust_remote_code": self.trust_remote_code}


def _silence() -> Callable[[], None]:
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    def undo() -> None:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()

    return undo


quiet = SharedChange(_silence)
"""No progress bars and load reports of transformers; we raise what matters."""
