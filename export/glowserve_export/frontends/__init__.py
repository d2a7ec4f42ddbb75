"""Reads a checkpoint, of glowserve or of one of two public Glow implementations, and folds its model."""
