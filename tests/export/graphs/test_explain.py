"""explain.onnx: the log-likelihood by place, beside the reference, forward.onnx, and values computed by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from glowserve_export.builder import GraphBuilder, float_info
from glowserve_export.calibration import calibrate
from glowserve_export.folded import FoldedGlow
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.frontends.public import import_public
from glowserve_export.graphs import explain_graph, forward_graph
from glowserve_export.precision import FP16, FP32, Precision

from glowserve.runtime import graphs as checked_graphs
from tests.export.frontends.public_models import public_model, write_public
from tests.export.frontends.test_public import CASES as PUBLIC
from tests.export.graphs.test_structure import _integer_glow, _signature
from tests.export.graphs.test_values import OPTIONS, _identity
from tests.export.models import random_glow, random_images, random_noise, run_graph
from tests.export.test_combinations import COMBINATIONS, SCALES

DIGEST = "3c16abc981251dc6ecaa22eee609fc680d70b3498c32d65ce26adbd6b6492b39"
"""The SHA-256 of the float32 graph of `_integer_glow`. Change it together with an intended change of the graph."""


def _inputs(glow: FoldedGlow, n: int = 4) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(0)
    images = random_images(rng, glow, n)
    images[0], images[1] = 0, 255  # all black, all white
    return {"image": images, "noise": random_noise(rng, images)}


def _assert_exact(glow: FoldedGlow, precision: Precision = FP32) -> None:
    """The map adds up to the log-likelihood and, in fp32, has the values of the reference."""
    inputs = _inputs(glow)
    terms = run_graph(explain_graph(glow, precision), **inputs)["terms"]
    assert terms.shape == (4, *glow.image_shape[:2])
    nats = run_graph(forward_graph(glow, precision), **inputs)["log_likelihood"]
    # The rounding of the largest values, which may cancel out in the sum.
    rounding = 2e-6 * np.abs(terms).sum(axis=(1, 2))
    assert (np.abs(terms.sum(axis=(1, 2), dtype=np.float64) - nats) <= rounding).all()
    if precision is FP32:
        reference = FoldedReference(glow)
        expected = reference.terms(inputs["image"], inputs["noise"])
        np.testing.assert_allclose(
            expected.sum(axis=(1, 2)), reference.log_likelihood(inputs["image"], inputs["noise"]), rtol=1e-12
        )
        np.testing.assert_allclose(terms, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda case: "-".join(map(str, case.values())))
def test_the_terms_are_those_of_the_reference_and_add_up(options: dict[str, Any]) -> None:
    _assert_exact(fold_glow(random_glow(**options)))


def test_they_do_for_every_kind_of_flow(case_glow: FoldedGlow) -> None:
    _assert_exact(case_glow)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    PUBLIC,
    ids=lambda part: part if isinstance(part, str) else "-".join(map(str, part.items())),
)
def test_they_do_for_every_kind_of_imported_model(kind: str, arguments: Any, tmp_path: Path) -> None:
    _assert_exact(import_public(kind, *write_public(tmp_path, public_model(kind, **arguments))).glow)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"preprocessing": "logit", "dequantization": "variational", "checkerboards": 2}],
    ids=str,
)
def test_they_add_up_in_low_precision(
    scale: dict[str, Any], options: dict[str, Any], rng: np.random.Generator
) -> None:
    glow = fold_glow(random_glow(channels=3, levels=2, n_bits=6, **scale, **options))
    for precision in (FP16, calibrate("int8", glow, random_images(rng, glow, 8))):
        _assert_exact(glow, precision)


def test_latents_lie_in_the_blocks_of_their_level(rng: np.random.Generator) -> None:
    """By hand: of a flow that only reorders values, the normal log-density of each, and one constant."""
    glow = _identity(image_size=8, channels=3, levels=2, n_bits=8)
    images = random_images(rng, glow, 2)
    noise = random_noise(rng, images)
    y = (images + noise.astype(np.float64)) / 256 - 0.5
    densities = (-0.5 * y**2 - 0.5 * np.log(2 * np.pi)).sum(axis=3)  # [N, H, W]
    # Level 1 splits off the odd rows of each block of 2x2, level 2 has the even rows of each block of 4x4.
    odd, even = densities.copy(), densities.copy()
    odd[:, ::2], even[:, 1::2] = 0, 0
    expected = _spread(odd, 2) + _spread(even, 4) - 3 * 8 * np.log(2)
    terms = run_graph(explain_graph(glow), image=images, noise=noise)["terms"]
    np.testing.assert_allclose(terms, expected, rtol=1e-6)


def _spread(values: npt.NDArray[np.float64], block: int) -> npt.NDArray[np.float64]:
    """Values [N, H, W], averaged over blocks."""
    n, height, width = values.shape
    blocks = values.reshape(n, height // block, block, width // block, block).mean(axis=(2, 4))
    return blocks.repeat(block, axis=1).repeat(block, axis=2)


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
def test_the_terms_of_the_input_lie_at_their_pixel(dequantization: str) -> None:
    """Differences between two images that differ in one pixel: far from it, and from its block, there are none.

    Before it is trained, variational dequantization is the identity, and so are the couplings of a new model.
    """
    from glowserve_training.model import Glow, GlowConfig

    config = GlowConfig(
        image_size=16,
        levels=1,
        steps_per_level=1,
        channels=1,
        width=4,
        pixel_width=4,
        preprocessing="logit",
        dequantization=dequantization,
    )
    glow = fold_glow(Glow(config).eval())
    images = np.full((2, 16, 16, 1), 100, np.uint8)
    images[1, 5, 6] = 250
    terms = run_graph(explain_graph(glow), image=images, noise=np.full(images.shape, 0.25, np.float32))[
        "terms"
    ]
    changed = np.abs(terms[1] - terms[0]) > 1e-4
    assert changed[4:6, 6:8].all()
    assert changed.sum() == 4
    # The latents of the block change by the same amount everywhere; what is left is the logit's, at the pixel.
    block = (terms[1] - terms[0])[4:6, 6:8].astype(np.float64)
    others = [block[0, 0], block[0, 1], block[1, 1]]
    np.testing.assert_allclose(others, others[0], rtol=1e-4)
    s = 1e-5 + (1 - 2e-5) * (np.array([250, 100]) + 0.25) / 256
    logit = -np.log(s * (1 - s))
    assert block[1, 0] - others[0] == pytest.approx(logit[0] - logit[1], rel=1e-3)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_map_does_not_depend_on_its_place_in_the_batch(options: dict[str, Any]) -> None:
    glow = fold_glow(random_glow(image_size=16, channels=3, levels=3, **options))
    inputs = {name: values[2:3] for name, values in _inputs(glow).items()}
    model = explain_graph(glow)
    alone = run_graph(model, **inputs)["terms"]
    for n in (3, 16):
        together = run_graph(model, **{name: values.repeat(n, axis=0) for name, values in inputs.items()})
        np.testing.assert_array_equal(together["terms"], alone.repeat(n, axis=0))


def test_the_graph_has_the_signature_of_the_contract_and_known_operators(case_glow: FoldedGlow) -> None:
    model = explain_graph(case_glow)
    onnx.checker.check_model(model, full_check=True)
    image = ["N", *case_glow.image_shape]
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    assert _signature(model.graph.input) == {"image": (uint8, image), "noise": (float32, image)}
    assert _signature(model.graph.output) == {"terms": (float32, image[:3])}
    assert {node.op_type for node in model.graph.node} <= checked_graphs.OPERATORS


def test_the_graph_has_known_bytes_and_hardly_more_nodes_than_the_forward_graph() -> None:
    glow = _integer_glow()
    model = explain_graph(glow)
    assert hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest() == DIGEST
    assert len(model.graph.node) <= len(forward_graph(glow).graph.node)
    produced = [name for node in model.graph.node for name in node.output]
    assert len(produced) == len(set(produced))


def test_a_model_has_no_nodes_or_constants_that_no_output_needs() -> None:
    g = GraphBuilder()
    x = g.add("Mul", ["x", g.constant("two", 2.0)], "doubled")
    g.add("Add", [x, g.constant("one", 1.0)], "unneeded")
    model = g.model("small", [float_info("x", "N")], [float_info("doubled", "N")])
    assert [node.name for node in model.graph.node] == ["doubled"]
    assert [tensor.name for tensor in model.graph.initializer] == ["two"]
