"""Prepares the standard streams as `glowserve serve` does; prints as JSON what became of standard error."""

import contextlib
import json
import os
import sys
from pathlib import Path

from glowserve_service.observability import standard_streams

from glowserve import output

output.open_closed_streams()
standard_streams.prepare()
next_descriptor = os.open(os.devnull, os.O_RDONLY)
with contextlib.suppress(BlockingIOError):  # a full pipe
    os.write(2, b"written to standard error\n")
found = {
    "target": str(Path("/proc/self/fd/2").readlink()),
    "blocking": os.get_blocking(2),
    "next": next_descriptor,
}
sys.stdout.write(json.dumps(found))
