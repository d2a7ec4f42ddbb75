"""Whatever strangers send, the service answers it with a status of the contract, and stays as it was.

GLOWSERVE_FUZZ_CASES is how many things are sent in all (100,000), GLOWSERVE_FUZZ_SEED which ones (0). A case is a
function of the seed, its family and its number; those that fail are written to out/fuzz/, with what was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import subprocess
import threading
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tests.soak.fuzz_bytes import GLOW, INFERENCE, Case, Method, case, methods, mutated
from tests.soak.fuzz_pictures import bombs, originals, picture

import service
from glowserve import images
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service import test_properties as shapes

CASES = int(os.environ.get("GLOWSERVE_FUZZ_CASES", "100000"))
SEED = int(os.environ.get("GLOWSERVE_FUZZ_SEED", "0"))
# What of the cases each family has.
SHARES = {"bytes": 0.6, "pictures": 0.15, "decoder": 0.1, "structured": 0.1, "ports": 0.05}

# A case that takes longer hangs.
PATIENCE_SECONDS = 60.0
CONCURRENCY = 32
# What the server may hold more than at first, when it has seen large pictures.
MORE_MEMORY = 128 * 2**20

# docs/errors.md, without INTERNAL, and what only a slow or stopping server says.
EVERYWHERE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}
INTERNALS = re.compile(
    r"Traceback|site-packages|0x[0-9a-fA-F]{6}|<[\w.]+ object|<class|\.py\b|/(?:home|root|tmp|usr|proc|work)/|"
    + "|".join(re.escape(str(Path(place).resolve())) for place in (Path(service.__file__).parent.parent, "."))
)
# service/edge.py cuts a message there.
LONGEST_MESSAGE = 1280


def cases(family: str) -> int:
    return max(1, round(CASES * SHARES[family]))


@dataclass
class Findings:
    """What became of a family's cases."""

    family: str
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By what was called, and the status."""
    failures: list[str] = field(default_factory=list)

    def add(self, number: int, what: str, status: str, allowed: set[str], message: str, sent: bytes) -> None:
        """A case that was answered; `message` is all that was said in words."""
        self.statuses[what, status] += 1
        wrong = []
        if status not in allowed:
            wrong.append(f"{status} is not one of {', '.join(sorted(allowed))}")
        if status != "OK" and not message:
            wrong.append("nothing is said")
        if len(message.encode()) > LONGEST_MESSAGE:
            wrong.append(f"the message has {len(message.encode())} bytes")
        if found := INTERNALS.search(message):
            wrong.append(f"the message has {found[0]!r}")
        if wrong:
            self.failures.append(
                f"seed {SEED}, {self.family} {number}, {what}: {'; '.join(wrong)}\n  {message!r}\n  sent {sent.hex()}"
            )

    def table(self) -> str:
        """A line for each thing that was called, a column for each status."""
        columns = sorted({status for _, status in self.statuses}, key=lambda name: (name != "OK", name))
        whats = sorted({what for what, _ in self.statuses})
        whats = sorted({what for what, _ in self.statuses})
        rows = [[self.family, *columns]]
        rows += [[what, *(str(self.statuses[what, status]) for status in columns)] for what in whats]
        sums = (sum(self.statuses[what, status] for what in whats) for status in columns)
        rows.append(["all", *map(str, sums)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        return "\n".join(f"{line[0].strip():{widths[0]}}  {'  '.join(line[1:])}" for line in lines)

    def finish(self) -> None:
        """Prints the table; fails if a case did."""
        print(f"\n{self.table()}")
        if self.failures:
            path = Path("out/fuzz") / f"{self.family}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(self.failures))
        shown = "\n".join(failure[:2000] for failure in self.failures[:10])
        assert not self.failures, f"{len(self.failures)} cases, all in out/fuzz/{self.family}.txt:\n{shown}"


@dataclass
class Target:
    """The server that everything is sent to."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str
    log: list[str]
    """Lines that it wrote."""

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels, of those series that have one."""
        with urllib.request.urlopen(self.metrics_url, timeout=60) as response:
            lines = response.read().decode().splitlines()
        series = [line for line in lines if re.match(rf"{name}[ {{]", line) and label in line]
        return sum(float(line.rpartition(" ")[2]) for line in series)

    @property
    def memory(self) -> int:
        """What of it is in main memory, in bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )


