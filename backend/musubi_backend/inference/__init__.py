"""From a prompt to a video file: samplers, guidance, prompt lines, output files and the generate verb."""
