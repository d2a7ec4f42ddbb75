"""What the parts of a flow are called in logs, errors, graphs and manifests."""

from __future__ import annotations


def step_name(level: int, step: int) -> str:
    """A step of flow; both count from 1, nearest to the pixels first."""
    return f"level{level}.step{step}"
