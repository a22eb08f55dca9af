"""Runs workflows made of this pack's nodes on a terminal, without ComfyUI."""
