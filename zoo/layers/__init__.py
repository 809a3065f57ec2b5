"""nn.Modules with flat keyword arguments; they know neither recipes nor files."""
