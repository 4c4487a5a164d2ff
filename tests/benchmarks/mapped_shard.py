"""A shard as production runs it, which at its end tells `perf` where its compiled loops are.

`perf` finds the names of code that has no file in a map: lines of address, size and name. Started by
`tests.benchmarks.cluster` in the place of `downpour.launch.ps`, with the same flags.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator

from numba.core.dispatcher import Dispatcher

from downpour.launch import ps
from tests.benchmarks.cpu_account import map_file

_LONGEST = 1 << 15  # bytes of one loop; numba does not say how many they are


def _loops() -> Iterator[tuple[int, str]]:
    """Address and name of every compiled loop of this process, and of what calls it from Python."""
    gc.unfreeze()  # what the shard has frozen is left out otherwise
    for dispatcher in gc.get_objects():
        if not isinstance(dispatcher, Dispatcher):
            continue
        for compiled in dispatcher.overloads.values():
            names = compiled.fndesc.llvm_func_name, compiled.fndesc.llvm_cpython_wrapper_name
            for name in names:
                yield compiled.library.get_pointer_to_function(name), str(dispatcher.py_func.__name__)


def _write_map() -> None:
    found = sorted((address, name) for address, name in _loops() if address)
    ends = [address for address, _ in found[1:]] + [found[-1][0] + _LONGEST] if found else []
    lines = [
        f"{address:x} {min(end - address, _LONGEST):x} loop:{name}"
        for (address, name), end in zip(found, ends, strict=True)
    ]
    map_file(os.getpid()).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    atexit.register(_write_map)
    ps.main()
