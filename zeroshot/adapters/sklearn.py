"""scikit-learn estimators: a classifier of embeddings, and a transformer from images to embeddings.

from zeroshot.adapters.sklearn import ImageEmbedder, ZeroShotClassifier, text_embeddings

texts = text_embeddings(["cat", "dog"], "base")
pipeline = make_pipeline(ImageEmbedder("base"), ZeroShotClassifier(texts))
pipeline.fit(paths, labels).predict_proba(others)

There is no transformer to captions: scikit-learn's transformers give numbers in a fixed number of
columns, and a caption is neither.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zeroshot import api, methods, prompts
from zeroshot.errors import NotAvailableError, UserError
from zeroshot.inference.embedding import AUTO_BATCH, embed_all, image_encoder_of, project_images
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.methods import as_logits
from zeroshot.model_set.model_set import ModelSet
from zeroshot.ops import normalize
from zeroshot.packaging.extras import how_to_install

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise NotAvailableError(
        f"zeroshot.adapters.sklearn needs scikit-learn: {how_to_install('sklearn')}"
    ) from None

__all__ = ["EXPECTED_FAILED_CHECKS", "ImageEmbedder", "ZeroShotClassifier", "text_embeddings"]

EXPECTED_FAILED_CHECKS = {
    "check_estimators_dtypes": "cuts its data to whole numbers, and a row of zeros has no direction"
}
"""Checks of scikit-learn that `ZeroShotClassifier()` fails, each with its reason."""


def text_embeddings(
    labels: Sequence[str],
    models: str | Path | ModelSet = "base",
    templates: str | Path | Sequence[str] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """The unit embeddings `[t d]` of each label's prompts, in the space of `ImageEmbedder`.

    `templates` as for `zeroshot.classify`: `simple` (7) without any.
    """
    names = list(labels)
    given = str(templates) if isinstance(templates, Path) else templates
    texts = prompts.expand(names, prompts.load_templates(given, names))
    encoder = api._set(models).encoder
    return {
        name: encoder.encode_texts(lines).float().cpu().numpy()
        for name, lines in zip(names, texts, strict=True)
    }


class ZeroShotClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A method on image embeddings, with a class for each key of `texts`.

    Rows are brought to unit length. `fit` gives the labelled rows to a method that learns from
    shots, and to others nothing; without `y` a class is one of `texts`.

    Args:
        texts: embeddings of the prompts of each class, `[d]` or `[t d]`, by the class. Without
            them the classes are those of `y`, and the method has to learn from shots alone.
        method: a name, or an object with `scores`. Default: `ncm` without texts; with them
            `evidence` if there is a `y`, else `ensemble`.
        options: of a method by its name.
        logit_scale: the model's: 100 of CLIP.

    Attributes:
        classes_: sorted. method_: fitted. texts_, text_mask_: `[c t d]` and `[c t]`.

    A transductive method scores the rows of one call together.
    """

    def __init__(
        self,
        texts: Any = None,
        method: Any = None,
        options: Any = None,
        logit_scale: Any = 100.0,
    ) -> None:  # the contract: what is wrong is said by `fit`
        self.texts = texts
        self.method = method
        self.options = options
        self.logit_scale = logit_scale

    def fit(self, X: Any, y: Any = None) -> "ZeroShotClassifier":
        """Learn from rows `[m d]` and their classes, or, without `y`, take the classes of `texts`.

        Raises:
            ValueError: no classes, a class without texts, rows of another width than the texts.
        """
        if y is None and self.texts is None:
            raise ValueError(
                "This ZeroShotClassifier estimator requires y to be passed, but the target y is "
                "None: without texts the classes are those of y"
            )
        if y is None:
            X = validate_data(self, X, dtype=[np.float64, np.float32])
        else:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
            check_classification_targets(y)
        self._read_classes(y)
        self.texts_, self.text_mask_ = self._stacked(_unit(X).dtype)
        method = methods.configure(self._default(y), self.options or {})
        if not hasattr(method, "scores"):
            able = ", ".join(methods.with_verb("scores"))
            raise UserError(
                f"method '{methods.name_of(method)}' does not classify; these do: {able}"
            )
        learned = {n for n in methods.parameters(method, "fit") if n in ("shots", "shot_labels")}
        if y is not None and learned:
            numbers = torch.from_numpy(np.searchsorted(self.classes_, y))
            method = method.fit(shots=_unit(X), shot_labels=numbers)
        self.method_ = method
        return self

    def _default(self, y: Any) -> Any:
        if self.method is not None:
            return self.method
        if self.texts is None:
            return "ncm"
        return "ensemble" if y is None else "evidence"

    def _read_classes(self, y: Any) -> None:
        seen: Any = None if y is None else np.unique(y)
        self.classes_: Any = seen
        if self.texts is not None:
            self.classes_ = np.unique(np.array(list(self.texts)))
        if self.texts is None or seen is None:
            return
        if len(unknown := np.setdiff1d(seen, self.classes_)):
            raise ValueError(f"y has the class {_key(unknown[0])!r}, and texts has none for it")

    def _stacked(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The texts of all classes `[c t d]`, and which of them there are."""
        width = self.n_features_in_
        if self.texts is None:  # the method learns from shots alone; a direction for each class
            rows = [torch.eye(1, width, dtype=dtype) for _ in self.classes_]
        else:
            by_class = dict(zip(map(_key, self.texts), self.texts.values(), strict=True))
            rows = [
                torch.as_tensor(np.atleast_2d(by_class[_key(name)]), dtype=dtype)
                for name in self.classes_
            ]
        for name, texts in zip(self.classes_, rows, strict=True):
            if texts.ndim != 2 or texts.shape[1] != width:
                raise ValueError(
                    f"the texts of class {_key(name)!r} have shape {list(texts.shape)}, and the "
                    f"rows of X are {width} wide: give [d] or [t d] of the encoder that X is from"
                )
        counts = torch.tensor([len(texts) for texts in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return normalize(padded), torch.arange(int(counts.max())) < counts[:, None]

    def predict_proba(self, X: Any) -> npt.NDArray[Any]:
        """Probabilities `[n c]`, in the order of `classes_`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        rows = _unit(X)
        if len(self.classes_) == 1:
            return np.ones((len(rows), 1))
        scores = self.method_.scores(
            rows, self.texts_.to(rows.dtype), self.text_mask_, self.logit_scale
        )
        logits = as_logits(scores, self.method_.output, self.logit_scale)
        found: npt.NDArray[Any] = logits.double().softmax(1).numpy()
        return found

    def predict(self, X: Any) -> Any:
        """The class of each row."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.texts is None
        return tags


class ImageEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images to unit embeddings `[n d]` of a model set's encoder; it has nothing to learn.

    X is what `zeroshot.embed` takes: a list or an array of paths, PIL images, bytes. An image that
    cannot be read is a `UserError`, because a row cannot be missing.

    Args:
        models: a model set, its name or its directory.
        batch_size: images per batch.
        cache: as for `zeroshot.embed`.
    """

    def __init__(
        self, models: Any = "base", batch_size: Any = AUTO_BATCH, cache: Any = None
    ) -> None:
        self.models = models
        self.batch_size = batch_size
        self.cache = cache

    def fit(self, X: Any, y: Any = None) -> "ImageEmbedder":
        """Return itself."""
        return self

    def transform(self, X: Iterable[Any]) -> npt.NDArray[Any]:
        """Embeddings `[n d]` in float32, in the order of X."""
        given = [x.item() if isinstance(x, np.str_) else x for x in X]
        sources = find(given).sources
        encoder = api._set(self.models).encoder
        if len(sources) != len(given):
            raise UserError("X has to name one image in each row, and no folders")
        with api._open(self.cache) as cache:
            rows = embed_all(sources, image_encoder_of(encoder), cache, Meter(), self.batch_size)
        found: npt.NDArray[Any] = project_images(encoder, rows).float().cpu().numpy()
        return found

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags


def _unit(X: npt.NDArray[Any]) -> torch.Tensor:
    rows = torch.from_numpy(np.require(X, requirements=["C", "W"]))  # torch warns of others
    if not rows.any(1).all():
        row = int((~rows.any(1)).nonzero()[0])
        raise ValueError(f"row {row} of X is zero, and has no direction")
    return normalize(rows)


def _key(name: Any) -> Any:
    """A class as numpy has it, and as Python has it, are one key."""
    return name.item() if isinstance(name, np.generic) else name
