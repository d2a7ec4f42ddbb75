"""What goes wrong where a bundle is run, and is not a bug. The root of every error that glowserve raises there.

GlowserveError
├── InvalidRequestError  the request is malformed
├── ModelNotFoundError   no such model or version
├── NotFiniteError       the model has no finite answer
├── BundleError          a bundle is damaged, or of another version
└── DeviceError          the device that was asked for is not there

`glowserve.runtime.status` says which gRPC status each of them is.
"""

from __future__ import annotations


class GlowserveError(Exception):
    """A sentence that says what was wrong with which value, and what would be accepted."""

    def place(self, part: str) -> None:
        """Says in which part of a call it happened, such as "requests[3]"."""
        self.args = (f"{part}: {self}",)


class InvalidRequestError(GlowserveError):
    """The request is malformed.

    Args:
        message: the sentence.
        field: the path of the field that is wrong, such as "images.encoded.data[1]"; None if there is no one field.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def place(self, part: str) -> None:
        """See GlowserveError.place; the field lies there, too."""
        super().place(part)
        self.field = f"{part}.{self.field}" if self.field else part


class ModelNotFoundError(GlowserveError):
    """There is no such model or version."""


class NotFiniteError(GlowserveError):
    """The model has no finite answer to this input.

    Args:
        message: names the first of the images.
        images: how many.
    """

    def __init__(self, message: str, images: int) -> None:
        super().__init__(message)
        self.images = images


class BundleError(GlowserveError):
    """A bundle is damaged, incomplete, or of a version that is not read here."""


class DeviceError(GlowserveError):
    """The device that was asked for cannot be used."""
