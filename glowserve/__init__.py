"""glowserve: a density service. Scores images under a Glow model, and samples from it."""
