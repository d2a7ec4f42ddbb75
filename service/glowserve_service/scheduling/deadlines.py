"""Deadlines that have passed."""

from __future__ import annotations

import math
import time

from glowserve_service.errors import DeadlineError

# gRPC rounds a deadline up by as much as a hundredth to send it. So a client ends its call a little before the deadline
# that the server knows, and to the server that looks like a cancellation.
_ROUNDING = 0.02


def is_late(deadline: float, began: float) -> bool:
    """Whether a call that its caller ends now has reached its deadline, or is as close to it as gRPC's rounding.

    Args:
        deadline: on the clock of `time.monotonic`; infinity if there is none.
        began: when the call, or the work, was given that deadline.
    """
    return deadline - time.monotonic() <= _ROUNDING * (deadline - began) < math.inf


def deadline_passed(images: int) -> DeadlineError:
    """The error for images whose deadline passes before they have run."""
    return DeadlineError(f"the deadline passes before {images} images have run; allow more time")
