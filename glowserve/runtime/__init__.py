"""Runs a bundle in this process: reads it, opens its graphs, and turns their numbers into answers."""
