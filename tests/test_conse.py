"""ConSE beside a coupling, against loops and by hand; and when it stands there."""

import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.toy import ToyEncoder
from zeroshot.cache.embedding_cache import EmbeddingCache, NullCache
from zeroshot.errors import UserError
from zeroshot.inference.coupled_models import LABELS, SENTENCES, with_coupling_for_task
from zeroshot.inference.meter import Meter
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._conse import ConSE, standard_scores
from zeroshot.methods.asif import ASIF
from zeroshot.methods.csa import CSA
from zeroshot.methods.csa_asif import CSAASIF
from zeroshot.methods.procrustes import Procrustes
from zeroshot.methods.relative import Relative
from zeroshot.methods.ridge_cca import RidgeCCA
from zeroshot.model_set.coupled_encoder import CoupledEncoder, reciprocal_rank, with_classifier_head
from zeroshot.model_set.model_set import ModelSet
from zeroshot.model_set.spec import CouplingSpec, SetSpec
from zeroshot.models.base import ClassifierHead
from zeroshot.ops import normalize


@dataclass(frozen=True)
class Linear:
    """A coupling that is two matrices."""

    left: torch.Tensor
    right: torch.Tensor
    anchors: torch.Tensor

    @property
    def _images(self):
        return AnchorMatrix.from_embeddings(self.anchors)

    def map_images(self, rows):
        return rows @ self.left

    def map_texts(self, rows):
        return rows @ self.right


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_names(x, classes, names, right):
    """`B e(x)`, number by number."""
    length = math.sqrt(sum(v * v for v in x))
    scores = [sum(w * v / length for w, v in zip(row, x, strict=True)) for row in classes]
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
    strength = [math.exp((s - mean) / spread) for s in scores]
    e = [
        sum(p * row[i] for p, row in zip(strength, names, strict=True))
        for i in range(len(names[0]))
    ]
    long = math.sqrt(sum(v * v for v in e))
    return [sum(v / long * row[j] for v, row in zip(e, right, strict=True)) for j in range(3)]


def unit(values):
    long = math.sqrt(sum(v * v for v in values))
    return [v / long for v in values]


def test_against_loops():
    left, right = draw(6, 3, seed=1), draw(4, 3, seed=2)
    classes, names = draw(7, 6, seed=3), normalize(draw(7, 4, seed=4))
    anchors, pictures = draw(11, 6, seed=5), 3 * draw(5, 6, seed=6)
    got = ConSE(Linear(left, right, anchors), classes, names, weight=0.7).map_images(pictures)
    lists = classes.tolist(), names.tolist(), right.tolist()
    all_named = [slow_names(a, *lists) for a in anchors.tolist()]
    usual = [sum(row[j] for row in all_named) / len(all_named) for j in range(3)]
    for x, ours in zip(pictures.tolist(), got.tolist(), strict=True):
        named = [v - u for v, u in zip(slow_names(x, *lists), usual, strict=True)]
        own = [sum(v * row[j] for v, row in zip(x, left.tolist(), strict=True)) for j in range(3)]
        expected = [a + 0.7 * b for a, b in zip(unit(own), unit(named), strict=True)]
        assert ours == pytest.approx(expected, abs=1e-5)


