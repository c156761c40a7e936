"""Annotation files of other programs, made from rows: one file per format."""
