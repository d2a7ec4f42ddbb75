"""`glowserve` in a process whose soft and hard limit of open files are the first two arguments."""

from __future__ import annotations

import resource
import sys

from glowserve.cli import main

soft, hard, *arguments = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
sys.exit(main(arguments))