def test_by_hand():
    """Of two classes the standard scores are +-1/sqrt(2): 0.804 and 0.196, whatever the picture.

    The anchors show both alike, so their mean is (1, 1) / 1.656; the picture shows the first.
    """
    eye = torch.eye(2)
    seen = ConSE(Linear(eye, eye, 5 * eye), 3 * eye, eye, weight=1.0)
    likely = 1 / (1 + math.exp(-math.sqrt(2)))
    assert likely == pytest.approx(0.804, abs=1e-3)
    [row] = seen.map_images(torch.tensor([[2.0, 0.0]])).tolist()
    assert row == pytest.approx([1 + math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-6)


def test_standard_scores():
    rows = standard_scores(4 * draw(3, 50) + 2)
    torch.testing.assert_close(rows.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(3))
    assert standard_scores(torch.ones(1, 4)).tolist() == [[0.0] * 4]


# a world of 60 things, of which anchors show a few, or each once


def world(things, count, seed):
    """Pictures and texts of the things; what thing it is lies in other directions of each."""
    which = torch.tensor(things)[torch.arange(count) % len(things)]
    left, right = draw(60, 20, seed=1), draw(60, 15, seed=2)
    images = normalize(left[which] + 0.3 * draw(count, 20, seed=seed))
    return which, images, normalize(right[which] + 0.3 * draw(count, 15, seed=seed + 1))


CLASSES = normalize(draw(60, 20, seed=1))
NAMES = normalize(draw(60, 15, seed=2))


def test_what_no_anchor_shows_is_found():
    _, images, texts = world([0, 1, 2, 3], 80, seed=10)
    csa = CSA(lam=0.3, weighting="cosine").fit(images, texts)
    both = ConSE(csa, CLASSES, NAMES, weight=2.0)
    which, unseen, _ = world(list(range(4, 12)), 40, seed=20)
    found = [c.cosines(unseen, NAMES[4:12, None]).argmax(1) + 4 for c in (csa, both)]
    alone, beside = [float((f == which).float().mean()) for f in found]
    assert beside == 1
    assert alone < 0.6


def test_it_is_a_coupling():
    _, images, texts = world([0, 1, 2, 3, 4, 5], 90, seed=30)
    more, gone = world([6, 7], 8, seed=40)[1:], torch.tensor([3, 91, 17])
    both = ConSE(CSA(lam=0.3, weighting="cosine"), CLASSES, NAMES)
    kept = torch.ones(98, dtype=torch.bool)
    kept[gone] = False
    every = [torch.cat(pair) for pair in zip((images, texts), more, strict=True)]
    edited = both.fit(images, texts).add(*more).remove(gone)
    rebuilt = both.fit(*(side[kept] for side in every))
    queries, prompts = world([1, 8], 6, seed=50)[1:]
    ours = edited.cosines(queries, prompts[:, None])
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(ours, rebuilt.cosines(queries, prompts[:, None]), **close)
    joint = normalize(edited.map_images(queries)), normalize(edited.map_texts(prompts))
    torch.testing.assert_close(joint[0] @ joint[1].T, ours, **close)
    matched = edited.match(joint[0], prompts.expand(6, -1, -1))
    torch.testing.assert_close(matched, ours, **close)
    assert repr(both).startswith("ConSE(coupling=CSA(")
    assert "tensor" not in repr(edited)


@pytest.mark.parametrize(
    "coupling",
    [ASIF(k=20, p=2.0), CSAASIF(s=4, k=20), Procrustes(), Relative(), RidgeCCA()],
    ids=repr,
)
def test_beside_any_coupling(coupling):
    _, images, texts = world([0, 1, 2, 3, 4, 5], 90, seed=30)
    which, queries, _ = world([0, 3, 5], 9, seed=70)
    both = ConSE(coupling, CLASSES, NAMES).fit(images, texts)
    cosines = both.cosines(queries, NAMES[:6, None])
    assert cosines.argmax(1).tolist() == which.tolist()
    matched = both.match(both.map_images(queries), NAMES[:6].expand(9, -1, -1))
    torch.testing.assert_close(matched, cosines, atol=1e-5, rtol=0)


def test_classes_that_do_not_fit_their_names():
    for classes, names in ((CLASSES[:3], NAMES), (CLASSES[:1], NAMES[:1])):
        with pytest.raises(UserError, match="as many of one as of the other, and at least two"):
            ConSE(CSA(), classes, names)


# where it stands


@dataclass(frozen=True)
class Eyes:
    """An image encoder with a classifier, or without."""

    classes: ClassifierHead | None
    name = "eyes"

    def encode_images(self, images):
        raise NotImplementedError


class Reader(ToyEncoder):
    """Knows the names of things."""

    def encode_texts(self, texts):
        return NAMES[[int(text) for text in texts]]


def beside(classes, pairs, names=None):
    _, images, texts = pairs
    csa = CSA(lam=1.0, weighting="cosine").fit(images, texts)
    names = names or tuple(map(str, range(len(classes)))) if classes is not None else None
    eyes = Eyes(None if classes is None else ClassifierHead(classes, names))
    return with_classifier_head(csa, eyes, Reader().encode_texts, images, texts)


def test_a_classifier_stands_beside_the_coupling_where_its_names_fit():
    pairs = world(list(range(60)), 60, seed=60)
    assert isinstance(beside(CLASSES, pairs), ConSE)
    wrong = tuple(str((i + 5) % 60) for i in range(60))
    for classes, held, names in (
        (CLASSES, pairs, wrong),
        (None, pairs, None),
        (CLASSES[:, 1:], pairs, None),
        (CLASSES, world(list(range(60)), 40, seed=60), None),  # 8 set aside tell nothing
    ):
        assert isinstance(beside(classes, held, names), CSA)


@pytest.fixture
def made_set(tmp_path):
    """A set that leaves its coupling open, loaded as far as captions need it."""
    _, images, texts = world(list(range(60)), 60, seed=60)
    eyes = Eyes(ClassifierHead(CLASSES, tuple(map(str, range(60)))))
    models = ModelSet(SetSpec("mine", coupling=CouplingSpec("asif", tmp_path / "anchors.st")))
    csa = CSA(lam=1.0, weighting="cosine").fit(images, texts)
    vars(models.with_chosen_coupling).update(
        anchors=SimpleNamespace(images=images, texts=texts),
        coupled=CoupledEncoder(eyes, Reader(), csa, 20.0, "abc"),
    )
    return models


def test_names_are_read_through_the_cache(made_set, tmp_path):
    for encoded in (60, 0):
        with EmbeddingCache(tmp_path / "cache") as cache:
            meter = Meter()
            models = with_coupling_for_task(made_set, None, SENTENCES, cache, meter)
        assert (meter.texts_encoded, meter.texts_cached) == (encoded, 60 - encoded)
        assert isinstance(models.coupled.coupling, ConSE)
        assert models.coupled.logit_scale != 20
        assert models.anchors is made_set.with_chosen_coupling.anchors
    assert isinstance(made_set.with_chosen_coupling.coupled.coupling, CSA)
    named = with_coupling_for_task(made_set, "csa", SENTENCES, NullCache(), Meter())
    assert named.spec.coupling.method == "csa"
    assert "coupled" not in vars(named)


@pytest.mark.parametrize("weight", [SENTENCES, LABELS, 0.25])
def test_the_weight_is_that_of_the_task(made_set, weight):
    models = with_coupling_for_task(made_set, None, weight, NullCache(), Meter())
    assert models.coupled.coupling.weight == weight
    assert f"weight={weight}" in models.coupled.name


def test_reciprocal_rank_by_hand():
    """First, third, and second of two equals."""
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.3, 0.4], [0.1, 0.7, 0.7]])
    assert reciprocal_rank(similarity) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)


