"""Encoders around the transformer: the Wan VAE (diffusers), umt5 (transformers) and its tokenizer."""
