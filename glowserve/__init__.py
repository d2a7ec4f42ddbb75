"""glowserve: a density service. Scores images under a Glow model, and samples from it.

client = glowserve.Client("localhost:8001")            # a running service
model = glowserve.open("out/demo/models/digits")       # or a bundle, without one
client.score("photo.jpg").bits_per_dim
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from glowserve.client.async_client import AsyncClient
from glowserve.client.client import Client
from glowserve.client.errors import RequestError
from glowserve.images import InvalidImageError
from glowserve.results import (
    Encodings,
    ModelInfo,
    Samples,
    Scores,
)

if TYPE_CHECKING:
    from glowserve.client.transports.embedded import EmbeddedModel

__all__ = [
    "AsyncClient",
    "Client",
    "Encodings",
    "InvalidImageError",
    "ModelInfo",
    "RequestError",
    "Samples",
    "Scores",
    "open",
]


def open(model: str | PathLike[str], *, device: str = "auto") -> EmbeddedModel:  # noqa: A001  # as in PIL
    """Opens a bundle in this process; what comes back answers the same calls as `Client`.

    Needs the extra `cpu` or `gpu`.

    Args:
        model: REPOSITORY/MODEL, of which the newest version counts, or REPOSITORY/MODEL/VERSION.
        device: "cpu", "cuda", "tensorrt", or "auto": CUDA if it works, else the CPU.

    Raises:
        glowserve_service.errors.GlowserveError: there is no bundle, it is damaged, or the device cannot be used.
    """
    from glowserve.client.transports.embedded import EmbeddedModel

    return EmbeddedModel(model, device=device)
