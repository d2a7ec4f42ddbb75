"""Runs the command line, and prints which of some packages it imported, as JSON.

Usage: imports_of_a_command.py PACKAGE,PACKAGE,... ARGUMENT...
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout, suppress

from glowserve.cli import main

with redirect_stdout(sys.stderr), suppress(SystemExit):
    main(sys.argv[2:])
print(json.dumps([name for name in sys.argv[1].split(",") if name in sys.modules]))
