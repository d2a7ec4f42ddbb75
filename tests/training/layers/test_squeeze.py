"""Squeeze."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from glowserve_training.layers import Squeeze
from onnx.reference import ReferenceEvaluator


@pytest.mark.parametrize("channels", [1, 3])
def test_squeeze_is_space_to_depth_of_onnx(channels: int, rng: np.random.Generator) -> None:
    node = onnx.helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "squeeze",
        [value("x", onnx.TensorProto.FLOAT, None)],
        [value("y", onnx.TensorProto.FLOAT, None)],
    )
    x = rng.random((2, channels, 4, 6), dtype=np.float32)

    (expected,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, {"x": x})
    y, log_det = Squeeze()(torch.from_numpy(x))

    np.testing.assert_array_equal(y.numpy(), expected)
    assert torch.equal(log_det, torch.zeros(2))
