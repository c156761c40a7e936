"""Model sets: one word for everything a task needs.

A set is a `models.toml`, or one of those below:

    name = "mine"                        # the rest is optional, table by table
    [encoder]
    model = "hf:openai/clip-vit-base-patch32"
    [image_encoder]
    model = "hf:./mobilenet_v2"          # paths are relative to the file
    [text_encoder]
    model = "hf:./minilm"
    [coupling]
    method = "asif"                      # further keys are options of the method
    anchors = "anchors.safetensors"
    [language_model]
    model = "hf:./caption_lm"
    [caption]                            # defaults of `zeroshot caption` for this set
    [classify]                           # and of `zeroshot classify`

Nothing here loads a model or imports torch.
"""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeroshot.errors import NotAvailableError, UserError, unknown
from zeroshot.inputs.text_files import read_text
from zeroshot.models import model_files, systems
from zeroshot.models.names import ModelName, parse

__all__ = [
    "CouplingSpec",
    "PartStatus",
    "SetSpec",
    "SetStatus",
    "describe",
    "find_set",
    "is_set",
    "list_sets",
    "missing",
    "pull",
    "require",
]

FILE = "models.toml"
POCKET = Path(__file__).parent.parent / "models" / "pocket"
PARTS = ("encoder", "image_encoder", "text_encoder", "language_model")
TABLES = (*PARTS, "coupling", "caption", "classify")
TEXTS = ("name", "about", "licence")


@dataclass(frozen=True)
class CouplingSpec:
    """How the unimodal encoders of a set are coupled."""

    method: str
    anchors: Path
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetSpec:
    """A model set: canonical names of its models, and defaults of the tasks."""

    name: str
    root: Path | None = None
    """The directory of its `models.toml`; None for a set of hub models."""
    encoder: str | None = None
    image_encoder: str | None = None
    text_encoder: str | None = None
    language_model: str | None = None
    coupling: CouplingSpec | None = None
    caption: dict[str, Any] = field(default_factory=dict)
    classify: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    licence: str = ""
    megabytes: int | None = None
    """About what `pull` fetches; None for files that come with the set."""

    @property
    def models(self) -> dict[str, str]:
        """The parts it has, by their table's name."""
        parts = {part: getattr(self, part) for part in PARTS}
        return {part: model for part, model in parts.items() if model is not None}


MAGIC_MSCOCO = "hf:cambridgeltl/magic_mscoco"

HUB_SETS = {
    # What the MaGiC paper used for COCO captions.
    "base": SetSpec(
        "base",
        encoder="hf:openai/clip-vit-base-patch32",
        language_model=MAGIC_MSCOCO,
        about="what the MaGiC paper used: CLIP ViT-B/32 and a GPT-2 trained on COCO captions",
        licence="MIT (encoder), not stated (language model)",
        megabytes=1100,
    ),
    # Captioning spends most of its time in the text tower: this one has half the layers and is
    # causal, so that a text's beginning can be cached. It is plain CLIP to transformers and free
    # to use; the faster MobileCLIPs are licensed for research only.
    # ImageNet 59.8 % at 3.5 GMAC a pair (github.com/microsoft/Cream, TinyCLIP/README.md).
    "fast": SetSpec(
        "fast",
        encoder="hf:wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M",
        language_model=MAGIC_MSCOCO,
        about="TinyCLIP 40M/32 with a text tower of 19 M parameters, half the work of base",
        licence="MIT (encoder), not stated (language model)",
        megabytes=840,
    ),
    # The strongest encoder under a free licence that transformers runs by itself and one GPU
    # holds; it reads many languages. Its text tower is bidirectional: captions take longer.
    "best": SetSpec(
        "best",
        encoder="hf:google/siglip2-so400m-patch14-384",
        language_model=MAGIC_MSCOCO,
        about="SigLIP 2 So400m at 384 pixels, multilingual; slow without a GPU",
        licence="Apache-2.0 (encoder), not stated (language model)",
        megabytes=5100,
    ),
}


@dataclass(frozen=True)
class PartStatus:
    """One model of a set, and where it is."""

    part: str
    model: str
    directory: Path | None
    """None if it is not on this disk."""
    megabytes: int | None
    """On this disk."""


@dataclass(frozen=True)
class SetStatus:
    """A set and what of it is on this disk."""

    spec: SetSpec
    parts: tuple[PartStatus, ...]

    @property
    def on_disk(self) -> bool:
        """Whether all of it is."""
        return all(part.directory is not None for part in self.parts)


def is_set(name: str) -> bool:
    """Whether `name` is a built-in set, a directory with a `models.toml` or such a file."""
    return name == "pocket" or name in HUB_SETS or _file(name).is_file()


def find_set(name: str) -> SetSpec:
    """The set called `name`: built in, a directory with a `models.toml`, or such a file.

    UserError for an unknown name and for a file with something in it that no set has.
    """
    if name in HUB_SETS:
        return HUB_SETS[name]
    file = POCKET / FILE if name == "pocket" else _file(name)
    if not file.is_file():
        systems.refuse(name)
        raise UserError(
            f"{unknown('model set', name, ['pocket', *HUB_SETS])}; "
            f"a directory with a {FILE} is a set too"
        )
    return _read(file)


