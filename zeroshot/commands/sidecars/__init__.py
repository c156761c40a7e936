"""Runs that write files for images: beside them, or in a folder for each label."""
