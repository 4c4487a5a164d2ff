"""Starts and ends every process: flags, log prefix, allocator, errors as exit codes, end with its parent.

The `main` of a role or command defines its flags; then `run` parses the command line and calls a function that reads
the flags into a configuration and does the work:

    def main() -> None:
        role_flags.define("worker")
        entry.run(lambda: run(from_flags()), role="worker")

    def run(config: WorkerConfig) -> int | None: ...

Exit codes: 0 done, 1 a crash (its traceback and, last, one line with its cause), 2 the user or the cluster must mend
something (one line on stderr, after the last calls in the user's own code if the error came out of that), 69 a peer did
not answer within the configured time, or the chief has no record of a worker's lease (one line, too; restarting the
process may help), 74 the last checkpoint cannot be written and the shards still hold the parameters (a restarted chief
writes it), 130 interrupted, 143 ended by SIGTERM (`downpour.launch.roles.ending`).

Log lines read `[worker/3 step=120 version=118] message`, or are JSON objects (`downpour.launch.roles.log_lines`).
`set_role` sets the part before the first blank, `set_context(step=120, version=118)` the rest; the context belongs to
the process, not to a thread, and a value of None removes a key. The last line of a process in a container of Kubernetes
is in its termination message, too. Imports only absl, our errors and their description, since a shard runs this too.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging as python_logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import flags, logging

from downpour.launch.job import mistakes
from downpour.launch.roles import command_line, log_lines
from downpour.launch.roles.command_line import Syntax
from downpour.proto.errors import DownpourError, LeaseUnknown, NotSaved, Unreachable

OK, BUG, REFUSED, UNREACHABLE, NOT_SAVED, INTERRUPTED, TERMINATED = 0, 1, 2, 69, 74, 130, 143

# The last lines of a process that has failed, as `refuse` and `run` write them; the group is the message.
REFUSAL_LINE, CRASH_LINE = re.compile(r"\[[^]]*\] error: (.*)"), re.compile(r"\[[^]]*\] crashed: (.*)")

_PR_SET_PDEATHSIG = 1
# Where Kubernetes reads why a container has ended; the kubelet makes the file, and shows its first 4 KiB.
_TERMINATION_LOG, _MOST_TOLD = Path("/dev/termination-log"), 4096

# glibc's mallopt. One arena, because each of gRPC's threads would otherwise keep its own free chunks of megabytes;
# high thresholds, because glibc otherwise gives every large buffer back to the kernel and faults it in again.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ALLOCATOR = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 1 << 30))

_role = "downpour"
_parent = 0  # process id of --die_with_parent; 0 for none
_context: dict[str, object] = {}  # read by any thread that logs; replaced as a whole, so never half-written


def run(main: Callable[[], int | None], role: str, syntax: Syntax = command_line.PLAIN) -> NoReturn:
    """Parses the command line, runs `main`, and ends the process with its exit code.

    Args:
        main: Does the work. Its integer, if any, is the exit code. `--help` shows the docstring of its module.
        role: Prefix of log lines and errors until `set_role` is called, for example `worker`.
        syntax: What the command line may hold, and which flags `--help` shows.
    """
    set_role(role)
    _define_flags()
    try:
        command_line.parse(sys.modules[main.__module__].__doc__ or "", syntax)
        _start_logging()
        _set_allocator()
        _die_with_parent(int(flags.FLAGS["die_with_parent"].value or 0))
        code = main() or OK
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (Unreachable, LeaseUnknown) as error:
        refuse(error)
        code = UNREACHABLE
    except NotSaved as error:
        refuse(error)
        code = NOT_SAVED
    except (ValueError, DownpourError, flags.Error) as error:
        code = refuse(error)
    except Exception as error:
        _write_end(mistakes.describe(error), "CRITICAL", error, "".join(traceback.format_exception(error)))
        code = BUG
    logging.flush()
    gc.freeze()  # the interpreter would search all of TensorFlow for garbage before it ends, which takes a second
    sys.exit(code)


def set_role(role: str) -> None:
    """Sets the role in the log prefix, for example `worker/3`."""
    global _role
    _role = role


def set_context(**values: object) -> None:
    """Adds keys to every log line's prefix, for example `set_context(step=120)`; None removes a key."""
    global _context
    _context = {key: value for key, value in (_context | values).items() if value is not None}


def prefix() -> str:
    """The prefix of a log line now: `[worker/3 step=120 version=118]`."""
    return log_lines.prefix(_role, _context)


