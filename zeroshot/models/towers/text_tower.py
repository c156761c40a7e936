"""Causal text towers: what a text shares with earlier ones is not computed again.

In a causal transformer the keys and values of a position depend on the tokens up to it and on
nothing after. Texts that begin alike therefore form a tree of tokens, each node of which needs to
run once. `TokenTree` keeps the nodes of its last call, finds every new text's longest known
beginning there, and runs the rest of all texts together, each node attending to its ancestors.
That covers all that guided decoding does to texts: they grow by a word, a growing word is split
anew into other tokens, candidates share all but their last token, images share captions.

The last layer runs at end positions only, since nothing else of it is read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.ops import normalize

__all__ = ["PROBES", "Block", "TokenTree", "Tokens", "Tower", "encode_paths", "is_causal"]

NODES_AT_ONCE = 320
"""On a CPU, prompts took as long with 160 and an eighth longer with 640."""

PROBES = ("a photo", "a photo of a cat", "a photo of a cat and two dogs", "two dogs and a photo")
"""Texts of which one goes on from another, for `is_causal`."""

Rows = Callable[[Tensor], Tensor]
"""A function of rows `[n w]`, such as a linear layer."""


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer layer, taken apart at its attention."""

    before: Rows
    """The norm before the attention."""
    query: Rows
    key: Rows
    value: Rows
    after: Rows
    """The attention's output projection."""
    feed_forward: Rows
    """Norm and multi-layer perceptron, without the residual."""


@dataclass(frozen=True)
class Tower:
    """A causal text tower of any library: tokens in, the embedding of the last one out."""

    embed: Callable[[Int[Tensor, " n"], Int[Tensor, " n"]], Float[Tensor, "n w"]]
    """Tokens and their positions to the first layer's input."""
    blocks: Sequence[Block]
    heads: int
    finish: Rows
    """Final norm and projection."""
    device: torch.device


Tokens = tuple[int, ...]
"""The tokens of a text from the first to the one whose state is its embedding."""


