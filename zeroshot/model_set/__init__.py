"""A set of models by name, loaded part by part; coupled pairs, frame encoders, anchor files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
