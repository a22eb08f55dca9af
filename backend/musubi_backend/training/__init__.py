"""The train verb: loop, timesteps, losses, schedules, checkpoints and resume, metadata, trackers."""