def list_sets() -> list[SetStatus]:
    """The built-in sets."""
    return [describe(name) for name in ("pocket", *HUB_SETS)]


def describe(name: str) -> SetStatus:
    """The set called `name`, part by part."""
    spec = find_set(name)
    return SetStatus(spec, tuple(_status(part, model) for part, model in spec.models.items()))


def missing(spec: SetSpec) -> list[str]:
    """The models of a set that are not on this disk."""
    statuses = [_status(part, model) for part, model in spec.models.items()]
    return [status.model for status in statuses if status.directory is None]


def require(spec: SetSpec, *, offline: bool = False) -> None:
    """See that every model of a set is on this disk, fetching what is not.

    NotAvailableError, naming all that is missing, if it cannot be fetched.
    """
    lacking = missing(spec)
    if lacking and model_files.is_offline(offline):
        raise model_files.not_available(spec.name, lacking, model_files.OFFLINE)
    try:
        for model in lacking:
            _download(model)
    except NotAvailableError as error:
        raise model_files.not_available(spec.name, missing(spec), error.__cause__) from error


def pull(name: str) -> list[Path]:
    """Fetch the newest revision of a set's models, or of one model; the directories they are in.

    NotAvailableError if the network or the repository cannot be reached.
    """
    models = find_set(name).models.values() if is_set(name) else [str(parse(name))]
    return [directory for model in models for directory in _download(model)]


def _download(model: str) -> list[Path]:
    return [
        model_files.download(repository, layout, asked=model)
        for repository, layout in _repositories(parse(model))
    ]


def _status(part: str, model: str) -> PartStatus:
    directories = _directories(parse(model))
    if not directories:
        return PartStatus(part, model, None, None)
    found = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in found)
    return PartStatus(part, model, directories[0], round(size / 1e6))


def _directories(name: ModelName) -> list[Path]:
    """Where a model's files are; empty unless all are on this disk."""
    if name.directory is not None:
        return [name.directory] if name.directory.is_dir() else []
    found = [model_files.cached(repository, layout) for repository, layout in _repositories(name)]
    present = [directory for directory in found if directory is not None]
    return present if len(present) == len(found) else []


def _repositories(name: ModelName) -> list[tuple[str, model_files.Layout]]:
    """The hub repositories a model is made of."""
    if name.directory is not None:
        return []
    if name.scheme == "hf":
        return [(name.target, model_files.TRANSFORMERS)]
    from zeroshot.models import open_clip  # with torch and torchvision

    return open_clip.repositories(name)


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    return path if path.name == FILE else path / FILE


def _read(file: Path) -> SetSpec:
    try:
        content = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: {error}") from error
    _check_keys(file, "top level", content, (*TABLES, *TEXTS))
    for key in TABLES:
        if not isinstance(content.get(key, {}), dict):
            raise UserError(f"{file}: {key} must be a table ([{key}])")
    root = file.parent.resolve()
    models = {part: _model(file, part, content[part]) for part in PARTS if part in content}
    if not models:
        raise UserError(f"{file}: a set needs at least one of {', '.join(PARTS)}")
    return SetSpec(
        name=_text(file, "name", content.get("name", root.name)),
        root=root,
        coupling=_coupling(file, content["coupling"], models) if "coupling" in content else None,
        caption=content.get("caption", {}),
        classify=content.get("classify", {}),
        about=_text(file, "about", content.get("about", "")),
        licence=_text(file, "licence", content.get("licence", "")),
        encoder=models.get("encoder"),
        image_encoder=models.get("image_encoder"),
        text_encoder=models.get("text_encoder"),
        language_model=models.get("language_model"),
    )


def _model(file: Path, part: str, table: dict[str, Any]) -> str:
    _check_keys(file, f"[{part}]", table, ("model",))
    if "model" not in table:
        raise UserError(f"{file}: [{part}] needs the key model")
    return str(parse(_text(file, f"[{part}] model", table["model"]), root=file.parent))


def _coupling(file: Path, table: dict[str, Any], models: dict[str, str]) -> CouplingSpec:
    for key in ("method", "anchors"):
        if key not in table:
            raise UserError(f"{file}: [coupling] needs the key {key}")
    if not {"image_encoder", "text_encoder"} <= models.keys():
        raise UserError(f"{file}: [coupling] needs [image_encoder] and [text_encoder]")
    anchors = Path(_text(file, "[coupling] anchors", table["anchors"]))
    if anchors.suffix != ".safetensors":
        raise UserError(f"{file}: [coupling] anchors must be a .safetensors file, not '{anchors}'")
    options = {key: value for key, value in table.items() if key not in ("method", "anchors")}
    method = _text(file, "[coupling] method", table["method"])
    return CouplingSpec(method, (file.parent / anchors).resolve(), options)


def _check_keys(file: Path, where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"{file}: {where}: {unknown('key', key, known)}")


def _text(file: Path, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{file}: {what} must be a text, not {value!r}")
    return value
