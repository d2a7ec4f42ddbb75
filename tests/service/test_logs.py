"""What `glowserve serve` writes to its standard error, and the request id that joins it to a call."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from glowserve_service.front import call as calls
from glowserve_service.front.call import Call
from glowserve_service.observability.logs import JsonFormatter, TextFormatter
from glowserve_service.scheduling.cpu_pool import Preparer
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import SMALL_WINDOW

StartServer = Callable[..., Any]
SECRET = "s3cret-of-the-caller"


def score(digits: UInt8Array, n: int) -> pb.ScoreRequest:
    images = digits[:n]
    return pb.ScoreRequest(
        images=pb.Images(
            tensor=tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=images.shape, data=images.tobytes())
        )
    )


def returned(call: Any) -> list[str]:
    """The request ids in a call's trailing metadata."""
    return [value for key, value in call.trailing_metadata() if key == "x-request-id"]


def log_of(process: Any) -> list[str]:
    process.send_signal(signal.SIGTERM)
    return str(process.communicate(timeout=60)[1]).splitlines()


def test_the_images_environment_keeps_lines_that_are_no_json_out_of_the_log(
    start_server: StartServer, tmp_path: Path
) -> None:
    dockerfile = (Path(__file__).parents[2] / "deploy" / "Dockerfile").read_text()
    environment = dict(re.findall(r"\b(GRPC_VERBOSITY|GLOWSERVE_LOG_FORMAT)=(\w+)", dockerfile))
    certificate = trustme.CA().issue_cert("127.0.0.1")
    flags = []
    for flag, blob in (("cert", certificate.cert_chain_pems[0]), ("key", certificate.private_key_pem)):
        blob.write_to_path(tmp_path / flag)
        flags += [f"--tls-{flag}", str(tmp_path / flag)]
    with start_server(*flags, env=os.environ | environment) as (process, target, _):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + b"x" * 600):
            with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), 60) as connection:
                connection.sendall(garbage)
                while connection.recv(1000):
                    pass
        lines = log_of(process)
    assert json.loads(lines[-1])["message"] == "stopped"
    for line in lines:
        json.loads(line)


