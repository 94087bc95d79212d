"""The commands of ``python -m fastloss``; nothing here is imported by ``import fastloss``."""
