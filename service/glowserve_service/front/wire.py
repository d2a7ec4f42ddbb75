"""Counts what the bytes of a request hold, before protobuf parses them.

Two bytes on the wire can become an object of a hundred, and while protobuf makes it, no other thread of Python runs. So
the bytes are walked first, as far as the limits go: https://protobuf.dev/programming-guides/encoding/. Strings, bytes
and unknown fields are stepped over, whatever their length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from glowserve.runtime.errors import InvalidRequestError

# Beside its images and their classes: the model, shapes, parameters, names of outputs. The longest request that means
# something has a tenth of that.
_OTHER_FIELDS = 1024

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)  # wire types
_LONGEST_VARINT = 10
_MOST_SHIFT = 7 * (_LONGEST_VARINT - 1)
_VALUE_SIZES = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}
_ARRAYS = frozenset({"inference.InferTensorContents"})
"""Message types whose packed fields have a value for each of an image, or of a latent."""
_NEVER_PACKED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


class RequestLimits:
    """What the requests of one method may hold.

    Args:
        request: the type of its requests. Types that contain themselves are not supported.
        max_images: most images of a call.
        max_values: how many values the images of a call have at most; asked only if a request has many. Packed fields
            other than those of `_ARRAYS`, such as shapes, are short: each of their values counts as a field, and each
            byte of varints.
    """

    def __init__(
        self,
        request: Descriptor,
        *,
        max_images: int,
        max_values: Callable[[], int] = lambda: 0,
    ) -> None:
        self.max_fields = 2 * max_images + _OTHER_FIELDS  # of each image its bytes and its class
        self.max_values = max_values
        self.too_many_fields = (
            f"the request has more than {self.max_fields} fields, each element of a repeated field counted; a "
            f"call takes at most {max_images} images"
        )
        self._request = _Message(request)

    def check(self, data: bytes) -> None:
        """Returns if the fields of a request, those of its submessages included, and its values are within the limits.

        Also returns if the bytes are no message: protobuf will say so, and reads no further than this did.

        Raises:
            InvalidRequestError: they are not; the message names the field that exceeds a limit.
        """
        if len(data) <= self.max_fields:  # a field takes a byte at least
            return
        try:
            _Count(data, self).fields(0, len(data), self._request, self.max_fields)
        except (_MalformedError, IndexError):
            return
        except _ExcessError as excess:
            field = ".".join(reversed(excess.path))
            raise InvalidRequestError(f"{field}: {excess}", field) from None


class _Count:
    """Counts what one request holds.

    Args:
        data: the request.
        limits: those of its method.
    """

    def __init__(self, data: bytes, limits: RequestLimits) -> None:
        self._data = data
        self._limits = limits
        self._values = 0
        """Of arrays, so far; of short ones, the bytes."""

    def fields(self, position: int, end: int, message: _Message, left: int) -> int:  # noqa: PLR0912
        """How many fields are left after a message, which lies in data[position:end]."""
        # One loop without calls: a request of 256 pictures has as many fields.
        data, attended, groups = self._data, message.attended, 0
        while position < end:
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = _varint(data, position - 1)
            if not left:
                raise _ExcessError(self._limits.too_many_fields, message.name_of(tag))
            left -= 1
            kind = tag & 7
            if kind == _LENGTH:
                size, shift = data[position] & 127, 0
                while data[position] > 127:
                    position, shift = position + 1, shift + 7
                    size |= (data[position] & 127) << shift
                    if shift > _MOST_SHIFT:
                        raise _MalformedError
                position += 1
                if position + size > end:
                    raise _MalformedError
                if tag in attended and not groups:  # the fields of a group are unknown ones
                    left = self._inside(position, position + size, attended[tag], left)
                position += size
            elif kind == _VARINT:
                _, position = _varint(data, position)
            elif kind == _FIXED32:
                position += 4
            elif kind == _FIXED64:
                position += 8
            elif kind == _GROUP:
                groups += 1
            elif kind == _END_GROUP and groups:
                groups -= 1
            else:
                raise _MalformedError
        return left

    def _inside(self, position: int, end: int, field: _Field, left: int) -> int:
        """How many fields are left after a submessage, or packed values, in data[position:end]."""
        if field.message:
            try:
                return self.fields(position, end, field.message, left)
            except _ExcessError as excess:
                excess.path.append(field.name)
                raise
        if field.is_array:
            self._count_values(position, end - position, field)
        elif (values := (end - position) // (field.value_size or 1)) > left:
            raise _ExcessError(self._limits.too_many_fields, field.name)
        else:
            left -= values
        return left

    def _count_values(self, position: int, size: int, field: _Field) -> None:
        values = size // (field.value_size or 1)
        if self._values + values > self._limits.max_fields:
            most = self._limits.max_values()
            if not field.value_size and size <= _LONGEST_VARINT * most:
                # The last byte of a varint is below 128.
                values = int(np.count_nonzero(np.frombuffer(self._data, np.int8, size, position) >= 0))
            if self._values + values > most:
                raise _ExcessError(
                    f"more than {most} values; the images of a call have at most so many", field.name
                )
        self._values += values


class _Message:
    """What is counted in a message type."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._names: dict[int, str] = {field.number: field.name for field in descriptor.fields}
        self.attended = {
            field.number << 3 | _LENGTH: _Field(field) for field in descriptor.fields if _holds(field)
        }
        """Submessages and packed values, by the tag that begins them."""

    def name_of(self, tag: int) -> str:
        """The name of a field; its number if the type has no such field."""
        return self._names.get(tag >> 3, f"field {tag >> 3}")


class _Field:
    """A field that may hold many others, or many values."""

    def __init__(self, field: FieldDescriptor) -> None:
        self.name = field.name
        self.message = _Message(field.message_type) if field.message_type else None
        """Its type; None if it holds packed values."""
        self.value_size = _VALUE_SIZES.get(field.type, 0)
        """In bytes; 0 for varints."""
        self.is_array = field.containing_type.full_name in _ARRAYS


def _holds(field: FieldDescriptor) -> bool:
    return field.message_type is not None or (field.is_repeated and field.type not in _NEVER_PACKED)


class _MalformedError(Exception):
    """The bytes are no message."""


class _ExcessError(Exception):
    """A limit is exceeded.

    Args:
        message: the limit.
        name: of the field.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.path = [name]
        """The names of the field and of those that it lies in, the innermost first."""


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number that begins at a position, and the position after it. Leading zeros are as good as none."""
    value = 0
    for shift in range(0, 7 * _LONGEST_VARINT, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _MalformedError


def request_type(service: str, method: str) -> Descriptor:
    """The type of a method's requests."""
    pool: Any = descriptor_pool
    descriptor: Descriptor = pool.Default().FindServiceByName(service).methods_by_name[method].input_type
    return descriptor
