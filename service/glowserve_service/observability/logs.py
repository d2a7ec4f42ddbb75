"""What the log of a service looks like: text, or JSON with one object a line. Each line names the call it belongs to.

Messages and tracebacks may quote what callers sent. No quoted string can begin a line of its own, or move a terminal's
cursor: CWE-117. The JSON is made by python-json-logger. `log_writer` writes the lines, `log_context` knows the call.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any

from pythonjsonlogger.json import JsonFormatter as LibraryJsonFormatter

from glowserve.output import printable
from glowserve.runtime.ort import onnxruntime
from glowserve_service.observability.call_line import CallLine
from glowserve_service.observability.log_writer import LogWriter
from glowserve_service.observability.standard_streams import STDERR, LogStream


def set_up(form: str, level: str) -> LogWriter:
    """Sends the log of this process to its standard error, and all else that Python writes there.

    Args:
        form: text or json.
        level: the least severe level that is logged.

    Returns:
        The writer; close it when the service has stopped.
    """
    # Facts about the process, the thread and the source line cost time and are in no line of ours: logging's
    # documentation, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    writer = LogWriter(STDERR, JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[writer])
    sys.stderr = LogStream(writer)
    _silence_libraries()
    return writer


def dropped_lines() -> int:
    """Lines of this process's log that were dropped since the start; 0 before `set_up`."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogWriter))


def _silence_libraries() -> None:
    # ONNX Runtime writes to stderr in a form of its own. Errors about a model are raised as well; the rest are cuDNN's
    # complaints about algorithms that it then does not use. gRPC reads the variable GRPC_VERBOSITY when it is imported.
    onnxruntime.set_default_logger_severity(4)
    # Oddities of images that callers send. Python would also remember each message forever.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_fault)


def _is_fault(record: logging.LogRecord) -> bool:
    """False for two tracebacks of gRPC's: a method's name is not UTF-8, or the caller left before its answer.

    The log line of the latter's call says CANCELLED.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, UnicodeDecodeError) or type(error).__name__ == "ExecuteBatchError")


class _TimeFormatter(logging.Formatter):
    """Formats a second once: the lines of a busy service differ in its milliseconds. For one thread, the writer's."""

    default_msec_format = "%s,%03d"
    _second = -1
    _text = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """When the record was made."""
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._text = time.strftime(self.default_time_format, self.converter(second))
        return self.default_msec_format % (self._text, record.msecs)


class TextFormatter(_TimeFormatter):
    """TIME LEVEL LOGGER: [REQUEST ID] MESSAGE; an exception's traceback follows in further lines, which are indented.

    A line that is not indented is the first of a record: a message is one line, whatever it quotes.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(bracketed_id)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record to which LogWriter has added the ids."""
        request_id = getattr(record, "request_id", "")
        record.bracketed_id = f"[{request_id}] " if request_id else ""
        first, *others = super().format(record).split("\n")
        return "\n    ".join([first, *map(printable, others)])

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The first line of a record."""
        return printable(super().formatMessage(record))


class JsonFormatter(_TimeFormatter, LibraryJsonFormatter):
    """A JSON object: time (UTC), level, logger, message; in a call request_id, and trace_id if it is traced.

    The members of a record's attribute `fields`, a dict, or those of a `CallLine` are added to them. `exception` is a
    traceback.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__(
            ["asctime", "levelname", "name", "message"],
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "exc_info": "exception",
            },
            json_default=lambda value: _encodable(str(value)),
        )

    def format(self, record: logging.LogRecord) -> str:
        """The object of a record to which LogWriter has added the ids."""
        if isinstance(record.msg, CallLine):
            vars(record)["fields"] = record.msg.fields
        return super().format(record)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Puts `fields` in place of the dict, and the traceback last."""
        log_data |= log_data.pop("fields", {})
        if "exception" in log_data:
            log_data["exception"] = log_data.pop("exception")
        return {
            name: _encodable(value) if isinstance(value, str) else value for name, value in log_data.items()
        }


def _encodable(text: str) -> str:
    """The text with escapes in place of surrogates, which names of files may hold and strict readers of JSON refuse."""
    return text.encode(errors="backslashreplace").decode()
