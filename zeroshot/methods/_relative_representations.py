"""Relative representations (an embedding as its similarities to anchors), stored sparsely."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._joint_space import TemplateMode
from zeroshot.ops import topk_stream

DENSE_BYTES = 1 << 30
"""Relative representations are written out in full (`map_images`, `map_texts`) up to this size."""


def check_dense_size(count: int, anchors: int, item_size: int) -> None:
    """UserError if `count` vectors over all anchors take more than `DENSE_BYTES`."""
    if count * anchors * item_size > DENSE_BYTES:
        raise UserError(
            f"{count} rows over {anchors} anchors take {count * anchors * item_size / 1e9:.1f} GB "
            "in full; `scores`, `cosines` and `match` need no such rows, and csa has short ones"
        )


@dataclass(frozen=True, eq=False)
class RelativeRepresentations:
    """Vectors over `width` anchors with at most `k` entries each: int32 indices and values."""

    index: Int[Tensor, "n k"]
    values: Float[Tensor, "n k"]
    width: int

    @classmethod
    def from_embeddings(
        cls, embeddings: Float[Tensor, "n d"], anchors: AnchorMatrix, k: int, p: float
    ) -> "RelativeRepresentations":
        """The `k` largest similarities of each unit vector to the anchors, to the power `p`."""
        return cls.from_similarities(*topk_stream(embeddings, anchors, k), len(anchors), p)

    @classmethod
    def from_similarities(
        cls, values: Float[Tensor, "n k"], index: Int[Tensor, "n k"], width: int, p: float
    ) -> "RelativeRepresentations":
        """These similarities to the power `p`, negative ones as 0; an index of -1 is no anchor."""
        return cls(index.clamp_min(0).int(), values.clamp_min(0) ** p, width)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def lengths(self) -> Float[Tensor, " n"]:
        """Of each vector; 1 for a vector without entries."""
        length = self.values.norm(dim=1)
        return torch.where(length > 0, length, 1)

    def normalized(self) -> "RelativeRepresentations":
        """Vectors at unit length; a vector without entries stays zero."""
        return replace(self, values=self.values / self.lengths[:, None])

    def dense(self) -> Float[Tensor, "n a"]:
        """Written out, up to `DENSE_BYTES`."""
        check_dense_size(len(self), self.width, self.values.element_size())
        out = self.values.new_zeros(len(self), self.width)
        return out.scatter_(1, self.index.long(), self.values)

    def matrix(self) -> Any:
        """For scipy: CSR, int32."""
        from scipy import sparse

        n, k = self.values.shape
        values, index = self.values.cpu().numpy().ravel(), self.index.cpu().numpy().ravel()
        starts = np.arange(n + 1, dtype=np.int32 if n * k < 2**31 else np.int64) * k
        return sparse.csr_matrix((values, index, starts), shape=(n, self.width))

    def product(self, other: Any) -> Float[Tensor, "n m"]:
        """Dot products of all pairs of vectors, sparse times sparse.

        `other` may be a `matrix` too.
        """
        right = other.matrix() if isinstance(other, RelativeRepresentations) else other
        return torch.from_numpy((self.matrix() @ right.T).toarray()).to(self.values.device)


def relative_scores(
    images: RelativeRepresentations,
    prompts: RelativeRepresentations,
    text_mask: Bool[Tensor, "c t"],
    templates: TemplateMode,
) -> Float[Tensor, "n c"]:
    """Images against the prompts of each class, those that `text_mask` has; all sparse."""
    from scipy import sparse

    counts = text_mask.sum(1)
    starts = np.concatenate([[0], counts.cumsum(0).cpu().numpy()])
    if templates == "mean":
        weight = (1 / counts).repeat_interleave(counts).to(prompts.values).cpu().numpy()
        mean = sparse.csr_matrix((weight, np.arange(len(weight)), starts))
        return images.product(mean @ prompts.matrix())
    best = images.values.new_empty(len(images), len(counts))
    for c, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
        values, index = prompts.values[start:stop], prompts.index[start:stop]
        own = RelativeRepresentations(index, values, prompts.width)
        best[:, c] = images.product(own).amax(1)
    return best
