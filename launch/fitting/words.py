"""Names what refusals ask for as arguments of `fit`: modules that it shares with the command line name flags."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from downpour.launch.local.supervisor import ProcessFailed

_ARGUMENTS = (
    (re.compile(r"start with(out one by)? --noevaluator"), "leave validation_data out"),
    (re.compile(r"--set=cluster\.num_ps\b"), "shards"),
    (re.compile(r"--set=cluster\.num_workers\b"), "workers"),
    (re.compile(r"--set=(?=[\w.]+=)"), ""),
    (re.compile(r"--(resume|overwrite)\b"), r"\1=True"),
    (re.compile(r"--(run_dir|epochs|batch_size|trace|metrics_port)\b"), r"\1"),
)


def of_fit(message: str) -> str:
    """Returns a message with arguments of `fit` in place of flags: `give another run_dir`."""
    for flag, argument in _ARGUMENTS:
        message = flag.sub(argument, message)
    return message


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Rewrites the message of what is refused in its block, or in the function that it decorates."""
    try:
        yield
    except (ValueError, ProcessFailed) as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (of_fit(error.args[0]), *error.args[1:])
        raise
