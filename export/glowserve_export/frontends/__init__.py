"""Reads a checkpoint, of glowserve or of one of the public Glow implementations, and folds its model."""
