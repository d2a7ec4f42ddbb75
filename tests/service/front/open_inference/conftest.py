"""What the tests of the Open Inference Protocol share."""

from __future__ import annotations

import grpc
import pytest

from glowserve.images import UInt8Array
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub


@pytest.fixture(scope="module")
def images(digits: UInt8Array) -> UInt8Array:
    """Nine images."""
    return digits[:9]


@pytest.fixture(scope="module")
def inference(channel: grpc.Channel) -> GRPCInferenceServiceStub:
    """Calls GRPCInferenceService of `server`."""
    return GRPCInferenceServiceStub(channel)
