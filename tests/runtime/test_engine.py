"""The engine: its results, their independence of batch and threads, its device, and damaged files."""

from __future__ import annotations

import hashlib
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.mismatch import mismatched_values
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError, DeviceError
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import Bundle, newest_bundle
from tests.runtime.wide import assert_wide_runs_are_the_same

without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime has CUDA"
)


# Results


def test_held_out_images_score_as_in_pytorch_in_double_precision(
    engine: Engine, digits: UInt8Array, request: pytest.FixtureRequest
) -> None:
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    from glowserve_training.checkpoint import load_checkpoint

    model = load_checkpoint(request.getfixturevalue("checkpoint")).model.double()
    noise = dequantization_noise(0, digits)
    with torch.no_grad():
        reference = model.log_prob(torch.from_numpy(digits), torch.from_numpy(noise).double()).numpy()
        latent = model.encode(torch.from_numpy(digits)).numpy()
    np.testing.assert_allclose(engine.forward(digits, noise).log_likelihood, reference, rtol=1e-5)
    encoded = engine.forward(digits, np.full(digits.shape, 0.5, np.float32)).latent
    np.testing.assert_allclose(encoded, latent, rtol=1e-4, atol=1e-4)


def test_encoded_images_decode_to_themselves(engine: Engine, digits: UInt8Array) -> None:
    encoded = engine.forward(digits, np.full(digits.shape, 0.5, np.float32))
    decoded = engine.reverse(encoded.latent)
    assert mismatched_values(digits, decoded, 4).sum() == 0
    np.testing.assert_array_equal(np.floor(decoded.pixels), digits >> 4)


def test_results_have_the_documented_types_and_shapes(engine: Engine, digits: UInt8Array) -> None:
    forward = engine.forward(digits[:5], dequantization_noise(0, digits[:5]))
    reverse = engine.reverse(forward.latent)
    arrays = {**vars(forward), **vars(reverse)}
    assert arrays.pop("log_posterior") is None  # the model has no classes
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "log_likelihood": ("float32", (5,)),
        "latent": ("float32", (5, 64)),
        "log_prior": ("float32", (5, 2)),
        "log_det": ("float32", (5, 2)),
        "image": ("uint8", (5, 8, 8, 1)),
        "pixels": ("float32", (5, 8, 8, 1)),
    }


def test_the_terms_and_the_constant_add_up_to_the_log_likelihood(
    engine: Engine, bundle: Bundle, digits: UInt8Array
) -> None:
    forward = engine.forward(digits, dequantization_noise(0, digits))
    total = forward.log_prior.sum(axis=1, dtype=np.float64) + forward.log_det.sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(forward.log_likelihood, total + bundle.manifest.log_det_constant, rtol=1e-6)


# Batches and threads


