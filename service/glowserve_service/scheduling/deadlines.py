"""Whether a call that its caller has ended was late.

gRPC rounds a deadline up by as much as a hundredth to send it. So a client ends its call a little before the deadline
that the server knows, as if it had cancelled the call.
"""

from __future__ import annotations

import math
import time

_ROUNDING = 0.02


def is_late(deadline: float, began: float) -> bool:
    """Whether a call that ends now has reached its deadline, or is as near to it as gRPC's rounding.

    Args:
        deadline: on the clock of `time.monotonic`; infinity if there is none.
        began: when the call, or the work, was given that deadline.
    """
    return deadline - time.monotonic() <= _ROUNDING * (deadline - began) < math.inf
