"""Models: finds versions in the repository, loads them, and swaps them while traffic flows."""
