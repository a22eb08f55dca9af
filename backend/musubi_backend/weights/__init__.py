"""Weight files: safetensors headers, recognition by keys, streaming load into modules, atomic save."""
