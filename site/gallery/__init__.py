"""The gallery: a static page of every model that comes with the zoo."""
