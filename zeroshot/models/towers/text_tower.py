"""Causal text towers: what a text shares with earlier ones is not computed again.

In a causal transformer the keys and values of a position depend on the tokens up to it and on
nothing after. Texts that begin alike therefore form a tree of tokens, each node of which needs to
run once. `TokenTree` keeps the nodes of its last call, finds every new text's longest known
beginning there, and runs the rest of all texts together, each node attending to its ancestors.
That covers all that guided decoding does to texts: they grow by a word, a growing word is split
anew into other tokens, candidates share all but their last token, images share captions.

The last layer runs at end positions only, since nothing else of it is read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from zeroshot.models.devices import on_device, ways_of
from zeroshot.models.towers.captured import Captured, bucket
from zeroshot.ops import normalize

__all__ = ["PROBES", "Block", "TokenTree", "Tokens", "Tower", "encode_paths", "is_causal"]

NODES_AT_ONCE = 320
"""On a CPU, prompts took as long with 160 and an eighth longer with 640."""
LEAST_MORE = 64
"""Slots by which a tree grows at least."""

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
    """Embeddings of token paths; remembers the keys and values of the last call's paths.

    Every node has a slot in a layer's tensor of keys and values, which grows when it is too small.
    Slots of forgotten nodes are used again.
    """

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        # On a CPU the widest rows of a layer should stay in its caches: a fifth faster at 2880.
        self._at_once = 512 if tower.device.type == "cpu" else 1 << 30
        self.nodes_run = 0
        """Tokens that went through the tower so far."""
        self._children: dict[tuple[int, int], int] = {}  # (slot of parent or -1, token) -> slot
        self._stores: list[Tensor] = []  # per layer [2, slots, w], keys and values
        self._capacity = 1  # the first slot is for padding
        self._free: list[int] = []
        self._captured = Captured(self._static_layers)

    @torch.inference_mode()
    def __call__(self, paths: Sequence[Tokens]) -> Float[Tensor, "n d"]:
        """What the tower gives at the end of each path; not of unit length."""
        branches: dict[int, _Branch] = {}
        ends = [self._place(path, branches) for path in paths]
        listed = list(branches.values())
        slots = self._take(sum(len(branch.tokens) for branch in listed))
        first = dict(zip(branches, _starts(listed), strict=True))
        places = [first[stem] + place for stem, place in ends]
        if ways_of(self.tower.device).static:
            packed = _packed(listed, slots)
            given, nodes = on_device(self.tower.device, packed, places)
            if self._stores and self._stores[0].shape[1] < self._capacity:
                for layer, stored in enumerate(self._stores):
                    self._store(layer, stored[0])
                self._captured = Captured(self._static_layers)  # graphs know the old addresses
            rows = self._captured(given.view(packed.shape))[nodes]
        else:
            batch = _Batch(listed, slots, places, self.tower.device)
            rows = self._run(batch)[batch.chosen]
        self._remember(branches, slots)
        self.nodes_run += len(slots)
        return rows

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

    def _take(self, count: int) -> list[int]:
        """So many slots that no known node has."""
        if len(self._free) < count:
            # twice as many where a captured graph knows the addresses; else memory counts for more
            spare = self._capacity if ways_of(self.tower.device).static else self._capacity // 8
            longer = self._capacity + max(spare, LEAST_MORE, count - len(self._free))
            self._free += range(self._capacity, longer)
            self._capacity = longer
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _store(self, layer: int, like: Float[Tensor, "n w"]) -> Float[Tensor, "2 s w"]:
        """The layer's keys and values of all slots, in a tensor that has room for them."""
        if layer == len(self._stores):
            self._stores.append(like.new_empty(2, self._capacity, like.shape[1]))
        old = self._stores[layer]
        if old.shape[1] < self._capacity:
            self._stores[layer] = like.new_empty(2, self._capacity, like.shape[1])
            self._stores[layer][:, : old.shape[1]] = old
        return self._stores[layer]

    def _write(
        self, layer: int, rows: Float[Tensor, "n w"], slots: Int[Tensor, " n"]
    ) -> Float[Tensor, "2 s w"]:
        """The same, with those of new nodes, whose normed states are `rows`."""
        block = self.tower.blocks[layer]
        for side, values in enumerate((block.key(rows), block.value(rows))):
            self._store(layer, values)[side].index_copy_(0, slots, values)
        return self._stores[layer]

    def _run(self, batch: "_Batch") -> Float[Tensor, "e d"]:
        """All layers over the new nodes, the last one at their ends."""
        tower = self.tower
        x = tower.embed(batch.tokens, batch.positions)
        for layer, block in enumerate(tower.blocks):
            last = layer == len(tower.blocks) - 1
            rows = block.before(x)
            stored = self._write(layer, rows, batch.slots)
            if last:
                rows, x = rows[batch.ends], x[batch.ends]
            attended = batch.attend(block.query(rows), stored, tower.heads, ends_only=last)
            x = x + block.after(attended)
            parts = torch.split(x, self._at_once)
            x = x + torch.cat([block.feed_forward(part) for part in parts])
        return tower.finish(x)

    def _static_layers(self, packed: Int[Tensor, "r n"]) -> Float[Tensor, "n d"]:
        """All layers over the new nodes, each of which attends by itself; see `_packed`."""
        tower, seen = self.tower, packed[4:]
        tokens, positions, slots, lengths = packed[:4]
        mask = torch.arange(len(seen), device=packed.device) < lengths[:, None]
        x = tower.embed(tokens, positions)
        for layer, block in enumerate(tower.blocks):
            rows = block.before(x)
            stored = self._write(layer, rows, slots)
            groups = (seen.T.flatten(), len(tokens), mask[:, None, None])
            x = x + block.after(_attention(block.query(rows), stored, *groups, tower.heads))
            x = x + block.feed_forward(x)
        return tower.finish(x)

    def _remember(self, branches: dict[int, _Branch], slots: list[int]) -> None:
        """Keep the nodes that this call's texts are made of, but for their ends."""
        kept = {slot for branch in branches.values() for slot in branch.stem}
        before = set(self._children.values())
        children = {key: slot for key, slot in self._children.items() if slot in kept}
        starts = _starts(branches.values())
        for start, (stem, branch) in zip(starts, branches.items(), strict=True):
            own = {-1: stem} | dict(enumerate(slots[start : start + len(branch.tokens)]))
            ends = set(branch.ends)
            for place, (token, parent) in enumerate(
                zip(branch.tokens, branch.parents, strict=True)
            ):
                if place not in ends:
                    children[own[parent], token] = own[place]
        self._children = children
        known = set(children.values())
        self._free += sorted((before | set(slots)) - known)


