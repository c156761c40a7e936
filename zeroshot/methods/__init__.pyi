from ._caption_pool import Pool as Pool
from ._descriptions import Description as Description, Option as Option, describe as describe
from ._pipeline import configure as configure, pipeline as pipeline
from ._protocols import (
    Adjuster as Adjuster,
    Caption as Caption,
    Captioner as Captioner,
    Coupling as Coupling,
    Dense as Dense,
    Explanation as Explanation,
    Output as Output,
    Refiner as Refiner,
    Scorer as Scorer,
    as_logits as as_logits,
)
from ._registry import (
    get as get,
    name_of as name_of,
    names as names,
    options as options,
    parameters as parameters,
    values as values,
)
