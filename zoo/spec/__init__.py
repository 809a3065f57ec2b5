"""What a recipe says, as data. Nothing in this package imports torch."""
