"""A running service whose models change, and the repository that it serves."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from glowserve_service.frontends.frontends import Frontends
from glowserve_service.models.served_model import ServedModel
from glowserve_service.server import Server

from glowserve.messages import float_tensor
from glowserve.v1 import glow_service_pb2 as pb
from tests.service import metrics
from tests.service.stubs import Stubs

T = TypeVar("T")

POLL: dict[str, Any] = {"poll_seconds": 0.1, "canary_seconds": 0}
"""Settings of a service that follows its repository."""
ON_REQUEST: dict[str, Any] = {"poll_seconds": 0, "canary_seconds": 0, "admin": "on"}
"""Settings of a service that loads and unloads models when a call asks for it, or a test calls `poll`."""


class RunningService(Stubs):
    """A server in this process, stubs of its services, and short questions about its models."""

    def __init__(self, server: Server, channel: grpc.Channel) -> None:
        super().__init__(channel)
        self.server = server

    def served(self) -> list[tuple[str, int]]:
        """Names and versions of the models that are served."""
        listed = self.glow.ListModels(pb.ListModelsRequest()).models
        return [(each.model.name, each.model.version) for each in listed]

    def not_served(self) -> list[tuple[str, int, str]]:
        """Names, versions and states of the versions that were found and are not served."""
        listed = self.glow.ListModels(pb.ListModelsRequest()).not_served
        return [
            (each.model.name, each.model.version, pb.ModelState.Name(each.state).removeprefix("MODEL_STATE_"))
            for each in listed
        ]

    def reason(self) -> str:
        """Why the one version that is not served is not."""
        (each,) = self.glow.ListModels(pb.ListModelsRequest()).not_served
        return str(each.reason)

    def answering_version(self, name: str = "digits", version: int = 0) -> int:
        """The version that answers a call to a model; 0 asks for the newest."""
        spec = pb.ModelSpec(name=name, version=version)
        latents = float_tensor(np.zeros((1, 64), np.float32))
        return int(self.glow.Decode(pb.DecodeRequest(model=spec, latents=latents)).model.version)

    def load(self, name: str = "digits") -> list[int]:
        """Loads a model, and returns the versions that are served of it."""
        response = self.glow.LoadModel(pb.LoadModelRequest(name=name))
        return [each.model.version for each in response.models]

    def unload(self, name: str = "digits") -> None:
        """Unloads a model."""
        self.glow.UnloadModel(pb.UnloadModelRequest(name=name))

    def value(self, name: str, **labels: str) -> float:
        """A metric; 0 if there is no such series."""
        return metrics.value(self.server, name, **labels)

    def loads(self, outcome: str) -> float:
        """How many versions of the digits were loaded or refused."""
        return self.value("model_loads_total", model="digits", outcome=outcome)

    def has_info(self, version: int) -> bool:
        """Whether the metric model_info names that version of the digits."""
        kind = {"device": "cpu", "provider": "CPUExecutionProvider", "precision": "fp32"}
        return metrics.has_series(self.server, "model_info", model="digits", version=str(version), **kind)

    def model(self, name: str = "digits", version: int = 0) -> ServedModel:
        """The object that serves a model."""
        return self.server.manager._models.find(name, version)

    def poll(self) -> None:
        """Looks at the repository, as the service does at each interval."""
        self.run(self.server.manager._poll())
        if isinstance(self.server.front, Frontends):
            self.run(self.server.front._informed())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine in the server's event loop."""
        loop: asyncio.AbstractEventLoop = self.server.loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)


RunService = Callable[..., AbstractContextManager[RunningService]]


def publish(source: Path, target: Path) -> None:
    """Copies a bundle into the repository as the exporter does: the folder appears as a whole."""
    staging = target.parent / f".staging-{target.name}"
    shutil.copytree(source, staging)
    staging.rename(target)


def damage(version: Path) -> None:
    """Flips a bit of a graph."""
    data = bytearray((version / "forward.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (version / "forward.onnx").write_bytes(data)
