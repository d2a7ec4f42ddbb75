"""Looks into graphs of low precision, and changes networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx
from glowserve_export.couplings import FoldedCoupling, FoldedNetwork
from glowserve_export.folded import FoldedGlow
from glowserve_training.names import pixel_coupling_name, step_name


def network_nodes(model: onnx.ModelProto, step: str) -> list[onnx.NodeProto]:
    """The nodes between the input of a coupling network and its shift and logit, in order."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, onnx.NodeProto] = {}
    pending = [f"{step}.shift_logit.0"]
    while pending:
        name = pending.pop()
        node = made_by.get(name)
        if node is None or name in (f"{step}.halves.0", f"{step}.passive") or node.name in found:
            continue
        found[node.name] = node
        pending += node.input
    return [node for node in model.graph.node if node.name in found]


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """By name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def with_networks(
    glow: FoldedGlow, change: Callable[[FoldedNetwork], FoldedNetwork], *names: str
) -> FoldedGlow:
    """The flow with the networks of these couplings changed; all of them, if none are named."""

    def changed(coupling: FoldedCoupling) -> FoldedCoupling:
        return replace(coupling, network=change(coupling.network))

    return with_couplings(glow, changed, *names)


def with_couplings(
    glow: FoldedGlow, change: Callable[[FoldedCoupling], FoldedCoupling], *names: str
) -> FoldedGlow:
    """The flow with these couplings changed; all of them, if none are named."""

    def changed(coupling: FoldedCoupling, name: str) -> FoldedCoupling:
        return change(coupling) if name in names or not names else coupling

    levels = []
    for i, level in enumerate(glow.levels, 1):
        steps = (
            replace(step, coupling=changed(step.coupling, step_name(i, k)))
            for k, step in enumerate(level.steps, 1)
        )
        levels.append(replace(level, steps=tuple(steps)))
    pixels = (changed(each, pixel_coupling_name(k)) for k, each in enumerate(glow.pixel_couplings, 1))
    return replace(glow, levels=tuple(levels), pixel_couplings=tuple(pixels))
