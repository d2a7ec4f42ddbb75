"""The way of a call through a service on a GPU. Skipped without a GPU, as test_engine_gpu.py."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine
from glowserve.runtime.sessions import CUDA
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.runtime.gpu import TOLERANCE, assert_nearly_equal, with_gpu_wheel
from tests.servers import RunServer
from tests.service.wire import wait_for

pytestmark = with_gpu_wheel


def value(server: Server, name: str, **labels: str) -> float:
    """The value of a metric; 0 before it has one."""
    return server.metrics.registry.get_sample_value(f"glowserve_{name}", labels) or 0.0


def test_a_service_scores_and_samples_on_the_gpu(
    gpu: Engine, run_server: RunServer, repository: Path, digits: UInt8Array
) -> None:
    on_cpu = glowserve.open(repository / "digits", device="cpu")
    with (
        run_server(device="cuda") as server,
        glowserve.Client(f"127.0.0.1:{server.port}") as client,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        placed = GlowServiceStub(channel).GetModel(pb.GetModelRequest()).graphs
        assert {graph.provider for graph in placed} == {CUDA}
        scores, expected = client.score(digits[:100], seed=3), on_cpu.score(digits[:100], seed=3)
        np.testing.assert_allclose(scores.log_likelihood, expected.log_likelihood, rtol=TOLERANCE)
        drawn = client.sample(100, seed=2).images
        assert_nearly_equal(drawn, on_cpu.sample(100, seed=2).images)
        encoded = client.encode(digits[:20])
        assert not encoded.mismatched_values.any()


def test_a_new_version_is_loaded_under_load_and_no_call_fails(
    gpu: Engine, run_server: RunServer, repository: Path, tmp_path: Path, digits: UInt8Array
) -> None:
    models = tmp_path / "models"
    shutil.copytree(repository / "digits" / "1", models / "digits" / "1")
    other = tmp_path / "other"
    shutil.copytree(repository / "digits" / "1", other)
    ended = threading.Event()
    settings = {"repository": models, "device": "cuda", "poll_seconds": 0.1, "canary_seconds": 0.2}
    with (
        run_server(**settings) as server,
        ThreadPoolExecutor(8) as pool,
        glowserve.Client(f"127.0.0.1:{server.port}") as client,
    ):

        def loads() -> float:
            return value(server, "model_loads_total", model="digits", outcome="loaded")

        def calls_made() -> float:
            return value(server, "requests_total", method="Score", model="digits", code="OK")

        def keep_calling() -> int:
            calls = 0
            while not ended.is_set():
                client.score(digits[:5], seed=0)
                client.sample(3, seed=0)
                calls += 1
            return calls

        callers = [pool.submit(keep_calling) for _ in range(8)]
        try:
            for i in range(3):  # new files make the service load the same version again
                called = calls_made()
                wait_for(lambda enough=called + 50: calls_made() >= enough)
                replaced = tmp_path / f"replaced-{i}"
                shutil.copytree(other, replaced)
                (models / "digits" / "1").rename(tmp_path / f"gone-{i}")
                replaced.rename(models / "digits" / "1")
                wait_for(lambda loaded=2 + i: loads() == loaded)
        finally:
            ended.set()
        assert all(caller.result(60) > 10 for caller in callers)
        assert value(server, "canary_checks_total", model="digits", outcome="failed") == 0
