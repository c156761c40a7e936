"""Named protocols: conditions under which a figure compares with a published one.

A protocol fixes the class names, the templates, the split, the number of captions per image and
the metric. Data that do not fit it are an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zeroshot.errors import unknown

EvaluationTask = Literal["classify", "multilabel", "caption", "retrieve"]
TASKS: dict[EvaluationTask, str] = {
    "classify": "zeroshot_classification",
    "multilabel": "zeroshot_multilabel_classification",
    "caption": "captioning",
    "retrieve": "zeroshot_retrieval",
}
"""The tasks and their names in results: CLIP_benchmark's, which has none for several labels."""
HEADLINE: dict[EvaluationTask, str] = {
    "classify": "acc1",
    "multilabel": "mean_average_precision",
    "caption": "CIDEr",
    "retrieve": "text_retrieval_recall@1",
}
"""The figure by which methods are ranked."""


@dataclass(frozen=True)
class Protocol:
    """The conditions; None if the data decide."""

    name: str
    task: EvaluationTask
    about: str
    source: str
    labels: str | None = None
    """for `prompts.load_labels`; class i is the i-th folder in order of names"""
    templates: str | None = None
    split: str | None = None
    images: int | None = None
    captions: int | None = None
    """the number of captions of each image that are used, the first ones"""


_CLIP = "Radford et al. 2021, arXiv:2103.00020; class names and templates of OpenAI's notebook"
_KARPATHY = "split of Karpathy and Fei-Fei 2015, arXiv:1412.2306"
_LAION = "github.com/LAION-AI/CLIP_benchmark"

PROTOCOLS: Mapping[str, Protocol] = {
    p.name: p
    for p in [
        Protocol(
            "clip/imagenet",
            "classify",
            "ImageNet-1k validation, 80 templates",
            _CLIP,
            "imagenet",
            "openai",
            "val",
            50_000,
        ),
        Protocol(
            "clip/imagenet-7",
            "classify",
            "ImageNet-1k validation, the 7 best templates",
            _CLIP,
            "imagenet",
            "simple",
            "val",
            50_000,
        ),
        Protocol(
            "clip_benchmark/classification",
            "classify",
            "a CLIP_benchmark webdataset with its own class names and templates",
            _LAION,
            split="test",
        ),
        Protocol(
            "clip_benchmark/multilabel",
            "multilabel",
            "a CLIP_benchmark webdataset of several labels per image, with its own class names "
            "and templates",
            _LAION,
            split="test",
        ),
        Protocol(
            "clip_benchmark/retrieval",
            "retrieve",
            "a CLIP_benchmark webdataset with captions",
            _LAION,
            split="test",
        ),
        Protocol(
            "karpathy/coco-captions",
            "caption",
            "COCO captions, 5000 images",
            _KARPATHY,
            split="test",
            images=5000,
        ),
        Protocol(
            "karpathy/flickr30k-captions",
            "caption",
            "Flickr30k captions, 1000 images",
            _KARPATHY,
            split="test",
            images=1000,
        ),
        Protocol(
            "karpathy/coco-retrieval",
            "retrieve",
            "COCO, 5000 images among 25,000 captions",
            _KARPATHY,
            split="test",
            images=5000,
            captions=5,
        ),
        Protocol(
            "karpathy/flickr30k-retrieval",
            "retrieve",
            "Flickr30k, 1000 images among 5000 captions",
            _KARPATHY,
            split="test",
            images=1000,
            captions=5,
        ),
    ]
}


def protocol(name: str) -> Protocol:
    """The protocol with this name; UserError names all protocols."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
