"""Model sets: one name for all the models of a task.

A set is a `models.toml` file, or one of `HUB_SETS`:

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
    [caption]                            # this set's defaults of `zeroshot caption`
    [classify]                           # and of `zeroshot classify`

Nothing here loads a model or imports torch.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeroshot.errors import UserError, unknown
from zeroshot.inputs.text_files import read_toml, shown
from zeroshot.models.names import parse
from zeroshot.models.systems import check_is_no_system

__all__ = [
    "BUILT_IN",
    "CouplingSpec",
    "SetSpec",
    "find_set",
    "is_set",
]

FILE = "models.toml"
POCKET = Path(__file__).parent.parent / "models" / "pocket"
PARTS = ("encoder", "image_encoder", "text_encoder", "language_model")
TABLES = (*PARTS, "coupling", "caption", "classify")
TEXTS = ("name", "about", "licence")


@dataclass(frozen=True)
class CouplingSpec:
    """The method and the anchors that couple a set's image encoder and text encoder."""

    method: str
    anchors: Path
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetSpec:
    """A model set: the canonical names of its models, and defaults of the tasks."""

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
    """Approximate download size; None if the files come with the set."""

    @property
    def models(self) -> dict[str, str]:
        """Its models by the names of their tables."""
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
    # Captioning spends most of its time in the text tower. This one has half the layers and is
    # causal, so that the beginning of a text can be cached. transformers loads it as a CLIP, and
    # its licence is free; the faster MobileCLIPs are licensed for research only.
    # ImageNet 59.8 % at 3.5 GMAC a pair (github.com/microsoft/Cream, TinyCLIP/README.md).
    "fast": SetSpec(
        "fast",
        encoder="hf:wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M",
        language_model=MAGIC_MSCOCO,
        about="TinyCLIP 40M/32 with a text tower of 19 M parameters, half the work of base",
        licence="MIT (encoder), not stated (language model)",
        megabytes=840,
    ),
    # The strongest encoder under a free licence that transformers runs without remote code on one
    # GPU; it reads many languages. Its text tower is bidirectional, so captions take longer.
    "best": SetSpec(
        "best",
        encoder="hf:google/siglip2-so400m-patch14-384",
        language_model=MAGIC_MSCOCO,
        about="SigLIP 2 So400m at 384 pixels, multilingual; slow without a GPU",
        licence="Apache-2.0 (encoder), not stated (language model)",
        megabytes=5100,
    ),
}
BUILT_IN = ("pocket", *HUB_SETS)


def is_set(name: str) -> bool:
    """Whether `name` is a built-in set, a directory with a `models.toml` or such a file."""
    return name in BUILT_IN or os.path.isfile(_file(name))


def find_set(name: str) -> SetSpec:
    """The set called `name`: built in, a directory with a `models.toml`, or such a file.

    UserError for an unknown name and for a file with unknown keys or wrong values.
    """
    if name in HUB_SETS:
        return HUB_SETS[name]
    file = POCKET / FILE if name == "pocket" else _file(name)
    if not os.path.isfile(file):
        check_is_no_system(name)
        raise UserError(
            f"{unknown('model set', name, BUILT_IN)}; a directory with a {FILE} is a set too"
        )
    return _read(file)


def _file(name: str) -> Path:
    path = Path(os.path.expanduser(name))
    return path if path.name == FILE else path / FILE


def _read(file: Path) -> SetSpec:
    content = read_toml(file)
    _check_keys(file, "top level", content, (*TABLES, *TEXTS))
    for key in TABLES:
        if not isinstance(content.get(key, {}), dict):
            raise UserError(f"{file}: {key} must be a table ([{key}])")
    for key in ("caption", "classify"):
        _text(file, f"[{key}] method", content.get(key, {}).get("method", ""))
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
    if not isinstance(value, str) or "\0" in value:
        raise UserError(f"{file}: {what} must be a text, not {shown(value)}")
    return value
