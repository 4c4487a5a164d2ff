"""Describes errors to the user whose code raised them: type, message, and the line of that code.

A job runs its user's code: the recipe, the network, the loss, the data. An error of that code before anything has been
trained would recur after a restart; `final` converts it into a `Mistake`, which ends the process with exit code 2.
Imports no framework.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from downpour.proto.errors import DownpourError

_MAX_CHARACTERS = 600  # Keras puts whole arrays into some messages
_MOST_FRAMES = 5
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# AutoGraph puts a traceback of the original code into the message, and the cause at its end.
_IN_USER_CODE = "in user code:"
_CALL_SITE = re.compile(r'^ *File "([^"]+)", line (\d+), in (\S+).*\n(?: {8,}.*\n?)*', re.MULTILINE)
_RAISED = re.compile(r"([\w.]*[A-Za-z]\w*(?:Error|Exception|Stop\w+|Exit|Interrupt)): ?(.*)", re.DOTALL)
_NAMES_A_PLACE = re.compile(r"\(\S.*:\d+\)$")
# Keras prefixes messages with what it was doing.
_CALLING = re.compile(
    r"^(Exception encountered when calling .*?\n\n|Could not automatically infer .*?Error encountered:\s*)+", re.DOTALL
)
# TensorFlow puts the calls that made an operation of a graph before the cause, and its names behind it.
_GRAPH = re.compile(
    r"^Graph execution error:\s*(Detected at node [^\n]*\n(?: *File [^\n]*\n|\s*\n)*)*|\s*\[\[(?:\{\{)?node .*",
    re.DOTALL,
)
_ARGUMENTS = re.compile(r"\n\n *(Arguments received by|Call arguments received) .*", re.DOTALL)

_UNKNOWN_ARGUMENT = re.compile(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'$")

# Downpour's folders, with the links of a checkout resolved.
_OURS = tuple(
    str((Path(__file__).absolute().parents[2] / name).resolve())
    for name in ("proto", "ps", "worker", "model", "launch")
)
_LIBRARIES = ("absl", "keras", "ml_dtypes", "numba", "numpy", "optree", "tensorflow")


class Mistake(ValueError):
    """An error of the job's own code, with the text of `describe`; raised from the original error."""


