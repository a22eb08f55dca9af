"""Training, caching and generation for video diffusion LoRAs, compatible with musubi-tuner's files and command line."""

__version__ = "0.1.0"
