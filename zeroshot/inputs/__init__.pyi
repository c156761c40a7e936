from .columns import Columns as Columns
from .containers import Containers as Containers, ImageContainer as ImageContainer
from .resolve import (
    ResolvedInputs as ResolvedInputs,
    find as find,
    resolve_inputs as resolve_inputs,
)
from .source import (
    Blob as Blob,
    Input as Input,
    Listing as Listing,
    Source as Source,
    UnreadableBlob as UnreadableBlob,
)
from .tables import InputOptions as InputOptions
