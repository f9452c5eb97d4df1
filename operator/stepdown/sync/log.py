"""What a keeper (`stepdown run`, the operator) says while it runs: one line an event, for people (logfmt) or machines (JSON).

A line has a time, a level, a sentence, and the values in it once more as fields, so that nobody must parse the sentence.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["logfmt", "json"]

LOGGER = logging.getLogger("stepdown")


def setup(log_format: LogFormat, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Sends every log line of the process to stderr in one shape."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Logfmt())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(level)


def info(message: str, **fields: Any) -> None:
    LOGGER.info(message, extra={"fields": fields})


def warning(message: str, **fields: Any) -> None:
    LOGGER.warning(message, extra={"fields": fields})


def error(message: str, **fields: Any) -> None:
    LOGGER.error(message, extra={"fields": fields})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        message = record.getMessage()
        if record.exc_info:
            message += ": " + self.formatException(record.exc_info)
        pairs = "".join(f" {name}={_value(value)}" for name, value in fields.items() if value not in ("", None))
        line = f"time={_time(record)} level={record.levelname.lower()} msg={json.dumps(message, ensure_ascii=False)}{pairs}"
        return line.replace("\n", "\\n")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        line = {"time": _time(record), "level": record.levelname.lower(), "msg": record.getMessage(), **fields}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _value(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=\\]+", text) else json.dumps(text, ensure_ascii=False)
