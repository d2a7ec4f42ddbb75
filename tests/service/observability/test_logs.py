"""The lines that a service logs, and the request id that joins a line to its call."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from glowserve_service.observability import log_context
from glowserve_service.observability.log_context import LogContext
from glowserve_service.observability.log_writer import LogWriter
from glowserve_service.observability.logs import JsonFormatter, TextFormatter
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.scheduling.ticket import Ticket
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import StartServer
from tests.service.marks import patches_the_front
from tests.service.scraping import value
from tests.service.stubs import connect
from tests.service.wire import SMALL_WINDOW, raw

SECRET = "s3cret-of-the-caller"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def score(digits: UInt8Array, n: int) -> pb.ScoreRequest:
    return pb.ScoreRequest(images=raw(digits[:n]))


def request_ids(call: Any) -> list[str]:
    """The request ids in a call's trailing metadata."""
    return [value for key, value in call.trailing_metadata() if key == "x-request-id"]


@pytest.fixture
def read_json(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What is logged in this process, as objects; to be called once, at the end.

    Lines of asyncio are left out, for the reason that `records_of` has.
    """
    path, logger = tmp_path / "log", logging.getLogger()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = LogWriter(descriptor, JsonFormatter())
    logger.addHandler(writer)

    def read() -> list[dict[str, Any]]:
        writer.close()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in lines if line["logger"] != "asyncio"]

    yield read
    logger.removeHandler(writer)
    writer.close()
    os.close(descriptor)


# The lines of a process


def test_the_images_environment_keeps_lines_that_are_not_json_out_of_the_log(
    start_server: StartServer, tmp_path: Path
) -> None:
    dockerfile = (Path(__file__).parents[3] / "deploy" / "Dockerfile").read_text()
    environment = dict(re.findall(r"\b(GRPC_VERBOSITY|GLOWSERVE_LOG_FORMAT)=(\w+)", dockerfile))
    certificate = trustme.CA().issue_cert("127.0.0.1")
    flags = []
    for flag, blob in (("cert", certificate.cert_chain_pems[0]), ("key", certificate.private_key_pem)):
        blob.write_to_path(tmp_path / flag)
        flags += [f"--tls-{flag}", str(tmp_path / flag)]
    with start_server(*flags, env=os.environ | environment) as server:
        port = int(server.target.rpartition(":")[2])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + b"x" * 600):
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(garbage)
                while connection.recv(1000):
                    pass
        lines = [json.loads(line) for line in server.stop().splitlines()]
    assert lines[-1]["message"] == "stopped"


def test_a_caller_that_leaves_before_its_responses_is_not_an_error(start_server: StartServer) -> None:
    with start_server("--log-format", "json") as server:
        with grpc.insecure_channel(server.target, SMALL_WINDOW) as channel:
            stream = GlowServiceStub(channel).Sample(pb.SampleRequest(n=100_000, temperature=0))
            next(stream)
            wait_until_blocked(server.metrics_url)
        lines = [json.loads(line) for line in server.stop().splitlines()]
    assert [line["code"] for line in lines if "code" in line] == ["CANCELLED"]
    assert {line["level"] for line in lines} == {"INFO"}


def wait_until_blocked(metrics_url: str) -> None:
    """Until no more images are drawn, because no response fits into the caller's window: nothing announces that."""
    before, now = None, value(metrics_url, "batch_size_sum", model="digits", direction="reverse")
    while now != before:
        time.sleep(0.5)
        before, now = now, value(metrics_url, "batch_size_sum", model="digits", direction="reverse")


def test_each_call_has_a_line_of_json_with_its_request_id(
    start_server: StartServer, digits: UInt8Array
) -> None:
    with start_server("--log-format", "json") as server, connect(server.target) as stubs:
        mine = (("x-request-id", "order-17/a"), ("authorization", f"Bearer {SECRET}"))
        _, scored = stubs.glow.Score.with_call(score(digits, 3), metadata=mine)
        request = pb.SampleRequest(n=40, temperature=0)
        stream = stubs.glow.Sample(request, metadata=(("x-request-id", "my:stream"),))
        assert sum(len(response.images.encoded.data) for response in stream) == 40
        with pytest.raises(grpc.RpcError) as refused:
            stubs.glow.GetModel(pb.GetModelRequest(model=pb.ModelSpec(name="nobody")))
        with glowserve.Client(server.target) as client, pytest.raises(glowserve.RequestError) as raised:
            client.score(digits[:1], model="somebody")
        stubs.glow.ListModels(pb.ListModelsRequest())
        lines = [json.loads(line) for line in server.stop().splitlines()]

    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(TIME, line["time"]) for line in lines)
    assert SECRET not in str(lines)
    loaded = next(line for line in lines if "forward.onnx by CPUExecutionProvider" in line["message"])
    assert "request_id" not in loaded
    finished = {line["request_id"]: line for line in lines if "request_id" in line}
    assert len(finished) == 5
    assert "somebody" in finished[raised.value.request_id]["message"]
    assert request_ids(scored) == ["order-17/a"]
    check_line_of_score(finished["order-17/a"])
    assert request_ids(stream) == ["my:stream"]
    assert (finished["my:stream"]["method"], finished["my:stream"]["images"]) == ("Sample", 40)
    (made,) = request_ids(refused.value)
    assert re.fullmatch("[0-9a-f]{32}", made)
    line = finished[made]
    assert (line["level"], line["code"], line["model"]) == ("WARNING", "NOT_FOUND", "")
    assert line["message"].endswith("model.name 'nobody' is not served; served are digits version 1")


