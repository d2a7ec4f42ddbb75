"""Spherical linear interpolation between two latents.

Shapes: D values a latent, S steps.
"""

from __future__ import annotations

import numpy as np

from glowserve.runtime.engine import Float32Array

# In radians. An arc that is shorter equals the straight line; opposite latents do not define an arc.
_LEAST_ANGLE = 1e-4


def interpolation_path(start: Float32Array, end: Float32Array, steps: int) -> Float32Array:
    """Latents on the arc between two latents, at equal angles, float32 [S, D]; the first and the last are these two.

    Spherical linear interpolation: Shoemake 1985, Animating Rotation with Quaternion Curves; for Gaussian latents White
    2016, arXiv:1609.04468. A standard normal latent has a length of about sqrt(D), and so has each latent on the arc.
    The path is a straight line if the latents are parallel or opposite, or one is zero.

    Args:
        start: the first latent, float32 [D], finite.
        end: the last latent, float32 [D], finite.
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
