"""The ComfyUI side: node classes independent of ComfyUI, the jobs they start, and the bridge that registers them there."""
