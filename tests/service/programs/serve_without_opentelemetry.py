"""The command `glowserve` where OpenTelemetry is not installed."""

import sys

sys.modules["opentelemetry"] = None

from glowserve.cli import main  # noqa: E402

sys.exit(main())
