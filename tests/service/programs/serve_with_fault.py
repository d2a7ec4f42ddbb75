"""The command `glowserve` with a service that has a bug."""

import sys
from typing import Any

from glowserve_service import server

from glowserve.cli import main


async def serve(*_: Any) -> None:
    """Fails."""
    raise ArithmeticError("a bug of ours")


server.serve = serve
sys.exit(main())
