"""Latent and text caches: their names and what is in their files."""
