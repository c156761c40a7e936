"""The estimators for scikit-learn, by scikit-learn's own checks and in its pipelines."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import zeroshot
from zeroshot.adapters.sklearn import (
    EXPECTED_FAILED_CHECKS,
    ImageEmbedder,
    ZeroShotClassifier,
    text_embeddings,
)
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.methods import TipAdapter

ROOT = Path(__file__).parent.parent
SCENES = sorted((ROOT / "examples" / "scenes").glob("*.png"))
LABELS = ["red heart", "blue star", "green ring"]


def world(count=60, noise=0.35, width=12, seed=0):
    """Rows around the texts of three classes."""
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=(3, 2, width))
    labels = rng.integers(0, 3, count)
    rows = texts.mean(1)[labels] + noise * rng.normal(size=(count, width))
    names = np.array(["ant", "bee", "cat"])
    return rows, names[labels], dict(zip(names.tolist(), texts, strict=True))


@parametrize_with_checks(
    [ZeroShotClassifier(), ZeroShotClassifier(method="ridge")],
    expected_failed_checks=lambda _: EXPECTED_FAILED_CHECKS,
    xfail_strict=True,
)
def test_scikit_learn_finds_no_fault(estimator, check):
    if check.func.__name__ == "check_array_api_input":
        return  # only with SCIPY_ARRAY_API
    check(estimator)


def test_the_embedder_is_one_too():
    """Its checks are few, because scikit-learn has no images; it says so."""
    with pytest.warns(SkipTestWarning, match="requires input  of type"):
        found = check_estimator(ImageEmbedder("pocket"))
    assert {check["status"] for check in found} == {"passed"}
    assert clone(ImageEmbedder("pocket", 4)).get_params()["batch_size"] == 4


def test_zero_shot_is_a_softmax_of_cosines():
    rows, names, texts = world()
    fitted = ZeroShotClassifier(texts, method="ensemble").fit(rows)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    means = np.stack([unit(unit(texts[name]).mean(0)) for name in sorted(texts)])
    logits = 100 * unit(rows) @ means.T
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(fitted.predict_proba(rows), expected, atol=1e-9)
    assert fitted.classes_.tolist() == ["ant", "bee", "cat"]
    assert fitted.score(rows, names) > 0.9


def test_shots_make_it_better():
    rows, names, texts = world(count=400, noise=1.0)
    rng = np.random.default_rng(1)
    texts = {name: rng.normal(size=text.shape) + text for name, text in texts.items()}  # and vague
    learned = ZeroShotClassifier(texts).fit(rows[:200], names[:200])
    alone = ZeroShotClassifier(texts).fit(rows[:200])
    assert type(learned.method_).__name__ == "Evidence"
    assert type(alone.method_).__name__ == "Ensemble"
    assert learned.score(rows[200:], names[200:]) > alone.score(rows[200:], names[200:]) + 0.02


def test_prompts_may_differ_in_number_and_have_one_axis():
    rows, names, texts = world()
    ragged = {"bee": texts["bee"], "cat": texts["cat"][0], "ant": texts["ant"][:1].tolist()}
    assert ZeroShotClassifier(ragged).fit(rows).score(rows, names) > 0.7
    doubled = {k: np.concatenate([v, v]) if k == "bee" else v for k, v in texts.items()}
    np.testing.assert_allclose(
        ZeroShotClassifier(doubled).fit(rows).predict_proba(rows),
        ZeroShotClassifier(texts).fit(rows).predict_proba(rows),
        atol=1e-9,
    )


def test_classes_are_numbers_too():
    rows, names, texts = world()
    numbered = dict(enumerate(texts.values()))
    codes = np.searchsorted(["ant", "bee", "cat"], names)
    fitted = ZeroShotClassifier(numbered).fit(rows, codes)
    assert fitted.predict(rows).dtype.kind == "i"
    assert fitted.score(rows, codes) > 0.9


def test_a_class_without_shots_has_its_text():
    rows, names, texts = world()
    seen = names != "cat"
    fitted = ZeroShotClassifier(texts).fit(rows[seen], names[seen])
    assert fitted.classes_.tolist() == ["ant", "bee", "cat"]
    assert fitted.score(rows, names) > 0.8


def test_in_pipelines_searches_and_calibration():
    rows, names, texts = world(count=120, noise=1.0)
    pipe = make_pipeline(Normalizer(), ZeroShotClassifier(texts, method="tip_adapter"))
    assert cross_val_score(pipe, rows, names, cv=3).mean() > 0.7
    search = GridSearchCV(ZeroShotClassifier(texts), {"method": ["ensemble", "ridge"]}, cv=3)
    assert search.fit(rows, names).best_params_["method"] in ("ensemble", "ridge")
    calibrated = CalibratedClassifierCV(ZeroShotClassifier(texts, "ensemble"), cv=3)
    found = calibrated.fit(rows, names).predict_proba(rows)
    assert found.shape == (120, 3)
    np.testing.assert_allclose(found.sum(1), 1)


def test_it_is_copied_and_pickled():
    rows, names, texts = world()
    fitted = ZeroShotClassifier(texts, TipAdapter(alpha=2.0)).fit(rows, names)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(rows), fitted.predict_proba(rows))
    assert clone(fitted).get_params()["method"] == TipAdapter(alpha=2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y, t: ZeroShotClassifier().fit(x), "requires y to be passed"),
        (lambda x, y, t: ZeroShotClassifier(t).fit(x, ["dog"] * 60), "'dog', and texts has none"),
        (lambda x, y, t: ZeroShotClassifier(t).fit(x[:, :5]), "rows of X are 5 wide"),
        (lambda x, y, t: ZeroShotClassifier(t).fit(x).predict(x * 0), "row 0 of X is zero"),
        (lambda x, y, t: ZeroShotClassifier(t, "ensmble").fit(x), "did you mean 'ensemble'"),
        (lambda x, y, t: ZeroShotClassifier(t, "otter").fit(x, y).predict(x), "prior"),
        (lambda x, y, t: ZeroShotClassifier(t, "magic").fit(x), "'magic' does not classify"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make(*world())


def test_from_images_to_labels(tmp_path):
    """The pipeline gives the labels and the scores of `zeroshot.classify`."""
    texts = text_embeddings(LABELS, "pocket")
    with EmbeddingCache(tmp_path / "cache") as cache:
        pipe = make_pipeline(ImageEmbedder("pocket", cache=cache), ZeroShotClassifier(texts))
        paths = list(map(str, SCENES))
        scale = zeroshot.load("pocket").encoder.logit_scale
        pipe.set_params(zeroshotclassifier__logit_scale=scale)
        found = pipe.fit(paths).predict_proba(np.array(paths))
        assert list(pipe.predict(paths)[:3]) == LABELS
    results = zeroshot.classify(SCENES, LABELS, "pocket", top_k=3)
    for row, result in zip(found, results, strict=True):
        by_name = {x.label: x.score for x in result.labels}
        expected = [by_name[name] for name in sorted(LABELS)]
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_images_that_are_no_rows(tmp_path):
    with pytest.raises(UserError, match="no folders"):
        ImageEmbedder("pocket").transform([SCENES[0].parent])
    broken = tmp_path / "a.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png"):
        ImageEmbedder("pocket").transform([broken])


def test_a_coupled_pair_has_one_space():
    models = zeroshot.load("pocket", encoder="coupled")
    texts = text_embeddings(LABELS, models, "none")
    rows = ImageEmbedder(models).transform(SCENES[:3])
    assert rows.shape[1] == texts["red heart"].shape[1]
    assert list(ZeroShotClassifier(texts).fit(rows).predict(rows)) == LABELS


# Beside the core


def test_scikit_learn_that_is_missing_is_named():
    code = "import sys; sys.modules['sklearn'] = None; import zeroshot.adapters.sklearn"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = out.stderr.strip().splitlines()[-1]
    assert "NotAvailableError: zeroshot.adapters.sklearn needs scikit-learn: pip install" in last


def test_nothing_imports_an_adapter():
    for file in (ROOT / "zeroshot").rglob("*.py"):
        if file.parent.name != "adapters":
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    assert "zeroshot.adapters" not in ast.unparse(node), file
