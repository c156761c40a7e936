"""The last layer of a classifier, read from a model's files without its network."""

import re

from safetensors import safe_open
from torch import Tensor

from zeroshot.models.base import ClassifierHead
from zeroshot.models.files.model_files import Files

__all__ = ["read_classifier_head"]

CLASSIFIER_WEIGHT = re.compile(r"classifier(\.\d+)?\.weight")
"""Name of a classifier's last layer in most families."""


def read_classifier_head(files: Files) -> ClassifierHead | None:
    """The linear classifier in a model's safetensors; None if its classes have no names."""
    labels = files.read("config.json").get("id2label") or {}
    names = tuple(str(labels.get(str(i), "")) for i in range(len(labels)))
    if len(names) < 2 or not all(names) or names[0].startswith("LABEL_") or not files.safe:
        return None
    for path in files.weights:
        with safe_open(path, "pt") as file:
            for key in filter(CLASSIFIER_WEIGHT.fullmatch, file.keys()):
                weights: Tensor = file.get_tensor(key)
                if weights.ndim == 2 and len(weights) == len(names):
                    return ClassifierHead(weights.float(), names)
    return None
