"""What a log line looks like: text, or one JSON object a line for collectors of logs (`--log_format=json`).

A text line reads `[worker/3 step=120 version=118] warning: message`. A JSON object has these keys, of which `index`,
`exception`, `source` and the context are left out where there are none:

| key | value |
|---|---|
| `time` | RFC 3339, UTC, microseconds |
| `severity` | `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`; the last is the cause of a crash |
| `role`, `index` | of the process: `worker` and 3 |
| `step`, `version` and others | the context of the process |
| `message` | the message |
| `source` | file and line: of the call that has logged, or, of an error that ends a process, where it was raised |
| `exception` | the traceback, its lines separated by line feeds |

Pure. Imports only what a shard has installed.
"""

from __future__ import annotations

import datetime
import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any

FORMATS = ("text", "json")
_MARKS = {"WARNING": "warning: ", "ERROR": "error: ", "CRITICAL": "crashed: "}  # in text, after the prefix
_ALWAYS = {"time", "severity", "role", "message"}


def as_json(
    role: str,
    message: str,
    *,
    severity: str = "INFO",
    context: Mapping[str, object] | None = None,
    source: str = "",
    exception: str = "",
    at_s: float | None = None,
) -> str:
    """Returns a line in JSON, without a line feed.

    Args:
        role: Role of the process, and its index if it has one: `worker/3`.
        message: The message.
        severity: One of the table above.
        context: Step, version and others.
        source: File and line.
        exception: A traceback.
        at_s: Seconds since the epoch; now by default.
    """
    at = datetime.datetime.now(datetime.UTC) if at_s is None else datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    name, _, index = role.partition("/")
    entry: dict[str, Any] = {"time": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "severity": severity, "role": name}
    entry |= {"index": int(index)} if index.isdecimal() else {}
    entry |= {key: value for key, value in (context or {}).items() if key not in entry}
    entry |= {"message": message, "source": source, "exception": exception.rstrip()}
    return json.dumps({key: value for key, value in entry.items() if value != ""}, default=str)


def as_text(line: str) -> str:
    """Returns a line as text, without its traceback; any line that is not `as_json`'s is returned as it is."""
    entry = _parsed(line)
    if entry is None:
        return line
    role = f"{entry['role']}/{entry['index']}" if "index" in entry else str(entry["role"])
    left = {key: value for key, value in entry.items() if key not in {*_ALWAYS, "index", "source", "exception"}}
    message = f"{_MARKS.get(entry['severity'], '')}{entry['message']}"
    return f"{prefix(role, left)} {message}"


def wrapped(name: str, line: str) -> str:
    """Returns a line of the process `name` in JSON; one that is text, of a library for example, is its message."""
    return as_json(name, line.removeprefix(f"[{name}] ")) if _parsed(line) is None else line


def prefix(role: str, context: Mapping[str, object]) -> str:
    """Returns the begin of a text line: `[worker/3 step=120 version=118]`."""
    return "[" + " ".join([role, *(f"{key}={value}" for key, value in context.items())]) + "]"


def source_of(error: BaseException) -> str:
    """Returns file and line of the frame that raised an error; "" if it was never raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def described(record: logging.LogRecord) -> dict[str, Any]:
    """Returns a record's arguments of `as_json`, without its role and context."""
    exception = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return {
        "message": record.getMessage(),
        "severity": record.levelname,
        "source": f"{record.pathname}:{record.lineno}",
        "exception": "\n".join(part for part in (exception, record.stack_info or "") if part),
        "at_s": record.created,
    }


def _parsed(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.keys() >= _ALWAYS else None
