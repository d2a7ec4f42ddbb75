"""Names of the flow's parts in logs, errors, graphs and manifests."""

from __future__ import annotations


def step_name(level: int, step: int) -> str:
    """The name of a step of flow. Level and step count from 1; level 1 and step 1 are nearest to the pixels."""
    return f"level{level}.step{step}"


DEQUANTIZATION = "dequantization"
"""Variational dequantization, which comes before all other layers."""


def dequantization_coupling_name(coupling: int) -> str:
    """The name of a coupling of variational dequantization, which count from 1."""
    return f"{DEQUANTIZATION}.coupling{coupling}"


def pixel_coupling_name(coupling: int) -> str:
    """The name of a coupling of pixels, before level 1. Couplings count from 1."""
    return f"pixels.coupling{coupling}"
