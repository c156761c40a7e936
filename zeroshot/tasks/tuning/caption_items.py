"""How to caption, tried on images with reference captions.

An item is an image, its outcome CIDEr of its caption; word frequencies are those of all references.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot import methods
from zeroshot.datasets.captions import CaptionDataset
from zeroshot.inference.batching import batched_with_oom_retry
from zeroshot.inference.embedding import project_images
from zeroshot.methods import Caption, Pool
from zeroshot.methods.auto import OPERATIONS
from zeroshot.methods.magic import MaGiC
from zeroshot.methods.mbr import MBR, WORDS
from zeroshot.metrics.captioning import DocumentFrequency, cider, document_frequency
from zeroshot.model_set.coupled_encoder import CoupledEncoder
from zeroshot.models.deferred import Deferred
from zeroshot.tasks.captioning import captioner as captioning
from zeroshot.tasks.tuning.recipe import TunedTask
from zeroshot.tasks.tuning.tuning_data import PairModels
from zeroshot.tuning.problem import TunedMethod

PRESETS = ("coco", "flickr30k")
"""Of `magic`."""
TEXT_TOKENS = 12
"""Of a caption."""
UNKNOWN_SIZE = 1e8
"""Parameters of a model that does not say."""


@dataclass(frozen=True, eq=False)
class CaptionItems:
    """Images with reference captions."""

    known: PairModels
    rows: Float[Tensor, "n d"]
    references: Sequence[Sequence[str]]
    _pools: dict[str | None, Pool] = field(default_factory=dict)

    task: ClassVar[TunedTask] = "caption"
    largest: ClassVar[float] = 10.0

    @classmethod
    def of(cls, known: PairModels, data: CaptionDataset) -> "CaptionItems":
        """With the embeddings of the images."""
        return cls(known, known.embed(data.sources), data.references)

    @cached_property
    def tuned(self) -> list[TunedMethod]:
        """The set's default; retrieval, and what a language model writes; other couplings."""
        models = self.known.of(None)
        default = TunedMethod(methods.name_of(captioning.captioner(models, None, {})), {})
        pool = models.anchors.captions if models.spec.coupling else ()
        found = [default]
        if 0 < len(pool) <= captioning.LARGEST_POOL:
            found += [TunedMethod("retrieve", {}), TunedMethod("consensus", {})]
        if models.spec.language_model:
            found += [TunedMethod("mbr", {})] if len(found) > 1 else []
            found += [TunedMethod("magic", dict(MaGiC.presets[p])) for p in PRESETS]
        names = dict.fromkeys((default.method, *(("consensus",) if len(found) > 1 else ())))
        found += [TunedMethod(own, {}, name) for own in names for name in self.known.couplings]
        made = [(self._method(one), one.coupling) for one in found]
        return [one for i, one in enumerate(found) if made[i] not in made[:i]]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.rows)

    def outcomes(self, tuned: TunedMethod, items: Int[Tensor, " h"]) -> Float[Tensor, " h"]:
        """CIDEr of the captions of these images."""
        texts = self.captions(tuned, items)
        own = [self.references[i] for i in items.tolist()]
        return torch.from_numpy(cider(texts, own, frequency=self.frequency).each)

    def captions(self, tuned: TunedMethod, items: Int[Tensor, " h"]) -> list[str]:
        """By this method."""
        models, method = self.known.of(tuned.coupling), self._method(tuned)
        if "pool" in method.needs and tuned.coupling not in self._pools:
            pool = captioning.pool_of(models, self.known.cache, self.known.meter)
            self._pools[tuned.coupling] = pool

        def work(images: Tensor) -> list[Caption]:
            writes = "language_model" in method.needs
            return method.caption(
                images,
                models.encoder,
                language_model=models.language_model if writes else None,
                pool=self._pools.get(tuned.coupling),
            )

        images = project_images(models.encoder, self.rows[items])
        parts = batched_with_oom_retry(work, images, self.known.batch_size)
        return [caption.text for _, part in parts for caption in part]

    @cached_property
    def frequency(self) -> DocumentFrequency:
        """Of words, in all references."""
        return document_frequency(self.references)

    def cost(self, tuned: TunedMethod) -> float:
        """Multiplications and additions, roughly: the tokens that each model sees, by its size."""
        models, method = self.known.of(tuned.coupling), self._method(tuned)
        written = read = 0
        if isinstance(method, MBR):
            texts = (len(WORDS) + 1) * method.beginnings
            written = texts * method.max_tokens + method.neighbours * TEXT_TOKENS
            read = texts * TEXT_TOKENS
        elif isinstance(method, MaGiC):
            written = method.max_tokens * method.k
            read = written * TEXT_TOKENS
        total = 0.0
        if written:
            total = 2 * (written * _size(models.language_model) + read * _size(models.encoder))
        return self.count * (total + OPERATIONS / 10)

    @property
    def about(self) -> str:
        """Nothing."""
        return ""

    def bank(self, tuned: TunedMethod) -> tuple[str, ...]:
        """None."""
        return ()

    def models(self, tuned: TunedMethod) -> dict[str, str]:
        """Canonical names."""
        own = captioning.settings(self.known.of(tuned.coupling), self._method(tuned))
        return dict(own["models"])

    def _method(self, tuned: TunedMethod) -> methods.Captioner:
        models = self.known.of(tuned.coupling)
        return captioning.captioner(models, tuned.method, dict(tuned.options))


def _size(model: Any) -> float:
    """Parameters that a token meets, but for its embedding, which is looked up."""
    if isinstance(model, CoupledEncoder):
        model = model.text_encoder
    module = getattr(model.load() if isinstance(model, Deferred) else model, "model", None)
    if not isinstance(module, torch.nn.Module):
        return UNKNOWN_SIZE
    layers = (part for part in module.modules() if not isinstance(part, torch.nn.Embedding))
    sizes = (own.numel() for part in layers for own in part.parameters(recurse=False))
    return float(sum(sizes)) or UNKNOWN_SIZE
