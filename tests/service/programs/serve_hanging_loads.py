"""`glowserve` that loads no bundle while there is a file `hang` in its folder. Arguments: those of `glowserve`."""

from __future__ import annotations

import sys
import time
from typing import Any

from glowserve.cli import main
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle

open_engine = Engine.__init__


def wait_and_open(engine: Engine, bundle: Bundle, *args: Any) -> None:
    """In the thread that loads."""
    while (bundle.path / "hang").exists():
        time.sleep(0.01)
    open_engine(engine, bundle, *args)


if __name__ == "__main__":
    Engine.__init__ = wait_and_open  # type: ignore[method-assign]
    sys.exit(main())
