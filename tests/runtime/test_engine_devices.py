"""The way of `--device` to an engine on a machine without a GPU, with onnxruntime and with onnxruntime-gpu.

`make test-gpu-wheel` runs these tests with onnxruntime-gpu.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError, DeviceError
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.repository import Bundle
from glowserve.runtime.sessions import CUDA, TENSORRT
from tests.runtime.gpu import with_gpu_wheel, without_gpu
from tests.servers import StartServer, failed_start


@without_gpu
@pytest.mark.parametrize(("device", "library"), [("cuda", "libcuda.so.1"), ("tensorrt", "libnvinfer.so.10")])
def test_a_service_for_a_gpu_does_not_start_without_one_and_says_why(
    repository: Path, device: str, library: str
) -> None:
    flags = ["--repository", str(repository), "--port", "0", "--metrics-port", "0", "--log-format", "json"]
    *log, message = failed_start(*flags, "--device", device)
    assert [json.loads(line)["level"] for line in log] == ["ERROR"], log
    assert message.startswith(f"device is '{device}', and ")
    assert message.endswith("or use device 'cpu'")
    if CUDA in onnxruntime.get_available_providers():
        assert f"ONNX Runtime cannot use it: {library}: cannot open shared object file" in message
    else:
        assert "install glowserve[gpu] in place of glowserve[cpu]" in message


@without_gpu
@with_gpu_wheel
def test_a_service_with_device_auto_warns_that_it_runs_on_the_cpu(start_server: StartServer) -> None:
    with start_server("--device", "auto", "--log-format", "json") as server:
        log = [json.loads(line) for line in server.stop().splitlines()]
    warnings = [line["message"] for line in log if line["level"] == "WARNING"]
    assert [message.partition(": libcuda.so.1:")[0] for message in warnings] == [
        "running on the CPU: device is 'cuda', and ONNX Runtime cannot use it"
    ]


@without_gpu
@with_gpu_wheel
def test_cuda_does_not_replace_tensorrt(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceError, match="device is 'tensorrt', and ONNX Runtime cannot use it: libnvinfer"):
        Engine(bundle, RuntimeConfig(device="tensorrt"))
    assert "Falling back" not in capfd.readouterr().out


@pytest.mark.skipif(TENSORRT in onnxruntime.get_available_providers(), reason="onnxruntime has TensorRT")
def test_tensorrt_is_refused_if_onnxruntime_does_not_have_it(bundle: Bundle) -> None:
    with pytest.raises(
        DeviceError, match=r"device is 'tensorrt', .* has no TensorRT; install glowserve\[gpu\]"
    ):
        Engine(bundle, RuntimeConfig(device="tensorrt"))


def test_an_int8_bundle_is_refused_on_cuda_and_runs_on_the_cpu_with_auto(bundle: Bundle) -> None:
    manifest = type(bundle.manifest).FromString(bundle.manifest.SerializeToString())
    manifest.flow.precision = "int8"
    int8 = replace(bundle, manifest=manifest)
    with pytest.raises(
        BundleError, match=r"it is int8, which CUDA does not run .* fp16 or fp32, or use device"
    ):
        Engine(int8, RuntimeConfig(device="cuda"))
    assert Engine(int8, RuntimeConfig(device="auto")).device == "cpu"
