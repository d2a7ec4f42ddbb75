"""What the service logs: lines for people, or JSON, one object a line. Each names the call that it belongs to."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from service import call


def set_up(form: str, level: str) -> None:
    """Sends the log of this process to its standard error.

    Args:
        form: text or json.
        level: the least that is logged.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class TextFormatter(logging.Formatter):
    """TIME LEVEL LOGGER: [REQUEST ID] MESSAGE."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(request)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and an exception's lines."""
        request_id = call.current().request_id
        record.request = f"[{request_id}] " if request_id else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """A JSON object: time, level, logger, message; in a call request_id, and trace_id if it is traced.

    A record's attribute `fields`, a dict, is added to them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line; an exception's lines are its field `exception`."""
        now = call.current()
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if now.request_id:
            line["request_id"] = now.request_id
        if now.span:
            line["trace_id"] = now.span.trace_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
