"""Runs that write files beside images."""
