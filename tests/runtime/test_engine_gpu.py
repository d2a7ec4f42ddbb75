"""The engine on a GPU: correct as on the CPU, independent of the batch, and loaded beside engines that run.

Skipped without a GPU. `make test-gpu-wheel` runs these tests with onnxruntime-gpu.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.models.loading import load_model

from glowserve.images import UInt8Array
from glowserve.mismatch import mismatched_values
from glowserve.runtime.buffers import BoundSession
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.explanation import sum_error
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import Bundle
from glowserve.runtime.sessions import CUDA
from tests.runtime.gpu import SIZES, TOLERANCE, assert_nearly_equal, with_gpu_wheel

pytestmark = with_gpu_wheel

# Results


def test_every_node_runs_on_the_gpu(gpu: Engine) -> None:
    assert gpu.device == "cuda"
    assert {(placed.graph, placed.provider) for placed in gpu.placements} == {
        ("forward.onnx", CUDA),
        ("reverse.onnx", CUDA),
    }


@pytest.mark.parametrize("size", [1, 3, 8, 32, 50])  # 50 has no buffers
def test_both_graphs_compute_what_they_do_on_the_cpu(
    gpu: Engine, engine: Engine, digits: UInt8Array, size: int
) -> None:
    images, noise = digits[:size], dequantization_noise(5, digits[:size])
    ours, theirs = gpu.forward(images, noise), engine.forward(images, noise)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, rtol=TOLERANCE)
    np.testing.assert_allclose(ours.latent, theirs.latent, rtol=1e-4, atol=1e-4)
    drawn = latents(1, 0, size, 64, 0.7)
    assert_nearly_equal(gpu.reverse(drawn).image, engine.reverse(drawn).image)


def test_explanations_are_those_of_the_cpu(gpu: Engine, engine: Engine, digits: UInt8Array) -> None:
    noise = dequantization_noise(0, digits)
    ours, theirs = gpu.explain(digits, noise), engine.explain(digits, noise)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert sum_error(ours, gpu.forward(digits, noise).log_likelihood).max() < 1e-5


def test_encoded_images_decode_to_themselves(gpu: Engine, digits: UInt8Array) -> None:
    for i in range(0, len(digits), 32):
        part = digits[i : i + 32]
        encoded = gpu.forward(part, np.full(part.shape, 0.5, np.float32)).latent
        assert mismatched_values(part, gpu.reverse(encoded), 4).sum() == 0


# Batches and threads


def test_results_hardly_depend_on_the_batch(gpu: Engine, digits: UInt8Array) -> None:
    images, noise = digits[:32], dequantization_noise(0, digits[:32])
    whole, drawn = gpu.forward(images, noise), gpu.reverse(latents(3, 0, 32, 64)).image
    for size in (1, 2, 5, 16):
        for i in range(0, 32, size):
            part = gpu.forward(images[i : i + size], noise[i : i + size])
            expected = whole.log_likelihood[i : i + size]
            np.testing.assert_allclose(part.log_likelihood, expected, rtol=TOLERANCE)
        parts = [gpu.reverse(latents(3, i, min(size, 32 - i), 64)).image for i in range(0, 32, size)]
        assert_nearly_equal(np.concatenate(parts), drawn)


def test_the_same_batch_gives_the_same_bits(gpu: Engine, digits: UInt8Array) -> None:
    noise = dequantization_noise(0, digits[:8])
    first = gpu.forward(digits[:8], noise)
    gpu.forward(digits[50:58], noise)
    again = gpu.forward(digits[:8], noise)
    for one, other in zip(vars(first).values(), vars(again).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_image_that_overflows_does_not_affect_other_images(gpu: Engine) -> None:
    drawn = latents(0, 0, 4, 64)
    lost = drawn.copy()
    lost[1] = 3e38
    alone, together = gpu.reverse(drawn), gpu.reverse(lost)
    assert not np.isfinite(together.pixels[1]).all()
    keep = [0, 2, 3]
    np.testing.assert_array_equal(together.pixels[keep], alone.pixels[keep])
    np.testing.assert_array_equal(gpu.reverse(drawn).pixels, alone.pixels)


def test_threads_get_their_own_results(gpu: Engine, digits: UInt8Array) -> None:
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


# Capturing CUDA graphs


def test_cuda_graphs_are_captured_while_other_engines_run_and_close(
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


def test_a_model_whose_cuda_graph_cannot_be_captured_is_refused(
    gpu: Engine, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *args: object) -> None:
        raise RuntimeError("CUDA error 901")

    monkeypatch.setattr("glowserve.runtime.buffers._Buffers.capture", fail)
    config = ServiceConfig(repository=repository, device="cuda")
    with pytest.raises(BundleError, match="its first run failed: CUDA error 901"):
        load_model(repository / "digits" / "1", config)


def test_a_model_that_needs_more_memory_than_the_limit_is_refused(gpu: Engine, repository: Path) -> None:
    config = ServiceConfig(repository=repository, device="cuda", gpu_memory_mib=1, max_batch_size=1024)
    with pytest.raises(BundleError, match=r"digits/1: its first run failed: .*(?i:memory|limit)"):
        load_model(repository / "digits" / "1", config)


def test_a_replayed_cuda_graph_computes_what_a_plain_run_does(
    gpu: Engine, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, noise = digits[:4], dequantization_noise(0, digits[:4])
    replayed = gpu.forward(images, noise)
    bound = gpu._forward.narrow
    assert isinstance(bound, BoundSession)
    monkeypatch.setattr(bound, "_buffers", {})
    plain = gpu.forward(images, noise)
    for one, other in zip(vars(replayed).values(), vars(plain).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=1e-5)
