"""Strings of callers in the log: none begins a line of its own, moves a terminal's cursor, or fills the memory."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from glowserve_service.observability.log_writer import LogWriter
from glowserve_service.observability.logs import JsonFormatter, TextFormatter
from glowserve_service.observability.standard_streams import LogStream

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.output import printable
from tests.servers import StartServer, failed_start
from tests.service.stubs import connect

FALSE_LINE = "2026-01-01 00:00:00,000 INFO glowserve_service.server: stopped"
LINE_ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"]
HOSTILE = "".join(f"{end}{FALSE_LINE}" for end in LINE_ENDS) + "\x1b[2J\x9b1A\u202e\0"
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [\w.]+: ")
Lines = Callable[[], list[str]]


def infer(target: str, name: str) -> str:
    """The message of the refusal of a request whose input has that name."""
    tensor = oip.ModelInferRequest.InferInputTensor(name=name, datatype="UINT8", shape=[1, 8, 8, 1])
    request = oip.ModelInferRequest(model_name="digits", inputs=[tensor])
    with connect(target) as stubs, pytest.raises(grpc.RpcError) as refused:
        stubs.inference.ModelInfer(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(refused.value.details())


@pytest.fixture(params=[TextFormatter, JsonFormatter])
def lines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[logging.Logger, Lines]]:
    """A logger whose log is a file, and its lines; those are to be read once, at the end."""
    path, logger = tmp_path / "log", logging.Logger("tested")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = LogWriter(descriptor, request.param())
    logger.addHandler(writer)

    def read() -> list[str]:
        writer.close()
        return path.read_text("utf-8").splitlines()

    yield logger, read
    writer.close()
    os.close(descriptor)


def messages(lines: list[str]) -> list[str]:
    """The message of each record, in either form; what stands in further lines follows it."""
    if lines[0].startswith("{"):
        objects = [json.loads(line) for line in lines]
        return [printable(one["message"]) + printable(one.get("exception", "")) for one in objects]
    found: list[str] = []
    for line in lines:
        assert printable(line) == line
        if RECORD.match(line):
            found.append(RECORD.sub("", line, count=1))
        else:
            assert line.startswith("    ")
            found[-1] += line
    return found


def test_a_callers_string_is_one_line_of_the_text(start_server: StartServer) -> None:
    with start_server() as server:
        message = infer(server.target, HOSTILE[:120])
        assert "\n" in message  # the caller gets its own string as it was
        lines = server.stop().splitlines()
    assert all(RECORD.match(line) for line in lines)
    assert sum(line.endswith(": stopped") for line in lines) == 1
    assert sum(line.startswith(FALSE_LINE) for line in lines) == 0
    (refused,) = [line for line in lines if "INVALID_ARGUMENT" in line]
    assert printable(message) in refused


def test_a_callers_string_is_one_object_of_the_json(start_server: StartServer) -> None:
    with start_server("--log-format", "json") as server:
        message = infer(server.target, HOSTILE[:120])
        lines = [json.loads(line) for line in server.stop().splitlines()]
    (refused,) = [line for line in lines if line.get("code") == "INVALID_ARGUMENT"]
    assert refused["message"].endswith(message)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names of files")
@pytest.mark.parametrize("form", ["text", "json"])
def test_the_name_of_a_folder_forges_nothing(
    start_server: StartServer, repository: Path, tmp_path: Path, form: str
) -> None:
    folder = tmp_path / os.fsdecode(f"models\n{FALSE_LINE}\x1b[2J".encode() + b"\xff")
    shutil.copytree(repository, folder)
    with start_server("--log-format", form, "--repository", str(folder)) as server:
        lines = server.stop().splitlines()
    if form == "json":
        lines = [json.loads(line)["message"] for line in lines]
        assert all(line.encode() for line in lines)  # no surrogates
    else:
        assert all(RECORD.match(line) and not line.startswith(FALSE_LINE) for line in lines)
    assert sum("\\udcff/digits/1 on cpu" in line for line in lines) == 1
    (line,) = failed_start("--repository", f"{folder}/none", "--log-format", form)
    assert printable(line) == line


def test_a_string_in_the_message_of_an_exception_begins_no_line(
    lines: tuple[logging.Logger, Lines],
) -> None:
    logger, read = lines
    try:
        try:
            raise KeyError(HOSTILE)
        except KeyError as error:
            raise ValueError(HOSTILE) from error
    except ValueError:
        logger.exception("reading %s failed", HOSTILE)
    logger.info("after")
    failed, after = messages(read())
    assert failed.startswith("reading \\n2026")
    assert "Traceback (most recent call last):" in failed
    assert "raise KeyError(HOSTILE)" in failed
    assert after == "after"


def test_what_python_writes_to_standard_error_forges_nothing(
    lines: tuple[logging.Logger, Lines],
) -> None:
    logger, read = lines
    (writer,) = logger.handlers
    assert isinstance(writer, LogWriter)
    stream = LogStream(writer)
    print(f"UserWarning: odd picture {HOSTILE}\n\nsecond", file=stream)
    written = messages(read())
    assert [line.partition(" ")[0] for line in written] == [
        "UserWarning:",
        "2026-01-01",
        "2026-01-01",
        "second",
    ]
    assert "\\u202e" in written[2]


def test_a_long_string_is_shortened_before_it_waits(lines: tuple[logging.Logger, Lines]) -> None:
    """Its beginning and its end stay. Thousands of lines may wait for the reader."""
    logger, read = lines
    tracemalloc.start()
    for i in range(40):
        text = f"{i}" + 1_000_000 * "\u202e"
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("a long string: %s, and its end", text)
        del text
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 20e6
    for line in messages(read()):
        assert "characters are left out" in line
        assert re.match(r"a long string: \d+\\u202e", line)
        assert "u202e, and its end" in line
        assert len(line) < 500_000


def test_fields_of_a_line_are_strings_that_any_reader_of_json_takes() -> None:
    record: Any = logging.LogRecord("loader", logging.INFO, "", 0, "text", None, None)
    record.fields = {"path": Path(os.fsdecode(b"a\xff")), "name": "b\udcff"}
    values = json.loads(JsonFormatter().format(record))
    assert (values["path"], values["name"]) == ("a\\udcff", "b\\udcff")
