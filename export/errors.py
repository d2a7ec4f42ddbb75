"""What goes wrong in an export and is not a bug.

ExportError
├── NotInvertibleError   a weight that is not finite, or a matrix that cannot be inverted
├── ProofError           a figure that misses its bound
└── DataChangedError     the held-out images are not those of the training run
"""

from __future__ import annotations


class ExportError(Exception):
    """A sentence that says what was wrong with which value, and what to do."""


class NotInvertibleError(ExportError):
    """A weight is not finite, or a matrix cannot be inverted; the message names the layer."""


class ProofError(ExportError):
    """A figure misses its bound; the message names the figure, the bound and the layer."""


class DataChangedError(ExportError):
    """The held-out images are not those of the training run."""
