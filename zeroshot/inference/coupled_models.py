"""The coupling of a task: the one that is given, else the set's own, else the default."""

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inference.remembered_coupling import PairFit
from zeroshot.inference.remembered_models import remembered, remembers
from zeroshot.model_set.model_set import ModelSet

SENTENCES = 0.5
"""Weight of the image encoder's classifier beside the coupling, for captions and queries: the best
of five on held-out anchors."""
LABELS = 1.0
"""The same for labels, which are more like names of classes; see docs/couplings.md."""


def with_coupling_for_task(
    models: ModelSet, coupling: str | None, weight: float, cache: EmbeddingCache, meter: Meter
) -> ModelSet:
    """The set with its coupling for a task; what the cache knows of its encoders is not loaded.

    A set that leaves its coupling open has the choice of `auto` on its anchors, together with the
    image encoder's own classifier if the names of its classes fit (docs/couplings.md).

    Args:
        coupling: the name of a coupling that replaces that of the set.
        weight: `SENTENCES` or `LABELS`.

    Raises:
        UserError: a coupling for a set whose encoder needs none, or that has no anchors.
    """
    if coupling is not None:
        check_coupled(models, coupling)
    known = remembered(models, cache, meter)
    if coupling is not None:
        chosen, classes = models.with_coupling(coupling), None
    elif models.has_default_coupling:
        chosen, classes = models.with_chosen_coupling, weight
    else:
        return known
    if not remembers(models, cache) or chosen.is_loaded("coupled"):
        fit = PairFit(chosen, classes, cache, meter)
        return chosen if classes is None else chosen.with_coupled_encoder(fit.pair())
    parts = {part: getattr(known, part) for part in ("image_encoder", "text_encoder")}
    fit = PairFit(chosen.with_parts(**parts), classes, cache, meter)
    return fit.chosen.with_coupled_encoder(fit.remembered())


def refuse_coupling(coupling: str | None) -> None:
    """UserError for a coupling beside a model that reads images by itself."""
    if coupling is not None:
        raise UserError(f"--coupling {coupling}: it couples two encoders, and --model has none")


def check_coupled(models: ModelSet, coupling: str) -> None:
    """UserError for a coupling that a set's dual encoder would leave without effect."""
    if models.spec.encoder is not None:
        raise UserError(
            f"--coupling {coupling}: the encoder of '{models.name}' reads images and texts and "
            "needs no coupling; --encoder coupled takes the set's coupled pair"
        )
