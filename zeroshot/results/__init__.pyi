from .regions import (
    DetectResult as DetectResult,
    Found as Found,
    Region as Region,
    SegmentResult as SegmentResult,
)
from .result import (
    AnchorContribution as AnchorContribution,
    CaptionResult as CaptionResult,
    ClassifyResult as ClassifyResult,
    EmbedResult as EmbedResult,
    Failure as Failure,
    FilterResult as FilterResult,
    Label as Label,
    Result as Result,
    Results as Results,
    SearchResult as SearchResult,
)
from .text import (
    Asked as Asked,
    AskResult as AskResult,
    Fit as Fit,
    MatchResult as MatchResult,
    ReadResult as ReadResult,
)
