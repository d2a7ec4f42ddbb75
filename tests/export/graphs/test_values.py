"""The two graphs: what they are made of, and, in ONNX Runtime, what they compute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from glowserve_export.folded import (
    FoldedConv,
    FoldedGlow,
    FoldedLevel,
    FoldedStep,
)
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_training.model import Glow
from onnx import numpy_helper

RandomGlow = Callable[..., Glow]
RunGraph = Callable[..., dict[str, np.ndarray]]

# Elementwise arithmetic, sums, fixed rearrangements and convolutions: all that the two graphs may use.
OPERATORS = {
    "forward": {
        *("Cast", "Floor", "Add", "Sub", "Mul", "Div", "Neg", "Exp", "Relu", "Sigmoid", "Softplus", "Conv"),
        *(
            "Split",
            "Concat",
            "Flatten",
            "Transpose",
            "SpaceToDepth",
            "DepthToSpace",
            "Log",
            "ReduceSum",
            "ReduceSumSquare",
            "ReduceMax",
            "Pad",
            "Sum",
            "Reshape",
        ),
    },
    "reverse": {
        *("Cast", "Floor", "Round", "Clip", "Add", "Sub", "Mul", "Div", "Exp", "Relu", "Sigmoid", "Conv"),
        *("Split", "Concat", "Reshape", "Transpose", "DepthToSpace"),
    },
}


def _graphs(glow: FoldedGlow) -> dict[str, onnx.ModelProto]:
    return {"forward": forward_graph(glow), "reverse": reverse_graph(glow)}


def _images(rng: np.random.Generator, glow: FoldedGlow, n: int) -> np.ndarray:
    return rng.integers(0, 256, (n, glow.image_size, glow.image_size, glow.channels), np.uint8)


def _noise(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    return (rng.integers(0, 2**24, images.shape) * 2.0**-24).astype(np.float32)


def _grey(bins: np.ndarray, n_bits: int) -> np.ndarray:
    """The grey values of bins, as the contract has it."""
    return np.round(np.clip(bins, 0, 2**n_bits - 1) * 255.0 / (2**n_bits - 1)).astype(np.uint8)


# What they compute


@pytest.mark.parametrize("n", [1, 3])
def test_the_forward_graph_computes_what_the_interpreter_does(
    case: dict[str, Any],
    n: int,
    random_glow: RandomGlow,
    interpreter: Any,
    run_graph: RunGraph,
    rng: np.random.Generator,
) -> None:
    glow = fold_glow(random_glow(**case))
    images = _images(rng, glow, n)
    noise = _noise(rng, images)
    expected = interpreter.forward(glow, images, noise)
    ours = run_graph(forward_graph(glow), image=images, noise=noise)
    assert set(ours) == {"log_likelihood", "latent", "log_prior", "log_det"}
    np.testing.assert_allclose(ours["log_likelihood"], expected.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(ours["log_prior"], expected.log_prior, rtol=1e-5)
    np.testing.assert_allclose(ours["log_det"], expected.log_det, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(ours["latent"], expected.latent, rtol=1e-5, atol=2e-6)


def test_the_log_likelihood_is_the_sum_of_its_terms_and_the_constant(
    case: dict[str, Any], random_glow: RandomGlow, run_graph: RunGraph, rng: np.random.Generator
) -> None:
    glow = fold_glow(random_glow(**case))
    images = _images(rng, glow, 3)
    ours = run_graph(forward_graph(glow), image=images, noise=_noise(rng, images))
    terms = ours["log_prior"].astype(np.float64).sum(axis=1) + ours["log_det"].astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(ours["log_likelihood"], terms + glow.log_det_constant, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_the_reverse_graph_computes_what_the_interpreter_does(
    case: dict[str, Any],
    n: int,
    random_glow: RandomGlow,
    interpreter: Any,
    run_graph: RunGraph,
    rng: np.random.Generator,
) -> None:
    glow = fold_glow(random_glow(**case))
    latent = (0.5 * rng.standard_normal((n, glow.dimensions))).astype(np.float32)
    ours = run_graph(reverse_graph(glow), latent=latent)
    assert set(ours) == {"image", "pixels"}
    np.testing.assert_allclose(ours["pixels"], interpreter.reverse(glow, latent), rtol=5e-5, atol=5e-4)


def test_the_image_is_the_grey_value_of_the_bin_that_the_pixels_lie_in(
    case: dict[str, Any], random_glow: RandomGlow, run_graph: RunGraph, rng: np.random.Generator
) -> None:
    glow = fold_glow(random_glow(**case))
    # Values of an image lie within 0.5 of zero, so that many of these must be clipped, at either end.
    latent = rng.standard_normal((3, glow.dimensions)).astype(np.float32)
    ours = run_graph(reverse_graph(glow), latent=latent)
    assert ours["pixels"].min() < 0
    assert ours["pixels"].max() > 2**glow.n_bits
    np.testing.assert_array_equal(ours["image"], _grey(np.floor(ours["pixels"]), glow.n_bits))


def test_encoding_with_noise_one_half_and_decoding_is_lossless(
    case: dict[str, Any], random_glow: RandomGlow, run_graph: RunGraph, rng: np.random.Generator
) -> None:
    glow = fold_glow(random_glow(**case))
    images = _images(rng, glow, 4)
    encoded = run_graph(forward_graph(glow), image=images, noise=np.full(images.shape, 0.5, np.float32))
    decoded = run_graph(reverse_graph(glow), latent=encoded["latent"])
    bins = images >> (8 - glow.n_bits)
    np.testing.assert_array_equal(decoded["image"] >> (8 - glow.n_bits), bins)
    np.testing.assert_array_equal(decoded["image"], _grey(bins, glow.n_bits))
    y, _ = (
        random_glow(**case)
        .double()
        .dequantize(torch.from_numpy(images), torch.full(images.shape, 0.5, dtype=torch.float64))
    )
    seen = (y.detach().permute(0, 2, 3, 1).numpy() + 0.5) * 2**glow.n_bits
    assert np.abs(decoded["pixels"] - seen).max() < 0.05


@pytest.mark.parametrize("n_bits", range(1, 9))
def test_every_grey_value_falls_into_its_bin_and_comes_back_into_it(n_bits: int, run_graph: RunGraph) -> None:
    glow = _identity(image_size=16, channels=1, levels=1, n_bits=n_bits)
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    encoded = run_graph(forward_graph(glow), image=images, noise=np.full(images.shape, 0.5, np.float32))
    decoded = run_graph(reverse_graph(glow), latent=encoded["latent"])
    assert len(np.unique(decoded["image"])) == 2**n_bits
    np.testing.assert_array_equal(decoded["image"] // 2 ** (8 - n_bits), images // 2 ** (8 - n_bits))


def test_noise_stays_inside_the_bin(run_graph: RunGraph) -> None:
    glow = _identity(image_size=2, channels=1, levels=1, n_bits=3)
    images = np.array([0, 31, 32, 255], np.uint8).reshape(1, 2, 2, 1)
    noise = np.array([0, 0.25, 0.5, 1 - 2**-24], np.float32).reshape(1, 2, 2, 1)
    latent = run_graph(forward_graph(glow), image=images, noise=noise)["latent"]
    expected = np.array([0, 0.25, 1.5, 8 - 2**-24]) / 8 - 0.5
    np.testing.assert_allclose(latent[0], expected, atol=1e-7)


def _identity(*, image_size: int, channels: int, levels: int, n_bits: int) -> FoldedGlow:
    """A flow that only moves values: additive couplings by zero, priors of mean 0 and scale 1."""

    def conv(out: int, into: int, kernel: int) -> FoldedConv:
        return FoldedConv(np.zeros((out, into, kernel, kernel)), np.zeros(out))

    baked = []
    for i in range(levels):
        c = channels * 2 ** (i + 2)
        network = (conv(1, c // 2, 3), conv(1, 1, 1), conv(c // 2, 1, 3))
        step = FoldedStep(np.eye(c), np.zeros(c), np.eye(c), np.zeros(c), network, affine=False)
        baked.append(FoldedLevel((step,), None if i == levels - 1 else conv(c, c // 2, 3)))
    top = channels * 2 ** (levels + 1)
    return FoldedGlow(
        image_size=image_size,
        channels=channels,
        n_bits=n_bits,
        levels=tuple(baked),
        top_mean=np.zeros(top),
        top_log_scale=np.zeros(top),
        log_det_constant=-(image_size**2) * channels * n_bits * math.log(2),
    )


def test_latents_are_ordered_by_level_channel_row_and_column(
    run_graph: RunGraph, rng: np.random.Generator
) -> None:
    glow = _identity(image_size=4, channels=3, levels=2, n_bits=8)
    images = rng.permutation(256)[:48].astype(np.uint8).reshape(1, 4, 4, 3)
    y = images[0] / 256 - 0.5
    # Channel 3 (2 r + s) + c of a squeezed image holds channel c of place (r, s) of each block. Of the
    # twelve channels of level 1 the last six split off: those of r = 1.
    expected = [
        y[2 * row + 1, 2 * column + s, c]
        for s in (0, 1)
        for c in (0, 1, 2)
        for row in (0, 1)
        for column in (0, 1)
    ]
    # What goes on are r = 0, in six channels and 2x2 places, and is squeezed in the same way.
    expected += [
        y[2 * row, 2 * column + s, c] for row in (0, 1) for column in (0, 1) for s in (0, 1) for c in range(3)
    ]
    ours = run_graph(forward_graph(glow), image=images, noise=np.zeros(images.shape, np.float32))
    np.testing.assert_allclose(ours["latent"][0], expected, atol=1e-7)
    decoded = run_graph(reverse_graph(glow), latent=ours["latent"] + np.float32(0.5 / 256))
    np.testing.assert_array_equal(decoded["image"], images)


def test_the_likelihood_of_a_flow_that_does_nothing_is_that_of_a_standard_normal(
    run_graph: RunGraph, rng: np.random.Generator
) -> None:
    glow = _identity(image_size=4, channels=1, levels=2, n_bits=8)
    images = _images(rng, glow, 3)
    noise = _noise(rng, images)
    y = (images + noise.astype(np.float64)) / 256 - 0.5
    log_density = (-0.5 * y**2 - 0.5 * math.log(2 * math.pi)).sum(axis=(1, 2, 3))
    ours = run_graph(forward_graph(glow), image=images, noise=noise)
    np.testing.assert_allclose(ours["log_likelihood"], log_density - 16 * 8 * math.log(2), rtol=1e-6)
    np.testing.assert_array_equal(ours["log_det"], np.zeros((3, 2)))


# What they are made of


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_graph_holds_none_but_a_few_plain_operators(
    case: dict[str, Any], direction: str, random_glow: RandomGlow
) -> None:
    model = _graphs(fold_glow(random_glow(**case)))[direction]
    used = Counter((node.domain, node.op_type) for node in model.graph.node)
    assert {domain for domain, _ in used} == {""}
    assert {operator for _, operator in used} <= OPERATORS[direction]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not model.functions


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_graph_passes_the_checker_with_the_shapes_of_the_contract(
    case: dict[str, Any], direction: str, random_glow: RandomGlow
) -> None:
    glow = fold_glow(random_glow(**case))
    model = _graphs(glow)[direction]
    onnx.checker.check_model(model, full_check=True)
    image = ["N", glow.image_size, glow.image_size, glow.channels]
    latent, levels = ["N", glow.dimensions], ["N", len(glow.levels)]
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


@pytest.mark.parametrize("direction", ["forward", "reverse"])
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
def test_a_step_of_an_affine_flow_is_twelve_nodes(
    levels: int, direction: str, options: dict[str, Any], random_glow: RandomGlow
) -> None:
    nodes = {}
    for steps in (2, 3, 4):
        graph = _graphs(fold_glow(random_glow(levels=levels, steps_per_level=steps, **options)))[
            direction
        ].graph
        # Some sums, one a level, are padded first.
        nodes[steps] = sum(node.op_type != "Pad" for node in graph.node)
    assert nodes[3] - nodes[2] == 12 * levels
    assert nodes[4] - nodes[3] == 12 * levels


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_actnorm_and_its_1x1_convolution_are_one_convolution_with_constant_weights(
    case: dict[str, Any], direction: str, random_glow: RandomGlow
) -> None:
    glow = fold_glow(random_glow(**case))
    graph = _graphs(glow)[direction].graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    weights = [constants[node.input[1]] for node in convolutions]
    biases = [constants[node.input[2]] for node in convolutions]
    assert not constants.keys() & {value.name for value in graph.input}
    # The three of the coupling network and one for everything else; one of each prior that is conditional.
    steps = [step for _, step in glow.named_steps()]
    networks = glow.dequantization.networks if glow.dequantization and direction == "forward" else ()
    assert len(convolutions) == 4 * len(steps) + len(glow.levels) - 1 + 3 * len(networks)
    for step in steps:
        matrix, bias = (
            (step.matrix, step.bias) if direction == "forward" else (step.inverse_matrix, step.inverse_bias)
        )
        same = [
            i
            for i, weight in enumerate(weights)
            if np.array_equal(weight, matrix.astype(np.float32)[:, :, None, None])
        ]
        assert len(same) == 1
        np.testing.assert_array_equal(biases[same[0]], bias.astype(np.float32))


def test_constants_are_stored_in_single_precision(random_glow: RandomGlow) -> None:
    for model in _graphs(fold_glow(random_glow(levels=2))).values():
        types = {tensor.data_type for tensor in model.graph.initializer}
        assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
def test_the_batch_is_free_and_rows_do_not_depend_on_it(
    coupling: str,
    dequantization: str,
    random_glow: RandomGlow,
    run_graph: RunGraph,
    rng: np.random.Generator,
) -> None:
    glow = fold_glow(random_glow(levels=2, channels=3, coupling=coupling, dequantization=dequantization))
    images = _images(rng, glow, 7)
    noise = _noise(rng, images)
    forward, reverse = forward_graph(glow), reverse_graph(glow)
    whole = run_graph(forward, image=images, noise=noise)
    whole |= run_graph(reverse, latent=whole["latent"])
    for n in (1, 2, 7):
        part = run_graph(forward, image=images[:n], noise=noise[:n])
        part |= run_graph(reverse, latent=whole["latent"][:n])
        for name, array in part.items():
            assert len(array) == n, name
            np.testing.assert_allclose(array, whole[name][:n], rtol=1e-6, atol=1e-5, err_msg=name)


def test_the_same_model_makes_the_same_bytes(case: dict[str, Any], random_glow: RandomGlow) -> None:
    first, second = (_graphs(fold_glow(random_glow(**case))) for _ in range(2))
    for direction, model in first.items():
        data = model.SerializeToString(deterministic=True)
        assert data == second[direction].SerializeToString(deterministic=True)
    other = _graphs(fold_glow(random_glow(seed=1, **case)))
    assert other["forward"].SerializeToString() != first["forward"].SerializeToString()


def test_every_value_in_a_graph_is_named_after_its_layer(random_glow: RandomGlow) -> None:
    glow = fold_glow(random_glow(levels=2))
    for model in _graphs(glow).values():
        produced = [name for node in model.graph.node for name in node.output]
        assert len(produced) == len(set(produced))
        assert {name for name, _ in glow.named_steps()} <= set(produced)


@pytest.mark.parametrize(
    "shape",
    [{"image_size": 32, "channels": 3, "levels": 3}, {"image_size": 12, "channels": 1, "levels": 2}],
    ids=str,
)
@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
def test_a_score_does_not_depend_on_its_place_in_the_batch(
    random_glow: RandomGlow,
    run_graph: RunGraph,
    rng: np.random.Generator,
    shape: dict[str, int],
    dequantization: str,
) -> None:
    model = forward_graph(fold_glow(random_glow(**shape, dequantization=dequantization)))
    size = (1, shape["image_size"], shape["image_size"], shape["channels"])
    image, noise = rng.integers(0, 256, size, dtype=np.uint8), rng.random(size, dtype=np.float32)
    alone = run_graph(model, image=image, noise=noise)
    for n in (3, 16):
        together = run_graph(model, image=np.repeat(image, n, 0), noise=np.repeat(noise, n, 0))
        for name, values in together.items():
            np.testing.assert_array_equal(values, np.repeat(alone[name], n, 0), err_msg=name)
