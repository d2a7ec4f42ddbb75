"""What goes wrong in an export and is not a bug.

ExportError
├── NotInvertibleError      a weight that is not finite, or a matrix that cannot be inverted
├── ProofError              a figure that misses its bound
├── DataChangedError        the held-out images are not those of the training run
├── ForeignCheckpointError  a checkpoint of a public implementation cannot be read, or does not fit its arguments
└── ArgumentsError          those arguments cannot be read, or are of a model that is not supported
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


class ForeignCheckpointError(ExportError):
    """A checkpoint of a public implementation cannot be read, or does not fit its arguments."""


class ArgumentsError(ExportError):
    """The arguments of a public implementation's model cannot be read, or are of one that is not supported."""
