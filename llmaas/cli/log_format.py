"""How the daemon's log looks: lines of text for people, or lines of JSON for programs.

Law: one message is one line, whatever it holds. A message that is about a call says which (``log_context``).
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from llmaas.cli.log_limit import RateLimitedLog
from llmaas.log_context import current_call

_TEXT = "%(asctime)s %(levelname)-7s %(name)s:%(about)s %(message)s"


class CallOfMessage(logging.Filter):
    """A handler's filter that notes the call that a message is about. It leaves nothing out."""

    def filter(self, record: logging.LogRecord) -> bool:
        call = current_call.get()
        record.call, record.about = call, "" if call is None else f" call {call}:"
        return True


class JsonLines(logging.Formatter):
    """A message as one line of JSON: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, and ``call`` and
    ``error`` (a traceback) where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if (call := getattr(record, "call", None)) is not None:
            line["call"] = call
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(level: str, log_format: str) -> None:
    """Let this process log to stderr, as the settings ``log_level`` and ``log_format`` say."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.addFilter(RateLimitedLog())
    to_stderr.addFilter(CallOfMessage())
    to_stderr.setFormatter(formatter(log_format))
    logging.basicConfig(level=level.upper(), handlers=[to_stderr])


def formatter(log_format: str) -> logging.Formatter:
    """The formatter that the setting ``log_format`` names."""
    return JsonLines() if log_format == "json" else logging.Formatter(_TEXT)
