"""Scores of whole folders, to a file: `glowserve score FOLDER --out scores.parquet`."""
