"""The process of a stranger: attacks a shard while it is told to. Started by `tests.strangers.scene`.

It reads lines. `{"attack": NAME, "way": NAME}` begins an attack, with `"at_most"` one of so many connections, and is
answered by `on`. `look` and `off`, which ends it, are answered by a line of JSON: what was done. It is as nice as can
be: it stands for another machine, and what it computes must not be what slows the training down.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import selectors
import sys
import time
from dataclasses import replace
from pathlib import Path

from absl import flags

from downpour.launch.roles import entry
from tests.strangers.attacks import ATTACKS
from tests.strangers.crowd import Crowd
from tests.strangers.ways import WAYS

_PORT = flags.DEFINE_integer("shard_port", 0, "Of the shard, on this machine.")
_FOLDER = flags.DEFINE_string("folder", "", "Of the certificates.")


class Stranger:
    """Attacks one shard, one attack at a time."""

    def __init__(self, port: int, folder: Path) -> None:
        self._address, self._folder = ("127.0.0.1", port), folder
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._crowd: Crowd | None = None
        self._began_cpu_s = 0.0

    def run(self) -> None:
        """Until its input ends."""
        while True:
            for key, events in self._selector.select(self._crowd.wait_s() if self._crowd else None):
                if key.data and self._crowd:
                    self._crowd.serve(key.data, events)
                elif not key.data and not self._obey(sys.stdin.readline().strip()):
                    return
            if self._crowd:
                self._crowd.keep_up()

    def _obey(self, told: str) -> bool:
        if told in ("look", "off"):
            print(json.dumps(self._done()), flush=True)
            if told == "off":
                self._end()
        elif told:
            self._begin(**json.loads(told))
            print("on", flush=True)
        return bool(told)

    def _begin(self, attack: str, way: str, at_most: int | None = None) -> None:
        coming, does = WAYS[way], ATTACKS[attack]
        context = coming.context(self._folder)
        if at_most:
            does = replace(does, num_connections=min(at_most, does.num_connections))
        self._crowd = Crowd(does, coming.token, context, self._address, self._selector)
        self._began_cpu_s = time.process_time()

    def _done(self) -> dict[str, float]:
        assert self._crowd
        return {**self._crowd.counts, "cpu_s": time.process_time() - self._began_cpu_s}

    def _end(self) -> None:
        assert self._crowd
        self._crowd.close()
        self._crowd = None


def _main() -> None:
    os.nice(19)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stranger = Stranger(_PORT.value, Path(_FOLDER.value))
    gc.freeze()
    print("ready", flush=True)
    stranger.run()


if __name__ == "__main__":
    entry.run(_main, role="stranger")
