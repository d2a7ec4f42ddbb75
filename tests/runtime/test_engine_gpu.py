"""The engine on a GPU: as right as on the CPU, the same in every company, all of it there, and loaded while it works.

Skipped where there is no GPU; `make test-gpu-wheel` runs it with onnxruntime-gpu.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.models.models import load_model
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.buffers import BoundSession
from glowserve.runtime.checks import mismatched_values
from glowserve.runtime.config import RuntimeConfig, bucket_sizes
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError, DeviceError
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import Bundle
from glowserve.runtime.sessions import CUDA
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import wait_for

pytestmark = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="onnxruntime has no CUDA; make test-gpu-wheel"
)

RunServer = Callable[..., Any]

SIZES = bucket_sizes(32)
# On a GPU a batch of another size may take other kernels.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def gpu(bundle: Bundle) -> Iterator[Engine]:
    """As a service with `--device cuda` runs the shared model."""
    try:
        made = Engine(bundle, RuntimeConfig(device="cuda", batch_sizes=SIZES))
    except DeviceError as error:
        pytest.skip(f"no GPU that works: {error}")
    yield made
    made.close()


# What it computes


def test_every_node_runs_on_the_gpu(gpu: Engine) -> None:
    assert gpu.device == "cuda"
    assert {(placed.graph, placed.provider) for placed in gpu.placements} == {
        ("forward.onnx", CUDA),
        ("reverse.onnx", CUDA),
    }


@pytest.mark.parametrize("size", [1, 3, 8, 32, 50])  # 50 has no buffers
def test_both_ways_compute_what_the_cpu_does(
    gpu: Engine, engine: Engine, digits: UInt8Array, size: int
) -> None:
    images, noise = digits[:size], dequantization_noise(5, digits[:size])
    ours, theirs = gpu.forward(images, noise), engine.forward(images, noise)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, rtol=TOLERANCE)
    np.testing.assert_allclose(ours.latent, theirs.latent, rtol=1e-4, atol=1e-4)
    drawn = latents(1, 0, size, 64, 0.7)
    assert_nearly_all_the_same(gpu.reverse(drawn).image, engine.reverse(drawn).image)


def test_encoded_images_decode_to_themselves(gpu: Engine, digits: UInt8Array) -> None:
    for i in range(0, len(digits), 32):
        part = digits[i : i + 32]
        encoded = gpu.forward(part, np.full(part.shape, 0.5, np.float32)).latent
        assert mismatched_values(part, gpu.reverse(encoded), 4).sum() == 0


def assert_nearly_all_the_same(images: UInt8Array, others: UInt8Array) -> None:
    """A level on one pixel in 10,000 may be another, and one pixel of few."""
    difference = np.abs(images.astype(int) - others)
    assert difference.max() <= 17  # a level of 4 bits
    assert np.count_nonzero(difference) <= max(1, difference.size // 10_000)


# In what company


def test_a_score_hardly_depends_on_the_batch_it_was_in(gpu: Engine, digits: UInt8Array) -> None:
    images, noise = digits[:32], dequantization_noise(0, digits[:32])
    whole, drawn = gpu.forward(images, noise), gpu.reverse(latents(3, 0, 32, 64)).image
    for size in (1, 2, 5, 16):
        for i in range(0, 32, size):
            part = gpu.forward(images[i : i + size], noise[i : i + size])
            expected = whole.log_likelihood[i : i + size]
            np.testing.assert_allclose(part.log_likelihood, expected, rtol=TOLERANCE)
        parts = [gpu.reverse(latents(3, i, min(size, 32 - i), 64)).image for i in range(0, 32, size)]
        assert_nearly_all_the_same(np.concatenate(parts), drawn)


def test_the_same_batch_gives_the_same_bits_again(gpu: Engine, digits: UInt8Array) -> None:
    noise = dequantization_noise(0, digits[:8])
    first = gpu.forward(digits[:8], noise)
    gpu.forward(digits[50:58], noise)
    again = gpu.forward(digits[:8], noise)
    for one, other in zip(vars(first).values(), vars(again).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_image_that_overflows_leaves_its_neighbours_alone(gpu: Engine) -> None:
    drawn = latents(0, 0, 4, 64)
    lost = drawn.copy()
    lost[1] = 3e38
    alone, together = gpu.reverse(drawn), gpu.reverse(lost)
    assert not np.isfinite(together.pixels[1]).all()
    keep = [0, 2, 3]
    np.testing.assert_array_equal(together.pixels[keep], alone.pixels[keep])
    np.testing.assert_array_equal(gpu.reverse(drawn).pixels, alone.pixels)


def test_calls_from_several_threads_get_their_own_results(gpu: Engine, digits: UInt8Array) -> None:
    batches = [digits[i : i + 1 + i % 40] for i in range(0, 120, 3)]

    def both_ways(batch: UInt8Array) -> tuple[Any, Any]:
        forward = gpu.forward(batch, dequantization_noise(0, batch))
        return forward.log_likelihood, gpu.reverse(forward.latent).pixels

    one_by_one = [both_ways(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        at_once = list(pool.map(both_ways, batches * 5))
    for i, found in enumerate(at_once):
        for one, other in zip(found, one_by_one[i % len(batches)], strict=True):
            np.testing.assert_array_equal(one, other)


# While others work


def test_graphs_are_captured_beside_engines_that_run_and_engines_that_go(
    gpu: Engine, bundle: Bundle, digits: UInt8Array
) -> None:
    images, noise = digits[:8], dequantization_noise(0, digits[:8])
    expected = gpu.forward(images, noise).log_likelihood
    ended = threading.Event()

    def keep_running() -> int:
        runs = 0
        while not ended.is_set():
            np.testing.assert_array_equal(gpu.forward(images, noise).log_likelihood, expected)
            runs += 1
        return runs

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(keep_running) for _ in range(3)]
        try:
            for _ in range(4):
                other = Engine(bundle, RuntimeConfig(device="cuda", batch_sizes=SIZES))
                found = other.forward(images, noise).log_likelihood
                np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
                other.close()
        finally:
            ended.set()
        assert all(done.result(60) > 10 for done in running)


def test_a_graph_that_cannot_be_captured_refuses_the_model(
    gpu: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *args: object) -> None:
        raise RuntimeError("CUDA error 901")

    monkeypatch.setattr("glowserve.runtime.buffers._Buffers.capture", fail)
    config = ServiceConfig(repository=repository, device="cuda")
    with pytest.raises(BundleError, match="its first run failed: CUDA error 901"):
        load_model(repository / "digits" / "1", config)


def test_a_model_that_needs_more_memory_than_it_may_take_is_refused(gpu: Engine, repository: Path) -> None:
    config = ServiceConfig(repository=repository, device="cuda", gpu_memory_mib=1, max_batch_size=1024)
    with pytest.raises(BundleError, match=r"digits/1: its first run failed: .*(?i:memory|limit)"):
        load_model(repository / "digits" / "1", config)


def test_a_replayed_graph_computes_what_a_plain_run_does(
    gpu: Engine, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, noise = digits[:4], dequantization_noise(0, digits[:4])
    replayed = gpu.forward(images, noise)
    bound = gpu._forward
    assert isinstance(bound, BoundSession)
    monkeypatch.setattr(bound, "_buffers", {})
    plain = gpu.forward(images, noise)
    for one, other in zip(vars(replayed).values(), vars(plain).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=1e-5)


# Behind the service


def test_a_service_scores_and_samples_on_the_gpu_and_says_so(
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
        assert_nearly_all_the_same(drawn, on_cpu.sample(100, seed=2).images)
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
            return float(value(server, "model_loads_total", model="digits", outcome="loaded"))

        def keep_calling() -> int:
            calls = 0
            while not ended.is_set():
                client.score(digits[:5], seed=0)
                client.sample(3, seed=0)
                calls += 1
            return calls

        callers = [pool.submit(keep_calling) for _ in range(8)]
        try:
            for i in range(3):  # the files are new, so that the same version is loaded again
                time.sleep(0.5)
                replaced = tmp_path / "replaced"
                shutil.copytree(other, replaced)
                (models / "digits" / "1").rename(tmp_path / f"gone-{time.monotonic_ns()}")
                replaced.rename(models / "digits" / "1")
                wait_for(lambda loaded=2 + i: loads() == loaded)
        finally:
            ended.set()
        assert all(caller.result(60) > 10 for caller in callers)
        assert value(server, "canary_checks_total", model="digits", outcome="failed") == 0


def value(server: Server, name: str, **labels: str) -> float:
    """Of a metric."""
    found = server.metrics.registry.get_sample_value(f"glowserve_{name}", labels)
    assert found is not None
    return found
