"""Verifies a bundle before it is published: measures it on held-out images, and raises if a value misses its bound."""

from __future__ import annotations

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle
from glowserve.v1 import manifest_pb2
from glowserve_export.errors import VerificationError
from glowserve_export.folded import FoldedGlow
from glowserve_export.measurement import Measurement, Value
from glowserve_export.reference import Reference


def verify(
    reference: Reference, glow: FoldedGlow, bundle: Bundle, engine: Engine, images: UInt8Array
) -> manifest_pb2.Verification:
    """Measures a bundle on held-out images.

    Args:
        reference: the model in float64.
        glow: the folded model that the graphs were written from.
        bundle: the bundle, before it is published.
        engine: runs the bundle.
        images: uint8 [N, H, W, C]; all of them are used.

    Returns:
        Every measured value, with its bound if it has one.

    Raises:
        VerificationError: a value misses its bound.
    """
    measured = Measurement(reference, glow, bundle, engine, images)
    if bundle.manifest.flow.precision == "fp32":
        measurements = [measured.matrices, measured.errors, measured.round_trip, measured.decoding]
    else:
        measurements = [measured.matrices, measured.losses, measured.low_precision_round_trip]
    return manifest_pb2.Verification(
        images=len(measured.images),
        device=engine.device,
        checks=[_check(value) for measure in measurements for value in measure()],
        steps=measured.steps,
        unseen=measured.out_of_distribution(),
    )


def _check(value: Value) -> manifest_pb2.Check:
    # "not <=" instead of ">": NaN must not pass.
    if value.bound is not None and not value.value <= value.bound:
        layer = value.find_layer() if value.find_layer else value.layer
        measured = f"{value.value:.3g}"
        if value.not_finite:
            measured = f"not finite for {value.not_finite} of {value.images} images"
        raise VerificationError(
            f"{value.name} is {measured} and must be at most {value.bound:g}; the layer to look at is {layer}. "
            "Nothing was written"
        )
    return manifest_pb2.Check(
        name=value.name, value=value.value, bound=value.bound, layer=value.layer, images=value.images
    )
