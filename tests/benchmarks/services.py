"""`glowserve serve`, of this checkout or another one, and an empty gRPC server that takes the same calls."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from load import Request
from models import random_images
from running import OUT, SERVERS, Server, free_port

from glowserve.images import UInt8Array
from glowserve.messages import images_message
from glowserve.v1 import glow_service_pb2 as pb


def glowserve_serve(
    version: Path,
    images: int,
    *flags: str,
    python: str = sys.executable,
    name: str = "glowserve serve",
    scores: Iterable[str] = (),
) -> Server:
    """A service with default settings, except for the flags, and a Score of so many raw images.

    Args:
        version: a VERSION folder of `models`; its whole repository is served.
        images: the number of images in a call.
        flags: of `glowserve serve`.
        python: the interpreter, in whose environment a checkout is installed.
        name: the name in tables.
        scores: that are asked for by name.
    """
    request = score_request(random_images(version.parent.name, images), scores=scores)
    return serve(version.parent.parent, request, *flags, python=python, name=name)


def serve(
    repository: Path,
    request: Request,
    *flags: str,
    python: str = sys.executable,
    name: str = "glowserve serve",
) -> Server:
    """A service of a repository, which any request may be sent to; the rest as in `glowserve_serve`."""
    command = (python, "-m", "glowserve", "serve", "--repository", str(repository))
    return Server(" ".join((name, *flags)), (*command, "--metrics-port", str(free_port()), *flags), request)


def score_request(
    images: UInt8Array | list[bytes], *, model: str = "", scores: Iterable[str] = ()
) -> Request:
    """A Score of images, uint8 [N, H, W, C], or of pictures' files."""
    spec = pb.ModelSpec(name=model)
    request = pb.ScoreRequest(model=spec, images=images_message(images), scores=scores)
    return Request(request.SerializeToString(), "/glowserve.v1.GlowService/Score")


def metrics_port(service: Server) -> str:
    """The port of a service's metrics."""
    return service.command[service.command.index("--metrics-port") + 1]


def package_folder(python: str) -> str:
    """Where the package lies that an interpreter imports as `glowserve`."""
    OUT.mkdir(parents=True, exist_ok=True)
    command = (python, "-c", "import glowserve; print(*glowserve.__path__)")
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=OUT).stdout.strip()


def empty_server(version: Path, images: int) -> Server:
    """A gRPC server that answers the same calls at once."""
    command = (sys.executable, str(SERVERS / "echo_server.py"))
    return Server("empty gRPC server", command, score_request(random_images(version.parent.name, images)))


def sleeping_server(empty: Server, milliseconds: float) -> Server:
    """The empty server, which sleeps in each call for as long as a run of the graph takes.

    It shows how long an idle core takes to wake up.
    """
    name = f"{empty.name} that sleeps {milliseconds:.1f} ms"
    return replace(empty, name=name, command=(*empty.command, "--wait-ms", f"{milliseconds:.3f}"))