@pytest.fixture(scope="module")
def table(digits: UInt8Array) -> list[Method]:
    return methods(digits)


@pytest.fixture(scope="module")
def target(start_server: Any) -> Iterator[Target]:
    """A server that says only what is wrong with itself, and draws few samples for a call."""
    flags = ("--log-level", "error", "--max-samples-per-call", "64", "--max-message-mib", "8")
    with start_server(*flags) as (process, address, url):
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
        reader.start()
        with grpc.insecure_channel(address) as channel:  # the memory of large pictures stays with the process
            for bomb in 2 * bombs():
                request = pb.ScoreRequest(images=pb.Images(encoded=pb.EncodedImages(data=[bomb])))
                with contextlib.suppress(grpc.RpcError):
                    GlowServiceStub(channel).Score(request)
        yield Target(process, address, url, log)
        process.terminate()
        assert process.wait(60) == 0
        reader.join(10)
        assert not complaints(log)


@pytest.fixture
def unharmed(target: Target, table: list[Method]) -> Iterator[None]:
    """What is sent in a test that takes this leaves the server as it was: its answers, its memory, its log."""
    with grpc.insecure_channel(target.address) as channel:
        before = known_answers(channel, table)
    memory, threads, files = target.memory, threads_of(target), files_of(target)
    yield
    assert target.process.poll() is None, complaints(target.log)
    with grpc.insecure_channel(target.address) as channel:
        assert known_answers(channel, table) == before
    for name in ("glowserve_requests_in_flight", "glowserve_queue_length"):
        wait_for(lambda name=name: target.metric(name) == 0, name)
    assert target.metric("glowserve_requests_total", 'code="INTERNAL"') == 0
    more = target.memory - memory
    print(f"memory {memory / 2**20:.0f} MiB, {more / 2**20:+.0f} MiB after; {threads_of(target)} threads")
    assert more < MORE_MEMORY
    wait_for(lambda: files_of(target) <= files + 2, "open files")
    assert threads_of(target) <= threads + 16  # gRPC and the pools start theirs as they are needed
    assert not complaints(target.log)


# What gRPC itself writes: its core on bytes that it refused, and its Python part, past any log, where a peer was gone
# before it heard that its method's name is no UTF-8.
GRPC = re.compile(
    r"^(?:[EWI]0000 \d\d:|WARNING: All log messages before absl).*\n"
    r"|(?:^.*Failed sending error status from server\n)?"
    r"^Traceback .*\n(?:^  .*\n)+^grpc\._cython\.cygrpc\.ExecuteBatchError.*\n",
    re.MULTILINE,
)


def complaints(log: list[str]) -> str:
    """What a server wrote, but for gRPC's own."""
    return GRPC.sub("", "".join(log))


def threads_of(target: Target) -> int:
    return len(os.listdir(f"/proc/{target.process.pid}/task"))  # noqa: PTH208


def files_of(target: Target) -> int:
    return len(os.listdir(f"/proc/{target.process.pid}/fd"))  # noqa: PTH208


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def known_answers(channel: grpc.Channel, table: list[Method]) -> list[bytes]:
    """What good requests with seeds are answered, alone, to the bit."""
    answers = []
    for method in table:
        if method.name in ("Score", "Encode", "Decode", "ModelInfer"):
            call: Any = channel.unary_unary(method.path)
            answers += [call(data, timeout=PATIENCE_SECONDS) for data in method.good]
        elif method.name == "Sample":
            stream: Any = channel.unary_stream(method.path)
            answers += [part for data in method.good for part in stream(data, timeout=PATIENCE_SECONDS)]
    return answers


