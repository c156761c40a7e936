from .loading import (
    load as load,
    load_detector as load_detector,
    load_dual_encoder as load_dual_encoder,
    load_image_encoder as load_image_encoder,
    load_language_model as load_language_model,
    load_segmenter as load_segmenter,
    load_text_encoder as load_text_encoder,
)
from .vlm.vision_language import (
    load_answerer as load_answerer,
    load_clip_scorer as load_clip_scorer,
    load_pair_scorer as load_pair_scorer,
    load_region_answerer as load_region_answerer,
    load_writer as load_writer,
)
