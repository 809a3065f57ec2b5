"""What holds for all tests."""

import os

# Threads that spin while they wait take the cores from whoever could work; read once, when torch loads its thread pool.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
