"""The way from one latent to another.

Shapes: D values a latent, S steps.
"""

from __future__ import annotations

import numpy as np

from glowserve.runtime.engine import Float32Array

# Radians. On so short an arc, or so near to opposite, the line is the same or there is no one arc.
_LEAST_ANGLE = 1e-4


def interpolation_path(start: Float32Array, end: Float32Array, steps: int) -> Float32Array:
    """Latents from one to another, float32 [S, D], at equal angles; the first and the last are exactly the two.

    Spherical linear interpolation (Shoemake 1985, Animating Rotation with Quaternion Curves; for Gaussian latents White
    2016, arXiv:1609.04468): a standard normal latent has a length of about sqrt(D), and so has every step. A straight
    line where the latents are parallel or opposite, or one is zero.

    Args:
        start: float32 [D], finite.
        end: likewise.
        steps: S, 2 or more.
    """
    one, other = start.astype(np.float64), end.astype(np.float64)
    along = np.linspace(0, 1, steps)[:, None]  # [S, 1]
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    angle = np.arccos(np.clip(one @ other / lengths, -1, 1)) if lengths else 0.0
    if _LEAST_ANGLE < angle < np.pi - _LEAST_ANGLE:
        shares = np.sin((1 - along) * angle) / np.sin(angle), np.sin(along * angle) / np.sin(angle)
    else:
        shares = 1 - along, along
    path: Float32Array = (shares[0] * one + shares[1] * other).astype(np.float32)
    path[0], path[-1] = start, end
    return path
