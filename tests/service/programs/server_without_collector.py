"""Makes a server of a repository; the exit code is 1 if that imports OpenTelemetry."""

import sys

from glowserve_service.config import ServiceConfig
from glowserve_service.server import Server

Server(ServiceConfig(repository=sys.argv[1]))
sys.exit("opentelemetry" in sys.modules)
