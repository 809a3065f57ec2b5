"""The models, the factory that builds them from a spec, and conversion of other checkpoints."""
