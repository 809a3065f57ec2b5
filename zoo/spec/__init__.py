"""Recipes as data. Nothing in this package imports torch."""
