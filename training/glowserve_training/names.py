"""Names of the flow's parts in logs, errors, graphs and manifests."""

from __future__ import annotations


def step_name(level: int, step: int) -> str:
    """The name of a step of flow. Level and step count from 1; level 1 and step 1 are nearest to the pixels."""
    return f"level{level}.step{step}"
