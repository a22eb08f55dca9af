"""LoRAs: files of all layouts, the network that is trained, merging, and what the LoRA tools share."""
