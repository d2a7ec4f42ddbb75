"""The gRPC transport of Client: timeouts and interrupts. Interrupts of whole processes are in test_interrupts.py."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.client.transports.channel import ChannelSettings
from glowserve.client.transports.grpc_transport import GrpcTransport
from glowserve.v1 import glow_service_pb2 as pb
from tests.client.blocking import Connect
from tests.client.serving import wait_until_idle
from tests.servers import RunServer
from tests.service.stubs import address

BLANK = np.zeros((8, 8), np.uint8)


def test_a_call_ends_at_its_timeout(connect: Connect, run_server: RunServer) -> None:
    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        with connect(address(server), timeout=0.3) as client:
            for call in (client.score, client.encode):
                with pytest.raises(glowserve.RequestError) as caught:
                    call(BLANK)
                assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until_idle(server)


def test_an_interrupted_call_is_cancelled_and_close_does_not_wait_for_it(server: Server) -> None:
    transport = GrpcTransport(ChannelSettings(target=address(server)))
    stream = transport.sample(pb.SampleRequest(n=100_000, temperature=0))
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    wait_until_idle(server)
    transport.close()
    assert transport.list_models(pb.ListModelsRequest()).models  # the channel stays open: closing can hang


def test_an_error_or_the_end_of_a_stream_does_not_keep_the_channel_open(server: Server) -> None:
    transport = GrpcTransport(ChannelSettings(target=address(server)))
    stream = transport.sample(pb.SampleRequest(n=100_000, temperature=0))
    next(stream)
    stream.close()
    with pytest.raises(glowserve.RequestError):
        transport.get_model(pb.GetModelRequest(model=pb.ModelSpec(name="nobody")))
    transport.close()
    with pytest.raises(ValueError, match="closed"):
        transport.list_models(pb.ListModelsRequest())


def test_an_interrupt_that_python_turns_into_an_error_is_an_interrupt(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt at the start of `threading.Condition.wait` leaves a lock that is not held, and is then released."""
    transport = GrpcTransport(ChannelSettings(target=address(server)))
    condition = threading.Condition()

    def interrupted(*_: Any, **__: Any) -> None:
        with condition:
            condition.release()
            raise KeyboardInterrupt

    monkeypatch.setattr(transport, "_stub", SimpleNamespace(Score=interrupted, Sample=interrupted))
    with pytest.raises(KeyboardInterrupt):
        transport.score(pb.ScoreRequest())
    with pytest.raises(KeyboardInterrupt):
        next(transport.sample(pb.SampleRequest(n=1)))


def test_another_runtime_error_stays_what_it_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = GrpcTransport(ChannelSettings(target=address(server)))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("it fails")

    monkeypatch.setattr(transport, "_stub", SimpleNamespace(Score=fail))
    with pytest.raises(RuntimeError, match="it fails"):
        transport.score(pb.ScoreRequest())
    transport.close()