async def at_once(one: Callable[[int], Awaitable[None]], n: int) -> None:
    """Runs cases 0 to n - 1, several side by side."""
    numbers = iter(range(n))

    async def work() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def on_a_channel(target: Target, one: Callable[[grpc.aio.Channel, int], Awaitable[None]], n: int) -> None:
    """Runs cases 0 to n - 1, several side by side, as calls on one connection."""

    async def run() -> None:
        async with grpc.aio.insecure_channel(target.address) as channel:
            await at_once(lambda number: one(channel, number), n)

    asyncio.run(run())


async def sent(
    channel: grpc.aio.Channel, method: Method, path: str, requests: Iterable[bytes]
) -> tuple[str, str, list[bytes]]:
    """The status, its words, and the answers."""
    messages = list(requests)
    answers: list[bytes] = []
    try:
        if method.kind == "unary":
            answers.append(await channel.unary_unary(path)(messages[0], timeout=PATIENCE_SECONDS))
        else:
            kinds: Any = {"stream": channel.unary_stream, "both": channel.stream_stream}
            call = kinds[method.kind](path)(
                messages[0] if method.kind == "stream" else iter(messages), timeout=PATIENCE_SECONDS
            )
            answers += [part async for part in call]
    except grpc.aio.AioRpcError as error:
        if (
            error.details() == "Internal error from Core"
        ):  # the client's word for a stream that ended while it sent
            return "CUT_SHORT", error.details(), answers
        return error.code().name, error.details() or "", answers
    return "OK", "", answers


# Bytes.


def test_damaged_messages_are_answered_or_refused(
    target: Target, table: list[Method], unharmed: None
) -> None:
    findings = Findings("bytes")

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        each = case(SEED, number, table)
        status, message, answers = await sent(channel, each.method, each.path, each.messages)
        allowed = allowed_for(each)
        what = each.method.name if each.path == each.method.path else "a method that is not there"
        findings.add(number, what, status, allowed, message, b" ".join(each.messages))
        for data in answers:  # nothing but answers comes back
            answer = each.method.response.FromString(data)
            if isinstance(answer, oip.ModelStreamInferResponse) and answer.error_message:
                findings.add(
                    number,
                    "in the stream",
                    "REFUSED",
                    {"REFUSED"},
                    answer.error_message,
                    b" ".join(each.messages),
                )

    on_a_channel(target, one, cases("bytes"))
    findings.finish()


def allowed_for(each: Case) -> set[str]:
    if each.path != each.method.path:
        return {"UNIMPLEMENTED", "CUT_SHORT"} if len(each.messages) > 1 else {"UNIMPLEMENTED"}
    if each.method.admin:
        return {"PERMISSION_DENIED", "INVALID_ARGUMENT"}
    allowed = EVERYWHERE | {"UNIMPLEMENTED"} if each.method.path.startswith(f"/{INFERENCE}/") else EVERYWHERE
    return allowed | {"CUT_SHORT"} if len(each.messages) > 1 else allowed


# Pictures.


def test_damaged_pictures_are_scored_or_refused(target: Target, table: list[Method], unharmed: None) -> None:
    findings = Findings("pictures")
    score = next(method for method in table if method.name == "Score")

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        files = [picture(SEED, number)]
        if number % 4 == 0:  # a good one beside it
            files.append(originals()[number % 20])
        request = pb.ScoreRequest(images=pb.Images(encoded=pb.EncodedImages(data=files))).SerializeToString()
        status, message, answers = await sent(channel, score, score.path, [request])
        findings.add(number, f"{len(files)} in a call", status, {"OK", "INVALID_ARGUMENT"}, message, request)
        for data in answers:
            assert len(pb.ScoreResponse.FromString(data).scores) == len(files)

    on_a_channel(target, one, cases("pictures"))
    findings.finish()


def test_bombs_are_refused_or_take_little_memory(target: Target, table: list[Method], unharmed: None) -> None:
    findings = Findings("bombs")
    score = next(method for method in table if method.name == "Score")

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        files = pb.EncodedImages(data=[bombs()[number % len(bombs())]])
        request = pb.ScoreRequest(images=pb.Images(encoded=files)).SerializeToString()
        status, message, _ = await sent(channel, score, score.path, [request])
        findings.add(number, "Score", status, {"OK", "INVALID_ARGUMENT"}, message, request)

    on_a_channel(target, one, 2 * len(bombs()))
    findings.finish()


