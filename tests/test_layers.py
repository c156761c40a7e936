"""Imports point one way: each layer sees those to its left, methods only a few of them."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "zeroshot"
LAYERS = [
    {
        "errors",
        "ops",
        "metrics",
        "matching_metrics",
        "intervals",
        "prompts",
        "protocols",
        "treebank",
        *{"boxes", "rle", "drawing", "gallery"},
    },
    {"caption_metrics"},
    {"alignment", "measures"},
    {"multilabel"},
    {"models.base"},
    {"label_maps"},
    {"inputs"},
    {
        *{"images", "pixels", "formats", "records", "store", "models"},
        *{"durable", "locations", "buckets", "leases"},
    },
    {"decoding", "trace", "animations", "clips"},
    {"methods"},
    {
        *{"coupled", "anchors", "pairs", "model_set", "results", "spoken_results"},
        *{"ranking", "filtering", "approximate", "dense"},
    },
    {"located", "regions", "framewise"},
    {"page", "kept", "coco"},
    {"tasks"},
    {"jobs"},
    {"report", "scale", "api"},
    {"api_texts", "api_located", "video"},
    {"terminal"},
    {"cli_out", "cli_run", "cli_anchors", "cli_cache"},
    {"cli_rows"},
    {"cli_labels"},
    {"cli_calibrate", "cli_caption", "cli_classify", "cli_embed", "cli_eval"},
    {"cli_ask", "cli_detect", "cli_filter", "cli_match", "cli_search", "cli_segment"},
    {"cli_video"},
    {"cli", "web", "", "__main__"},
]
METHODS_SEE = {
    "errors",
    "ops",
    "caption_metrics",
    "treebank",
    "decoding",
    "methods",
    "models.base",
    "trace",
}
ONLY_IN_MODELS = {"transformers", "open_clip", "timm", "torchvision", "huggingface_hub"}


def layer_of(module: str) -> str:
    """`models.sets` -> `models`, `models.base` -> `models.base`, the package itself -> ''."""
    if module == "models.base":
        return module
    return module.split(".")[0]


def rank(layer: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if layer in names]
    assert found, f"'{layer}' has no place in the layers; add it to LAYERS"
    return found[0]


def imports():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(p for p in parts if p != "__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                is_package = (PACKAGE.parent / node.module.replace(".", "/")).is_dir()
                names = below if is_package else [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                yield module, name


def test_imports_point_down():
    wrong = []
    for module, name in imports():
        if not name.startswith("zeroshot."):
            continue
        target = layer_of(name.removeprefix("zeroshot."))
        source = layer_of(module)
        if (
            target == "models.base"
            or not (PACKAGE / f"{target}.py").exists() | (PACKAGE / target).is_dir()
        ):
            target = "models.base" if target == "models.base" else ""
        if target and rank(target) > rank(source):
            wrong.append(f"{module} imports {name}")
        if source == "methods" and target and target not in METHODS_SEE:
            wrong.append(f"a method meets {name}: {module}")
    assert not wrong


def test_model_libraries_stay_in_models():
    wrong = [
        f"{module} imports {name}"
        for module, name in imports()
        if name.split(".")[0] in ONLY_IN_MODELS and not module.startswith("models.")
    ]
    assert not wrong
