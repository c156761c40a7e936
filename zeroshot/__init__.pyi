from . import video as video
from .api import (
    caption as caption,
    classify as classify,
    embed as embed,
    evaluate as evaluate,
    load as load,
    search as search,
)
from .api_located import detect as detect, segment as segment
from .api_texts import ask as ask, match as match, read as read

__version__: str
