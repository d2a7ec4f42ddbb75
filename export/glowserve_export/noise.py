"""Dequantization noise as nodes of forward.onnx: v in [0, 1], uniform or learned.

Shapes: N images, H W C of an image; [N, 4C, H/2, W/2] squeezed.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

from glowserve_training.names import DEQUANTIZATION

from glowserve_export.builder import GraphBuilder
from glowserve_export.terms import Term


class NoiseNodes(abc.ABC):
    """Noise in the graph, whose nodes are added when they are needed."""

    @abc.abstractmethod
    def add(self) -> str:
        """V, [N, H, W, C]."""

    @abc.abstractmethod
    def add_both(self) -> tuple[str, str]:
        """V and 1 - v, [N, H, W, C], both with all the digits of float32 near 0."""

    @property
    @abc.abstractmethod
    def log_dets(self) -> list[Term]:
        """Of the map from uniform noise to v; none if it is the identity."""


@dataclass(frozen=True)
class UniformNoiseNodes(NoiseNodes):
    """The graph's input "noise"."""

    g: GraphBuilder
    """The graph."""

    @property
    def log_dets(self) -> list[Term]:
        """See `NoiseNodes`."""
        return []

    def add(self) -> str:
        """See `NoiseNodes`."""
        return "noise"

    def add_both(self) -> tuple[str, str]:
        """See `NoiseNodes`; the difference is exact, as uniform noise is a multiple of 2^-24."""
        return "noise", self.g.add("Sub", [self.g.constant("one", 1.0), "noise"], "noise.complement")


@dataclass(frozen=True)
class LearnedNoiseNodes(NoiseNodes):
    """Noise of variational dequantization."""

    g: GraphBuilder
    """The graph."""

    log_det: Term
    """Of the map from uniform noise to v."""

    logit: str
    """Of v, squeezed, as are the next two."""

    minus_log: str
    """Of v."""

    minus_log_complement: str
    """Of 1 - v."""

    @property
    def log_dets(self) -> list[Term]:
        """See `NoiseNodes`."""
        return [self.log_det]

    def add(self) -> str:
        """See `NoiseNodes`."""
        return self._unsqueezed(
            self.g.add("Sigmoid", [self.logit], f"{DEQUANTIZATION}.noise"), DEQUANTIZATION
        )

    def add_both(self) -> tuple[str, str]:
        """See `NoiseNodes`; a sigmoid near 0 has the digits of the difference of two halves."""
        pair = (self.minus_log, DEQUANTIZATION), (self.minus_log_complement, f"{DEQUANTIZATION}.complement")
        noise, complement = (self._exp(minus_log, name) for minus_log, name in pair)
        return noise, complement

    def _exp(self, minus_log: str, name: str) -> str:
        log = self.g.add("Neg", [minus_log], f"{name}.log")
        return self._unsqueezed(self.g.add("Exp", [log], f"{name}.noise"), name)

    def _unsqueezed(self, x: str, name: str) -> str:
        """[N, 4C, H/2, W/2] to [N, H, W, C]: a tensor called `name`."""
        x = self.g.add("DepthToSpace", [x], f"{name}.unsqueeze", blocksize=2, mode="DCR")
        return self.g.add("Transpose", [x], name, perm=[0, 2, 3, 1])
