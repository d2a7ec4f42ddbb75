"""What the service logs: lines for people, or JSON, one object a line. Each names the call that it belongs to."""

from __future__ import annotations

import json
import logging
import time
import warnings
from typing import Any

import onnxruntime

from glowserve_service.front import call


def set_up(form: str, level: str) -> None:
    """Sends the log of this process to its standard error.

    Args:
        form: text or json.
        level: the least that is logged.
    """
    # What no line of ours tells need not be found out for each: logging's documentation, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # nor the place in the source
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # What ONNX Runtime writes there by itself has another form. What it says of a model is raised, too; the rest are
    # complaints of cuDNN about ways of computing that it then does without. gRPC's lines are kept out by a variable
    # that it reads when it is imported: GRPC_VERBOSITY=NONE.
    onnxruntime.set_default_logger_severity(4)
    # How strangers' pictures are made is no news, and Python keeps every sentence that it has warned with.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Not so what gRPC has a traceback for: a method whose name is no UTF-8, a caller that is gone before its answer.

    The line of such a call says CANCELLED.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, UnicodeDecodeError) or type(error).__name__ == "ExecuteBatchError")


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
