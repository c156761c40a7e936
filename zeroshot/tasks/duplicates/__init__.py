"""Copies among images."""
