"""A service with two front-ends: answers, metrics, models, limits, and the ends of processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from glowserve_service.errors import PortError
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.credentials import INFER
from tests.service.engines import held
from tests.service.frontends.front_ends import CONNECTIONS, all_listen, connections, kill, processes
from tests.service.metrics import ended, in_flight, value
from tests.service.stubs import SERVING, Stubs, connect
from tests.service.wire import images_of, nats, raw, wait_for

UNAVAILABLE, OK = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK


@pytest.fixture(scope="module")
def two(run_server: RunServer) -> Iterator[Server]:
    """A server with two front-ends that each test leaves as it was."""
    settings = {"admin": "on", "poll_seconds": 0, "canary_seconds": 0}
    with run_server(frontends=2, max_images_per_call=4096, max_queue_size=8192, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def many(two: Server) -> Iterator[list[Stubs]]:
    """Connections to it."""
    with connections(two) as stubs:
        for each in stubs:
            assert each.status() == SERVING
        yield stubs


def score(stubs: Stubs, images: UInt8Array) -> list[float]:
    return nats(stubs.glow.Score(pb.ScoreRequest(images=raw(images))))


def test_every_connection_gets_the_same_answers(
    many: list[Stubs], digits: UInt8Array, embedded: glowserve.Client
) -> None:
    expected = embedded.score(digits[:40]).log_likelihood
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        answers = list(pool.map(lambda stubs: score(stubs, digits[:40]), many))
    for answer in answers:
        np.testing.assert_allclose(answer, expected, rtol=1e-6)


def test_thousands_of_images_in_a_call_are_encoded_and_decoded(
    two: Server, many: list[Stubs], digits: UInt8Array
) -> None:
    """Their rows take megabytes, which are copied in threads and given back to the system."""
    images = np.concatenate([digits] * 20)
    encoded = many[0].glow.Encode(pb.EncodeRequest(images=raw(images)))
    decoded = many[1].glow.Decode(pb.DecodeRequest(latents=encoded.latents))
    assert not any(encoded.mismatched_values)
    np.testing.assert_array_equal(images_of(decoded.images), images)
    assert value(two, "received_bytes") == 0


def test_every_call_is_counted_once_and_a_scrape_knows_the_last_one(
    two: Server, many: list[Stubs], digits: UInt8Array
) -> None:
    calls, images = ended(two, "Score", "OK"), value(two, "bits_per_dim_count", model="digits", version="1")
    for number in range(1, 4):
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda stubs: score(stubs, digits[:2]), many))
        assert ended(two, "Score", "OK") == calls + number * CONNECTIONS
        assert value(two, "request_duration_seconds_count", method="Score") == calls + number * CONNECTIONS
        now = value(two, "bits_per_dim_count", model="digits", version="1")
        assert now == images + 2 * number * CONNECTIONS
    assert in_flight(two) == 0


def test_what_is_unloaded_on_one_connection_is_gone_on_all_others_and_comes_back(
    many: list[Stubs], digits: UInt8Array
) -> None:
    for stubs in many[:3]:
        stubs.glow.UnloadModel(pb.UnloadModelRequest(name="digits"))
        for other in many:
            with pytest.raises(grpc.RpcError) as refused:
                score(other, digits[:1])
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        stubs.glow.LoadModel(pb.LoadModelRequest(name="digits"))
        for other in many:
            assert len(score(other, digits[:1])) == 1


def test_a_model_that_no_front_end_uses_any_more_is_closed(two: Server, many: list[Stubs]) -> None:
    model = two.manager._models.find("digits", 0)
    many[0].glow.UnloadModel(pb.UnloadModelRequest(name="digits"))
    wait_for(lambda: not model._leases and model not in two.manager._retiring)
    many[0].glow.LoadModel(pb.LoadModelRequest(name="digits"))


def test_rows_that_wait_count_as_received_bytes_until_they_are_answered(
    two: Server, many: list[Stubs], digits: UInt8Array
) -> None:
    assert value(two, "received_bytes") == 0
    with held() as go_on, ThreadPoolExecutor(CONNECTIONS) as pool:
        calls = [pool.submit(score, stubs, digits[:16]) for stubs in many]
        wait_for(lambda: in_flight(two) == CONNECTIONS)
        rows = CONNECTIONS * 16 * 64
        wait_for(lambda: value(two, "received_bytes") >= rows * (1 + 1 + 4 + 4))
        go_on.set()
        for call in calls:
            call.result()
    wait_for(lambda: value(two, "received_bytes") == 0)


def test_rows_of_callers_that_leave_are_dropped(two: Server, many: list[Stubs], digits: UInt8Array) -> None:
    def dropped() -> float:
        return value(two, "dropped_images_total", model="digits", direction="forward", cause="cancelled")

    before = dropped()
    with held() as go_on:
        calls = [stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:32]))) for stubs in many]
        wait_for(lambda: in_flight(two) == CONNECTIONS)
        for call in calls:
            call.cancel()
        wait_for(lambda: dropped() > before)
        wait_for(lambda: in_flight(two) == 0)
        go_on.set()
    wait_for(lambda: value(two, "received_bytes") == 0)
    assert len(score(many[0], digits[:1])) == 1


def test_a_deadline_holds_in_the_engine_process(many: list[Stubs], digits: UInt8Array) -> None:
    with held():
        for stubs in many[:4]:
            with pytest.raises(grpc.RpcError) as late:
                stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:1])), timeout=0.2)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]


def test_a_front_end_that_is_killed_loses_its_own_calls_alone_and_is_replaced(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with run_server(frontends=2) as server, connections(server) as many:
        for each in many:
            assert len(score(each, digits[:1])) == 1
        before, victim = ended(server, "Score", "OK"), processes(server)[0]
        with held() as go_on, ThreadPoolExecutor(CONNECTIONS) as pool:
            calls = [pool.submit(score, stubs, digits[:1]) for stubs in many]
            wait_for(lambda: in_flight(server) == CONNECTIONS)
            kill(victim)
            wait_for(lambda: any(call.done() for call in calls))
            go_on.set()
            errors = [call.exception() for call in calls]
        lost = [error.code() for error in errors if isinstance(error, grpc.RpcError)]
        assert 0 < len(lost) < CONNECTIONS
        assert set(lost) == {UNAVAILABLE}
        wait_for(lambda: victim not in processes(server))
        while not all_listen(server):  # the one that starts refuses no new connection
            with connect(server) as new:
                assert new.status() == SERVING
        assert len(processes(server)) == 2
        for _ in many:
            with connect(server) as new:
                assert new.status() == SERVING
        for each in many:
            assert len(score(each, digits[:1])) == 1
        assert ended(server, "Score", "OK") == before + 2 * CONNECTIONS - len(lost)
        assert value(server, "received_bytes") == 0


def test_a_front_end_that_hangs_does_not_hold_up_scrapes_or_the_stop(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with run_server(frontends=2, drain_seconds=0) as server, connections(server) as many:
        for each in many:
            assert len(score(each, digits[:1])) == 1
        assert ended(server, "Score", "OK") == CONNECTIONS
        os.kill(processes(server)[0], signal.SIGSTOP)
        began = time.monotonic()
        assert ended(server, "Score", "OK") == CONNECTIONS
        assert time.monotonic() - began < 5
    assert time.monotonic() - began < 30


def test_a_front_end_without_calls_reads_changed_tokens_too(run_server: RunServer, tokens: Path) -> None:
    """Else one that missed a change would go on with older tokens when the next one is damaged."""
    new = "another-0123456789-0123456789"
    with run_server(frontends=2, tokens=tokens) as server, connections(server) as many:
        tokens.write_text(f"app {new}\n")
        time.sleep(2.0)
        tokens.write_text("app short\n")
        for stubs in many:
            request, metadata = pb.ListModelsRequest(), (("authorization", f"Bearer {INFER}"),)
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                stubs.glow.ListModels(request, metadata=metadata)
            stubs.glow.ListModels(request, metadata=(("authorization", f"Bearer {new}"),))


def test_a_port_that_another_service_has_cannot_be_shared(two: Server, run_server: RunServer) -> None:
    for frontends in (1, 2):
        with (
            pytest.raises(PortError, match=f"port {two.port} on 127.0.0.1 .* is it in use"),
            run_server(frontends=frontends, port=two.port),
        ):
            pass


def test_front_ends_of_a_service_that_cannot_start_end_with_it(run_server: RunServer, tmp_path: Path) -> None:
    with pytest.raises(glowserve.runtime.errors.BundleError), run_server(frontends=2, repository=tmp_path):
        pass