def refuse(error: BaseException) -> int:
    """Prints an error as one line on stderr and returns exit code 2.

    Before it come the last calls in the user's own code that it came out of; with `--verbosity=1` the whole traceback.
    """
    shows_all = logging.get_verbosity() >= logging.DEBUG
    calls = "".join(traceback.format_exception(error)) if shows_all else "\n".join(mistakes.frames(error))
    _write_end(mistakes.describe(error), "ERROR", error, calls)
    return REFUSED


def say(message: str) -> None:
    """Writes a line of this process on stderr, whatever its verbosity."""
    print(log_lines.as_json(_process(), message) if in_json() else f"[{_role}] {message}", file=sys.stderr, flush=True)


def say_failed(message: str) -> None:
    """Writes the line that a launcher ends with when a process of its run has failed."""
    _write_end(message, "ERROR")


@logging.skip_log_prefix
def conclude(message: str, *arguments: object, level: int = logging.INFO) -> None:
    """Logs the last line of a process that ends otherwise than by an error; it is its termination message."""
    logging.log(level, message, *arguments)
    _tell_kubernetes(f"{prefix()} {message % arguments}")


def _process() -> str:
    """The role and, as soon as it is known, the index of this process: `worker/3`."""
    index = flags.FLAGS["index"].value if "index" in flags.FLAGS else None
    return _role if index is None or "/" in _role else f"{_role}/{index}"


def in_json() -> bool:
    """Whether the lines of this process are JSON."""
    return "log_format" in flags.FLAGS and flags.FLAGS["log_format"].value == "json"


def _write_end(message: str, severity: str, error: BaseException | None = None, calls: str = "") -> None:
    """Writes why this process ends: in text the calls that led there, then one line."""
    line = f"[{_role}] {'crashed' if severity == 'CRITICAL' else 'error'}: {message}"
    _tell_kubernetes(line)
    if in_json():
        source = log_lines.source_of(error) if error else ""
        line = log_lines.as_json(
            _process(), message, severity=severity, context=_context, source=source, exception=calls
        )
    elif calls:
        line = f"{calls.rstrip()}\n{line}"
    with contextlib.suppress(OSError):  # its disk may be full
        print(line, file=sys.stderr, flush=True)


def _tell_kubernetes(message: str) -> None:
    """Makes a line the termination message of a container, unless this process has a launcher, which writes its own."""
    if not _parent and _TERMINATION_LOG.is_file():
        with contextlib.suppress(OSError):
            _TERMINATION_LOG.write_bytes(message.encode(errors="replace")[:_MOST_TOLD])


class _Formatter(python_logging.Formatter):
    """Puts the prefix before each record, and the level's name before warnings and worse."""

    def format(self, record: python_logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        name = "" if record.levelno <= python_logging.INFO else f"{record.levelname.lower()}: "
        return f"{prefix()} {name}{super().format(record)}"


class _JsonFormatter(python_logging.Formatter):
    """Formats each record as a JSON object."""

    def format(self, record: python_logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return log_lines.as_json(_process(), context=_context, **log_lines.described(record))


def define_log_format() -> None:
    """Defines `--log_format`, which every command has; those whose `--help` shows it call this."""
    if "log_format" not in flags.FLAGS:
        text = "Log lines: text, or one JSON object a line."
        flags.DEFINE_enum("log_format", "text", log_lines.FORMATS, text, flag_values=flags.FLAGS)


def _define_flags() -> None:
    define_log_format()
    if "die_with_parent" not in flags.FLAGS:
        text = "Process id of the parent; this process ends when its parent has ended. 0: never."
        flags.DEFINE_integer("die_with_parent", 0, text, lower_bound=0)


def _start_logging() -> None:
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    assert handler is not None
    handler.setFormatter(_JsonFormatter() if in_json() else _Formatter())
    if in_json():
        python_logging.captureWarnings(True)
        threading.excepthook = _log_thread


def _log_thread(failed: threading.ExceptHookArgs) -> None:
    """Logs the exception that has ended a thread, of which Python prints the traceback otherwise."""
    name = failed.thread.name if failed.thread else "unknown"
    logging.error("thread %s ends with %s", name, failed.exc_type.__name__, exc_info=failed.exc_value or True)


def _set_allocator() -> None:
    """Sets glibc's options above; other C libraries are left as they are."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in _ALLOCATOR:
            library.mallopt(option, value)


def _die_with_parent(parent: int) -> None:
    """Requests SIGTERM from Linux when the parent dies; ends now if it has already died.

    Linux means the parent's thread: a parent must start us from a thread that lives as long as it does.
    """
    global _parent
    _parent = parent
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(TERMINATED)


def parent_is_gone() -> bool:
    """Whether `--die_with_parent` is set and that parent has died."""
    return bool(_parent) and os.getppid() != _parent