def test_a_small_request_that_unpacks_to_a_large_one_takes_little_memory(
    target: Target, unharmed: None
) -> None:
    """gRPC unpacks a compressed request whole before it looks at its size: 1 MB would become 1 GB."""
    files = pb.EncodedImages(data=[bytes(300 * 2**20)])
    request = pb.ScoreRequest(images=pb.Images(encoded=files)).SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target.address, options) as channel:
        call: Any = channel.unary_unary(f"/{GLOW}/Score")
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=PATIENCE_SECONDS, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    status = Path(f"/proc/{target.process.pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    assert int(peak[1]) * 1024 - target.memory < 4 * MORE_MEMORY


def test_damaged_pictures_are_decoded_or_refused_in_words() -> None:
    """Without a server: nothing but InvalidImageError is raised, and soon."""
    findings, slowest = Findings("decoder"), 0.0
    shape, preparation = (8, 8, 3), images.Preparation()
    for number in range(cases("decoder")):
        data = picture(SEED + 1, number)
        began, status, message = time.monotonic(), "OK", ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a picture is like is no news
            try:
                prepared = images.prepare_encoded(
                    data, *shape, preparation, max_pixels=32_000_000, formats=images.ENCODED_FORMATS
                )
                assert prepared.shape == shape
                assert prepared.dtype == np.uint8
            except images.InvalidImageError as error:
                status, message = "InvalidImageError", str(error)
            except Exception as error:
                status, message = type(error).__name__, str(error)
        slowest = max(slowest, time.monotonic() - began)
        findings.add(number, "prepare_encoded", status, {"OK", "InvalidImageError"}, message, data)
    print(f"the slowest took {slowest:.2f} s")
    findings.finish()
    assert slowest < 10


# Requests of every shape.

WORDS = st.sampled_from(
    ["", "digits", "digits.sample", "image", "seed", "temperature", "1", "UINT8", "FP32", "UINT64"]
)
TEXTS = st.one_of(WORDS, st.text(max_size=200))


def parameters() -> st.SearchStrategy[dict[str, Any]]:
    """Those that are known, those that are not supported, and any."""
    names = st.sampled_from(
        ["seed", "sequence_id", "classification", "binary_data_output", "triton_enable_empty_final_response"]
    )
    values = st.one_of(
        st.builds(dict, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(dict, uint64_param=st.integers(0, 2**64 - 1)),
        st.builds(dict, bool_param=st.booleans()),
        st.builds(dict, string_param=st.text(max_size=50)),
        st.builds(dict, double_param=st.floats()),
        st.just({}),
    )
    return st.dictionaries(st.one_of(names, st.text(max_size=20)), values, max_size=2)


def infer_inputs() -> st.SearchStrategy[dict[str, Any]]:
    """Good inputs of either view, nearly good ones, and any."""
    numbers = st.integers(0, 2**32 - 1)
    contents = st.one_of(
        st.builds(dict, uint_contents=st.lists(st.one_of(st.integers(0, 255), numbers), max_size=70)),
        st.builds(dict, uint64_contents=st.lists(st.integers(0, 2**64 - 1), max_size=3)),
        st.builds(dict, fp32_contents=st.lists(st.floats(width=32), max_size=3)),
        st.builds(dict, bytes_contents=st.lists(st.binary(max_size=10), max_size=3)),
    )
    good = st.sampled_from([
        {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1]},
        {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "contents": {"uint_contents": [9] * 64}},
        {"name": "seed", "datatype": "UINT64", "shape": [1, 1], "contents": {"uint64_contents": [7]}},
        {"name": "temperature", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [0.5]}},
    ])  # fmt: skip
    shape = st.lists(st.sampled_from([0, 1, 2, 8, 64, 257, -1, 2**63 - 1, -(2**63)]), max_size=6)
    change = st.fixed_dictionaries(
        {},
        optional={
            "name": TEXTS,
            "datatype": TEXTS,
            "shape": shape,
            "contents": contents,
            "parameters": parameters(),
        },
    )
    return st.tuples(good, st.one_of(st.just({}), st.just({}), change)).map(lambda both: both[0] | both[1])


