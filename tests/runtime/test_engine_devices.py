"""Devices: a GPU that was asked for is used, or the service does not start. What it computes: test_engine_gpu.py.

With onnxruntime-gpu (`make test-gpu-wheel`) this is what happens where there is no GPU; with onnxruntime, where there
is no such provider.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError, DeviceError
from glowserve.runtime.repository import Bundle
from glowserve.runtime.sessions import (
    CUDA,
    TENSORRT,
    Graph,
    provider_options,
)

StartServer = Callable[..., Any]

FORWARD = Graph(b"", {"image": (32, 32, 3), "noise": (32, 32, 3)})


def _there_is_a_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_gpu = pytest.mark.skipif(_there_is_a_driver(), reason="there is a GPU's driver")
with_gpu_wheel = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="onnxruntime has no CUDA; make test-gpu-wheel"
)


def _library(name: str) -> Path:
    return Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"


# Where it does not work


@without_gpu
@pytest.mark.parametrize(("device", "library"), [("cuda", "libcuda.so.1"), ("tensorrt", "libnvinfer.so.10")])
def test_a_service_that_shall_use_a_gpu_does_not_start_without_and_says_why(
    repository: Path, device: str, library: str
) -> None:
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(repository)]
    command += ["--port", "0", "--metrics-port", "0", "--device", device, "--log-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    *logged, said = done.stderr.splitlines()
    assert [json.loads(line)["level"] for line in logged] == ["ERROR"], done.stderr
    assert said.startswith(f"glowserve: device is '{device}', and ")
    assert said.endswith("or use device 'cpu'")
    if CUDA in onnxruntime.get_available_providers():
        assert f"ONNX Runtime cannot use it: {library}: cannot open shared object file" in said
    else:
        assert "install glowserve[gpu] in place of glowserve[cpu]" in said


@without_gpu
@with_gpu_wheel
def test_a_service_that_may_use_a_gpu_warns_that_it_goes_on_without(start_server: StartServer) -> None:
    with start_server("--device", "auto", "--log-format", "json") as (process, _, _):
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    warnings = [line for line in map(json.loads, errors.splitlines()) if line["level"] == "WARNING"]
    assert [line["message"].partition(": libcuda.so.1:")[0] for line in warnings] == [
        "running on the CPU: device is 'cuda', and ONNX Runtime cannot use it"
    ]


@without_gpu
@with_gpu_wheel
def test_tensorrt_is_not_replaced_by_cuda_nor_auto_by_tensorrt(
    bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeviceError, match="device is 'tensorrt', and ONNX Runtime cannot use it: libnvinfer"):
        Engine(bundle, RuntimeConfig(device="tensorrt"))
    assert "Falling back" not in capfd.readouterr().out


@pytest.mark.skipif(TENSORRT in onnxruntime.get_available_providers(), reason="onnxruntime has TensorRT")
def test_tensorrt_is_refused_where_onnxruntime_has_none(bundle: Bundle) -> None:
    with pytest.raises(
        DeviceError, match=r"device is 'tensorrt', .* has no TensorRT; install glowserve\[gpu\]"
    ):
        Engine(bundle, RuntimeConfig(device="tensorrt"))


def test_int8_is_refused_for_cuda_by_its_bundle_alone_and_auto_takes_the_cpu(bundle: Bundle) -> None:
    manifest = type(bundle.manifest).FromString(bundle.manifest.SerializeToString())
    manifest.flow.precision = "int8"
    small = replace(bundle, manifest=manifest)
    with pytest.raises(
        BundleError, match=r"it is int8, which CUDA does not run .* fp16 or fp32, or use device"
    ):
        Engine(small, RuntimeConfig(device="cuda"))
    assert Engine(small, RuntimeConfig(device="auto")).device == "cpu"


# With which options


def test_tensorrt_is_told_of_every_input_from_one_row_to_the_largest_batch_and_to_write_nothing() -> None:
    options = provider_options(TENSORRT, FORWARD, RuntimeConfig(batch_sizes=(1, 48)))
    assert options["trt_profile_min_shapes"] == "image:1x32x32x3,noise:1x32x32x3"
    assert options["trt_profile_max_shapes"] == "image:48x32x32x3,noise:48x32x32x3"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"]
    assert {options[f"trt_{what}_enable"] for what in ("engine_cache", "timing_cache", "fp16")} == {"0"}


def test_a_limit_of_memory_is_in_bytes_and_there_is_none_by_itself() -> None:
    unlimited, limited = (
        [
            provider_options(p, FORWARD, RuntimeConfig(batch_sizes=(32,), gpu_memory_mib=mib))
            for p in (CUDA, TENSORRT)
        ]
        for mib in (0, 512)
    )
    assert [set(after) - set(before) for before, after in zip(unlimited, limited, strict=True)] == [
        {"gpu_mem_limit"},
        {"trt_max_workspace_size"},
    ]
    assert limited[0]["gpu_mem_limit"] == limited[1]["trt_max_workspace_size"] == str(512 * 2**20)


@pytest.mark.parametrize(("capture", "said"), [(True, "1"), (False, "0")])
def test_cuda_captures_graphs_only_where_it_is_told_to(capture: bool, said: str) -> None:
    options = provider_options(CUDA, FORWARD, RuntimeConfig(batch_sizes=(32,)), capture=capture)
    assert options["enable_cuda_graph"] == said


@with_gpu_wheel
@pytest.mark.parametrize(("provider", "name"), [(CUDA, "cuda"), (TENSORRT, "tensorrt")])
def test_the_wheels_provider_knows_every_option(provider: str, name: str) -> None:
    library = _library(name).read_bytes()
    options = provider_options(provider, FORWARD, RuntimeConfig(batch_sizes=(32,), gpu_memory_mib=512))
    unknown = [option for option in options if f"\0{option}\0".encode() not in library]
    assert not unknown
    assert b"\0no_such_option\0" not in library
