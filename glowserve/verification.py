"""What a bundle's manifest states about its verification, as text and as JSON."""

from __future__ import annotations

import math
from typing import Any

from glowserve.v1.manifest_pb2 import Manifest

_COLUMNS = """\
Every value is within its bound, or the export would have failed. "-": reported, without a bound. worst layer: the
layer with the largest value, where the value belongs to one."""
_OUT_OF_DISTRIBUTION_COLUMNS = """\
finite: images with a finite likelihood and latent. lossless: images that decode to the same pixels. Low counts are no
fault of the export: far from its training data, a flow can overflow or become non-invertible in float32."""


def verification_table(manifest: Manifest) -> str:
    """The measured values as lines of text, and what the columns mean."""
    verification = manifest.verification
    title = f"verification on {verification.images} held-out images"
    lines = [f"{title:<58}{'value':>10}{'bound':>10}  worst layer"]
    for check in verification.checks:
        bound = f"{check.bound:g}" if check.HasField("bound") else "-"
        lines.append(f"{check.name:<58}{check.value:>10.3g}{bound:>10}  {check.layer}".rstrip())
    lines += [_COLUMNS, "", f"{'out-of-distribution images':<58}{'finite':>10}{'lossless':>10}"]
    for unseen in verification.unseen:
        finite, lossless = (f"{count}/{unseen.images}" for count in (unseen.finite, unseen.returned))
        lines.append(f"{unseen.kind:<58}{finite:>10}{lossless:>10}")
    return "\n".join([*lines, _OUT_OF_DISTRIBUTION_COLUMNS])


def steps_table(manifest: Manifest) -> str:
    """The condition number and the inversion error of each matrix, as lines of text."""
    lines = [f"{'1x1 convolution with its actnorm':<58}{'condition':>10}{'|WW^-1-I|':>10}"]
    lines += [
        f"{step.step:<58}{step.condition_number:>10.3g}{step.residual:>10.1e}"
        for step in manifest.verification.steps
    ]
    return "\n".join(lines)


def verification_json(manifest: Manifest) -> dict[str, Any]:
    """The measured values for JSON; a value that is not finite becomes null."""
    verification = manifest.verification
    return {
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
