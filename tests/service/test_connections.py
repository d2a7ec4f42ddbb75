"""Connections: how many calls one may have, how old it may become, and the pings that the server permits."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import glowserve_service.front.front
import grpc
import pytest
from glowserve_service.server import Server

from glowserve.client.transports.channel import CHANNEL_OPTIONS
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.proxy import proxy
from tests.service.stubs import SERVING, connect
from tests.service.wire import wait_for


def test_calls_over_the_limit_of_a_connection_wait_in_the_client(run_server: RunServer) -> None:
    with run_server(max_concurrent_streams=2) as server, connect(server) as stubs:
        watches = [stubs.watch() for _ in range(2)]
        for watch in watches:
            next(watch)
        waiting = stubs.glow.ListModels.future(pb.ListModelsRequest())
        with pytest.raises(grpc.FutureTimeoutError):
            waiting.result(0.3)
        watches[0].cancel()
        assert waiting.result(60).models
        watches[1].cancel()


def test_connections_over_the_limit_of_the_service_are_closed(run_server: RunServer) -> None:
    with run_server(max_connections=1) as server, connect(server) as first, connect(server) as second:
        assert first.status() == SERVING
        with pytest.raises(grpc.RpcError) as refused:
            second.status()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert first.status() == SERVING


def test_an_old_connection_is_replaced_and_no_call_fails(run_server: RunServer) -> None:
    """A stream that is under way goes on over the old connection. Calls are not retried: one that fails is seen."""
    with (
        run_server(max_connection_age_seconds=0.3) as server,
        proxy(server.port) as traffic,
        grpc.insecure_channel(f"127.0.0.1:{traffic.port}", [("grpc.enable_retries", 0)]) as channel,
    ):
        stub = GlowServiceStub(channel)
        request = pb.SampleRequest(n=5000, temperature=0.5, format=pb.IMAGE_FORMAT_RAW)
        stream = stub.Sample(request)
        next(stream)

        def has_been_replaced_twice() -> bool:
            stub.ListModels(pb.ListModelsRequest())
            return traffic.connections >= 3

        wait_for(has_been_replaced_twice)
        assert sum(1 for _ in stream) > 1


def test_connections_may_become_any_age(run_server: RunServer) -> None:
    with run_server(max_connection_age_seconds=0.0) as server, connect(server) as stubs:
        assert stubs.status() == SERVING


def test_the_server_permits_the_pings_of_the_clients(
    run_server: RunServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both intervals are a thirtieth of the real ones: a waiting client sends a ping a second.

    For comparison there is a server that permits one in five minutes, which is gRPC's default.
    """
    options = [
        (name, value // 30 if name == "grpc.keepalive_time_ms" else value) for name, value in CHANNEL_OPTIONS
    ]
    assert ("grpc.keepalive_time_ms", 1000) in options
    intervals = {"permitted": glowserve_service.front.front._LEAST_BETWEEN_PINGS_MS // 30, "refused": 300_000}
    ended = {name: threading.Event() for name in intervals}
    with ExitStack() as stack:
        watches = {}
        for name, interval in intervals.items():
            monkeypatch.setattr(glowserve_service.front.front, "_LEAST_BETWEEN_PINGS_MS", interval)
            server: Server = stack.enter_context(run_server())
            stubs = stack.enter_context(connect(server, options))
            watches[name] = stubs.watch()
            next(watches[name])
            watches[name].add_callback(ended[name].set)
        assert ended["refused"].wait(60)
        assert watches["refused"].code() is grpc.StatusCode.UNAVAILABLE
        assert not ended["permitted"].wait(1)
        watches["permitted"].cancel()
