"""Answers out of frozen vision and language models, with nothing trained."""
