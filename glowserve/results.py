"""The results of calls: named scores, explanations, samples, encodings and model descriptions.

`glowserve.scores` has the scores.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.scores import Part, Scores
from glowserve.scores.sets import FeatureDifference


@dataclass(frozen=True)
class ImageError:
    """Why one image has no scores."""

    index: int
    """How many images came before it."""

    name: str
    """Its path, also of an open file; images[INDEX], if it has none."""

    message: str
    """What is wrong with it, and what to do. Begins with the status if the service refused it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class ScoredImages(Scores):
    """The scores of N images with their names, and the images near them that have no scores."""

    indices: tuple[int, ...]
    """How many images came before each, [N], ascending."""

    names: tuple[str, ...]
    """The path of each, [N], also of an open file; images[INDEX], if it has none."""

    errors: tuple[ImageError, ...]
    """Images that cannot be read, or that the service refused: found since the scores before these, by index."""


@dataclass(frozen=True)
class Explanations:
    """Where N images are unlike held-out images, and which of their parts are out of line.

    `glowserve.heat_map` draws the deviations of one image. docs/heat-maps.md says how to read them.
    """

    deviations: npt.NDArray[np.float32]
    """How far the log-likelihood of each pixel lies from its mean among held-out images, in units of their standard
    deviation, [N, H, W]: negative where the image is less likely than usual, positive where it is more likely. Not
    numbers if the image is not `finite`."""

    parts: tuple[tuple[Part, ...], ...]
    """The parts of each image beside those of the calibration images, [N]; the farthest from usual first."""

    finite: npt.NDArray[np.bool_]
    """Whether the log-likelihood of each is in the range of float32, [N]."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    def __len__(self) -> int:
        return len(self.deviations)


@dataclass(frozen=True)
class Samples:
    """N images that were drawn from a model. Samples that are not finite are not among them."""

    images: UInt8Array
    """[N, H, W, C]."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    seed: int
    """The seed of the latents; the same seed gives the same images."""

    indices: npt.NDArray[np.int64]
    """The index of each image among the samples of the call, [N], ascending: all from 0, without `not_finite`."""

    not_finite: npt.NDArray[np.int64]
    """The indices of the samples that have no image, ascending: no attempt to draw them gave finite numbers. A high
    temperature or a barely trained model can cause that."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Encodings:
    """The latents of N images."""

    latents: npt.NDArray[np.float32]
    """[N, D]; approximately standard normal for images like the model's data."""

    mismatched_values: npt.NDArray[np.int64]
    """How many values of each image are in another bin after its latent is decoded, [N]. 0: the latent reproduces the
    image exactly."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """Whether a set of images, as a whole, comes from the distribution of the calibration images: docs/sets.md."""

    p_value: float
    """The number to act on: of sets of images like the calibration images, at most the share a has a value up to a."""

    resolution: float
    """The smallest p-value that a set of so many images can have."""

    n: int
    """The number of images in the set."""

    calibration_images: int
    """The number of calibration images that the set was compared with."""

    features: tuple[FeatureDifference, ...]
    """How each feature of the set's finite images differs; empty if no image is finite."""

    bits_per_dim: float
    """The mean over the finite images; infinity if none is."""

    not_finite: int
    """The number of images whose log-likelihood is not finite."""

    anomalous: float
    """The share of the images, 0 to 1, that are anomalous by themselves at `false_alarm_rate`."""

    false_alarm_rate: float
    """0.01, or the resolution of single images where that is coarser."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""


@dataclass(frozen=True)
class ModelInfo:
    """A version of a model, and its state."""

    name: str
    """The model's name."""

    version: int
    """The model's version."""

    height: int
    """H of its images. Height, width, channels and bits are 0 if the version is LOADING or REFUSED."""

    width: int
    """W of its images."""

    channels: int
    """C of its images: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha)."""

    n_bits: int
    """How many bits of each value the model uses."""

    state: str
    """SERVING, FAILING, LOADING or REFUSED, as `ModelState` in glow_service.proto explains; UNSPECIFIED if the server
    reports another state."""

    reason: str = ""
    """The reason if it is not SERVING, in one sentence."""

    attributes: tuple[str, ...] = ()
    """The names of the attributes that `manipulate` moves images along."""

    classes: tuple[str, ...] = ()
    """The names of the classes of a class-conditional model."""
