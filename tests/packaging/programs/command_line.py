"""The command `glowserve` where some packages cannot be imported.

Usage: command_line.py PACKAGE,PACKAGE,... COMMAND ARGUMENT...
"""

from __future__ import annotations

import sys

from refused_imports import refuse_imports

refuse_imports(sys.argv[1].split(","))

from glowserve.cli import main  # noqa: E402  # after the packages are refused

raise SystemExit(main(sys.argv[2:]))
