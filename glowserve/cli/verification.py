"""What a bundle's manifest says was proved, as text and as JSON."""

from __future__ import annotations

import math
from typing import Any

from glowserve.v1.manifest_pb2 import Manifest


def proof_table(manifest: Manifest) -> str:
    """What was measured, as lines of text."""
    verification = manifest.verification
    lines = [
        f"{f'proof on {verification.images} held-out images':<58}{'figure':>10}{'bound':>10}  worst layer"
    ]
    for check in verification.checks:
        bound = f"{check.bound:g}" if check.HasField("bound") else "stated"
        lines.append(f"{check.name:<58}{check.value:>10.3g}{bound:>10}  {check.layer}".rstrip())
    lines.append(f"{'images that it never saw (stated)':<58}{'finite':>10}{'returned':>10}")
    for unseen in verification.unseen:
        finite, returned = (f"{count}/{unseen.images}" for count in (unseen.finite, unseen.returned))
        lines.append(f"{unseen.kind:<58}{finite:>10}{returned:>10}")
    return "\n".join(lines)


def steps_table(manifest: Manifest) -> str:
    """How well each matrix is inverted, as lines of text."""
    lines = [f"{'1x1 convolution with its actnorm':<58}{'condition':>10}{'|WW^-1-I|':>10}"]
    lines += [
        f"{step.step:<58}{step.condition_number:>10.3g}{step.residual:>10.1e}"
        for step in manifest.verification.steps
    ]
    return "\n".join(lines)


def proof_json(manifest: Manifest) -> dict[str, Any]:
    """The same; a figure that is not finite, which JSON cannot say, is null."""
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
