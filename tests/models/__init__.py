"""Tests of the models layer, on tiny random models of the real classes."""

# Before anything here imports transformers by itself: see `models.hf.common.common`.
import zeroshot.models.hf as _  # noqa: F401
