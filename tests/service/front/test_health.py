"""grpc.health.v1.Health: what it answers about services and models, and how watches follow it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from glowserve_service.front import health as health_module
from glowserve_service.front.health import LIVE, Health
from glowserve_service.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.service.stubs import NOT_SERVING, SERVING, connect

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SERVICE = "glowserve.v1.GlowService"


def request(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


@pytest.fixture
def health() -> Health:
    return Health(("", SERVICE))


@pytest.fixture
async def channel(health: Health) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to a server of nothing but health."""
    server = grpc.aio.server()
    health_module.add_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def test_nothing_is_serving_before_the_start_and_after_the_stop(health: Health, stub: Any) -> None:
    async def statuses() -> list[Any]:
        return [(await stub.Check(request(name))).status for name in ("", SERVICE, "digits")]

    health.set(True, {"digits": True})
    assert await statuses() == 3 * [NOT_SERVING]
    health.serve()
    assert await statuses() == 3 * [SERVING]
    health.stop()
    assert await statuses() == 3 * [NOT_SERVING]


async def test_each_model_has_a_status_of_its_own(health: Health, stub: Any) -> None:
    health.serve()
    health.set(False, {"digits": True, "faces": False})
    statuses = {name: (await stub.Check(request(name))).status for name in ("", "digits", "faces")}
    assert statuses == {"": NOT_SERVING, "digits": SERVING, "faces": NOT_SERVING}
    assert [health.is_serving(name) for name in ("", "digits", "nobody")] == [False, True, False]


async def test_a_model_with_the_name_of_a_service_does_not_change_that_service(health: Health) -> None:
    health.serve()
    health.set(True, {SERVICE: False})
    assert health.is_serving(SERVICE)


async def test_all_statuses_can_be_listed(health: Health, channel: grpc.aio.Channel) -> None:
    health.serve()
    health.set(True, {"digits": True, "faces": False})
    data: bytes = await channel.unary_unary("/grpc.health.v1.Health/List")(b"")
    assert listed(data) == {
        **{"": SERVING, SERVICE: SERVING, LIVE: SERVING},
        **{"digits": SERVING, "faces": NOT_SERVING},
    }


async def test_a_process_that_answers_is_live_whatever_it_serves(health: Health, stub: Any) -> None:
    async def is_live() -> bool:
        return bool((await stub.Check(request(LIVE))).status == SERVING)

    assert await is_live()
    health.serve()
    health.set(False, {"digits": False, LIVE: False})
    assert await is_live()
    health.stop()
    assert await is_live()


def listed(data: bytes) -> dict[str, int]:
    """Reads a HealthListResponse with short names: entries of field 1, each {1: name, 2: {1: status}}."""
    found = {}
    while data:
        assert data[0] == 0x0A
        entry, data = data[2 : 2 + data[1]], data[2 + data[1] :]
        name, value = entry[2 : 2 + entry[1]], entry[2 + entry[1] :]
        assert (entry[0], value[:3]) == (0x0A, b"\x12\x02\x08")
        found[name.decode()] = value[3]
    return found


async def test_a_watch_is_sent_changes_of_its_own_status_alone(health: Health, stub: Any) -> None:
    health.serve()
    health.set(True, {"digits": True, "faces": True})
    watch = stub.Watch(request("digits"))
    assert (await watch.read()).status == SERVING
    for digits, faces in ((True, False), (True, True), (False, True)):
        health.set(True, {"digits": digits, "faces": faces})
        await stub.Check(request(""))  # until the watch has had time to answer
    assert (await watch.read()).status == NOT_SERVING
    health.set(True, {"digits": True})
    assert (await watch.read()).status == SERVING


async def test_a_watch_of_an_unknown_name_learns_when_a_model_of_that_name_appears(
    health: Health, stub: Any
) -> None:
    health.serve()
    watch = stub.Watch(request("faces"))
    assert (await watch.read()).status == UNKNOWN
    health.set(True, {"faces": True})
    assert (await watch.read()).status == SERVING


async def test_every_watch_ends_with_not_serving_even_after_another_watch_has_ended(
    health: Health, stub: Any
) -> None:
    """In gRPC's own servicer, the end of one watch makes the others of the same service miss what follows."""
    health.serve()
    health.set(True, {})
    watches = [stub.Watch(request(name)) for name in ("", "", SERVICE)]
    assert [(await watch.read()).status for watch in watches] == 3 * [SERVING]
    watches.pop(0).cancel()
    health.stop()
    for watch in watches:
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF


@pytest.mark.parametrize("name", ["", SERVICE, "inference.GRPCInferenceService", "digits"])
def test_a_server_is_serving(server: Server, name: str) -> None:
    with connect(server) as stubs:
        assert stubs.status(name) == SERVING
        watch = stubs.watch(name)
        assert next(watch).status == SERVING
        watch.cancel()


def test_a_name_that_is_no_service_and_no_model_is_not_found(server: Server) -> None:
    with connect(server) as stubs:
        with pytest.raises(grpc.RpcError) as caught:
            stubs.status("glowserve.v1.Nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_calls_of_health_and_reflection_are_not_counted(server: Server) -> None:
    with connect(server) as stubs:
        stubs.status()
    methods = {
        sample.labels["method"]
        for family in server.metrics.registry.collect()
        if family.name == "glowserve_requests"
        for sample in family.samples
    }
    assert not methods & {"Check", "List", "Watch", "ServerReflectionInfo"}
