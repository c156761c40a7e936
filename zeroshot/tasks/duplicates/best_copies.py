"""The best of each group of copies, where something else than the pixels says which is better.

Both rules of `dedupe` decide what a copy is. A group is an image and all that come after it and are
copies of it, so the first image of a ranking is always shown, and nothing is left out that is
unlike what is shown. Abbas et al. 2023, SemDeDup, arXiv:2303.09540, leave out near copies of
image-text pairs by embeddings alone, in clusters; here the pixels have to agree, and all pairs are
compared, tile by tile.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from zeroshot.inputs.source import Source
from zeroshot.ranking.near_groups import has_neighbour, leaders
from zeroshot.results.result import Failure
from zeroshot.tasks.duplicates.dedupe import NearPairs, looked_at
from zeroshot.tasks.duplicates.dedupe_options import DedupeOptions


def first_copies(
    sources: Sequence[Source],
    ids: Sequence[str | None],
    embeddings: Float[Tensor, "n d"],
    options: DedupeOptions | None = None,
) -> list[int]:
    """For each image the index of the first one that it is a copy of: its own if of none before.

    An image that cannot be read again has only copies of the same content.

    Args:
        sources: the images, the best first.
        ids: of their content.
    """
    options = options or DedupeOptions()
    same: dict[str, list[int]] = {}
    for index, id in enumerate(ids):
        same.setdefault(id or f"unknown {index}", []).append(index)
    firsts = [group[0] for group in same.values()]
    least = min(options.threshold, options.whole_threshold)
    near = has_neighbour(embeddings[firsts], least).tolist()
    asked = [group for group, alike in zip(same.values(), near, strict=True) if alike]
    unread: dict[int, Failure] = {}
    seen = list(looked_at(asked, sources, unread))
    heads = {group[0]: group[0] for group in same.values()}
    if seen:
        begins = {place: group[0] for group in asked for place in group}
        own = [begins[one.look.place] for one in seen]
        pairs = NearPairs(seen, embeddings[own], options)
        leader = leaders(pairs.unit, least, pairs.agree, possible=pairs.possible)
        heads |= {own[i]: own[head] for i, head in enumerate(leader.tolist())}
    found = [0] * len(sources)
    for group in same.values():
        for index in group:
            found[index] = heads[group[0]]
    return found
