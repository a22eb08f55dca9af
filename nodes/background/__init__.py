"""Trainings that go on when ComfyUI is closed: a queue in files, and a process of its own that works through it."""