def infer_requests() -> st.SearchStrategy[oip.ModelInferRequest]:
    sampler = [{"name": "seed", "datatype": "UINT64", "shape": [1, 1], "contents": {"uint64_contents": [7]}}]
    scorer = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1]}
    near = st.builds(
        oip.ModelInferRequest,
        model_name=st.just("digits"),
        id=st.text(max_size=20),
        parameters=st.one_of(st.just({}), parameters()),
        inputs=st.just([scorer]),
        outputs=st.lists(st.just({"name": "bits_per_dim"}), max_size=2),
        raw_input_contents=st.one_of(
            st.just([bytes(64)]), st.binary(min_size=63, max_size=65).map(lambda b: [b])
        ),
    )
    return near | st.builds(
        oip.ModelInferRequest,
        model_name=st.one_of(st.sampled_from(["digits", "digits.sample"]), TEXTS),
        model_version=st.one_of(st.just(""), st.just("1"), TEXTS),
        id=st.text(max_size=100),
        parameters=parameters(),
        inputs=st.one_of(
            st.lists(infer_inputs(), max_size=3), infer_inputs().map(lambda one: [*sampler, one])
        ),
        outputs=st.lists(st.builds(dict, name=TEXTS, parameters=parameters()), max_size=2),
        raw_input_contents=st.one_of(
            st.just([]), st.just([bytes(64)]), st.lists(st.binary(max_size=80), max_size=3)
        ),
    )


def requests() -> st.SearchStrategy[tuple[str, Any]]:
    """Of methods that need an argument, each with the method's name. The parts are those of tests/service/."""
    latents = shapes.tensors(shapes.tensor_pb2.DATA_TYPE_FLOAT32, [64])
    temperatures = st.one_of(st.none(), st.floats(0, 2, width=32), st.floats(width=32))
    made: dict[str, st.SearchStrategy[Any]] = {
        "Score": st.builds(pb.ScoreRequest, model=shapes.specs(), images=shapes.images(), seed=shapes.SEEDS),
        "Encode": st.builds(pb.EncodeRequest, model=shapes.specs(), images=shapes.images()),
        "Decode": st.builds(pb.DecodeRequest, model=shapes.specs(), latents=latents, format=shapes.FORMATS),
        "Sample": st.builds(
            pb.SampleRequest,
            model=shapes.specs(),
            n=st.integers(0, 70),
            temperature=temperatures,
            seed=shapes.SEEDS,
            format=shapes.FORMATS,
        ),
        "GetModel": st.builds(pb.GetModelRequest, model=shapes.specs()),
        "ModelInfer": infer_requests(),
        "ModelStreamInfer": infer_requests(),
        "ModelConfig": st.builds(oip.ModelConfigRequest, name=TEXTS, version=TEXTS),
        "ModelStatistics": st.builds(oip.ModelStatisticsRequest, name=TEXTS, version=TEXTS),
        "RepositoryIndex": st.builds(oip.RepositoryIndexRequest, repository_name=TEXTS, ready=st.booleans()),
    }
    return st.sampled_from(sorted(made)).flatmap(lambda name: st.tuples(st.just(name), made[name]))