def check_line_of_score(line: dict[str, Any]) -> None:
    assert (line["level"], line["method"], line["code"]) == ("INFO", "Score", "OK")
    assert (line["model"], line["version"], line["images"]) == ("digits", 1, 3)
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    stages = [line[f"{stage}_seconds"] for stage in ("preparation", "queue", "execution", "serialization")]
    assert all(seconds > 0 for seconds in stages)
    assert sum(stages) < line["seconds"] < 60


def test_a_line_of_text_has_the_request_id_and_a_level_leaves_lines_out(
    start_server: StartServer, digits: UInt8Array
) -> None:
    with start_server("--log-level", "warning") as server, connect(server.target) as stubs:
        mine = (("x-request-id", "order-18"), ("authorization", f"Bearer {SECRET}"))
        stubs.glow.Score(score(digits, 3), metadata=mine)
        with pytest.raises(grpc.RpcError):
            stubs.glow.Score(pb.ScoreRequest(), metadata=mine)
        (line,) = server.stop().splitlines()
    assert re.fullmatch(
        r"[-0-9]{10} [0-9:,]{12} WARNING glowserve_service\.front\.middleware: \[order-18\] Score of digits: "
        r"INVALID_ARGUMENT, 0 images in 0\.\d{4} s for ipv4:127\.0\.0\.1:\d+: images.*",
        line,
    )


# The request id


@pytest.mark.parametrize("given", ["", "two words", "a" * 129, 'quote"', "semi;colon", "{}"])
def test_an_id_that_is_not_allowed_is_replaced(stub: GlowServiceStub, given: str) -> None:
    def id_for(sent: str) -> str:
        metadata = (("x-request-id", sent),)
        (request_id,) = request_ids(stub.ListModels.with_call(pb.ListModelsRequest(), metadata=metadata)[1])
        return request_id

    ids = [id_for(given) for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert ids[0] != ids[1]
    assert id_for("a" * 128) == "a" * 128


@patches_the_front
def test_a_fault_is_logged_with_its_traceback_and_the_id_of_its_call(
    server: Server,
    digits: UInt8Array,
    monkeypatch: pytest.MonkeyPatch,
    read_json: Callable[[], list[dict[str, Any]]],
) -> None:
    def broken(*_: Any) -> None:
        raise ArithmeticError("a secret of ours")

    monkeypatch.setattr("glowserve.messages.scores_message", broken)
    with connect(server) as stubs, pytest.raises(grpc.RpcError) as failed:
        stubs.glow.Score(score(digits, 1), metadata=(("x-request-id", "order-19"),))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in failed.value.details()
    assert request_ids(failed.value) == ["order-19"]
    lines = read_json()
    assert {line["request_id"] for line in lines} == {"order-19"}
    (fault,) = [line for line in lines if line["level"] == "ERROR"]
    assert fault["exception"].rstrip().endswith("ArithmeticError: a secret of ours")
    assert [line["code"] for line in lines if "code" in line] == ["INTERNAL"]


async def test_a_line_from_a_thread_of_the_pool_has_the_id_of_the_call(
    read_json: Callable[[], list[dict[str, Any]]],
) -> None:
    async def call(request_id: str) -> None:
        log_context.bind(LogContext(request_id))
        work = lambda: logging.getLogger("decoder").warning("odd image of %s", request_id)  # noqa: E731
        await pool.run(work, Ticket(), images=1, size=1 << 20)

    pool = CpuPool(2, max_images=10, decoders=Decoders(0, 1, 1, lambda _: None))
    await asyncio.gather(*(call(name) for name in ("one", "two", "three")))
    pool.close()
    lines = {line["message"]: line for line in read_json() if line["logger"] == "decoder"}
    for name in ("one", "two", "three"):
        assert lines[f"odd image of {name}"]["request_id"] == name


# Formats


def record(message: str, **attributes: Any) -> logging.LogRecord:
    made = logging.LogRecord("loader", logging.ERROR, __file__, 1, message, (), None)
    vars(made).update(attributes)
    return made


def test_json_has_the_ids_then_the_fields_then_the_traceback() -> None:
    attributes = {"fields": {"code": "OK", "path": Path("a")}, "request_id": "order-1", "trace_id": "0af7"}
    line = JsonFormatter().format(record("two\nlines", exc_text="Traceback", **attributes))
    assert "\n" not in line
    values = json.loads(line)
    assert re.fullmatch(TIME, values.pop("time"))
    assert list(values.items()) == [
        ("level", "ERROR"),
        ("logger", "loader"),
        ("message", "two\nlines"),
        ("request_id", "order-1"),
        ("trace_id", "0af7"),
        ("code", "OK"),
        ("path", "a"),
        ("exception", "Traceback"),
    ]


def test_a_line_outside_of_calls_has_no_id() -> None:
    assert json.loads(JsonFormatter().format(record("text"))).keys() == {"time", "level", "logger", "message"}
    assert TextFormatter().format(record("text")).endswith(" ERROR loader: text")


def test_text_has_the_traceback_in_further_lines_that_are_indented() -> None:
    lines = TextFormatter().format(record("text", exc_text="Traceback\nValueError")).splitlines()
    assert lines[0].endswith(" ERROR loader: text")
    assert lines[1:] == ["    Traceback", "    ValueError"]


@pytest.mark.parametrize("form", [TextFormatter, JsonFormatter])
def test_each_line_has_the_time_of_its_own_record(form: type[logging.Formatter]) -> None:
    formatter, lines = form(), []
    for created in (1.5, 1.75, 61.25, 1.5):
        each = record("text")
        each.created, each.msecs, each.bracketed_id = created, 1000 * (created % 1), ""
        lines.append(formatter.format(each))
    assert [re.findall(r":(\d\d:\d\d)[.,](\d{3})", line) for line in lines] == [
        [("00:01", "500")],
        [("00:01", "750")],
        [("01:01", "250")],
        [("00:01", "500")],
    ]
