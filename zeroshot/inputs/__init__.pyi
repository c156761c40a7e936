from .columns import Columns as Columns
from .containers import Bundle as Bundle, Bundles as Bundles
from .resolve import Named as Named, find as find, named as named
from .source import (
    Blob as Blob,
    Found as Found,
    Input as Input,
    Refused as Refused,
    Source as Source,
)
from .tables import Options as Options