def test_requests_of_every_shape_are_answered_or_refused(
    target: Target, table: list[Method], unharmed: None
) -> None:
    findings, numbers = Findings("structured"), itertools.count()
    by_name = {method.name: method for method in table}

    @seed(SEED)
    @settings(
        max_examples=cases("structured"),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(request=requests())
    def send(request: tuple[str, Any]) -> None:
        name, message = request
        data = message.SerializeToString()
        each = Case(next(numbers), by_name[name], by_name[name].path, (data,))
        status, words, answers = answered(channel, each)
        findings.add(each.number, name, status, allowed_for(each), words, data)
        if name == "ModelStreamInfer" and (refused := answers[0].error_message):
            findings.add(each.number, "in the stream", "REFUSED", {"REFUSED"}, refused, data)
        assert not findings.failures, findings.failures.pop()

    with grpc.insecure_channel(target.address) as channel:
        send()
    findings.finish()


def answered(channel: grpc.Channel, each: Case) -> tuple[str, str, list[Any]]:
    """The status of a call, its words, and the answers."""
    kinds: Any = {"unary": channel.unary_unary, "stream": channel.unary_stream, "both": channel.stream_stream}
    kind, (data,) = each.method.kind, each.messages
    try:
        answer = kinds[kind](each.path)(iter([data]) if kind == "both" else data, timeout=PATIENCE_SECONDS)
        parts = [answer] if kind == "unary" else list(answer)
    except grpc.RpcError as error:
        return error.code().name, error.details() or "", []
    return "OK", "", [each.method.response.FromString(part) for part in parts]


# Ports.

# Of the metrics page; 500 is not among them.
HTTP = ("200", "400", "404", "405", "408", "414", "431", "501", "505")
# Of the metrics page; 500 is not among them.
HTTP = ("200", "400", "404", "405", "408", "414", "431", "501", "505")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def _grpc_bytes() -> list[bytes]:
    """A whole call, as bytes of a connection, and what other protocols begin with."""
    path = f"/{GLOW}/ListModels".encode()
    headers = b"\x83\x86\x04" + _text(path) + b"\x01" + _text(b"localhost")
    headers += b"\0" + _text(b"content-type") + _text(b"application/grpc")
    headers += b"\0" + _text(b"te") + _text(b"trailers")
    call = _frame(4, 0, 0, b"") + _frame(1, 4, 1, headers) + _frame(0, 1, 1, bytes(5))
    others = _frame(6, 0, 0, bytes(8)) + _frame(8, 0, 0, b"\0\0\x10\0") + _frame(3, 0, 1, bytes(4))
    return [
        _PREFACE + call,
        _PREFACE + call + others,
        _PREFACE + _frame(4, 0, 0, b"\0\x05\0\xff\xff\xff") + call + _frame(9, 4, 1, headers),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(512),
    ]


def _http_bytes() -> list[bytes]:
    lines = (
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text; version=1.0.0; q=0.5\r\n\r\n",
        b"GET /metrics?name[]=glowserve_ready&name[]=%ff HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\nContent-Type: a/b\r\n\r\nhello",
        b"OPTIONS * HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
        b"GET /metrics\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 120 + b"\r\n",
    )
    return list(lines)


def test_garbage_on_the_ports_is_turned_away(target: Target, unharmed: None) -> None:
    findings = Findings("ports")
    ports = {
        "gRPC": (target.address, _grpc_bytes()),
        "metrics": (address_of(target.metrics_url), _http_bytes()),
    }

    async def one(number: int) -> None:
        rng = random.Random(f"{SEED}/ports/{number}")
        name = rng.choice(sorted(ports))
        address, good = ports[name]
        data = rng.choice(good)
        data = rng.randbytes(rng.randint(0, 300)) if rng.random() < 0.1 else mutated(rng, data, good)
        status, answer = await turned_away(address, data)
        allowed = {"closed"} if name == "gRPC" else {"closed", *HTTP}
        words = answer[:1000].decode(errors="replace") if status not in ("200", "closed") else "OK"
        findings.add(number, name, status, allowed, words, data)

    asyncio.run(at_once(one, cases("ports")))
    findings.finish()


def address_of(url: str) -> str:
    return url.removeprefix("http://").partition("/")[0]


async def turned_away(address: str, data: bytes) -> tuple[str, bytes]:
    """What becomes of a connection on which this is sent and no more: "open", "closed", or HTTP's status."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while part := await reader.read(2**16):
                answer += part
    except TimeoutError:
        return "open", answer
    except OSError:  # it was reset
        pass
    finally:
        writer.transport.abort()
    found = re.match(rb"HTTP/1\.[01] (\d+)", answer)
    return (found[1].decode() if found else "closed"), answer
