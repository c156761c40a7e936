"""Methods: one paper, one file; the file's name is the method's name.

A method is a frozen dataclass whose fields are its options. Its kind follows from its verb: a
*scorer* (`scores`) turns embeddings into class scores, a *captioner* (`caption`) turns image
embeddings into texts, a *dense* one (`attend`) gives an embedding for each patch. A scorer that
learns from arrays (anchors, shots, unlabelled images) has `fit`, which returns a NEW object. The
parameters of `fit` are named as the arrays in docs/embeddings.md, and learned fields end in `_`.
Arrays that belong to the images of one call (views, the logits of an earlier method) are parameters
of `scores`, by the same names. A parameter without a default must be given; if all parameters of
`fit` have a default, the method works unfitted.

A scorer may also improve the texts (`refine`) or correct the logits (`adjust`) of another:
`_pipeline` composes methods by these verbs.

A method imports `errors`, `ops`, `metrics`, `decoding`, `trace`, `packaging` and `models.base`, and
nothing else: it never sees a model, a file or the screen. Files whose names begin with `_` hold
what several methods share, and are no methods.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
