"""The opening of a model's third graph: once for all calls, beside them, and with an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from glowserve_service.models.opening import Opening

from glowserve.images import UInt8Array
from glowserve.runtime import explanation
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from tests.service.metrics import ended, in_flight
from tests.service.models.running import RunService, publish
from tests.service.wire import raw, refusal, wait_for


class Gate:
    """Holds the threads that open a graph."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Opened by the test, or with its end."""
    gate, read_places = Gate(), explanation.read_places

    def wait_and_read(bundle: Bundle) -> explanation.Places:
        gate.begun += 1
        assert gate.go_on.wait(60)
        return read_places(bundle)

    monkeypatch.setattr(explanation, "read_places", wait_and_read)
    yield gate
    gate.go_on.set()


def request(images: UInt8Array) -> pb.ExplainRequest:
    return pb.ExplainRequest(images=raw(images))


def test_calls_that_arrive_while_the_graph_opens_wait_for_it_and_others_do_not(
    run_service: RunService, digits: UInt8Array, gate: Gate
) -> None:
    with run_service(instances=1) as service:
        waiting = [service.glow.Explain.future(request(digits[i : i + 1])) for i in range(5)]
        wait_for(lambda: gate.begun == 1 and in_flight(service.server) == 5)
        for _ in range(3):
            assert len(service.glow.Score(pb.ScoreRequest(images=raw(digits))).scores) == len(digits)
        assert not any(call.done() for call in waiting)
        gate.go_on.set()
        maps = [call.result(60).deviations.data for call in waiting]
        together = service.glow.Explain(request(digits[:5])).deviations.data
        assert gate.begun == 1
    assert len(set(maps)) == 5
    assert [len(each) for each in maps] == [4 * 64] * 5
    assert len(together) == sum(map(len, maps))


def test_a_call_that_is_cancelled_while_the_graph_opens_leaves_it_to_the_next(
    run_service: RunService, digits: UInt8Array, gate: Gate
) -> None:
    with run_service() as service:
        call = service.glow.Explain.future(request(digits[:3]))
        wait_for(lambda: gate.begun == 1)
        call.cancel()
        wait_for(lambda: ended(service.server, "Explain", "CANCELLED") == 1)
        assert in_flight(service.server) == 0
        assert service.value("received_bytes") == 0
        late = refusal(lambda: service.glow.Explain(request(digits[:3]), timeout=0.3))
        assert late[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.go_on.set()
        assert len(service.glow.Explain(request(digits[:3])).explanations) == 3
        assert gate.begun == 1


def test_a_graph_that_does_not_open_holds_up_neither_a_new_version_nor_the_end_of_the_service(
    run_service: RunService, models: Path, second: Path, digits: UInt8Array, gate: Gate
) -> None:
    with run_service(repository=models, poll_seconds=0, admin="on") as service:
        call = service.glow.Explain.future(request(digits[:1]))
        wait_for(lambda: gate.begun == 1)
        publish(second, models / "digits" / "2")
        assert service.load() == [2]
        assert service.answering_version() == 2
        call.cancel()
        wait_for(lambda: in_flight(service.server) == 0)
    assert not gate.go_on.is_set()


def test_a_damaged_file_is_refused_without_its_path_and_read_again_by_the_next_call(
    run_service: RunService, models: Path, digits: UInt8Array
) -> None:
    file = models / "digits" / "1" / "explain.onnx"
    with run_service(repository=models, poll_seconds=0) as service:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code, message = refusal(lambda: service.glow.Explain(request(digits[:1])))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert message.startswith("bundle digits/1: ")
        assert "explain.onnx is not the file that was exported" in message
        assert str(models) not in message
        assert service.status() == 1  # SERVING
        assert service.glow.Score(pb.ScoreRequest(images=raw(digits[:1]))).scores[0].finite
        file.write_bytes(whole)
        assert service.glow.Explain(request(digits[:1])).explanations[0].finite


async def test_what_does_not_open_in_time_is_given_up_and_no_other_thread_begins(
    bundle: Bundle, engine: Engine, gate: Gate
) -> None:
    opening = Opening(Explainer(bundle, engine), bundle, 0.05)
    for _ in range(3):
        with pytest.raises(
            BundleError, match=r"^explain\.onnx of digits version 1 has not opened in load_tim"
        ):
            await opening.wait()
    assert gate.begun == 1
    gate.go_on.set()
    async with asyncio.timeout(60):
        while True:
            try:
                await opening.wait()
                break
            except BundleError:
                continue
    assert gate.begun == 1


async def test_without_a_limit_it_may_take_any_time(bundle: Bundle, engine: Engine, gate: Gate) -> None:
    opening = Opening(Explainer(bundle, engine), bundle, 0)
    asyncio.get_running_loop().call_later(0.2, gate.go_on.set)
    await asyncio.gather(*[opening.wait() for _ in range(5)])
    assert gate.begun == 1


async def test_a_time_out_of_the_file_system_is_not_ours(
    bundle: Bundle, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft mount of a network file system raises TimeoutError."""

    def fail(_bundle: Bundle) -> None:
        raise TimeoutError("of the network")

    monkeypatch.setattr(explanation, "read_places", fail)
    with pytest.raises(TimeoutError, match="of the network"):
        await Opening(Explainer(bundle, engine), bundle, 60).wait()


def test_an_engine_that_is_closed_opens_no_graph_any_more(bundle: Bundle, engine: Engine) -> None:
    """A thread that opens one may outlive the call that wanted it, and the version."""
    other = Engine(bundle, engine._config)
    other.close()
    with ThreadPoolExecutor(1) as pool, pytest.raises(BundleError):
        pool.submit(Explainer(bundle, other).open).result(60)
