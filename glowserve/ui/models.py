"""The models of the service that a visitor can choose, and what the pages must know of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.client.async_client import AsyncClient
from glowserve.images import Preparation
from glowserve.messages import preparation_of
from glowserve.results import ModelInfo
from glowserve.v1.manifest_pb2 import Manifest

# The file of a bundle that p-values need: protos/glowserve/v1/manifest.proto.
_CALIBRATION = "calibration.npz"
_NOT_SERVED = ("LOADING", "REFUSED")


@dataclass(frozen=True)
class Model:
    """A version of a model."""

    name: str
    """Its name."""

    version: int
    """Its version, which all calls for one result name: another may be served a moment later."""

    shape: tuple[int, int, int]
    """H W C of its images."""

    preparation: Preparation
    """How a picture becomes an image."""

    calibration: npt.NDArray[np.float64]
    """The bits/dim of its calibration images, ascending."""

    has_p_values: bool
    """Whether it tells which images are anomalous."""


async def serving(client: AsyncClient) -> dict[str, ModelInfo]:
    """The newest version of each model that is served, by the model's name, ascending.

    Raises:
        RequestError: the service refused or failed.
    """
    served = [model for model in await client.models() if model.state not in _NOT_SERVED]
    return {model.name: model for model in sorted(served, key=lambda each: (each.name, each.version))}


async def describe(client: AsyncClient, name: str) -> Model:
    """The newest version of a model.

    Raises:
        RequestError: there is no such model, or the service failed.
    """
    return _model(await client.manifest(model=name))


def _model(manifest: Manifest) -> Model:
    image = manifest.image
    return Model(
        name=manifest.model,
        version=manifest.version,
        shape=(image.height, image.width, image.channels),
        preparation=preparation_of(manifest.preparation),
        calibration=np.sort(np.array(manifest.calibration.bits_per_dim)),
        has_p_values=_CALIBRATION in {file.name for file in manifest.files},
    )
