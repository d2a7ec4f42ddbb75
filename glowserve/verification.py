"""What a bundle's manifest states about its verification, as text and as JSON."""

from __future__ import annotations

import math
import statistics
from typing import Any

from glowserve.output import printable
from glowserve.v1.manifest_pb2 import Manifest

SAMPLES_NOT_FINITE = "samples at temperature 1, not finite"
"""The name of the check that counts samples."""

_COLUMNS = """\
Every value is within its bound, or the export would have failed. "-": reported, without a bound. images: held-out
images or samples that were measured. worst layer: the layer with the largest value, where the value belongs to one."""
_WHAT_TO_DO_ABOUT_SAMPLES = """\
{} of {} samples at temperature 1 are not finite: a service draws them again, and leaves out what is never finite.
Sample at a lower temperature, train the model longer, or train one with a bounded coupling scale (tanh)."""
_OUT_OF_DISTRIBUTION_COLUMNS = """\
finite: images with a finite likelihood and latent. lossless: images that decode to the same pixels. Low counts are no
fault of the export: far from its training data, a flow can overflow or become non-invertible in float32."""


def verification_table(manifest: Manifest) -> str:
    """The measured values as lines of text, and what the columns mean."""
    verification = manifest.verification
    title = f"verification on {verification.images} held-out images"
    lines = [f"{title:<58}{'value':>10}{'bound':>10}{'images':>8}  worst layer"]
    for check in verification.checks:
        value = f"{check.value:.3g}" if math.isfinite(check.value) else "not finite"
        if check.name == SAMPLES_NOT_FINITE:
            value = f"{check.value:.0f} of {check.images}"
        bound = f"{check.bound:g}" if check.HasField("bound") else "-"
        lines.append(f"{check.name:<58}{value:>10}{bound:>10}{check.images or '':>8}  {check.layer}".rstrip())
    lines += _COLUMNS.splitlines()
    for check in verification.checks:
        if check.name == SAMPLES_NOT_FINITE and check.value:
            lines += _WHAT_TO_DO_ABOUT_SAMPLES.format(round(check.value), check.images).splitlines()
    lines += ["", f"{'out-of-distribution images':<58}{'finite':>10}{'lossless':>10}"]
    for unseen in verification.unseen:
        finite, lossless = (f"{count}/{unseen.images}" for count in (unseen.finite, unseen.returned))
        lines.append(f"{unseen.kind:<58}{finite:>10}{lossless:>10}")
    lines += [*_OUT_OF_DISTRIBUTION_COLUMNS.splitlines(), "", _held_out(manifest)]
    return "\n".join(map(printable, lines))


def _held_out(manifest: Manifest) -> str:
    bits = manifest.calibration.bits_per_dim
    if not bits:
        return "held-out bits/dim: not measured"
    return (
        f"held-out bits/dim: {statistics.fmean(bits):.3f}, mean of {len(bits)} images of {manifest.calibration.data}; "
        f"a model that knows nothing needs {manifest.image.n_bits}"
    )


def steps_table(manifest: Manifest) -> str:
    """The condition number and the inversion error of each matrix, as lines of text."""
    lines = [f"{'1x1 convolution with its actnorm':<58}{'condition':>10}{'|WW^-1-I|':>10}"]
    lines += [
        f"{step.step:<58}{step.condition_number:>10.3g}{step.residual:>10.1e}"
        for step in manifest.verification.steps
    ]
    return "\n".join(map(printable, lines))


def verification_json(manifest: Manifest) -> dict[str, Any]:
    """The measured values for JSON; a value that is not finite becomes null."""
    verification, bits = manifest.verification, manifest.calibration.bits_per_dim
    return {
        "images": verification.images,
        "held_out": {"bits_per_dim": statistics.fmean(bits) if bits else None, "images": len(bits)},
        "checks": {
            check.name: check.value if math.isfinite(check.value) else None for check in verification.checks
        },
        "steps": {
            step.step: {"condition_number": step.condition_number, "residual": step.residual}
            for step in verification.steps
        },
        "unseen": {
            unseen.kind: {"images": unseen.images, "finite": unseen.finite, "returned": unseen.returned}
            for unseen in verification.unseen
        },
    }
