"""What trades time for memory: 8-bit weights, blocks that visit the device, compiled blocks. `plan` reads the options."""
