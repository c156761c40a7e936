"""Answers from frozen vision and language models, without training.

import zeroshot
zeroshot.caption("photos/")
zeroshot.classify("photos/", ["cat", "dog"])
zeroshot.video.classify("clips/", ["cooking", "running"])

The functions are imported on first use, because they import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
