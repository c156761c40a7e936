"""A recipe as a classifier: its members on the same images, each at its own temperature."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.labels import read_labeled_images
from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.model_set.model_set import ModelSet
from zeroshot.models.base import DualEncoder
from zeroshot.prompts import load_labels
from zeroshot.results.result import AnchorContribution
from zeroshot.tasks.classification.classifier import Adaptation, Classifier, load_classifier
from zeroshot.tasks.classification.classify_options import ClassifyOptions
from zeroshot.tasks.classification.heads import UNCALIBRATED, Head
from zeroshot.tasks.tuning.recipe import Recipe, check_beside_recipe, shots_fingerprint

HAS_ITS_OWN = ("method", "options", "coupling", "templates", "shots", "bank", "prior", "hierarchy")
HAS_NO = (
    *("multi", "against", "score", "calibration", "sets", "none_of_these", "words"),
    *("explain", "views"),
)


@dataclass(frozen=True)
class RecipeClassifier:
    """The weighted mean of the members' probabilities; see `classification.heads.Labeller`."""

    recipe: Recipe
    members: Sequence[Classifier]

    num_explanations: int = 0
    views: int = 0

    def __call__(
        self, images: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None = None
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Probabilities, and the cosines of the first member."""
        answers = [member(images, views) for member in self.members]
        weights = [member.weight for member in self.recipe.members]
        mean = sum(w * p for w, (p, _) in zip(weights, answers, strict=True)) / sum(weights)
        assert isinstance(mean, Tensor)
        return mean, answers[0][1]

    @property
    def labels(self) -> Sequence[str]:
        """One name per class."""
        return self.recipe.labels

    @property
    def head(self) -> Head:
        """Probabilities that sum to one."""
        return "softmax"

    @property
    def scored(self) -> str:
        """Without labels the temperature was compared with none."""
        return self.head if self.recipe.figures else UNCALIBRATED

    @property
    def encoder(self) -> DualEncoder:
        """That of the first member; all share the image encoder."""
        return self.members[0].encoder

    @property
    def transductive(self) -> bool:
        """Whether any member is."""
        return any(member.transductive for member in self.members)

    def settings(self) -> dict[str, Any]:
        """The settings that decide the scores."""
        return {
            "models": self.used,
            "method": self.name,
            "recipe": self.recipe.fingerprint,
            "score": self.head,
        }

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""
        return self.members[0].used

    @property
    def name(self) -> str:
        """`recipe(evidence, gda+stata)`, for rows."""
        return f"recipe({', '.join(member.method for member in self.recipe.members)})"

    def explain(
        self, image: Float[Tensor, " e"], label: int, cosine: float
    ) -> tuple[AnchorContribution, ...]:
        """None: a mean of methods has no anchors."""
        return ()


def check_options(recipe: Recipe, options: ClassifyOptions) -> None:
    """UserError for options that a recipe decides, or for other labels than its own."""
    check_beside_recipe(options, HAS_ITS_OWN, HAS_NO)
    if options.labels and load_labels(options.labels) != recipe.labels:
        raise UserError(
            f"the recipe is for the labels {', '.join(recipe.labels[:5])}"
            f"{', ...' * (len(recipe.labels) > 5)}; leave --labels out, or tune for yours"
        )


def load_recipe(
    recipe: Recipe,
    folder: Path,
    models: ModelSet,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    long_text: Any = "error",
) -> RecipeClassifier:
    """Load the members; the labelled images of a recipe are found beside it.

    Args:
        folder: that of the recipe.

    Raises:
        UserError: other encoders than the recipe's, or other labelled images.
    """
    labels, shots = recipe.labels, None
    if recipe.shots:
        shots = read_labeled_images(folder / recipe.shots, labels)
        found = shots_fingerprint([str(s.path) for s in shots.sources], shots.classes)
        if found != recipe.shots_fingerprint:
            raise UserError(
                f"'{folder / recipe.shots}' has other images or labels than those that the recipe "
                "was tuned with; tune again"
            )
    members = []
    for member in recipe.members:
        prompts = recipe.prompts_of(member)
        options = ClassifyOptions(
            method=member.method,
            options=member.options,
            coupling=member.coupling or None,
            score="softmax",
            long_text=long_text,
        )
        scorer = methods.configure(member.method, dict(member.options))
        learns = "shots" in methods.parameters(scorer, "fit")
        members.append(
            load_classifier(
                models,
                labels,
                prompts,
                options,
                cache,
                meter,
                Adaptation(shots=shots if learns else None),
                temperature=member.temperature,
            )
        )
    loaded = RecipeClassifier(recipe, members)
    recipe.check_models(loaded.used)
    return loaded
