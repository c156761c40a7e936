from .duplicate import DedupeResult as DedupeResult
from .explained import ExplainResult as ExplainResult, WordWeight as WordWeight
from .regions import (
    Detection as Detection,
    DetectResult as DetectResult,
    Region as Region,
    RegionCaption as RegionCaption,
    RegionsResult as RegionsResult,
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
    AskResult as AskResult,
    MatchResult as MatchResult,
    QuestionAnswers as QuestionAnswers,
    ReadResult as ReadResult,
    TextScore as TextScore,
)