@contextlib.contextmanager
def final(is_final: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Converts errors of the job's code in this block into a `Mistake`, while `is_final()` is true.

    `ValueError`, `DownpourError` and an `OSError` from outside the job's code pass unchanged.

    Raises:
        Mistake: The message has type, message, file and line.
    """
    try:
        yield
    except Exception as error:
        passes = isinstance(error, ValueError | DownpourError) or (isinstance(error, OSError) and not _place(error))
        if passes or not is_final():
            raise
        raise Mistake(describe(error)) from error


def describe(error: BaseException) -> str:
    """An error as one line, such as `TypeError: unsupported operand type (mine.py:12)`.

    The file and line are those of the innermost frame that belongs neither to Downpour nor to Python, Keras,
    TensorFlow or numpy; without such a frame they are left out. The type is left out of Downpour's own messages. Notes
    of the error follow, such as the number of the example that could not be read.
    """
    if isinstance(error, Mistake):
        return str(error)
    name, message = _said(error)
    message = " ".join(message.split())
    if len(message) > _MAX_CHARACTERS:
        message = f"{message[:_MAX_CHARACTERS]} ... (--verbosity=1 shows all of it)"
    if not _is_ours(error):
        message = f"{name}: {message}" if message else name
    place = "" if _NAMES_A_PLACE.search(message) else _place(error)
    details = "; ".join(" ".join(text.split()) for text in (place, *getattr(error, "__notes__", ())) if text)
    return f"{message} ({details})" if details else message


def frames(error: BaseException) -> list[str]:
    """The last calls in the user's own code that an error came out of, as Python's tracebacks show them; often none.

    An error that was raised from another one has the frames of that one.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for one in reversed(chain):
        mine = [(file, line, name) for file, line, name in _frames(one) if _is_users(file)]
        if isinstance(one, SyntaxError) and one.filename and _is_users(one.filename):
            return "".join(traceback.format_exception_only(one)[:-1]).splitlines()
        if mine:
            return [text for frame in mine[-_MOST_FRAMES:] for text in _frame_lines(*frame)]
    return []


def defined(function: Any) -> str:
    """File and line of a function of the user's code, ` (mine.py:12)`; "" for all others."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return f" ({_shown(code.co_filename, code.co_firstlineno)})" if code and _is_users(code.co_filename) else ""


def _said(error: BaseException) -> tuple[str, str]:
    """Type and message of the original error, without what AutoGraph, TensorFlow and Keras add."""
    name, text = type(error).__name__, _ANSI.sub("", _text(error))
    if text.startswith(_IN_USER_CODE):
        sites = list(_CALL_SITE.finditer(text))
        cause = text[sites[-1].end() :] if sites else text.removeprefix(_IN_USER_CODE)
        if raised := _RAISED.match(cause.strip()):
            name, text = raised[1], raised[2]
    text = _GRAPH.sub("", _CALLING.sub("", text.strip()))
    return name, _ARGUMENTS.sub("", text) + _nearest_argument(error)


def _text(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, KeyError) and len(error.args) == 1:
        return repr(error.args[0])
    return str(error)


def _is_ours(error: BaseException) -> bool:
    """Whether Downpour or absl raised the error with its own message."""
    if isinstance(error, DownpourError) or type(error).__module__.startswith("absl."):
        return True
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__) if frame.filename[0] != "<"]
    return isinstance(error, ValueError) and (not files or _is_downpours(files[-1]))


def _place(error: BaseException) -> str:
    """File and line of the user's own code that an error came out of, `mine.py:12`; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return _shown(error.filename, error.lineno)
    mine = [_shown(file, line) for file, line, _ in _frames(error) if _is_users(file)]
    return mine[-1] if mine else ""


def _frames(error: BaseException) -> list[tuple[str, int, str]]:
    """File, line and function of the calls that an error came out of, AutoGraph's among them."""
    found = [(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    sites = _CALL_SITE.findall(_ANSI.sub("", _text(error)))
    return [*found, *((file, int(line), name) for file, line, name in sites)]


def _frame_lines(file: str, line: int, name: str) -> Iterator[str]:
    yield f'  File "{_relative(file)}", line {line}, in {name}'
    if text := linecache.getline(file, line).strip():
        yield f"    {text}"


def _nearest_argument(error: BaseException) -> str:
    """`; did you mean num_steps?` for an argument that a function or class called by name does not take."""
    unknown, trace = _UNKNOWN_ARGUMENT.search(str(error)), error.__traceback__
    if not isinstance(error, TypeError) or unknown is None or trace is None:
        return ""
    while trace.tb_next:
        trace = trace.tb_next
    called = (trace.tb_frame.f_globals | trace.tb_frame.f_locals).get(unknown[1])
    try:
        taken = [*inspect.signature(called).parameters] if callable(called) else []
    except (TypeError, ValueError):
        return ""
    near = difflib.get_close_matches(unknown[2], taken, 1)
    return f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(taken)}" if taken else ""


def _shown(file: str, line: int) -> str:
    return f"{_relative(file)}:{line}"


def _relative(file: str) -> str:
    """The path as seen from the working directory, if the file is in it."""
    path, here = os.path.abspath(file), os.path.abspath(os.curdir)
    return os.path.relpath(path) if path.startswith(here + os.sep) else file


def _is_users(file: str) -> bool:
    """Whether a source file is neither Downpour's, nor Python's, nor one of a library that calls the user's code."""
    if file.startswith("<") or os.path.basename(file).startswith("__autograph_generated_file"):
        return False
    path = os.path.abspath(file)
    if _is_downpours(path) or path.startswith(sysconfig.get_path("scripts") + os.sep):
        return False
    for installed in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        if path.startswith(installed + os.sep):
            return not path[len(installed) + 1 :].startswith(_LIBRARIES)
    return not path.startswith(sysconfig.get_path("stdlib") + os.sep)


def _is_downpours(file: str) -> bool:
    return os.path.realpath(file).startswith(tuple(folder + os.sep for folder in _OURS))
