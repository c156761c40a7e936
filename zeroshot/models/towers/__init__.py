"""Faster forward passes of the models' own layers, checked against them."""
