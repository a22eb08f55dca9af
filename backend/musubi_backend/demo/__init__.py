"""Tiny models and clips to try everything with, in seconds and without a download."""
