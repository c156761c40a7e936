"""What couplings share: anchor rows in pieces, sparse relative rows, running moments, checks.

No method of its own (the name begins with `_`).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from scipy import sparse
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import Explanation
from zeroshot.ops import masked_mean, normalize, topk_stream

Templates = Literal["mean", "max"]
Weighting = Literal["csa", "cosine", "none"]

DENSE_BYTES = 1 << 30
"""Relative rows are written out in full (`map_images`, `map_texts`) up to this many bytes."""
BLOCK = 8192
"""Anchor rows that are brought to unit length, or added up, at a time."""


# Checks


def check_pairs(
    method: str, images: Real[Tensor, "a d"], texts: Real[Tensor, "b e"], least: int = 1
) -> None:
    """See that anchor pairs can be used; UserError says which cannot.

    Rows must match in number, be finite and have a direction.
    """
    if len(images) != len(texts) or len(images) < least:
        pairs = "at least one pair" if least == 1 else f"at least {least} pairs"
        raise UserError(
            f"{len(images)} anchor images and {len(texts)} anchor texts: "
            f"{method} needs as many of one as of the other, and {pairs}"
        )
    check_rows("anchor images", images)
    check_rows("anchor texts", texts)


def check_rows(what: str, rows: Real[Tensor, "n d"], width: int | None = None) -> None:
    """No row of another width, with NaN or infinity, or of length zero."""
    if width is not None and rows.shape[1] != width:
        raise UserError(f"{what} of width {rows.shape[1]}, but the anchors' width is {width}")
    for start in range(0, len(rows), BLOCK):
        length = _working(rows[start : start + BLOCK]).norm(dim=1)
        wrong = ~(length.isfinite() & (length > 0))
        if wrong.any():
            place = start + int(wrong.nonzero()[0])
            said = "is zero and has no direction" if length[wrong][0] == 0 else "is not finite"
            raise UserError(f"{what}: row {place} {said}")


def check_more(
    images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"], known: "Rows", known_texts: "Rows"
) -> None:
    """See that pairs can join those that are there."""
    check_pairs("an edit", images, texts)
    check_rows("anchor images", images, known.width)
    check_rows("anchor texts", texts, known_texts.width)


def check_places(index: Int[Tensor, " m"], count: int) -> Int[Tensor, " m"]:
    """The different ones of `index`, in order; UserError for a place that is none of `count`."""
    unknown = index[(index < 0) | (index >= count)]
    if len(unknown):
        raise UserError(f"no anchor {int(unknown[0])}: there are {count}, counted from 0")
    places: Tensor = index.unique()  # type: ignore[no-untyped-call]
    if len(places) == count:
        raise UserError(f"all {count} anchors would be removed; a coupling needs at least one")
    return places


def _working(rows: Tensor) -> Tensor:
    """In float32 at least; rows kept in fewer bits stand for unit rows, and become these."""
    return rows if rows.dtype in (torch.float32, torch.float64) else normalize(rows.float())


# Anchor rows


@dataclass(frozen=True, eq=False)
class Rows:
    """Anchor rows as unit vectors, seen from their mean if `centred`; `ops.Keys` for a search.

    They stay as they were given, in pieces, wherever they lie (in half precision, int8, a mapped
    file), and become unit rows block by block. Adding appends a piece and removing cuts pieces
    into views, so that an edit copies no row that was there.
    """

    pieces: tuple[Real[Tensor, "_ d"], ...]
    count: int
    total: Float[Tensor, " d"]
    """Their sum in float64, kept up by edits."""
    unit: bool
    """All had unit length when they came."""
    centred: bool = False

    @classmethod
    def of(cls, rows: Real[Tensor, "a d"], centred: bool = False) -> "Rows":
        """These rows; one pass over them."""
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        unit = True
        for start in range(0, len(rows), BLOCK):
            block = _working(rows[start : start + BLOCK])
            total += block.sum(0, dtype=torch.float64)
            unit = unit and bool(((block.norm(dim=1) - 1).abs() < 1e-6).all())
        return cls((rows,), len(rows), total, unit, centred)

    def __len__(self) -> int:
        return self.count

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return len(self.total)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """In float64."""
        return self.total / self.count

    def add(self, rows: Float[Tensor, "m d"]) -> "Rows":
        """With these behind."""
        new = Rows.of(rows)
        return replace(
            self,
            pieces=(*self.pieces, rows),
            count=self.count + new.count,
            total=self.total + new.total,
            unit=self.unit and new.unit,
        )

    def remove(self, places: Int[Tensor, " m"]) -> "Rows":
        """Without these (different ones); the others keep their order."""
        pieces: list[Tensor] = []
        start = 0
        gone = places.sort().values
        for piece in self.pieces:
            here = gone[(gone >= start) & (gone < start + len(piece))] - start
            begin = 0
            for place in [*here.tolist(), len(piece)]:
                if place > begin:
                    pieces.append(piece[begin:place])
                begin = place + 1
            start += len(piece)
        lost = self.raw(gone).sum(0, dtype=torch.float64)
        return replace(
            self, pieces=tuple(pieces), count=self.count - len(gone), total=self.total - lost
        )

    def raw(self, places: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """Rows as they were given, in float32 at least."""
        starts = torch.tensor([0, *(len(p) for p in self.pieces)]).cumsum(0)
        if len(self.pieces) == 1:
            return _working(self.pieces[0][places])
        owner = torch.searchsorted(starts, places, right=True) - 1
        out = _working(self.pieces[0][:0]).new_empty(len(places), self.width)
        for number in sorted(set(owner.tolist())):
            mine = owner == number
            out[mine] = _working(self.pieces[number][places[mine] - starts[number]])
        return out

    def take(self, index: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """Rows at these places as `blocks` gives them."""
        return self.directed(self.raw(index), known=True)

    def blocks(self, size: int) -> Iterator[Float[Tensor, "_ d"]]:
        """All rows in order as unit rows, at most `size` at a time; small pieces come together."""
        for block in self.raw_blocks(size):
            yield self.directed(block, known=True)

    def raw_blocks(self, size: int) -> Iterator[Float[Tensor, "_ d"]]:
        """All rows in order, as they were given; a block is gone when the next one comes."""
        kept_short = self.pieces[0].dtype not in (torch.float32, torch.float64)
        # one place for all blocks: allocating each anew tears holes into the heap
        room = torch.empty(min(size, self.count) if kept_short else 0, self.width)

        def block(parts: list[Tensor]) -> Tensor:
            if not kept_short:
                return torch.cat(parts) if len(parts) > 1 else parts[0]
            start = 0
            for part in parts:
                room[start : start + len(part)].copy_(part)
                start += len(part)
            rows = room[:start]
            return rows.div_(rows.norm(dim=1, keepdim=True))

        waiting: list[Tensor] = []
        for part in (part for piece in self.pieces for part in torch.split(piece, size)):
            if waiting and sum(map(len, waiting)) + len(part) > size:
                yield block(waiting)
                waiting = []
            waiting.append(part)
        yield block(waiting)

    def directed(self, rows: Float[Tensor, "n d"], known: bool = False) -> Float[Tensor, "n d"]:
        """Rows at unit length, seen from the mean; `known` ones may have that length already."""
        if self.centred:
            rows = rows - self.mean.to(rows.dtype)
        return rows if known and self.unit and not self.centred else normalize(rows)


# Relative rows


def dense_room(rows: int, anchors: int, size: int) -> None:
    """UserError where rows over all anchors would take more than `DENSE_BYTES`."""
    if rows * anchors * size > DENSE_BYTES:
        raise UserError(
            f"{rows} rows over {anchors} anchors take {rows * anchors * size / 1e9:.1f} GB in "
            "full; `scores`, `cosines` and `match` need no such rows, and csa has short ones"
        )


@dataclass(frozen=True, eq=False)
class Relative:
    """Rows over `width` anchors with at most `k` entries each: int32 places, values."""

    index: Int[Tensor, "n k"]
    values: Float[Tensor, "n k"]
    width: int

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"], anchors: Rows, k: int, p: float) -> "Relative":
        """Each unit row as its `k` largest similarities to the anchors, to the power `p`."""
        return cls.near(*topk_stream(rows, anchors, k), len(anchors), p)

    @classmethod
    def near(
        cls, values: Float[Tensor, "n k"], index: Int[Tensor, "n k"], width: int, p: float
    ) -> "Relative":
        """Of similarities to these places, to the power `p`; a place of -1 counts for nothing."""
        return cls(index.clamp_min(0).int(), values.clamp_min(0) ** p, width)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def lengths(self) -> Float[Tensor, " n"]:
        """Of each row; 1 for a row without entries."""
        length = self.values.norm(dim=1)
        return torch.where(length > 0, length, 1)

    def at_unit_length(self) -> "Relative":
        """Rows at unit length; a row without entries stays so."""
        return replace(self, values=self.values / self.lengths[:, None])

    def dense(self) -> Float[Tensor, "n a"]:
        """Written out, up to `DENSE_BYTES`."""
        dense_room(len(self), self.width, self.values.element_size())
        out = self.values.new_zeros(len(self), self.width)
        return out.scatter_(1, self.index.long(), self.values)

    def matrix(self) -> sparse.csr_matrix:
        """For scipy: CSR, int32."""
        n, k = self.values.shape
        values, index = self.values.cpu().numpy().ravel(), self.index.cpu().numpy().ravel()
        places = np.arange(n + 1, dtype=np.int32 if n * k < 2**31 else np.int64) * k
        return sparse.csr_matrix((values, index, places), shape=(n, self.width))

    def product(self, other: "Relative | sparse.csr_matrix") -> Float[Tensor, "n m"]:
        """Dot products of all pairs of rows, sparse times sparse."""
        right = other.matrix() if isinstance(other, Relative) else other
        return torch.from_numpy((self.matrix() @ right.T).toarray()).to(self.values.device)


def relative_scores(
    images: Relative,
    prompts: Relative,
    text_mask: Bool[Tensor, "c t"],
    templates: Templates,
) -> Float[Tensor, "n c"]:
    """Image rows against the prompts of each class, those that the mask has; all sparse."""
    counts = text_mask.sum(1)
    starts = np.concatenate([[0], counts.cumsum(0).cpu().numpy()])
    if templates == "mean":
        weight = (1 / counts).repeat_interleave(counts).to(prompts.values).cpu().numpy()
        mean = sparse.csr_matrix((weight, np.arange(len(weight)), starts))
        return images.product(mean @ prompts.matrix())
    best = images.values.new_empty(len(images), len(counts))
    for c, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
        values, index = prompts.values[start:stop], prompts.index[start:stop]
        best[:, c] = images.product(Relative(index, values, prompts.width)).amax(1)
    return best


def strongest(contributions: Float[Tensor, " a"], count: int) -> Explanation:
    """The anchors that moved the score most, either way."""
    order = contributions.abs().topk(min(count, len(contributions))).indices
    return Explanation(
        tuple(order.tolist()),
        tuple(contributions[order].tolist()),
        float(contributions.sum()),
    )


def reduce_prompts(
    images: Float[Tensor, "n m"],
    prompts: Float[Tensor, "c t m"],
    text_mask: Bool[Tensor, "c t"] | None,
    templates: Templates,
) -> Float[Tensor, "n c"]:
    """Dot products of image rows with the prompts of each class, reduced over `t`."""
    if templates == "mean":
        return images @ masked_mean(prompts, text_mask).T
    similarity = torch.einsum("nm,ctm->nct", images, prompts)
    if text_mask is not None:
        similarity = similarity.masked_fill(~text_mask, -torch.inf)
    return similarity.amax(-1)


T = TypeVar("T")
Self = TypeVar("Self", bound="Dense")


def fitted(method: object, learned: T | None) -> T:
    """What `fit` learned; RuntimeError before it."""
    if learned is None:
        name = type(method).__name__
        raise RuntimeError(f"this {name} has no anchors yet: call fit(anchor_images, anchor_texts)")
    return learned


class Dense:
    """A coupling whose joint rows are short: scores are products of `map_images`, `map_texts`.

    A subclass says how it learns from anchors (`_learn`). Its edits learn again from all of them,
    unless it knows better.
    """

    templates: Templates
    anchor_images_: Rows | None
    anchor_texts_: Rows | None
    least: ClassVar[int] = 1
    """Pairs it takes at least."""

    def _learn(self: Self, images: Rows, texts: Rows) -> Self:
        raise NotImplementedError

    def fit(
        self: Self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]
    ) -> Self:
        """A copy that knows these anchor pairs; row i of both belongs together.

        Raises:
            UserError: too few pairs, rows that are zero or not finite, an option out of range.
        """
        name = type(self).__module__.rpartition(".")[2]
        check_pairs(name, anchor_images, anchor_texts, self.least)
        return self._learn(Rows.of(anchor_images), Rows.of(anchor_texts))

    def add(self: Self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> Self:
        """With these pairs behind the others, as if fitted with all of them."""
        check_more(images, texts, self._images, self._texts)
        return self._learn(self._images.add(images), self._texts.add(texts))

    def remove(self: Self, index: Int[Tensor, " m"]) -> Self:
        """Without the pairs at these places; the others keep their order."""
        gone = check_places(index, len(self._images))
        return self._learn(self._images.remove(gone), self._texts.remove(gone))

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`."""
        raise NotImplementedError

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`."""
        raise NotImplementedError

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Products of joint rows, reduced over each class's prompts."""
        prompts = self._prompts(texts, text_mask)
        return reduce_prompts(self.map_images(images), prompts, text_mask, self.templates)

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """As `scores`, with joint rows at unit length."""
        prompts = normalize(self._prompts(texts, text_mask))
        rows = normalize(self.map_images(images))
        return reduce_prompts(rows, prompts, text_mask, self.templates)

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """Cosines of joint image rows with `k` text rows each."""
        joint = normalize(self.map_texts(texts.flatten(0, 1)))
        rows = joint.view(*texts.shape[:2], joint.shape[1])
        return (rows @ normalize(images)[:, :, None])[..., 0]

    def _prompts(
        self, texts: Float[Tensor, "c t e"], text_mask: Bool[Tensor, "c t"] | None
    ) -> Float[Tensor, "c t m"]:
        """Joint rows of the prompts that are there."""
        here = torch.ones(texts.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
        rows = self.map_texts(texts[here])
        out = rows.new_zeros(*texts.shape[:2], rows.shape[1])
        out[here] = rows
        return out

    @property
    def _images(self) -> Rows:
        return fitted(self, self.anchor_images_)

    @property
    def _texts(self) -> Rows:
        return fitted(self, self.anchor_texts_)


# Moments


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sums and products of paired rows, in float64: all that a CSA needs to know.

    They add up, so that pairs are added and removed in time that does not depend on how many
    there are, and the result is that of a rebuild to the last digits of a double.
    """

    count: int
    x: Float[Tensor, " d"]
    y: Float[Tensor, " e"]
    xx: Float[Tensor, "d d"]
    yy: Float[Tensor, "e e"]
    xy: Float[Tensor, "d e"]

    @classmethod
    def of(cls, images: Rows, texts: Rows, directed: bool = False) -> "Moments":
        """Of these pairs as they were given, or as the unit rows they are searched by."""
        d, e = images.width, texts.width
        zero = images.total.new_zeros(1)
        sums = [zero.new_zeros(s) for s in ((d,), (e,), (d, d), (e, e), (d, e))]
        sides = [r.blocks(BLOCK) if directed else r.raw_blocks(BLOCK) for r in (images, texts)]
        for left, right in zip(*sides, strict=True):
            x, y = left.double(), right.double()
            block = (x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y)
            for held, more in zip(sums, block, strict=True):
                held += more
        return cls(len(images), *sums)

    def __add__(self, other: "Moments") -> "Moments":
        return self._with(other, 1)

    def __sub__(self, other: "Moments") -> "Moments":
        return self._with(other, -1)

    def _with(self, other: "Moments", sign: int) -> "Moments":
        return Moments(
            self.count + sign * other.count,
            self.x + sign * other.x,
            self.y + sign * other.y,
            self.xx + sign * other.xx,
            self.yy + sign * other.yy,
            self.xy + sign * other.xy,
        )

    @cached_property
    def spectra(self) -> "Spectra":
        """Solved on first use."""
        noise = float(self.xx.diagonal().sum()), float(self.yy.diagonal().sum())
        return Spectra.of(*self.centred(), noise=(1e-13 * noise[0], 1e-13 * noise[1]))

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scatter matrices about the means: `[d d]`, `[e e]`, `[d e]`, not divided by the count."""
        return (
            self.xx - torch.outer(self.x, self.x) / self.count,
            self.yy - torch.outer(self.y, self.y) / self.count,
            self.xy - torch.outer(self.x, self.y) / self.count,
        )


@dataclass(frozen=True, eq=False)
class Canonical:
    """Directions in which two sides agree, `rho` says how much: coordinates are `rows @ map`."""

    image_map: Float[Tensor, "d s"]
    text_map: Float[Tensor, "e s"]
    rho: Float[Tensor, " s"]


@dataclass(frozen=True, eq=False)
class Spectra:
    """Scatter matrices in the directions in which each side varies; solved once for any ridge."""

    x: Float[Tensor, " i"]
    """Variances."""
    y: Float[Tensor, " j"]
    x_axes: Float[Tensor, "d i"]
    y_axes: Float[Tensor, "e j"]
    xy: Float[Tensor, "i j"]

    @classmethod
    def of(
        cls,
        xx: Float[Tensor, "d d"],
        yy: Float[Tensor, "e e"],
        xy: Float[Tensor, "d e"],
        noise: tuple[float, float] = (0.0, 0.0),
    ) -> "Spectra":
        """Of scatter matrices about the means; a variance below `noise` is rounding."""
        (x, x_axes), (y, y_axes) = _varying(xx, noise[0]), _varying(yy, noise[1])
        return cls(x, y, x_axes, y_axes, x_axes.T @ xy @ y_axes)

    def canonical(self, ridge: tuple[float, float], dims: int = 0) -> Canonical:
        """`A = U' Sxx^-1/2`, `B = V' Syy^-1/2` from `U rho V' = Sxx^-1/2 Sxy Syy^-1/2`.

        The ridges are added to the diagonals of `Sxx` and `Syy`. `dims` 0 keeps all directions
        that both sides have.
        """
        left, right = (self.x + ridge[0]).rsqrt(), (self.y + ridge[1]).rsqrt()
        u, rho, vh = torch.linalg.svd(left[:, None] * self.xy * right, full_matrices=False)
        kept = int((rho > 1e-12).sum())
        kept = min(kept, dims) if dims else kept
        if not kept:
            raise UserError(
                "the anchors do not vary together: that takes two pairs at least that differ on "
                "both sides; procrustes and asif need no variation"
            )
        return Canonical(
            self.x_axes @ (left[:, None] * u[:, :kept]),
            self.y_axes @ (right[:, None] * vh[:kept].T),
            rho[:kept],
        )


def _varying(scatter: Float[Tensor, "d d"], noise: float) -> tuple[Tensor, Tensor]:
    """Variances and directions of a scatter matrix, without those that have no spread."""
    values, vectors = torch.linalg.eigh(scatter)
    least = float(values.abs().amax()) * len(values) * torch.finfo(values.dtype).eps
    there = values > max(least, noise)
    return values[there], vectors[:, there]


def weighted(
    rows: Float[Tensor, "n s"], rho: Float[Tensor, " s"], weighting: Weighting
) -> Float[Tensor, "n s"]:
    """Canonical coordinates such that products of both sides' rows are the weighted score.

    `csa` weights by `rho` after bringing rows to unit length, `cosine` before, `none` never.
    """
    root = rho.to(rows.dtype).sqrt()
    if weighting == "csa":
        return normalize(rows) * root
    return normalize(rows * root if weighting == "cosine" else rows)