@pytest.mark.parametrize(
    ("key", "classes", "labels", "known"),
    [
        ("classifier.weight", 3, ["cat", "dog", "tree"], True),
        ("classifier.1.weight", 3, ["cat", "dog", "tree"], True),
        ("classifier.weight", 3, ["LABEL_0", "LABEL_1", "LABEL_2"], False),
        ("classifier.weight", 4, ["cat", "dog", "tree"], False),
        ("classifier.weight", 3, ["cat", "", "tree"], False),
        ("classifier.weight", 3, [], False),
        ("decoder.classifier.weight", 3, ["cat", "dog", "tree"], False),
    ],
)
def test_classes_in_a_models_files(tmp_path, key, classes, labels, known):
    from zeroshot.models.files.classifier_head import read_classifier_head
    from zeroshot.models.files.model_files import Files
    from zeroshot.models.names import parse

    weights = draw(classes, 5)
    save_file({key: weights.half(), "other": draw(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(labels))}))
    paths = (tmp_path / "model.safetensors",)
    found = read_classifier_head(Files(parse(f"hf:{tmp_path}"), tmp_path, "0" * 12, paths))
    assert (found is not None) is known
    if found is not None:
        assert found.names == tuple(labels)
        torch.testing.assert_close(found.weights, weights.half().float())


def test_captions_ask_for_it_and_a_named_coupling_does_not(tmp_path):
    models = ModelSet(SetSpec("mine", coupling=CouplingSpec("asif", tmp_path / "anchors.st")))
    assert models.has_default_coupling
    assert models.with_chosen_coupling.spec.coupling.method == "auto"
    assert not models.with_coupling("auto").has_default_coupling
    named = CouplingSpec("csa", tmp_path / "anchors.st")
    assert not replace(models, spec=SetSpec("mine", coupling=named)).has_default_coupling