def _starts(branches: Iterable[_Branch]) -> list[int]:
    """Where each branch's nodes begin among all."""
    return [0, *accumulate(len(branch.tokens) for branch in branches)][:-1]


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

    def __init__(
        self,
        branches: list[_Branch],
        slots: list[int],
        chosen: list[int],
        device: torch.device,
    ) -> None:
        """`chosen` are the texts' ends among all nodes."""
        sizes = [len(branch.tokens) for branch in branches]
        counts = [len(branch.ends) for branch in branches]
        first = _starts(branches)
        ends = [start + p for start, b in zip(first, branches, strict=True) for p in b.ends]
        rank = {node: i for i, node in enumerate(ends)}
        deep = max((len(branch.stem) for branch in branches), default=0)
        wide, tips = max(sizes, default=0), max(counts, default=0)
        # Branches are padded to one size for the attention alone.
        seen = np.empty((len(branches), deep + wide), np.int64)
        for row, branch, start, size in zip(seen, branches, first, sizes, strict=True):
            row[:] = slots[start]  # padding, masked
            row[: len(branch.stem)] = branch.stem
            row[deep : deep + size] = slots[start : start + size]
        mask = _ancestors(branches, deep, wide)
        end_mask = np.ones((len(branches), tips, deep + wide), bool)
        for i, branch in enumerate(branches):
            end_mask[i, : counts[i]] = mask[i, branch.ends]
        self._groups = len(branches)
        (
            self.tokens,
            self.positions,
            self.slots,
            self.ends,
            self.chosen,
            self._node_place,
            self._end_place,
            self._seen,
        ) = on_device(
            device,
            [t for b in branches for t in b.tokens],
            [len(b.stem) + d - 1 for b in branches for d in b.depths],
            slots,
            ends,
            [rank[node] for node in chosen],
            [i * wide + j for i, n in enumerate(sizes) for j in range(n)],
            [i * tips + j for i, n in enumerate(counts) for j in range(n)],
            seen,
        )
        self._mask = torch.from_numpy(mask).to(device)[:, None]
        self._end_mask = torch.from_numpy(end_mask).to(device)[:, None]

    def attend(
        self,
        query: Float[Tensor, "n w"],
        stored: Float[Tensor, "2 s w"],
        heads: int,
        ends_only: bool,
    ) -> Float[Tensor, "n w"]:
        """Attention of new nodes (or of their ends) to their stems and their new ancestors."""
        mask = self._end_mask if ends_only else self._mask
        place = self._end_place if ends_only else self._node_place
        queries = query
        if len(query) != self._groups * mask.shape[2]:
            queries = query.new_zeros(self._groups * mask.shape[2], query.shape[1])
            queries[place] = query
        output = _attention(queries, stored, self._seen, self._groups, mask, heads)
        return output if queries is query else output[place]


