"""Makes a checkpoint: Glow, its data and its training, in PyTorch."""
