"""Exact, fast, reproducible loss functions and candidate samplers for NumPy arrays."""

__version__ = "0.1.0"