@dataclass
class _Branch:
    """The new nodes below one known node (or below nothing): parents come before children."""

    stem: list[int]
    """Slots of the known nodes, root first."""
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Place within the branch; -1 for the end of the stem."""
    depths: list[int] = field(default_factory=list)
    """Steps from the stem, from 1 on."""
    ends: list[int] = field(default_factory=list)
    """Places of the nodes that are a text's last token."""
    known: dict[tuple[int, int, bool], int] = field(default_factory=dict)

    def grow(self, parent: int, token: int, end: bool) -> int:
        """The place of this child of `parent`, new or not."""
        place = self.known.setdefault((parent, token, end), len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(1 if parent < 0 else self.depths[parent] + 1)
            if end:
                self.ends.append(place)
        return place


class TokenTree:
    """Embeddings of token paths; remembers the keys and values of the last call's paths."""

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        # On a CPU the widest rows of a layer should stay in its caches: a fifth faster at 2880.
        self._at_once = 512 if tower.device.type == "cpu" else 1 << 30
        self.nodes_run = 0
        """Tokens that went through the tower so far."""
        self._children: dict[tuple[int, int], int] = {}  # (slot of parent or -1, token) -> slot
        self._keys: list[Tensor] = []  # per layer [slots, w]
        self._values: list[Tensor] = []

    @torch.inference_mode()
    def __call__(self, paths: Sequence[Tokens]) -> Float[Tensor, "n d"]:
        """What the tower gives at the end of each path; not of unit length."""
        branches: dict[int, _Branch] = {}
        ends = [self._place(path, branches) for path in paths]
        batch = _Batch(list(branches.values()), self.tower.device)
        rows = self._run(batch)
        first = dict(zip(branches, batch.first_end, strict=True))
        where = {s: {p: i for i, p in enumerate(b.ends)} for s, b in branches.items()}
        self._remember(branches, batch)
        self.nodes_run += len(batch.tokens)
        return rows[[first[stem] + where[stem][place] for stem, place in ends]]

    def _place(self, path: Tokens, branches: dict[int, _Branch]) -> tuple[int, int]:
        """Follow `path` as far as it is known, add what is not; its branch and its last node."""
        node, stem = -1, []
        for token in path[:-1]:
            below = self._children.get((node, token))
            if below is None:
                break
            node = below
            stem.append(node)
        branch = branches.setdefault(node, _Branch(stem))
        place = -1
        for token in path[len(stem) : -1]:
            place = branch.grow(place, token, end=False)
        return node, branch.grow(place, path[-1], end=True)

    def _run(self, batch: "_Batch") -> Float[Tensor, "e d"]:
        """All layers over the new nodes, whose keys and values stay in `batch`."""
        tower = self.tower
        x = tower.embed(batch.tokens, batch.positions)
        for layer, block in enumerate(tower.blocks):
            last = layer == len(tower.blocks) - 1
            rows = block.before(x)
            batch.keys.append(block.key(rows))
            batch.values.append(block.value(rows))
            stems = (self._keys[layer], self._values[layer]) if self._keys else None
            if last:
                rows, x = rows[batch.ends], x[batch.ends]
            attended = batch.attend(block.query(rows), layer, stems, tower.heads, ends_only=last)
            x = x + block.after(attended)
            parts = torch.split(x, self._at_once)
            x = x + torch.cat([block.feed_forward(part) for part in parts])
        return tower.finish(x)

    def _remember(self, branches: dict[int, _Branch], batch: "_Batch") -> None:
        """Keep the nodes that this call's texts are made of, but for their ends."""
        kept = sorted({slot for branch in branches.values() for slot in branch.stem})
        moved = {-1: -1} | {slot: i for i, slot in enumerate(kept)}
        children = {
            (moved[parent], token): moved[slot]
            for (parent, token), slot in self._children.items()
            if slot in moved
        }
        fresh: list[int] = []
        for (stem, branch), start in zip(branches.items(), batch.first, strict=True):
            ends, slots = set(branch.ends), {-1: moved[stem]}
            for place, (token, parent) in enumerate(
                zip(branch.tokens, branch.parents, strict=True)
            ):
                if place not in ends:
                    slots[place] = len(kept) + len(fresh)
                    children[slots[parent], token] = slots[place]
                    fresh.append(start + place)
        self._children = children
        for layers, new in ((self._keys, batch.keys), (self._values, batch.values)):
            old = layers or [rows[:0] for rows in new]
            layers[:] = [torch.cat([a[kept], b[fresh]]) for a, b in zip(old, new, strict=True)]


def encode_paths(tower: Tower, paths: Sequence[Tokens]) -> Float[Tensor, "n d"]:
    """What the tower gives at the end of each path, what they share being run once.

    For many texts at a time, such as the prompts of classes: in the order of their tokens, those
    that begin alike follow one another. Not of unit length.
    """
    order = sorted(range(len(paths)), key=paths.__getitem__)
    tree, rows = TokenTree(tower), []
    for chunk in _chunks([paths[i] for i in order]):
        rows.append(tree(chunk))
    joined = torch.cat(rows)
    out = torch.empty_like(joined)
    out[order] = joined
    return out


def _chunks(paths: Sequence[Tokens]) -> Iterator[list[Tokens]]:
    """Sorted paths, `NODES_AT_ONCE` new tokens at a time: each node attends to all of its chunk."""
    chunk: list[Tokens] = []
    room = NODES_AT_ONCE
    before: Tokens = ()
    for path in paths:
        same = zip(path, before, strict=False)
        shared = next((i for i, (a, b) in enumerate(same) if a != b), min(len(path), len(before)))
        if chunk and len(path) - shared > room:
            yield chunk
            chunk, room = [], NODES_AT_ONCE
        chunk.append(path)
        room -= len(path) - shared
        before = path
    if chunk:
        yield chunk


class _Batch:
    """The new nodes of all branches in one list, and who attends to whom."""

    def __init__(self, branches: list[_Branch], device: torch.device) -> None:
        sizes = [len(branch.tokens) for branch in branches]
        counts = [len(branch.ends) for branch in branches]
        self.first = np.cumsum([0, *sizes[:-1]]).tolist()
        """Where each branch's nodes begin."""
        self.first_end = np.cumsum([0, *counts[:-1]]).tolist()
        """Where each branch's ends begin among all ends."""
        known = [len(branch.stem) for branch in branches]
        deep, wide, tips = max(known, default=0), max(sizes, default=0), max(counts, default=0)

        def on_device(values: Any) -> Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)

        self.tokens: Int[Tensor, " n"] = on_device([t for b in branches for t in b.tokens])
        self.positions: Int[Tensor, " n"] = on_device(
            [len(b.stem) + d - 1 for b in branches for d in b.depths]
        )
        self.ends: Int[Tensor, " e"] = on_device(
            [f + p for f, b in zip(self.first, branches, strict=True) for p in b.ends]
        )
        # Branches are padded to one size for the attention alone.
        self._node_place = on_device([i * wide + j for i, n in enumerate(sizes) for j in range(n)])
        self._end_place = on_device([i * tips + j for i, n in enumerate(counts) for j in range(n)])
        stems = np.zeros((len(branches), deep), np.int64)
        for row, branch in zip(stems, branches, strict=True):
            row[: len(branch.stem)] = branch.stem
        self._stems: Int[Tensor, "g p"] = on_device(stems)
        mask = _ancestors(branches, deep, wide)
        self._mask = torch.from_numpy(mask).to(device)[:, None]
        end_mask = np.ones((len(branches), tips, deep + wide), bool)
        for i, branch in enumerate(branches):
            end_mask[i, : counts[i]] = mask[i, branch.ends]
        self._end_mask = torch.from_numpy(end_mask).to(device)[:, None]
        self.keys: list[Tensor] = []  # per layer [n, w]
        self.values: list[Tensor] = []

    def attend(
        self,
        query: Float[Tensor, "n w"],
        layer: int,
        stems: tuple[Tensor, Tensor] | None,
        heads: int,
        ends_only: bool,
    ) -> Float[Tensor, "n w"]:
        """Attention of new nodes (or of their ends) to their stems and their new ancestors."""
        mask = self._end_mask if ends_only else self._mask
        place = self._end_place if ends_only else self._node_place
        new = self._mask.shape[2]
        fresh = (self.keys[layer], self.values[layer])
        both = [self._padded(rows, self._node_place, new) for rows in fresh]
        if stems is not None and self._stems.shape[1]:
            both = [torch.cat([s[self._stems], n], 1) for s, n in zip(stems, both, strict=True)]
        key, value, query = (
            rows.view(*rows.shape[:2], heads, -1).transpose(1, 2)  # [g, h, m, w / h]
            for rows in (*both, self._padded(query, place, mask.shape[2]))
        )
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return output.transpose(1, 2).flatten(2).flatten(0, 1)[place]

    def _padded(
        self, rows: Float[Tensor, "n w"], place: Int[Tensor, " n"], size: int
    ) -> Float[Tensor, "g m w"]:
        """Rows by branch, zero where a branch has fewer."""
        if len(rows) == len(self._stems) * size:
            return rows.view(-1, size, rows.shape[1])
        out = rows.new_zeros(len(self._stems) * size, rows.shape[1])
        out[place] = rows
        return out.view(-1, size, rows.shape[1])


