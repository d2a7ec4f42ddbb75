"""The answers of one version of a model, as this process computes them; a service's answers must equal them.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import glowserve
from glowserve.images import UInt8Array
from glowserve.messages import images_array
from glowserve.v1 import glow_service_pb2 as pb

MAX_IMAGES = 64
MAX_SAMPLES = 100
SEEDS = (1, 2, 3, 4)
TEMPERATURE = 0.7
TOLERANCE = 1e-5
"""Relative error of a log-likelihood; float32 causes 1e-7."""


class WrongAnswerError(Exception):
    """An answer differs from the known one."""


@dataclass(frozen=True)
class KnownAnswers:
    """The answers of one version."""

    version: int
    images: UInt8Array
    """[N, H, W, C], N at least `MAX_IMAGES`."""
    log_likelihood_nats: npt.NDArray[np.float64]
    """Of the images, [N]."""
    latents: npt.NDArray[np.float32]
    """Of the images, [N, D]."""
    mismatched_values: npt.NDArray[np.int64]
    """How many values of each image differ once its latent is decoded, [N]."""
    decoded: UInt8Array
    """Images of the latents, [N, H, W, C]."""
    samples: dict[int, UInt8Array]
    """By seed, at `TEMPERATURE`: [MAX_SAMPLES, H, W, C]."""

    @classmethod
    def of(cls, client: glowserve.Client, images: UInt8Array) -> KnownAnswers:
        """The answers of the model that a client of `glowserve.open` runs."""
        scores, encodings = client.score(images), client.encode(images)
        return cls(
            scores.version,
            images,
            scores.log_likelihood,
            encodings.latents,
            encodings.mismatched_values,
            client.decode(encodings.latents),
            {seed: client.sample(MAX_SAMPLES, seed=seed, temperature=TEMPERATURE).images for seed in SEEDS},
        )

    @classmethod
    def of_version(cls, version: Path, images: UInt8Array) -> KnownAnswers:
        """The answers of the bundle in a VERSION folder."""
        return cls.of(glowserve.open(version), images)

    def check_scores(self, nats: npt.NDArray[np.float64], first: int, n: int) -> None:
        """Checks the log-likelihoods of images `first` to `first + n`.

        Raises:
            WrongAnswerError: they differ; likewise in the other checks.
        """
        expected = self.log_likelihood_nats[first : first + n]
        check(nats.shape == expected.shape, f"the answer has {len(nats)} scores for {n} images")
        error = float(np.max(np.abs(nats / expected - 1)))
        check(error <= TOLERANCE, f"scores of version {self.version} are wrong by {error:.2g}, relative")

    def check_encoding(self, response: pb.EncodeResponse, first: int, n: int) -> None:
        """Checks the latents of images `first` to `first + n`."""
        expected, mismatched = self.latents[first : first + n], self.mismatched_values[first : first + n]
        latents = np.frombuffer(response.latents.data, "<f4").reshape(tuple(response.latents.shape))
        check(latents.shape == expected.shape, f"latents have shape {latents.shape}, not {expected.shape}")
        check(bool(np.allclose(latents, expected, rtol=1e-4, atol=1e-4)), "latents are wrong")
        check(bool(np.array_equal(response.mismatched_values, mismatched)), "mismatched_values are wrong")

    def check_decoding(self, response: pb.DecodeResponse, first: int, n: int) -> None:
        """Checks the images of latents `first` to `first + n`."""
        expected = self.decoded[first : first + n]
        check(bool(np.array_equal(images_array(response.images), expected)), "decoded images are wrong")

    def check_samples(self, response: pb.SampleResponse, seed: int) -> int:
        """Checks a part of the samples of a seed, and returns their number."""
        images, first = images_array(response.images), response.first_index
        expected = self.samples[seed][first : first + len(images)]
        check(bool(np.array_equal(images, expected)), f"samples of version {self.version} are wrong")
        return len(images)


def check(condition: bool, sentence: str) -> None:
    """Raises WrongAnswerError with a sentence unless the condition holds."""
    if not condition:
        raise WrongAnswerError(sentence)
