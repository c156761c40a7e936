"""Model sets on MTEB and MIEB: `python -m zeroshot.adapters.mteb MODELS TASK... [--out FOLDER]`.

    python -m zeroshot.adapters.mteb base CIFAR10ZeroShot Flickr30kT2IRetrieval

MODELS is a set by its name or directory, and a coupled pair too: its images and texts are in one
space. Tasks are those of `mteb.get_tasks`, which downloads their data. From Python:

    mteb.evaluate(MtebEncoder(zeroshot.load("base")), tasks)
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from zeroshot import api
from zeroshot.errors import NotAvailableError, UserError, ZeroshotError
from zeroshot.inference.embedding import canonical_names
from zeroshot.model_set.model_set import ModelSet
from zeroshot.ops import normalize

__all__ = ["MtebEncoder", "main"]


class MtebEncoder:
    """A model set as mteb calls encoders (its `EncoderProtocol`).

    An input of an image and a text is the sum of both unit embeddings, as for mteb's own CLIP.
    Texts that are too long are cut, as mteb's own models do.
    """

    def __init__(self, models: ModelSet) -> None:
        self.models = models

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> Tensor:
        """Unit embeddings `[n d]` of batches with `text`, `image` or both; mteb names the task too.

        Raises:
            UserError: a batch without texts and images: a task of another modality.
        """
        return torch.cat([self._batch(batch) for batch in inputs])

    def _batch(self, batch: Mapping[str, Any]) -> Tensor:
        encoder, parts = self.models.encoder, []
        if "text" in batch:
            parts.append(encoder.encode_texts(list(batch["text"])))
        if "image" in batch:
            images = [image.convert("RGB") for image in batch["image"]]
            parts.append(encoder.encode_images(images))
        if not parts:
            raise UserError(
                f"the task has {', '.join(sorted(batch))}, and a model set reads text and image"
            )
        return normalize(sum(parts[1:], parts[0]))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines `[n m]`."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines `[n]` of rows with rows."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside its figures: the models' canonical names as the revision."""
        from mteb.models import ModelMeta

        names = canonical_names(self.models.encoder)
        revision = "+".join(name.replace("/", "_") for name in names.values())
        known = {"name": f"zeroshot/{self.models.name}", "revision": revision}
        return ModelMeta.create_empty({**known, "modalities": ["image", "text"]})


def _rows(embeddings: Any) -> Tensor:
    rows = torch.as_tensor(embeddings).float()
    return normalize(rows if rows.ndim == 2 else rows[None])


def main(arguments: list[str] | None = None) -> int:
    """Measure a model set on tasks, and print their main scores; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m zeroshot.adapters.mteb")
    parser.add_argument("models", help="a model set, its name or its directory")
    parser.add_argument("tasks", nargs="+", help="names of mteb's tasks")
    parser.add_argument("--out", help="folder for mteb's result files; default: mteb's own")
    given = parser.parse_args(arguments)
    try:
        import mteb
    except ImportError:
        raise NotAvailableError("zeroshot.adapters.mteb needs mteb: pip install mteb") from None
    encoder = MtebEncoder(api._set(given.models))
    try:
        tasks = mteb.get_tasks(tasks=given.tasks)
    except KeyError as error:
        raise UserError(f"mteb has no such task: {error}") from None
    cache = mteb.ResultCache(given.out) if given.out else mteb.ResultCache()
    for result in mteb.evaluate(encoder, tasks, cache=cache).task_results:
        print(f"{result.task_name}\t{result.get_score():.4f}")
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except ZeroshotError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)
