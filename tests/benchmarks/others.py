"""LitServe, MLServer and Ray Serve: their packages, the settings that are tried, and their requests."""

from __future__ import annotations

import importlib.metadata
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from load import Request
from running import OUT, SERVERS, Server

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip

REQUIREMENTS = {
    "litserve": ("litserve==0.2.19",),
    "mlserver": ("mlserver==1.7.1", "uvloop<0.22"),  # with newer ones its worker processes do not start
    "ray_serve": ("ray[serve]==2.60.0",),
}
"""The packages of each server; the onnxruntime and numpy of this environment are installed as well."""

NAMES = {"litserve": "LitServe", "mlserver": "MLServer", "ray_serve": "Ray Serve"}
# For each server: the largest batch, how many milliseconds a batch waits to be full, and the number of processes.
_SETTINGS = {
    "litserve": ((32, 1, 1), (32, 1, 2), (32, 10, 2), (64, 5, 1)),
    "mlserver": ((32, 1, 0), (32, 1, 1), (32, 10, 2), (64, 5, 1)),
    "ray_serve": ((32, 1, 1), (32, 1, 2)),
}
# As its documentation advises. Each of its settings is also tried with HAProxy in front of it.
_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def variants(other: str, graph: Path, image: UInt8Array) -> list[Server]:
    """A server with each of its settings.

    Args:
        other: a key of `NAMES`.
        graph: forward.onnx.
        image: uint8 [1, H, W, C], which callers send.
    """
    script, request = (str(_python(other)), str(SERVERS / f"{other}_server.py")), _request(other, image)
    servers = []
    for size, delay, workers in _SETTINGS[other]:
        name = f"{NAMES[other]} (batches of {size}, {delay} ms, {workers} processes"
        flags = ("--max-batch-size", str(size), "--delay-ms", str(delay), "--workers", str(workers))
        command = (*script, "--graph", str(graph), *flags)
        if other == "ray_serve":
            proxy = _RAY | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
            servers.append(Server(f"{name}, HAProxy)", command, request, proxy))
        servers.append(Server(f"{name})", command, request, _RAY if other == "ray_serve" else {}))
    return servers


def _request(other: str, image: UInt8Array) -> Request:
    pixels = image.tobytes()
    if other != "mlserver":
        return Request(pixels)
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    raw = struct.pack("<I", len(pixels)) + pixels
    infer = oip.ModelInferRequest(model_name="glow", inputs=[tensor], raw_input_contents=[raw])
    return Request(infer.SerializeToString(), "/inference.GRPCInferenceService/ModelInfer")


def _python(other: str) -> Path:
    return OUT / f"venv-{other}" / "bin" / "python"


def install(other: str) -> None:
    """Installs a server into an environment of its own, unless it is there."""
    onnxruntime = f"onnxruntime=={importlib.metadata.version('onnxruntime')}"
    wanted = (*REQUIREMENTS[other], onnxruntime, f"numpy=={np.__version__}")
    stamp = OUT / f"venv-{other}" / "installed"
    if stamp.exists() and stamp.read_text().split() == list(wanted):
        return
    print(f"installing {' '.join(wanted)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", stamp.parent], check=True)
    pip = [str(_python(other)), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, *wanted], check=True)
    stamp.write_text(" ".join(wanted))
