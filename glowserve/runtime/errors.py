"""The errors of running a bundle. `GlowserveError` is also the base class of the service's errors.

GlowserveError
├── InvalidRequestError  the request is malformed
├── ModelNotFoundError   no such model or version
├── NotFiniteError       the model has no finite answer
├── NotCalibratedError   the bundle lacks the calibration that a score needs
├── BundleError          a bundle is damaged, incomplete, or of an unknown version
├── MissingFileError     a bundle was exported without a file that the answer needs
└── DeviceError          the device cannot be used

`glowserve.runtime.status` maps the errors to gRPC status codes.
"""

from __future__ import annotations

from collections.abc import Mapping


class GlowserveError(Exception):
    """The message says in one sentence what was wrong with which value, and what is accepted."""

    def place(self, part: str) -> None:
        """Puts the part of the call that failed, such as "requests[3]", before the message."""
        self.args = (f"{part}: {self}",)


class InvalidRequestError(GlowserveError):
    """The request is malformed.

    Args:
        message: see GlowserveError.
        field: the path of the invalid field, such as "images.encoded.data[1]"; None if no single field is invalid.
        limits: the limits of a call that it exceeds, such as {"max_images_per_call": 256}.
    """

    def __init__(
        self, message: str, field: str | None = None, limits: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.limits = dict(limits or {})

    def place(self, part: str) -> None:
        """See GlowserveError.place; also puts the part before the field."""
        super().place(part)
        self.field = f"{part}.{self.field}" if self.field else part


class ModelNotFoundError(GlowserveError):
    """There is no such model or version."""


class NotFiniteError(GlowserveError):
    """The model has no finite answer to this input.

    Args:
        message: see GlowserveError; names the first image without a finite answer.
        images: the number of images without a finite answer that are not counted yet.
    """

    def __init__(self, message: str, images: int) -> None:
        super().__init__(message)
        self.images = images


class NotCalibratedError(GlowserveError):
    """The bundle lacks the calibration that a score needs."""


class BundleError(GlowserveError):
    """A bundle is damaged, incomplete, or of a version that this release cannot read."""


class MissingFileError(GlowserveError):
    """A bundle was exported without a file that the answer needs; the message names the command that adds it."""


class DeviceError(GlowserveError):
    """The device cannot be used."""
