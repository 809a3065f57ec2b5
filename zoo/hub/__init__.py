"""Bundles: the files in which a model is shared."""
