"""Graphs: where they come from, how they are cut into parts and how predictions on them are scored."""
