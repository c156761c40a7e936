"""A pool of rendered scenes as arrays, and the held-out scenes that are never in it.

One-thing scenes are few (768 captions), so held-out ones are new pictures of known captions;
held-out scenes of two and three things are combinations that the pool does not contain at all.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image
from world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Render, Scene, Thing, draw_scene, render

SIDE = 64  # what the models see
RELATIONS = ("", "left of", "above", "row")
AXES = (tuple(SIZES), tuple(COLOURS), tuple(SHAPES))
FIELDS = ("images", "grid", "mask", "things", "relation", "background")
HELD_OUT_SEED = 2027


@dataclass(frozen=True)
class Pool:
    """`n` scenes with their pictures; index -1 stands for "no such thing"."""

    images: np.ndarray  # [n 64 64 3] uint8
    grid: np.ndarray  # [n 64] int8: which thing covers the 8x8 patch
    mask: np.ndarray  # [n 64 8] uint8: where things are, one bit a pixel, patch by patch
    things: np.ndarray  # [n 3 3] int8: size, colour, shape of thing 0, 1, 2
    relation: np.ndarray  # [n] int8
    background: np.ndarray  # [n] int8

    def __len__(self) -> int:
        return len(self.images)

    def scene(self, i: int) -> Scene:
        """Row `i` as a `Scene`."""
        rows = [row for row in self.things[i] if row[0] >= 0]
        things = tuple(
            Thing(*(names[j] for names, j in zip(AXES, row, strict=True))) for row in rows
        )
        return Scene(things, RELATIONS[self.relation[i]], BACKGROUNDS[self.background[i]])


def held_out(n: int = 500) -> Iterator[tuple[Scene, Image.Image]]:
    """`n` test scenes, all captions different, evenly of one, two and three things; drawn once."""
    return ((scene, drawn.image) for scene, drawn in held_out_renders(n))


def held_out_renders(n: int = 500) -> Iterator[tuple[Scene, Render]]:
    """The same, with where everything is."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    seen: set[Scene] = set()
    while len(seen) < n:
        scene = draw_scene(rng, count=1 + len(seen) % 3)
        if scene not in seen:
            seen.add(scene)
            yield scene, render(rng, scene)


def held_out_scenes() -> frozenset[Scene]:
    """The held-out scenes that training must not meet: those of two and three things."""
    return frozenset(scene for scene, _ in held_out() if len(scene.things) > 1)


def render_part(banned: frozenset[Scene], seed: np.random.SeedSequence, n: int) -> Pool:
    """`n` pictures of random scenes, by one process."""
    rng = np.random.default_rng(seed)
    scenes = list(islice((s for s in iter(lambda: draw_scene(rng), None) if s not in banned), n))
    images, grid = np.empty((n, SIDE, SIDE, 3), np.uint8), np.empty((n, 64), np.int8)
    masks, things = np.empty((n, 64, 8), np.uint8), np.full((n, 3, 3), -1, np.int8)
    for i, scene in enumerate(scenes):
        drawn = render(rng, scene)
        images[i] = np.asarray(drawn.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        grid[i] = drawn.grid.ravel()
        patches = drawn.mask.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)
        masks[i] = np.packbits(patches, axis=1)
        for o, thing in enumerate(scene.things):
            names = (thing.size, thing.colour, thing.shape)
            things[i, o] = [axis.index(name) for axis, name in zip(AXES, names, strict=True)]
    relation = np.array([RELATIONS.index(s.relation) for s in scenes], np.int8)
    background = np.array([BACKGROUNDS.index(s.background) for s in scenes], np.int8)
    return Pool(images, grid, masks, things, relation, background)


def render_pool(n: int, seed: int, workers: int = 2, part: int = 2000) -> Pool:
    """`n` random training pictures; they depend on `seed` and `n` alone, not on `workers`."""
    sizes = [min(part, n - start) for start in range(0, n, part)]
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))
    with ProcessPoolExecutor(workers) as processes:
        parts = list(processes.map(partial(render_part, held_out_scenes()), seeds, sizes))
    return Pool(*(np.concatenate([getattr(p, f) for p in parts]) for f in FIELDS))


def with_mirror_images(pool: Pool) -> Pool:
    """The pool and its mirror images: shapes stay what they are, `left of` swaps the things.

    Mirror images that are held-out scenes are left out.
    """
    count = (pool.things[..., 0] >= 0).sum(1)
    swaps = np.isin(pool.relation, (RELATIONS.index("left of"), RELATIONS.index("row")))
    place = np.arange(3)[None]
    order = np.where(swaps[:, None] & (place < count[:, None]), count[:, None] - 1 - place, place)
    grid = pool.grid.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64).astype(np.int64)
    grid = np.where(grid < 0, -1, np.take_along_axis(order, np.maximum(grid, 0), 1)).astype(np.int8)
    bits = np.unpackbits(pool.mask, axis=-1).reshape(
        -1, 8, 8, 8, 8
    )  # patch row and column, pixel row and column
    mask = np.packbits(bits[:, :, ::-1, :, ::-1].reshape(-1, 64, 64), axis=-1)
    things = np.take_along_axis(pool.things, order[..., None], 1)
    other = Pool(pool.images[:, :, ::-1], grid, mask, things, pool.relation, pool.background)
    banned = held_out_scenes()
    keep = np.array([other.scene(i) not in banned for i in range(len(other))])
    return Pool(*(np.concatenate([getattr(pool, f), getattr(other, f)[keep]]) for f in FIELDS))
