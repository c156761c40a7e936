"""What `tune` works on: rows from images or from arrays, and models in several couplings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot import methods, prompts
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError, counted
from zeroshot.inference.coupled_models import LABELS, SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import (
    canonical_names,
    check_lengths,
    concat_batches,
    embed_all,
    embed_images,
    embed_texts,
    image_encoder_of,
    pad_prompts,
    project_images,
    project_texts,
    text_encoder_of,
)
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.model_set.coupled_encoder import CoupledEncoder, calibrate
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.ops import normalize, topk_stream
from zeroshot.tasks.classification.arrays import Array, to_tensors
from zeroshot.tasks.classification.classify_options import CUT_OFF
from zeroshot.tasks.tuning.prompt_columns import PromptColumns, is_built_in
from zeroshot.tuning.problem import JointRows, PromptRows, TuningProblem

COUPLINGS = ("asif", "csa", "procrustes")
"""Tried beside a model set's own coupling."""
SAME = 0.9999
"""Cosine from which on an image is one of the anchors."""


@dataclass(frozen=True, eq=False)
class TuningData:
    """A problem, and the names of its rows."""

    problem: TuningProblem
    labels: Sequence[str]
    labelled: Sequence[str]
    """Names of the labelled images."""
    unlabelled: Sequence[str]
    models: Mapping[str, str]
    templates: Mapping[str, prompts.Templates] = field(default_factory=dict)
    """By name, the default first; empty for arrays, which have prompts of their own."""
    columns: PromptColumns | None = None
    """What a search for prompts chooses among."""

    @property
    def centred(self) -> Float[Tensor, "n f"]:
        """Own rows of all images, less their mean, at unit length."""
        rows = self.problem.own
        rows = self.problem.spaces[0].images if rows is None else rows
        return normalize(rows - rows.mean(0))


def from_images(
    models: ModelSet,
    labels: Sequence[str],
    templates: Sequence[str],
    labelled: Sequence[Source],
    classes: Sequence[int],
    unlabelled: Sequence[Source],
    cache: EmbeddingCache,
    meter: Meter,
    *,
    batch_size: int,
    long_text: str,
) -> TuningData:
    """Embed images, and the labels in each of the templates, through the cache.

    Unlabelled images that cannot be read are left out; a labelled one is an error.
    """
    models.require(language_model=False)
    encoder = with_coupling_for_task(models, None, LABELS, cache, meter).encoder
    images = image_encoder_of(encoder)
    own = []
    if labelled:
        own.append(embed_all(labelled, images, cache, meter, batch_size))
    names: list[str] = []
    if unlabelled:
        batches = embed_images(unlabelled, images, cache, meter, batch_size)
        batch = concat_batches(batches, meter, len(unlabelled))
        own.append(batch.embeddings[batch.readable])
        names = [str(batch.sources[i].path) for i in batch.readable]
    if not own or not sum(map(len, own)):
        raise UserError("none of the images can be read")
    rows = torch.cat(own)
    texts: dict[str, Tensor] = {}
    counts: dict[str, list[int]] = {}
    known: dict[str, Tensor] = {}
    given = {name: prompts.load_templates(name, labels) for name in templates}
    for name, own_templates in given.items():
        groups = prompts.expand(labels, own_templates)
        flat = [text for group in groups for text in group]
        if long_text == "error":
            check_lengths(flat, text_encoder_of(encoder), "a prompt", CUT_OFF)
        texts[name] = embed_texts(flat, text_encoder_of(encoder), cache, meter)
        counts[name] = [len(group) for group in groups]
        known |= zip(flat, texts[name], strict=True)
    spaces = [_joint(None, encoder, rows, texts, counts)]
    columns = None
    if labelled and not all(map(is_built_in, given)):
        columns = PromptColumns.of(labels, given)
        joint = project_texts(encoder, torch.stack(list(known.values())))
        pool = columns.pool(dict(zip(known, joint, strict=True)))
        spaces[0] = replace(spaces[0], pool=pool)
    if isinstance(encoder, CoupledEncoder):
        for name in COUPLINGS:
            spaces.append(_joint(name, coupled_by(models, encoder, name), rows, texts, counts))
    problem = TuningProblem(
        torch.tensor(list(classes), dtype=torch.int64),
        spaces,
        normalize(rows) if isinstance(encoder, CoupledEncoder) else None,
    )
    paths = [str(source.path) for source in labelled]
    return TuningData(problem, labels, paths, names, canonical_names(encoder), given, columns)


def coupled_by(models: ModelSet, encoder: CoupledEncoder, name: str) -> DualEncoder:
    """The pair of a model set under another coupling of its anchors."""
    anchors = models.anchors.images, models.anchors.texts
    coupling = models.with_coupling(name).coupling.fit(*anchors)
    return CoupledEncoder(
        image_encoder=encoder.image_encoder,
        text_encoder=encoder.text_encoder,
        coupling=coupling,
        logit_scale=calibrate(coupling, *anchors),
        anchors=encoder.anchors,
    )


