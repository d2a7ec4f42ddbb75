"""The errors of an export.

ExportError
├── NotInvertibleError      a weight is not finite, or a matrix cannot be inverted
├── VerificationError       a measured value misses its bound
├── DataChangedError        the held-out images are not those of the training run
├── ForeignCheckpointError  a public implementation's checkpoint cannot be read, or does not fit its arguments
└── ArgumentsError          those arguments cannot be read, or describe a model that is not supported
"""

from __future__ import annotations


class ExportError(Exception):
    """The message says what was wrong with which value, and what to do."""


def no_folded_form(layer: object) -> TypeError:
    """The error of a fold function for a type of layer that none is registered for; only developers see it."""
    return TypeError(
        f"{type(layer).__name__} has no folded form: register one with the function that raised this"
    )


class NotInvertibleError(ExportError):
    """A weight is not finite, or a matrix cannot be inverted. The message names the weight or the step."""


class VerificationError(ExportError):
    """A measured value misses its bound. The message names the value, the bound and the layer."""


class DataChangedError(ExportError):
    """The held-out images are not those of the training run."""


class ForeignCheckpointError(ExportError):
    """A checkpoint of a public implementation cannot be read, or does not fit its arguments."""


class ArgumentsError(ExportError):
    """The arguments of a public implementation's model cannot be read, or describe a model that is not supported."""
