"""The errors of the runtime."""

from __future__ import annotations

from glowserve.runtime.errors import GlowserveError, InvalidRequestError, NotFiniteError


def test_the_part_of_a_call_is_put_before_the_message() -> None:
    error = NotFiniteError("image 2 is not finite", 1)
    error.place("requests[3]")
    assert str(error) == "requests[3]: image 2 is not finite"
    assert isinstance(error, GlowserveError)


def test_the_part_of_a_call_is_put_before_the_field() -> None:
    error = InvalidRequestError("n is 0", "n")
    error.place("requests[3]")
    assert (str(error), error.field) == ("requests[3]: n is 0", "requests[3].n")


def test_the_part_of_a_call_is_the_field_if_there_is_none() -> None:
    error = InvalidRequestError("the message is malformed")
    error.place("requests[3]")
    assert error.field == "requests[3]"