def _ancestors(branches: list[_Branch], deep: int, wide: int) -> np.ndarray:
    """bool [g m p+m]: whether a new node attends to a known or a new one.

    Padding attends to itself, so that no row of the softmax is empty.
    """
    mask = np.zeros((len(branches), wide, deep + wide), bool)
    mask[:, np.arange(wide), deep + np.arange(wide)] = True
    for i, branch in enumerate(branches):
        mask[i, :, : len(branch.stem)] = True
        depths, parents = np.array(branch.depths), np.array(branch.parents)
        for depth in range(2, max(branch.depths) + 1):
            level = np.flatnonzero(depths == depth)
            mask[i, level] |= mask[i, parents[level]]
    return mask


def is_causal(
    tower: Tower, paths: Sequence[Tokens], features: Float[Tensor, "n d"], tolerance: float = 1e-3
) -> bool:
    """Whether a tower gives the model's own `features` of these paths, each grown from the last.

    A model says little by its class: what its attention sees depends on its configuration, its
    library's version and the attention kernel. In half precision both sides are rounded, and
    `tolerance`, the largest distance between unit rows, must be above that.
    """
    tree = TokenTree(tower)
    rows = torch.cat([tree([path]) for path in paths]).float()
    apart = normalize(rows) - normalize(features.float())
    return float(apart.norm(dim=-1).max()) < tolerance
