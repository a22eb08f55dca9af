"""What trades time for memory: fp8 weights, blocks offloaded to system RAM, compiled blocks. `plan` reads the options."""
