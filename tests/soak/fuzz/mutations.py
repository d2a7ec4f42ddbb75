"""Random changes of bytes: of bits, bytes, pieces, and the lengths that a protobuf message contains."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

# Values at which the parsing of protobuf, sizes and shapes breaks most easily.
_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
_LENGTHS = (0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""Changes bytes once; the third argument is other data, which a mutation may splice in."""


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Data with 1 to 4 changes, mostly 1: after more of them, bytes are seldom a message."""
    for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(_MUTATIONS)(rng, data, others)
    return data


def _flip_bit(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_byte(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    changed[rng.randrange(len(changed))] = rng.choice((*_BYTES, rng.randrange(256)))
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.randint(0, len(data))]


def _remove(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    first = rng.randint(0, len(data))
    return data[:first] + data[first + rng.randint(0, 16) :]


def _insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]


def _repeat(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    first = rng.randint(0, len(data))
    last = rng.randint(first, min(len(data), first + 200))
    return data[:last] + data[first:last] * rng.choice((1, 2, 50)) + data[last:]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _change_length(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Changes the length in front of a field's bytes, and leaves the bytes as they are."""
    fields = list(_length_fields(data, 0, len(data)))
    if not fields:
        return _set_byte(rng, data, others)
    first, last, length = rng.choice(fields)
    new = rng.choice((length - 1, length + 1, length // 2, *_LENGTHS))
    return data[:first] + _varint(max(new, 0)) + data[last:]


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bit,
    _set_byte,
    _set_byte,
    _truncate,
    _remove,
    _insert,
    _repeat,
    _splice,
    _change_length,
    _change_length,
)


def _length_fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The lengths in a message and its nested messages: index of the first byte, index after the last, and length."""
    while at < end:
        tag, at = _read_varint(data, at, end)
        if at < 0 or not 1 <= tag >> 3 <= 32:
            return
        if tag & 7 == 0:
            _, at = _read_varint(data, at, end)
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        elif tag & 7 == 2:
            first = at
            length, at = _read_varint(data, at, end)
            if at < 0 or at + length > end:
                return
            yield first, at, length
            yield from _length_fields(data, at, at + length)
            at += length
        else:
            return
        if at < 0:
            return


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number, and the index after its last byte, or -1 if it has no last byte."""
    value = shift = 0
    while at < end and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 0x80:
            return value, at
    return 0, -1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
