"""Softmax kernels (to come)."""
