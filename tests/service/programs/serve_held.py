"""`glowserve` whose engines do not run the batches of calls before a file exists.

Arguments: the path of the file, and then those of `glowserve`.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from glowserve.cli import main
from glowserve.runtime.engine import Engine


def hold(direction: str, file: Path) -> None:
    """Lets a method of the engine wait for the file. The runs at the start, in other threads, do not wait."""
    run = getattr(Engine, direction)

    def wait_and_run(engine: Engine, *rows: Any, **options: Any) -> Any:
        while threading.current_thread().name.startswith("engine") and not file.exists():
            time.sleep(0.01)
        return run(engine, *rows, **options)

    setattr(Engine, direction, wait_and_run)


if __name__ == "__main__":
    for direction in ("forward", "reverse"):
        hold(direction, Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
