"""Latent and text caches: their names, their files, and the two verbs that write them."""