def _attention(
    query: Float[Tensor, "gm w"],
    stored: Float[Tensor, "2 s w"],
    seen: Int[Tensor, " gp"],
    groups: int,
    mask: Bool[Tensor, "g 1 m p"],
    heads: int,
) -> Float[Tensor, "gm w"]:
    """Attention of each group's queries to the slots that the group sees."""
    both = (stored[side].index_select(0, seen) for side in (0, 1))  # much faster than stored[seen]
    queries, keys, values = (
        rows.view(groups, -1, heads, rows.shape[1] // heads).transpose(1, 2)  # [g, h, m, w / h]
        for rows in (query, *both)
    )
    output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return output.transpose(1, 2).flatten(2).flatten(0, 1)


def _packed(branches: list[_Branch], slots: list[int]) -> Int[np.ndarray, "r n"]:
    """Tokens, positions, slots, lengths, and the slots that each node sees, in buckets of shapes.

    Padding is a node that sees its own slot, the first.
    """
    depths = np.array([d for b in branches for d in b.depths])
    stems = np.repeat([len(b.stem) for b in branches], [len(b.tokens) for b in branches])
    lengths = stems + depths
    packed = np.zeros((4 + -(-int(lengths.max()) // 8) * 8, bucket(len(slots))), np.int64)
    packed[3] = 1
    nodes = packed[:, : len(slots)]
    nodes[0] = [t for b in branches for t in b.tokens]
    nodes[1], nodes[2], nodes[3] = lengths - 1, slots, lengths
    seen = np.tile(np.array(slots)[:, None], (1, len(packed) - 4))  # [n, p]
    parents = []
    for start, branch in zip(_starts(branches), branches, strict=True):
        parents += [start + parent for parent in branch.parents]
        seen[start : start + len(branch.tokens), : len(branch.stem)] = branch.stem
    for depth in range(2, int(depths.max()) + 1):
        level = np.flatnonzero(depths == depth)
        seen[level] = seen[np.array(parents)[level]]
        seen[level, lengths[level] - 1] = np.array(slots)[level]
    nodes[4:] = seen.T
    return packed


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
