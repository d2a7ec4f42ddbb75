"""Starting and stopping, with processes and signals of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import raw, wait_for

StartServer = Callable[..., Any]
Process = subprocess.Popen[str]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

# Images wait this long for company that does not come: calls are in flight for as long as a test needs them to be.
SLOW = ("--max-queue-delay-ms", "4000")
STUCK = ("--max-queue-delay-ms", "600000")


def in_flight(metrics_url: str) -> float:
    with urllib.request.urlopen(metrics_url, timeout=60) as response:
        lines = response.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("glowserve_requests_in_flight ")).split()[1])


@contextmanager
def connected(target: str) -> Iterator[tuple[GlowServiceStub, health_pb2_grpc.HealthStub]]:
    """On a connection of its own."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield GlowServiceStub(channel), health_pb2_grpc.HealthStub(channel)


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def ending_of(process: Process) -> tuple[int, str]:
    """The exit code, and what was written to stderr."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_every_accepted_call_finish(
    start_server: StartServer, digits: UInt8Array, number: signal.Signals
) -> None:
    with start_server(*SLOW) as (process, target, metrics_url), connected(target) as (stub, health):
        watch = health.Watch(health_pb2.HealthCheckRequest(service="glowserve.v1.GlowService"))
        assert next(watch).status == SERVING
        with ThreadPoolExecutor(16) as pool:
            scores = [
                pool.submit(stub.Score, pb.ScoreRequest(images=raw(digits[i : i + 1]))) for i in range(6)
            ]
            request = pb.SampleRequest(n=5, temperature=0)
            streams = [pool.submit(lambda: list(stub.Sample(request))) for _ in range(4)]
            wait_for(lambda: in_flight(metrics_url) == 10)
            process.send_signal(number)
            assert next(watch).status == NOT_SERVING
            assert in_flight(metrics_url) == 10  # the metrics, too, are there to the last
            assert not any(call.done() for call in (*scores, *streams))
            with connected(target) as (refused, _):
                code = code_of(lambda: refused.ListModels(pb.ListModelsRequest()))
                assert code is grpc.StatusCode.UNAVAILABLE
            assert [len(score.result().scores) for score in scores] == 6 * [1]
            assert [len(stream.result()[0].images.encoded.data) for stream in streams] == 4 * [5]
        code, errors = ending_of(process)
    assert code == 0
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("stopped")


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2])
def test_a_signal_under_load_loses_no_call_that_was_accepted(
    start_server: StartServer, digits: UInt8Array, delay: float
) -> None:
    """Callers ask one call after the other: each is answered in full, or was refused as a whole."""

    def ask(first: int) -> list[grpc.StatusCode]:
        codes = []
        request = pb.ScoreRequest(images=raw(digits[first : first + 20]))
        with connected(target) as (stub, _):
            while codes[-1:] in ([], [grpc.StatusCode.OK]):
                try:
                    assert len(stub.Score(request, timeout=60).scores) == 20
                    codes.append(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.append(error.code())
                    messages.append(error.details())
        return codes

    messages: list[str] = []
    with start_server() as (process, target, metrics_url), ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(ask, first) for first in range(0, 160, 20)]
        wait_for(lambda: in_flight(metrics_url) >= 1)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        codes = [caller.result() for caller in callers]
        code, errors = ending_of(process)
    assert code == 0
    assert "Traceback" not in errors
    assert {answers[-1] for answers in codes} == {grpc.StatusCode.UNAVAILABLE}, messages


def test_a_signal_right_after_the_ready_line_ends_the_server_well(start_server: StartServer) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with start_server() as (process, _, _):
            process.send_signal(number)
            code, errors = ending_of(process)
        assert code == 0
        assert "Traceback" not in errors


def test_watches_hear_of_the_end_and_do_not_delay_it(start_server: StartServer) -> None:
    """One watch ends before: the others on the same service must hear of the end all the same."""
    with start_server("--drain-seconds", "600") as (process, target, _), connected(target) as (_, health):
        names = ("", "", "", "nobody")
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
        for watch in watches:
            next(watch)
        watches.pop(0).cancel()
        process.send_signal(signal.SIGTERM)
        assert [answer.status for watch in watches[:2] for answer in watch] == [NOT_SERVING, NOT_SERVING]
        assert ending_of(process)[0] == 0


def test_calls_that_outlast_the_drain_are_ended(start_server: StartServer, digits: UInt8Array) -> None:
    flags = (*STUCK, "--drain-seconds", "0.2")
    with start_server(*flags) as (process, target, metrics_url), connected(target) as (stub, _):
        calls = [
            stub.Score.future(pb.ScoreRequest(images=raw(digits[:3]))),
            stub.Sample(pb.SampleRequest(n=3)),
        ]
        wait_for(lambda: in_flight(metrics_url) == 2)
        process.send_signal(signal.SIGTERM)
        assert ending_of(process)[0] == 0
        assert {call.code() for call in calls} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_a_long_stream_does_not_outlast_the_drain(start_server: StartServer) -> None:
    with start_server("--drain-seconds", "0.2", "--max-samples-per-call", "100000000") as (
        process,
        target,
        _,
    ):
        with connected(target) as (stub, _):
            stream = stub.Sample(pb.SampleRequest(n=100_000_000, temperature=0))
            next(stream)
            process.send_signal(signal.SIGTERM)
            assert code_of(lambda: list(stream)) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert ending_of(process)[0] == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_at_once(
    start_server: StartServer, digits: UInt8Array, second: signal.Signals
) -> None:
    flags = (*STUCK, "--drain-seconds", "600")
    with start_server(*flags) as (process, target, metrics_url), connected(target) as (stub, health):
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        call = stub.Score.future(pb.ScoreRequest(images=raw(digits[:1])))
        wait_for(lambda: in_flight(metrics_url) == 1)
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert process.poll() is None
        process.send_signal(second)
        assert ending_of(process)[0] == -second
        assert call.code() is grpc.StatusCode.UNAVAILABLE


# Starting


def serve(*flags: str, **environment: str) -> tuple[int, list[str], str]:
    """Runs `glowserve serve`, which is to fail: exit code, sentences of ours on stderr, and all of stderr."""
    command = [sys.executable, "-m", "glowserve", "serve", "--device", "cpu", *flags]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GLOWSERVE_")}
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=kept | environment
    )
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    ours = [line for line in ended.stderr.splitlines() if line.startswith("glowserve: ")]
    return ended.returncode, ours, ended.stderr


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


ANY = ("--port", "0", "--metrics-port", "0")


def test_a_port_in_use_is_named(repository: Path, taken: int) -> None:
    code, (sentence,), _ = serve("--repository", str(repository), "--port", str(taken), "--metrics-port", "0")
    assert code == 2
    assert sentence == f"glowserve: port {taken} on 127.0.0.1 cannot be listened on; is it in use?"


def test_a_metrics_port_in_use_is_named(repository: Path, taken: int) -> None:
    code, (sentence,), _ = serve("--repository", str(repository), "--port", "0", "--metrics-port", str(taken))
    assert code == 2
    assert sentence.startswith(f"glowserve: metrics_port {taken} on 127.0.0.1 cannot be listened on: ")


def test_two_servers_do_not_share_a_port(start_server: StartServer, repository: Path) -> None:
    with start_server() as (_, target, _):
        port = target.split(":")[1]
        code, (sentence,), _ = serve("--repository", str(repository), "--port", port, "--metrics-port", "0")
    assert code == 2
    assert f"port {port} on 127.0.0.1" in sentence


def test_a_host_that_is_not_here_is_named(repository: Path) -> None:
    code, (sentence,), _ = serve("--repository", str(repository), "--host", "no-such-host.invalid", *ANY)
    assert code == 2
    assert "no-such-host.invalid" in sentence


def no_folder(repository: Path, path: Path) -> Path:
    return path / "nowhere"


def empty(repository: Path, path: Path) -> Path:
    return path


def a_file(repository: Path, path: Path) -> Path:
    (path / "file").touch()
    return path / "file"


def the_model_itself(repository: Path, path: Path) -> Path:
    return repository / "digits"


def copied(repository: Path, path: Path) -> Path:
    shutil.copytree(repository / "digits", path / "digits")
    return path / "digits" / "1"


def cut_graph(repository: Path, path: Path) -> Path:
    graph = copied(repository, path) / "forward.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    return path


def swapped_graph(repository: Path, path: Path) -> Path:
    bundle = copied(repository, path)
    shutil.copy(bundle / "forward.onnx", bundle / "reverse.onnx")
    return path


def no_graph(repository: Path, path: Path) -> Path:
    (copied(repository, path) / "reverse.onnx").unlink()
    return path


def cut_manifest(repository: Path, path: Path) -> Path:
    manifest = copied(repository, path) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:1000])
    return path


def no_manifest(repository: Path, path: Path) -> Path:
    (copied(repository, path) / "manifest.json").unlink()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_folder, "there is no such folder"),
        (empty, "holds no bundle MODEL/VERSION/manifest.json"),
        (a_file, "there is no such folder"),
        (the_model_itself, "holds no bundle"),
        (cut_graph, "forward.onnx is not the file that was exported"),
        (swapped_graph, "reverse.onnx is not the file that was exported"),
        (no_graph, "reverse.onnx cannot be read: No such file or directory"),
        (cut_manifest, "manifest.json is not the file that was exported"),
        (no_manifest, "holds no bundle MODEL/VERSION/manifest.json"),
    ],
)
def test_a_repository_that_cannot_be_served_is_told_in_a_sentence(
    repository: Path, tmp_path: Path, make: Callable[[Path, Path], Path], words: str
) -> None:
    path = make(repository, tmp_path)
    code, (sentence,), _ = serve("--repository", str(path), *ANY)
    assert code == 2
    assert words in sentence
    assert str(path) in sentence


def test_a_server_without_a_repository_says_what_is_missing() -> None:
    code, (sentence,), _ = serve(*ANY)
    assert code == 2
    assert "--repository (or $GLOWSERVE_REPOSITORY) is missing" in sentence


def test_a_bad_flag_and_a_bad_variable_are_told_in_a_sentence(repository: Path) -> None:
    code, (sentence,), _ = serve("--repository", str(repository), "--max-batch-size", "0", *ANY)
    assert code == 2
    assert sentence == "glowserve: max_batch_size is 0; it must be 1 or more"
    code, (sentence,), _ = serve("--repository", str(repository), *ANY, GLOWSERVE_MAX_BATCH_SIZE="many")
    assert code == 2
    assert sentence == "glowserve: $GLOWSERVE_MAX_BATCH_SIZE is 'many'; it must be of type int"
    code, (sentence,), _ = serve("--repository", str(repository), *ANY, GLOWSERVE_DRAIN_SECONDS="-1")
    assert code == 2
    assert sentence == "glowserve: drain_seconds is -1.0; it must be 0 or more"


def test_variables_set_what_flags_leave_open_and_flags_win(repository: Path, digits: UInt8Array) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # free again once this block ends
    environment = os.environ | {
        "GLOWSERVE_REPOSITORY": str(repository),
        "GLOWSERVE_GRPC_PORT": str(port),
        "GLOWSERVE_METRICS_PORT": "0",
        "GLOWSERVE_DEVICE": "cpu",
        "GLOWSERVE_MAX_IMAGES_PER_CALL": "3",
        "GLOWSERVE_MAX_SAMPLES_PER_CALL": "4",
        "GLOWSERVE_INSTANCES": "",  # as compose sets what is not set
    }
    command = [sys.executable, "-m", "glowserve", "serve", "--max-samples-per-call", "5"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert f" on 127.0.0.1:{port}, " in process.stdout.readline()
            with connected(f"127.0.0.1:{port}") as (stub, _):
                assert len(stub.Score(pb.ScoreRequest(images=raw(digits[:3]))).scores) == 3
                with pytest.raises(grpc.RpcError, match="1 to 3"):
                    stub.Score(pb.ScoreRequest(images=raw(digits[:4])))
                assert len(list(stub.Sample(pb.SampleRequest(n=5, temperature=0)))) == 1
                with pytest.raises(grpc.RpcError, match="1 to 5"):
                    list(stub.Sample(pb.SampleRequest(n=6)))
            process.send_signal(signal.SIGTERM)
            assert ending_of(process)[0] == 0
        finally:
            process.kill()


def test_a_server_that_is_loading_answers_unavailable_and_then_serves(
    repository: Path, tmp_path: Path, digits: UInt8Array
) -> None:
    """Sixty models take long enough to load to be asked meanwhile."""
    source = repository / "digits" / "1"
    for i in range(60):
        bundle = tmp_path / f"digits{i}" / "1"
        bundle.mkdir(parents=True)
        for file in source.iterdir():
            (bundle / file.name).symlink_to(file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(tmp_path)]
    command += ["--port", str(port), "--metrics-port", "0", "--device", "cpu"]
    request = pb.ScoreRequest(model=pb.ModelSpec(name="digits7"), images=raw(digits[:2]))
    refusals = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: listens(port))
            with connected(f"127.0.0.1:{port}") as (stub, health):
                status = health.Check(health_pb2.HealthCheckRequest()).status
                while not refusals or refusals[-1]:
                    try:
                        response = stub.Score(request, timeout=60)
                        refusals.append("")
                    except grpc.RpcError as error:
                        refusals.append(f"{error.code().name}: {error.details()}")
                        time.sleep(0.01)
            assert len(response.scores) == 2
            assert status == NOT_SERVING
            assert set(refusals) == {"", "UNAVAILABLE: the server is starting; try again"}
            process.send_signal(signal.SIGTERM)
            assert ending_of(process)[0] == 0
        finally:
            process.kill()


def test_a_signal_while_models_are_loaded_ends_the_server_well(repository: Path) -> None:
    """The signal comes as soon as the port is bound, which is before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(repository)]
    command += ["--port", str(port), "--metrics-port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: listens(port))
            process.send_signal(signal.SIGTERM)
            code, errors = ending_of(process)
        finally:
            process.kill()
    assert code == 0
    assert "Traceback" not in errors


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            return True
    except ConnectionRefusedError:
        return False
