"""Rows without truth, as grids of thumbnails."""
