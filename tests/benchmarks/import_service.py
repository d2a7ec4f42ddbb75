"""Imports what the service imports before it reads a bundle; prints the seconds, and whether torch was imported."""

from __future__ import annotations

import importlib
import sys
import time

if __name__ == "__main__":
    began = time.perf_counter()
    for name in ("glowserve.cli.serve", "glowserve_service.observability.logs", "glowserve_service.server"):
        importlib.import_module(name)
    print(time.perf_counter() - began, "torch" in sys.modules)
