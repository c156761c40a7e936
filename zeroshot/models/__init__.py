"""Frozen models: the only folder that imports transformers or open_clip.

`load("hf:openai/clip-vit-base-patch32")` returns the model of that name; the other loaders insist
on a role.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
