from .alignment import (
    Matching as Matching,
    cknna as cknna,
    hsic as hsic,
    linear_cka as linear_cka,
    local_cka as local_cka,
    match_set as match_set,
    match_unpaired as match_unpaired,
    mutual_knn as mutual_knn,
    rbf_cka as rbf_cka,
    rbf_kernel as rbf_kernel,
    relations as relations,
    unbiased_cka as unbiased_cka,
)
from .bootstrap import (
    Difference as Difference,
    Interval as Interval,
    exact_share as exact_share,
    holm as holm,
    mcnemar as mcnemar,
    paired_bootstrap as paired_bootstrap,
)
from .captioning import (
    Bleu as Bleu,
    CaptionScores as CaptionScores,
    DocumentFrequency as DocumentFrequency,
    Score as Score,
    bleu as bleu,
    caption_scores as caption_scores,
    cider as cider,
    distinct_n as distinct_n,
    diversity as diversity,
    document_frequency as document_frequency,
    rep_n as rep_n,
    repetition as repetition,
    rouge_l as rouge_l,
)
from .classification import (
    accuracy as accuracy,
    adaptive_ece as adaptive_ece,
    adaptive_gap as adaptive_gap,
    aurc as aurc,
    auroc as auroc,
    average_precision as average_precision,
    confidence_gap as confidence_gap,
    correct_at as correct_at,
    ece as ece,
    mean_average_precision as mean_average_precision,
    mean_per_class_recall as mean_per_class_recall,
    nll as nll,
    risk_coverage as risk_coverage,
)
from .multilabel import best_threshold as best_threshold
from .ptb_tokenizer import tokenize as tokenize
from .retrieval import (
    Winoground as Winoground,
    clip_score as clip_score,
    image_ranks as image_ranks,
    median_rank as median_rank,
    recall_at as recall_at,
    ref_clip_score as ref_clip_score,
    text_ranks as text_ranks,
    winoground as winoground,
)
from .statistics import Measure as Measure, differences as differences
