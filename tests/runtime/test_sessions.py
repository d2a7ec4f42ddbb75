"""The options of the execution providers, and the sessions that are opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.runtime import sessions
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.repository import FORWARD, Bundle
from glowserve.runtime.sessions import CUDA, TENSORRT, Cancellation, Graph, open_sessions, provider_options
from tests.runtime.gpu import with_gpu_wheel

GRAPH = Graph(b"", {"image": (32, 32, 3), "noise": (32, 32, 3)})


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_session_on_the_cpu_has_the_threads_of_the_settings(bundle: Bundle, threads: int) -> None:
    graph = Graph(bundle.read(FORWARD), {"image": bundle.shape, "noise": bundle.shape})
    device, ((session, _),) = open_sessions([graph], RuntimeConfig(device="cpu", threads=threads))
    assert device == "cpu"
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_session_options().intra_op_num_threads == threads


def test_a_session_has_no_more_threads_than_cores_that_may_be_used(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "cores", lambda: 1)
    graph = Graph(bundle.read(FORWARD), {})
    _, [(session, _)] = open_sessions([graph], RuntimeConfig(device="cpu"))
    assert session.get_session_options().intra_op_num_threads == 1


def test_tensorrt_has_the_shapes_from_one_row_to_the_largest_batch() -> None:
    options = provider_options(TENSORRT, GRAPH, RuntimeConfig(batch_sizes=(1, 48)))
    assert options["trt_profile_min_shapes"] == "image:1x32x32x3,noise:1x32x32x3"
    assert options["trt_profile_max_shapes"] == "image:48x32x32x3,noise:48x32x32x3"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"]


def test_tensorrt_writes_no_files_and_computes_in_fp32() -> None:
    options = provider_options(TENSORRT, GRAPH, RuntimeConfig(batch_sizes=(1, 48)))
    names = ("engine_cache", "timing_cache", "fp16")
    assert {options[f"trt_{name}_enable"] for name in names} == {"0"}


def test_cuda_computes_in_fp32() -> None:
    assert provider_options(CUDA, GRAPH, RuntimeConfig())["use_tf32"] == "0"


def test_the_limit_of_memory_is_given_in_bytes_and_there_is_none_by_default() -> None:
    unlimited, limited = (
        [
            provider_options(provider, GRAPH, RuntimeConfig(batch_sizes=(32,), gpu_memory_mib=mib))
            for provider in (CUDA, TENSORRT)
        ]
        for mib in (0, 512)
    )
    assert [set(after) - set(before) for before, after in zip(unlimited, limited, strict=True)] == [
        {"gpu_mem_limit"},
        {"trt_max_workspace_size"},
    ]
    assert limited[0]["gpu_mem_limit"] == limited[1]["trt_max_workspace_size"] == str(512 * 2**20)


@pytest.mark.parametrize(("capture", "option"), [(True, "1"), (False, "0")])
def test_cuda_captures_cuda_graphs_only_if_asked(capture: bool, option: str) -> None:
    options = provider_options(CUDA, GRAPH, RuntimeConfig(batch_sizes=(32,)), capture=capture)
    assert options["enable_cuda_graph"] == option


@with_gpu_wheel
@pytest.mark.parametrize(("provider", "name"), [(CUDA, "cuda"), (TENSORRT, "tensorrt")])
def test_the_providers_of_the_gpu_wheel_know_every_option(provider: str, name: str) -> None:
    folder = Path(onnxruntime.__file__).parent / "capi"
    library = (folder / f"libonnxruntime_providers_{name}.so").read_bytes()
    options = provider_options(provider, GRAPH, RuntimeConfig(batch_sizes=(32,), gpu_memory_mib=512))
    unknown = [option for option in options if f"\0{option}\0".encode() not in library]
    assert not unknown
    assert b"\0no_such_option\0" not in library


def test_a_cancellation_ends_the_opening_and_the_runs_of_a_bundle(bundle: Bundle, digits: UInt8Array) -> None:
    cancel = Cancellation()
    engine = Engine(bundle, RuntimeConfig(device="cpu"), cancel)
    noise = np.full(digits.shape, 0.5, np.float32)
    engine.forward(digits, noise)
    cancel()
    with pytest.raises(Exception, match="terminate flag"):
        engine.forward(digits, noise)
    with pytest.raises(BundleError, match=r"(?i)cannot load it: .*cancel"):
        Engine(bundle, RuntimeConfig(device="cpu"), cancel)