def images_drawn(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as page:
        return next(
            line for line in page if line.startswith(b"glowserve_batch_size_sum") and b"reverse" in line
        )


def test_a_caller_that_is_gone_before_its_answers_is_no_error(start_server: StartServer) -> None:
    with start_server("--log-format", "json") as (process, target, url):
        with grpc.insecure_channel(target, SMALL_WINDOW) as channel:
            stream = GlowServiceStub(channel).Sample(pb.SampleRequest(n=100_000, temperature=0))
            next(stream)
            before, now = b"", images_drawn(url)
            while now != before:  # until an answer finds no room
                time.sleep(0.5)
                before, now = now, images_drawn(url)
        lines = [json.loads(line) for line in log_of(process)]
    assert [line["code"] for line in lines if "code" in line] == ["CANCELLED"]
    assert {line["level"] for line in lines} == {"INFO"}


def test_each_call_has_a_line_of_json_with_the_id_that_it_was_told(
    start_server: StartServer, digits: UInt8Array
) -> None:
    with (
        start_server("--log-format", "json") as (process, target, _),
        grpc.insecure_channel(target) as channel,
    ):
        stub = GlowServiceStub(channel)
        mine = (("x-request-id", "order-17/a"), ("authorization", f"Bearer {SECRET}"))
        _, answered = stub.Score.with_call(score(digits, 3), metadata=mine)
        stream = stub.Sample(pb.SampleRequest(n=40, temperature=0), metadata=(("x-request-id", "my:stream"),))
        assert sum(len(response.images.encoded.data) for response in stream) == 40
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetModel(pb.GetModelRequest(model=pb.ModelSpec(name="nobody")))
        with glowserve.Client(target) as client, pytest.raises(glowserve.RequestError) as told:
            client.score(digits[:1], model="somebody")
        stub.ListModels(pb.ListModelsRequest())
        lines = [json.loads(line) for line in log_of(process)]

    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    assert SECRET not in str(lines)
    loaded = next(line for line in lines if "forward.onnx by CPUExecutionProvider" in line["message"])
    assert "request_id" not in loaded
    finished = {line["request_id"]: line for line in lines if "request_id" in line}
    assert len(finished) == 5
    assert "somebody" in finished[told.value.request_id]["message"]
    assert returned(answered) == ["order-17/a"]
    line = finished["order-17/a"]
    assert (line["level"], line["method"], line["code"]) == ("INFO", "Score", "OK")
    assert (line["model"], line["version"], line["images"]) == ("digits", 1, 3)
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    stages = [line[f"{stage}_seconds"] for stage in ("preparation", "queue", "execution", "serialization")]
    assert all(seconds > 0 for seconds in stages)
    assert sum(stages) < line["seconds"] < 60
    assert returned(stream) == ["my:stream"]
    assert (finished["my:stream"]["method"], finished["my:stream"]["images"]) == ("Sample", 40)
    (made,) = returned(refused.value)
    assert re.fullmatch("[0-9a-f]{32}", made)
    line = finished[made]
    assert (line["level"], line["code"], line["model"]) == ("WARNING", "NOT_FOUND", "")
    assert line["message"].endswith("model.name 'nobody' is not served; served are digits version 1")


def test_text_names_the_call_too_and_a_level_leaves_the_rest_out(
    start_server: StartServer, digits: UInt8Array
) -> None:
    with (
        start_server("--log-level", "warning") as (process, target, _),
        grpc.insecure_channel(target) as channel,
    ):
        stub = GlowServiceStub(channel)
        mine = (("x-request-id", "order-18"), ("authorization", f"Bearer {SECRET}"))
        stub.Score(score(digits, 3), metadata=mine)
        with pytest.raises(grpc.RpcError):
            stub.Score(pb.ScoreRequest(), metadata=mine)
        (line,) = log_of(process)
    assert re.fullmatch(
        r"[-0-9]{10} [0-9:,]{12} WARNING service\.edge: \[order-18\] Score of digits: INVALID_ARGUMENT, "
        r"0 images in 0\.\d{4} s for ipv4:127\.0\.0\.1:\d+: images.*",
        line,
    )


@pytest.mark.parametrize("given", ["", "two words", "a" * 129, 'quote"', "semi;colon", "{}"])
def test_an_id_that_does_not_fit_is_replaced(server: Server, given: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = GlowServiceStub(channel)
        request = pb.ListModelsRequest()
        ids = [
            returned(stub.ListModels.with_call(request, metadata=(("x-request-id", given),))[1])[0]
            for _ in range(2)
        ]
        longest = (("x-request-id", "a" * 128),)
        assert returned(stub.ListModels.with_call(request, metadata=longest)[1]) == ["a" * 128]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert ids[0] != ids[1]


def test_a_fault_is_logged_with_its_traceback_under_the_id_of_its_call(
    server: Server, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ArithmeticError("a secret of ours")

    monkeypatch.setattr("glowserve.messages.scores_message", broken)
    lines: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    handler = Lines()
    logging.getLogger("service").addHandler(handler)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = GlowServiceStub(channel)
            with pytest.raises(grpc.RpcError) as failed:
                stub.Score(score(digits, 1), metadata=(("x-request-id", "order-19"),))
    finally:
        logging.getLogger("service").removeHandler(handler)
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in failed.value.details()
    assert returned(failed.value) == ["order-19"]
    assert {line["request_id"] for line in lines} == {"order-19"}
    (fault,) = [line for line in lines if line["level"] == "ERROR"]
    assert fault["exception"].rstrip().endswith("ArithmeticError: a secret of ours")
    assert [line["code"] for line in lines if "code" in line] == ["INTERNAL"]


def test_what_a_thread_logs_for_a_call_names_it(caplog: pytest.LogCaptureFixture) -> None:
    def work() -> str:
        record = logging.LogRecord("decoder", logging.INFO, __file__, 1, "odd %s", ("picture",), None)
        return JsonFormatter().format(record) + "\n" + TextFormatter().format(record)

    async def one_call(preparer: Preparer, request_id: str) -> str:
        calls.begin(Call("Score", request_id))
        return await preparer.run(work, images=1, size=1 << 20)

    async def main() -> list[str]:
        preparer = Preparer(2, max_images=10)
        try:
            return await asyncio.gather(*(one_call(preparer, name) for name in ("one", "two", "three")))
        finally:
            preparer.close()

    for name, lines in zip(("one", "two", "three"), asyncio.run(main()), strict=True):
        as_json, text = lines.splitlines()
        assert json.loads(as_json)["request_id"] == name
        assert text.endswith(f"INFO decoder: [{name}] odd picture")


def test_a_line_outside_of_calls_has_no_id() -> None:
    try:
        raise ValueError("of nobody")
    except ValueError:
        record = logging.LogRecord("loader", logging.ERROR, __file__, 1, "two\nlines", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line).keys() == {"time", "level", "logger", "message", "exception"}
    assert TextFormatter().format(record).splitlines()[0].endswith("ERROR loader: two")
