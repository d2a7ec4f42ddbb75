"""Both graphs: their nodes, constants, names and signatures."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import glowserve_export
import numpy as np
import onnx
import pytest
from glowserve_export.convolution import FoldedConv
from glowserve_export.couplings import FoldedCoupling, FoldedNetwork, Halves, SigmoidScale
from glowserve_export.folded import FoldedGlow, FoldedLevel, FoldedStep
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.precision import FP32
from onnx import numpy_helper

from glowserve.image_size import ImageSize
from glowserve.runtime import graphs as checked_graphs
from tests.export.models import random_glow

Graphs = dict[str, onnx.ModelProto]

# All operators that the two graphs may use: elementwise arithmetic, sums, fixed reorderings and convolutions.
_BOTH = {
    *("Add", "Cast", "Concat", "Conv", "DepthToSpace", "Div", "Exp", "Floor", "Mul", "Relu", "Reshape"),
    *("Sigmoid", "Split", "Sub", "Tanh", "Transpose", "Where"),
    *("Clip", "Equal", "GatherElements"),  # of splines
}
_FORWARD_ONLY = {
    *(
        "Flatten",
        "Log",
        "Neg",
        "Pad",
        "ReduceMax",
        "ReduceSum",
        "ReduceSumSquare",
        "Softplus",
        "SpaceToDepth",
    ),
    "Sum",
}
OPERATORS = {"forward": _BOTH | _FORWARD_ONLY, "reverse": _BOTH | {"GreaterOrEqual", "Round", "Sqrt"}}

# The SHA-256 of both float32 graphs of `_integer_glow`. Change it together with an intended change of the graphs.
DIGESTS = {
    "forward": "8c0064c1e2be4047e643cc67085f0d44295a221336f4fb4a30161571d5e2e543",
    "reverse": "9dfb9014937ac916e6c6650e937b8e3a5c95c683546cd9a60b3fbb1c4f23c990",
}

both_directions = pytest.mark.parametrize("direction", ["forward", "reverse"])


def _graphs(glow: FoldedGlow) -> Graphs:
    return {"forward": forward_graph(glow), "reverse": reverse_graph(glow)}


def _integer_glow() -> FoldedGlow:
    """A flow whose weights are multiples of 1/16, and so the same on every machine."""

    def numbers(*shape: int) -> np.ndarray:
        return (np.arange(np.prod(shape)) % 7 - 3.0).reshape(shape) / 16

    eye = np.eye(4)
    network = FoldedNetwork(
        FoldedConv(numbers(3, 2, 3, 3), numbers(3)),
        FoldedConv(numbers(3, 3, 1, 1), numbers(3)),
        FoldedConv(numbers(4, 3, 3, 3), numbers(4)),
    )
    coupling = FoldedCoupling(Halves(), network, SigmoidScale())
    step = FoldedStep(2 * eye, numbers(4), eye / 2, -numbers(4) / 2, coupling)
    level = FoldedLevel((step, step), None)
    return FoldedGlow(ImageSize(4, 4), 1, 8, (level,), np.zeros(4), np.zeros(4), 1.0)


@both_directions
def test_float32_graphs_have_known_bytes(direction: str) -> None:
    write, glow = {"forward": forward_graph, "reverse": reverse_graph}[direction], _integer_glow()
    data = write(glow).SerializeToString(deterministic=True)
    assert hashlib.sha256(data).hexdigest() == DIGESTS[direction]
    assert write(glow, FP32).SerializeToString(deterministic=True) == data


def test_the_same_model_gives_the_same_bytes(case: dict[str, Any], case_graphs: Graphs) -> None:
    again, other = (_graphs(fold_glow(random_glow(seed=seed, **case))) for seed in (0, 1))
    for direction, model in case_graphs.items():
        data = model.SerializeToString(deterministic=True)
        assert data == again[direction].SerializeToString(deterministic=True)
        assert data != other[direction].SerializeToString(deterministic=True)


@both_directions
def test_a_graph_uses_only_simple_standard_operators(case_graphs: Graphs, direction: str) -> None:
    model = case_graphs[direction]
    used = Counter((node.domain, node.op_type) for node in model.graph.node)
    assert {domain for domain, _ in used} == {""}
    assert {operator for _, operator in used} <= OPERATORS[direction]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions


@both_directions
def test_a_graph_passes_the_checker_and_has_the_signature_of_the_contract(
    case_glow: FoldedGlow, case_graphs: Graphs, direction: str
) -> None:
    model = case_graphs[direction]
    onnx.checker.check_model(model, full_check=True)
    image = ["N", *case_glow.image_shape]
    latent, levels = ["N", case_glow.dimensions], ["N", len(case_glow.levels)]
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    inputs, outputs = {
        "forward": (
            {"image": (uint8, image), "noise": (float32, image)},
            {
                "log_likelihood": (float32, ["N"]),
                "latent": (float32, latent),
                "log_prior": (float32, levels),
                "log_det": (float32, levels),
            },
        ),
        "reverse": ({"latent": (float32, latent)}, {"image": (uint8, image), "pixels": (float32, image)}),
    }[direction]
    assert _signature(model.graph.input) == inputs
    assert _signature(model.graph.output) == outputs


def _signature(values: Any) -> dict[str, tuple[int, list[str | int]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@both_directions
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parametrization": "orthogonal", "coupling_actnorm": True},
        {"parametrization": "plain", "coupling_actnorm": True, "dequantization": "variational"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("scale", "expected"), [("sigmoid", 12), ("tanh", 14)])
def test_a_step_of_an_affine_flow_is_twelve_nodes_and_fourteen_with_a_bounded_scale(
    scale: str, expected: int, levels: int, direction: str, options: dict[str, Any]
) -> None:
    nodes = {}
    for steps in (2, 3, 4):
        model = random_glow(levels=levels, steps_per_level=steps, width=2, coupling_scale=scale, **options)
        glow = fold_glow(model)
        graph = (forward_graph if direction == "forward" else reverse_graph)(glow).graph
        # Whether a sum of a level needs a Pad depends on its size.
        nodes[steps] = sum(node.op_type != "Pad" for node in graph.node)
    assert nodes[3] - nodes[2] == expected * levels
    assert nodes[4] - nodes[3] == expected * levels


@both_directions
@pytest.mark.parametrize("levels", [1, 2])
def test_a_step_with_a_spline_is_fewer_than_sixty_nodes(levels: int, direction: str) -> None:
    more, fewer = ({"coupling": "spline", "levels": levels, "steps_per_level": steps} for steps in (3, 2))
    nodes = _nodes_without_pads(more, direction) - _nodes_without_pads(fewer, direction)
    assert nodes == {"forward": 59, "reverse": 57}[direction] * levels


@pytest.mark.parametrize(
    ("option", "forward", "reverse"),
    [
        # Of each coupling, beside those that sum all log-scales, none of which depends on the number of couplings.
        ({"checkerboards": 4}, 2 * 13, 2 * 13),
        ({"checkerboards": 4, "coupling_scale": "sigmoid"}, 2 * 11, 2 * 11),
        ({"checkerboards": 4, "coupling": "additive"}, 2 * 8, 2 * 8),
    ],
    ids=str,
)
def test_two_more_checkerboards_add_few_nodes(option: dict[str, Any], forward: int, reverse: int) -> None:
    more, fewer = ({**option, "checkerboards": n} for n in (6, 4))
    assert _nodes_without_pads(more, "forward") - _nodes_without_pads(fewer, "forward") == forward
    assert _nodes_without_pads(more, "reverse") - _nodes_without_pads(fewer, "reverse") == reverse


@pytest.mark.parametrize(
    ("option", "forward", "reverse"),
    [
        ({"preprocessing": "logit"}, 11, 3),
        ({"checkerboards": 1}, 13 + 4, 13),
        ({"checkerboards": 2}, 2 * 13 + 6, 2 * 13),
        ({"checkerboards": 4}, 4 * 13 + 8, 4 * 13),
        ({"dequantization": "variational"}, 14 * 4 + 27, 0),
    ],
    ids=str,
)
def test_an_option_adds_few_nodes(option: dict[str, Any], forward: int, reverse: int) -> None:
    for direction, expected in (("forward", forward), ("reverse", reverse)):
        assert _nodes_without_pads(option, direction) - _nodes_without_pads({}, direction) == expected


def _nodes_without_pads(options: dict[str, Any], direction: str) -> int:
    glow = fold_glow(random_glow(**{"coupling_scale": "tanh", "levels": 2, "width": 2, **options}))
    # Whether a sum needs a Pad depends on its size.
    return sum(node.op_type != "Pad" for node in _graphs(glow)[direction].graph.node)


@both_directions
def test_actnorm_and_1x1_convolution_are_one_convolution_with_constant_weights(
    case_glow: FoldedGlow, case_graphs: Graphs, direction: str
) -> None:
    graph = case_graphs[direction].graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # Those of splines have groups.
    convolutions = [node for node in graph.node if node.op_type == "Conv" and not _has_groups(node)]
    weights = [constants[node.input[1]] for node in convolutions]
    biases = [constants[node.input[2]] for node in convolutions]
    assert not constants.keys() & {value.name for value in graph.input}
    # Each coupling network: three. Each step: one more. Each level but the top: one in the prior.
    steps = [step for _, step in case_glow.named_steps()]
    couplings = case_glow.all_couplings() if direction == "forward" else case_glow.flow_couplings()
    assert len(convolutions) == 3 * len(couplings) + len(steps) + len(case_glow.levels) - 1
    for step in steps:
        matrix, bias = step.matrix, step.bias
        if direction == "reverse":
            matrix, bias = step.inverse_matrix, step.inverse_bias
        expected = matrix.astype(np.float32)[:, :, None, None]
        (i,) = [i for i, weight in enumerate(weights) if np.array_equal(weight, expected)]
        np.testing.assert_array_equal(biases[i], bias.astype(np.float32))


def _has_groups(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" for attribute in node.attribute)


def test_constants_are_stored_as_float32() -> None:
    for model in _graphs(fold_glow(random_glow(levels=2))).values():
        types = {tensor.data_type for tensor in model.graph.initializer}
        assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_every_tensor_has_a_name_of_its_own_and_every_step_names_one() -> None:
    glow = fold_glow(random_glow(levels=2))
    for model in _graphs(glow).values():
        produced = [name for node in model.graph.node for name in node.output]
        assert len(produced) == len(set(produced))
        assert {name for name, _ in glow.named_steps()} <= set(produced)


def test_a_service_accepts_exactly_the_operators_that_the_exporter_writes() -> None:
    sources = [path.read_text() for path in Path(glowserve_export.__file__).parent.rglob("*.py")]
    written = {name for text in sources for name in re.findall(r'(?:add|make_node)\(\s*"(\w+)"', text)}
    assert written == checked_graphs.OPERATORS