def _joint(
    name: str | None,
    encoder: DualEncoder,
    rows: Float[Tensor, "n f"],
    texts: Mapping[str, Tensor],
    counts: Mapping[str, Sequence[int]],
) -> JointRows:
    prompt_rows = {
        templates: PromptRows(*pad_prompts(project_texts(encoder, own), counts[templates]))
        for templates, own in texts.items()
    }
    return JointRows(name, project_images(encoder, rows), prompt_rows, encoder.logit_scale)


def from_arrays(arrays: Mapping[str, Array]) -> TuningData:
    """The arrays of docs/embeddings.md; shots are the labelled images, images the others.

    With anchors, images and texts are rows of two encoders, and `auto` couples them.

    Raises:
        UserError: an array that is unknown, missing, or of a wrong shape.
    """
    needed = {"images": True, "texts": True, "text_mask": False, "logit_scale": False}
    needed |= dict.fromkeys(("shots", "shot_labels", "own_images", "own_shots"), False)
    needed |= dict.fromkeys(("anchor_images", "anchor_texts"), False)
    found = to_tensors(arrays, "tune", needed)
    for one, other in (("shots", "shot_labels"), ("anchor_images", "anchor_texts")):
        if (one in found) != (other in found):
            raise UserError(f"tune needs {one} and {other}, or neither")
    parts = [found[name] for name in ("shots", "images") if name in found]
    rows = torch.cat(parts)
    own: Tensor | None = None
    mask, scale = found.get("text_mask"), float(found.get("logit_scale", torch.tensor(100.0)))
    if "anchor_images" in found:
        spaces = [
            _coupled_arrays(None if name == "auto" else name, name, found, rows, mask)
            for name in ("auto", *COUPLINGS)
        ]
        own = normalize(rows)
    else:
        given = PromptRows(normalize(found["texts"]), mask)
        spaces = [JointRows(None, normalize(rows), {"": given}, scale)]
        if "own_images" in found:
            each = [found[name] for name in ("own_shots", "own_images") if name in found]
            own = normalize(torch.cat(each))
    labels = found.get("shot_labels", torch.zeros(0, dtype=torch.int64))
    classes = [f"class {i}" for i in range(len(found["texts"]))]
    shots = [f"shots[{i}]" for i in range(len(labels))]
    images = [f"images[{i}]" for i in range(len(found["images"]))]
    return TuningData(TuningProblem(labels, spaces, own), classes, shots, images, {})


def _coupled_arrays(
    name: str | None, method: str, found: Mapping[str, Tensor], rows: Tensor, mask: Tensor | None
) -> JointRows:
    coupling = methods.configure(method, {})
    anchors = found["anchor_images"], found["anchor_texts"]
    fitted = coupling.fit(*anchors)
    texts = found["texts"]
    joint = normalize(fitted.map_texts(texts.flatten(0, 1))).view(*texts.shape[:2], -1)
    images = normalize(fitted.map_images(rows))
    return JointRows(name, images, {"": PromptRows(joint, mask)}, calibrate(fitted, *anchors))


def agreement(
    answers: Mapping[str, Int[Tensor, " n"]], chosen: Int[Tensor, " n"]
) -> dict[str, float]:
    """The share of images on which each method answers as the chosen one does."""
    return {name: float((own == chosen).double().mean()) for name, own in answers.items()}


@dataclass(frozen=True, eq=False)
class PairModels:
    """The models in each coupling, for searches and captions."""

    models: ModelSet
    cache: EmbeddingCache
    meter: Meter
    batch_size: int
    _known: dict[str | None, ModelSet] = field(default_factory=dict)

    def of(self, coupling: str | None) -> ModelSet:
        """The set in this coupling, as the task itself takes it; None for the set's own."""
        if coupling not in self._known:
            self._known[coupling] = with_coupling_for_task(
                self.models, coupling, SENTENCES, self.cache, self.meter
            )
        return self._known[coupling]

    @property
    def couplings(self) -> tuple[str, ...]:
        """Those to try beside the set's own."""
        return COUPLINGS if isinstance(self.of(None).encoder, CoupledEncoder) else ()

    def embed(self, sources: Sequence[Source]) -> Float[Tensor, "n d"]:
        """Rows of images with pairs.

        Raises:
            UserError: an image that cannot be read, or that is an anchor: its text is known.
        """
        encoder, size = self.of(None).encoder, self.batch_size
        rows = embed_all(sources, image_encoder_of(encoder), self.cache, self.meter, size)
        if isinstance(encoder, CoupledEncoder):
            anchors = normalize(self.models.anchors.images.float())
            near = topk_stream(normalize(rows), anchors, 1)[0][:, 0] > SAME
            if near.any():
                first = sources[int(near.int().argmax())].path
                raise UserError(
                    f"{counted(int(near.sum()), 'image')} of {len(near)} are anchors of the model "
                    f"set, first '{first}', and figures on them would be too good: leave them out"
                )
        return rows
