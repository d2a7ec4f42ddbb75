"""Fixtures of the export tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from glowserve_export.calibration import calibrate
from glowserve_export.folded import FoldedGlow
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.precision import Precision
from glowserve_export.source import Source, load_glowserve_checkpoint
from glowserve_training.data import load_held_out
from glowserve_training.model import Glow

from glowserve.images import UInt8Array
from tests.export.models import CASES, random_glow


@pytest.fixture(scope="session", params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The configuration of a flow. A test with this fixture, or one of the next three, runs for each of `CASES`."""
    settings: dict[str, Any] = request.param
    return settings


@pytest.fixture(scope="session")
def case_model(case: dict[str, Any]) -> Glow:
    """A model of that configuration in float64. Tests do not change it."""
    return random_glow(**case).double().requires_grad_(False)


@pytest.fixture(scope="session")
def case_glow(case: dict[str, Any]) -> FoldedGlow:
    """The folded float32 model with the same weights."""
    return fold_glow(random_glow(**case))


@pytest.fixture(scope="session")
def case_graphs(case_glow: FoldedGlow) -> dict[str, onnx.ModelProto]:
    """Its graphs, "forward" and "reverse". Tests do not change them."""
    return {"forward": forward_graph(case_glow), "reverse": reverse_graph(case_glow)}


@pytest.fixture(scope="session")
def source(checkpoint: Path) -> Source:
    """The small model of digits. Tests do not change it."""
    return load_glowserve_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def trained(source: Source) -> FoldedGlow:
    """The same, folded."""
    return source.glow


@pytest.fixture(scope="session")
def validation(source: Source) -> UInt8Array:
    """Digits that the model was not trained on, other than the test images `digits`."""
    assert source.data is not None
    return load_held_out(source.data).validation


@pytest.fixture(scope="session")
def calibration(source: Source) -> UInt8Array:
    """Digits from which nothing but percentiles is computed."""
    assert source.data is not None
    return load_held_out(source.data).calibration


@pytest.fixture(scope="session")
def int8(trained: FoldedGlow, validation: UInt8Array) -> Precision:
    """The int8 precision of that model."""
    return calibrate("int8", trained, validation)
