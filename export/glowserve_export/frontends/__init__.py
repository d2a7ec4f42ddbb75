"""What makes constants of a checkpoint: of ours, and of two public implementations of Glow."""
