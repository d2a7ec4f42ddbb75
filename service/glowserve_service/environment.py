"""The service's environment variables, beside those that others set under the same prefix."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches

# GLOWSERVE_PORT is as similar to GLOWSERVE_GRPC_PORT.
_SIMILAR = 0.84
# In each pod, Kubernetes sets variables for each Service. For one that is called glowserve-metrics these are
# GLOWSERVE_METRICS_PORT, a link, GLOWSERVE_METRICS_SERVICE_HOST and so on.
_LINK = re.compile(r"(tcp|udp|sctp)://.*", re.DOTALL)
_BESIDE_LINK = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_\w+|PORT_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)"
)
# The clients' and the command line's.
_CLIENTS = frozenset({"GLOWSERVE_CA", "GLOWSERVE_CERT", "GLOWSERVE_KEY", "GLOWSERVE_TOKEN"})


def read(name: str) -> str:
    """The text of a variable; "" if it is not set, or a link that Kubernetes has set, such as tcp://10.0.0.1:8002."""
    text = os.environ.get(name, "")
    return "" if _LINK.fullmatch(text) else text


def links(known: Sequence[str]) -> list[str]:
    """Which of the service's variables have the form of a link of Kubernetes', and so are not read."""
    return [name for name in known if os.environ.get(name) and not read(name)]


def mistaken(known: Sequence[str]) -> dict[str, list[str]]:
    """The variables that are nobody's, and for each the variables of the service that it is similar to.

    Args:
        known: the names of the service's variables.
    """
    others = [
        name
        for name in sorted(os.environ)
        if name.startswith("GLOWSERVE_") and name not in (*known, *_CLIENTS) and read(name)
    ]
    found = {
        name: get_close_matches(name, known, cutoff=_SIMILAR)
        for name in others
        if not _BESIDE_LINK.fullmatch(name)
    }
    return {name: similar for name, similar in found.items() if similar}
