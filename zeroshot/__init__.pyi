from . import video as video
from .api import (
    ask as ask,
    caption as caption,
    classify as classify,
    dedupe as dedupe,
    detect as detect,
    embed as embed,
    evaluate as evaluate,
    explain as explain,
    load as load,
    match as match,
    read as read,
    search as search,
    segment as segment,
    tune as tune,
)
from .packaging.version import __version__ as __version__
from .serving.start import serve as serve
