"""`glowserve` in a process whose soft and hard limit of open files are the first two arguments.

A handshake takes at most 3 s, and the service looks at its descriptors often, so that tests need not wait.
"""

from __future__ import annotations

import resource
import sys

from glowserve_service.front import front
from glowserve_service.observability import descriptors

from glowserve.cli import main

soft, hard, *arguments = sys.argv[1:]
front._HANDSHAKE_MS = 3000
descriptors._INTERVAL_SECONDS = 0.2
resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(hard)))
sys.exit(main(arguments))