def test_results_do_not_depend_on_the_batch(engine: Engine, digits: UInt8Array) -> None:
    noise = dequantization_noise(0, digits)
    whole = engine.forward(digits, noise)
    for size in (1, 2, 7, 32):
        parts = [
            engine.forward(digits[i : i + size], noise[i : i + size]) for i in range(0, len(digits), size)
        ]
        for name in ("log_likelihood", "latent"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(
                joined, getattr(whole, name), err_msg=f"{name} in batches of {size}"
            )
    order = np.random.default_rng(0).permutation(len(digits))
    shuffled = engine.forward(digits[order], noise[order])
    np.testing.assert_array_equal(shuffled.log_likelihood, whole.log_likelihood[order])


def test_an_image_that_overflows_does_not_affect_other_images(engine: Engine, digits: UInt8Array) -> None:
    latent = engine.forward(digits[:3], np.full((3, 8, 8, 1), 0.5, np.float32)).latent
    alone = engine.reverse(latent)
    with_lost = np.insert(latent, 1, np.float32(3e38), axis=0)
    together = engine.reverse(with_lost)
    assert not np.isfinite(together.pixels[1]).all()
    for name in ("image", "pixels"):
        np.testing.assert_array_equal(np.delete(getattr(together, name), 1, axis=0), getattr(alone, name))


def test_threads_get_their_own_results(engine: Engine, digits: UInt8Array) -> None:
    batches = [digits[i : i + 1 + i % 5] for i in range(0, 160, 4)]

    def both_ways(batch: UInt8Array) -> tuple[np.ndarray, np.ndarray]:
        forward = engine.forward(batch, dequantization_noise(0, batch))
        return forward.log_likelihood, engine.reverse(forward.latent).pixels

    one_by_one = [both_ways(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(both_ways, batches * 3))
    for i, (nats, pixels) in enumerate(at_once):
        np.testing.assert_array_equal(nats, one_by_one[i % len(batches)][0])
        np.testing.assert_array_equal(pixels, one_by_one[i % len(batches)][1])


def test_results_do_not_depend_on_the_number_of_threads(
    engine: Engine, bundle: Bundle, digits: UInt8Array
) -> None:
    noise, drawn = dequantization_noise(0, digits), latents(0, 0, 16, 64)
    other = Engine(bundle, RuntimeConfig(device="cpu", threads=2))
    np.testing.assert_allclose(
        other.forward(digits, noise).log_likelihood,
        engine.forward(digits, noise).log_likelihood,
        rtol=1e-6,
    )
    np.testing.assert_allclose(other.reverse(drawn).pixels, engine.reverse(drawn).pixels, atol=1e-3)


@pytest.mark.parametrize("threads", [2, 4])
def test_wide_runs_compute_the_same_bits(bundle: Bundle, digits: UInt8Array, threads: int) -> None:
    engine = Engine(bundle, RuntimeConfig(device="cpu", threads=1, wide_threads=threads))
    assert engine.widens
    assert_wide_runs_are_the_same(engine, digits)


def test_without_threads_for_wide_runs_they_are_as_others(bundle: Bundle, digits: UInt8Array) -> None:
    engine = Engine(bundle, RuntimeConfig(device="cpu", threads=1))
    assert not engine.widens
    assert engine._forward.wide is engine._forward.narrow
    assert_wide_runs_are_the_same(engine, digits)


# Devices


def test_the_cpu_is_used_if_it_is_the_device(engine: Engine) -> None:
    assert engine.device == "cpu"


@without_cuda
def test_auto_is_the_cpu_if_onnxruntime_has_no_cuda(bundle: Bundle, digits: UInt8Array) -> None:
    engine = Engine(bundle, RuntimeConfig(device="auto"))
    assert engine.device == "cpu"
    assert np.isfinite(engine.forward(digits, dequantization_noise(0, digits)).log_likelihood).all()


@without_cuda
def test_cuda_is_refused_if_onnxruntime_does_not_have_it(bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match=r"device is 'cuda', .* has no CUDA; install glowserve\[gpu\]"):
        Engine(bundle, RuntimeConfig(device="cuda"))


@without_cuda
def test_cuda_that_does_not_work_is_refused_and_replaced_with_a_warning_by_auto(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # onnxruntime-gpu lists CUDA on a machine without a GPU.
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(DeviceError, match="device is 'cuda', and ONNX Runtime cannot use it"):
        Engine(bundle, RuntimeConfig(device="cuda"))
    with caplog.at_level(logging.WARNING, logger="glowserve.runtime.sessions"):
        assert Engine(bundle, RuntimeConfig(device="auto")).device == "cpu"
    assert "running on the CPU: device is 'cuda'" in caplog.text


@pytest.mark.parametrize("device", ["gpu", "cuda:1", ""])
def test_an_unknown_device_is_named(bundle: Bundle, device: str) -> None:
    with pytest.raises(
        DeviceError, match=f"device is '{device}'; it must be one of auto, cpu, cuda, tensorrt"
    ):
        Engine(bundle, RuntimeConfig(device=device))


# Files


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to damage."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "digits" / "1")
    return tmp_path / "digits" / "1"


@pytest.mark.parametrize("name", ["forward.onnx", "reverse.onnx"])
def test_a_graph_with_a_flipped_bit_is_refused(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        Engine(newest_bundle(copied), RuntimeConfig(device="cpu"))


def test_a_file_that_onnxruntime_cannot_load_is_refused(copied: Path) -> None:
    data = b"\x08\x09"  # an IR version, and no graph
    (copied / "reverse.onnx").write_bytes(data)
    bundle = newest_bundle(copied)
    next(file for file in bundle.manifest.files if file.name == "reverse.onnx").sha256 = hashlib.sha256(
        data
    ).hexdigest()
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        Engine(bundle, RuntimeConfig(device="cpu"))
