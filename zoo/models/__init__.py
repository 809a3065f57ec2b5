"""The models, and the factory that builds them from a spec."""
