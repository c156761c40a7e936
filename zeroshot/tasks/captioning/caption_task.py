"""Images to captions, as a task."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.inference.coupled_models import SENTENCES, with_coupling_for_task
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods import Captioner, Pool
from zeroshot.model_set.model_set import ModelSet
from zeroshot.model_set.spec import is_set
from zeroshot.results.result import CaptionResult
from zeroshot.tasks.captioning import captioner
from zeroshot.tasks.captioning.caption_options import CaptionOptions
from zeroshot.tasks.captioning.region_captions import CaptionRegions, read_boxes
from zeroshot.tasks.captioning.trained import NativeCaption, is_dlc, prompt_settings
from zeroshot.tasks.task import OpenedTask, Task
from zeroshot.tasks.tuning.recipe import Recipe, check_beside_recipe, recipe_of


@dataclass(frozen=True, kw_only=True)
class CaptionImages(Task[CaptionOptions]):
    """Captions by a method that generates or retrieves them."""

    schema: ClassVar[str] = CaptionResult.schema

    @classmethod
    def from_options(cls, models: ModelSet, options: CaptionOptions) -> "CaptionImages":
        """See `Task`."""
        options = by_recipe(options)
        if options.lm is not None:
            models = models.with_language_model(options.lm)
        return cls(models=models, options=options)

    def open(
        self, cache: EmbeddingCache, meter: Meter, batch_size: int = AUTO_BATCH
    ) -> "CaptionRunner":
        """Load the models, and the captions that a method chooses among."""
        options = self.options
        features = {"prompts": options.prompt is not None, "trace": options.trace}
        method = captioner.captioner(
            self.models, options.method, dict(options.options), options.preset, features
        )
        captioner.check_takes(method, features)
        self.models.require(language_model="language_model" in method.needs)
        models = with_coupling_for_task(self.models, options.coupling, SENTENCES, cache, meter)
        if isinstance(options.recipe, Recipe):
            options.recipe.check_models(captioner.settings(models, method)["models"])
        pool = captioner.pool_of(models, cache, meter) if "pool" in method.needs else None
        return CaptionRunner(
            task=self, models=models, method=method, pool=pool, cache=cache, batch_size=batch_size
        )


@dataclass(frozen=True, kw_only=True)
class CaptionRunner(OpenedTask[CaptionImages]):
    """A captioner with its models."""

    models: ModelSet
    method: Captioner
    pool: Pool | None

    def resolved(self) -> dict[str, Any]:
        """See `OpenedTask`."""
        settings = captioner.settings(self.models, self.method)
        return settings | prompt_settings(self.task.options)

    def __call__(
        self, sources: Iterable[Source], meter: Meter, written: captioner.Written | None = None
    ) -> Iterator[CaptionResult]:
        """One result per image, in order; `written` as in `captioner.caption`."""
        return captioner.caption(
            sources,
            self.models,
            self.method,
            self.cache,
            meter,
            batch_size=self.batch_size,
            prompts=self._prompts(sources),
            trace=self.task.options.trace,
            pool=self.pool,
            written=written,
            remember_texts=self.task.options.remember_texts,
        )

    def _prompts(self, sources: Iterable[Source]) -> Callable[[Source], str] | None:
        if isinstance(sources, Sequence):
            self.task.options.check_prompts(sources)
        return self.task.options.prompt_of()


def by_recipe(options: CaptionOptions) -> CaptionOptions:
    """The options with what their recipe decides, if they have one.

    Raises:
        UserError: not a recipe for captions, or options that it decides.
    """
    if options.recipe is None:
        return options
    recipe = recipe_of(options.recipe, "caption")
    check_beside_recipe(options, ("method", "options", "preset", "model", "coupling"))
    (member,) = recipe.members
    return replace(
        options,
        recipe=recipe,
        method=member.method,
        options=dict(member.options),
        coupling=member.coupling or None,
    )


def caption_task(
    models: ModelSet, options: CaptionOptions
) -> CaptionImages | NativeCaption | CaptionRegions:
    """The task: a method, or a trained captioner; of whole images, or of their regions.

    Raises:
        UserError: options that do not fit each other.
    """
    whole = replace(options, box=(), margin=CaptionOptions.margin)
    if not (isinstance(options.box, tuple) and not options.box):
        boxes = read_boxes(options.box)
        if not isinstance(options.prompt, str | Mapping | None):
            raise UserError("regions have one prompt for all images, or one for each by its path")
        inner = caption_task(models, whole)
        return CaptionRegions(models=models, options=options, inner=inner, boxes=boxes)
    if options.margin != whole.margin:
        raise UserError("a margin is around boxes: give a box as well")
    native, given = options.method == "native", options.model is not None
    if native != given and not (given and is_dlc(options.method)):
        name = options.model
        meant = f"; for a model set: --models {name}" if name and is_set(name) else ""
        raise UserError(
            f"--method native and --model NAME belong together: a trained captioner{meant}; only "
            "--method dlc also takes one"
        )
    if options.model is not None:
        check_beside_recipe(options, (), ("recipe",))
        return NativeCaption.from_options(models, options)
    return CaptionImages.from_options(models, options)
