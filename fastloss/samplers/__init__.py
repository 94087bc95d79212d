"""Candidate samplers and what they draw with."""
