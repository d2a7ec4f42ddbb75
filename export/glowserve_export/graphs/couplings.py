"""What a coupling does with the outputs of its network, as nodes, in both directions; see `FoldedStep`."""

from __future__ import annotations

from glowserve_export.folded import FoldedStep, ScaleMap
from glowserve_export.graphs.builder import GraphBuilder

# The operator that makes a number of a logit, and how x is scaled by that number and unscaled.
_OPERATORS: dict[ScaleMap, tuple[str, str, str]] = {
    "sigmoid": ("Sigmoid", "Mul", "Div"),
    "inverse_sigmoid": ("Sigmoid", "Div", "Mul"),
    "exp": ("Exp", "Mul", "Div"),
}


def coupling_halves(g: GraphBuilder, x: str, step: FoldedStep, name: str) -> list[str]:
    """The channels that condition the coupling, and those that it transforms."""
    halves = g.split(x, [step.channels // 2] * 2, name)
    return halves[::-1] if step.transforms_first else halves


def joined_halves(g: GraphBuilder, passive: str, active: str, step: FoldedStep, name: str) -> str:
    """The inverse of `coupling_halves`."""
    halves = [active, passive] if step.transforms_first else [passive, active]
    return g.add("Concat", halves, name, axis=1)


def scaled(g: GraphBuilder, x: str, logit: str, scale_map: ScaleMap, name: str) -> str:
    """X times the scale of the logit."""
    operator, scale, _ = _OPERATORS[scale_map]
    return g.add(scale, [x, g.add(operator, [logit], f"{name}.scale")], f"{name}.scaled")


def unscaled(g: GraphBuilder, x: str, logit: str, scale_map: ScaleMap, name: str) -> str:
    """The inverse of `scaled`."""
    operator, _, unscale = _OPERATORS[scale_map]
    return g.add(unscale, [x, g.add(operator, [logit], f"{name}.scale")], f"{name}.unscaled")
