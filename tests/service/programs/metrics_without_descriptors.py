"""Serves metrics while this process has no descriptor left.

Prints the port. After a line on standard input: goes on for a second, prints the seconds of processor time that it
took, and has descriptors again.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from glowserve_service.observability.metrics_server import MetricsServer
from prometheus_client import CollectorRegistry

server = MetricsServer("127.0.0.1", 0, CollectorRegistry(), None, None)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
print(server.server_port, flush=True)
sys.stdin.readline()
began = time.process_time()
time.sleep(1)
print(time.process_time() - began, flush=True)
for descriptor in taken:
    os.close(descriptor)
sys.stdin.read()
