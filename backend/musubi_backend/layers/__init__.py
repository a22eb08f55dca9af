"""Building blocks shared by the transformers: linears with LoRA, norms, RoPE, attention, block execution."""
