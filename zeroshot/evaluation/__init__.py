"""Measure methods on labelled data, with intervals and comparisons."""
