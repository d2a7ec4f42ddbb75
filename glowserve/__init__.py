"""glowserve: a density service. Scores images under a Glow model, and draws samples from it.

client = glowserve.Client("localhost:8001")            # calls a running service
client = glowserve.open("out/demo/models/digits")      # or runs a bundle in this process
client.score("photo.jpg").bits_per_dim
"""

from __future__ import annotations

import importlib
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glowserve.client.async_client import AsyncClient
    from glowserve.client.client import Client
    from glowserve.client.errors import RequestError
    from glowserve.images import InvalidImageError
    from glowserve.results import (
        Encodings,
        Explanations,
        ImageError,
        ModelInfo,
        Samples,
        ScoredImages,
        SetScore,
    )
    from glowserve.scores import Scores
    from glowserve.scores.sets import FeatureDifference

__all__ = [
    "AsyncClient",
    "Client",
    "Encodings",
    "Explanations",
    "FeatureDifference",
    "ImageError",
    "InvalidImageError",
    "ModelInfo",
    "RequestError",
    "Samples",
    "ScoredImages",
    "Scores",
    "SetScore",
    "open",
]


# Imported when they are used (PEP 562): the command `glowserve` needs none of them to begin.
_MODULES = {
    "AsyncClient": "glowserve.client.async_client",
    "Client": "glowserve.client.client",
    "Encodings": "glowserve.results",
    "Explanations": "glowserve.results",
    "FeatureDifference": "glowserve.scores.sets",
    "ImageError": "glowserve.results",
    "InvalidImageError": "glowserve.images",
    "ModelInfo": "glowserve.results",
    "RequestError": "glowserve.client.errors",
    "Samples": "glowserve.results",
    "ScoredImages": "glowserve.results",
    "Scores": "glowserve.scores",
    "SetScore": "glowserve.results",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of the package's

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def open(model: str | PathLike[str], *, device: str = "auto") -> Client:  # noqa: A001  # as in PIL
    """Opens a bundle in this process: a client that needs no service. Requires the extra `cpu` or `gpu`.

    Args:
        model: REPOSITORY/MODEL, which opens the newest version, or REPOSITORY/MODEL/VERSION.
        device: "cpu", "cuda", "tensorrt", or "auto": CUDA if it works, else the CPU.

    Raises:
        glowserve.runtime.errors.GlowserveError: there is no bundle, it is damaged, or the device cannot be used.
    """
    from glowserve.client.client import Client
    from glowserve.client.transports.embedded import EmbeddedTransport
    from glowserve.runtime.config import RuntimeConfig

    return Client(transport=EmbeddedTransport(model, RuntimeConfig(device=device)))
