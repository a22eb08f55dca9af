"""The ComfyUI side: node classes independent of ComfyUI, the jobs they start, and the adapter that registers them."""
