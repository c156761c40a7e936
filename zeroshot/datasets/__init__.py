"""Annotation files: labels, captions, pairs, questions, and benchmarks in their own layouts."""
