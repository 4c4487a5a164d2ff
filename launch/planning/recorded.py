"""How long the workers of a run took for their steps, from its `summary.json`: the times of a simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

from downpour.launch.planning.assumptions import Assumptions

_SUMMARY, _STEPS = "summary.json", "worker_steps"


def assumptions(run: Path) -> Assumptions:
    """Returns workers as fast as those of a run, with the spread of its steps; worker 0 like its worker 0, and so on.

    A step's seconds are those from the end of one worker's computing to that of its next, its exchange included, so
    exchanges take no time beside them.

    Raises:
        ValueError: There is no summary, or it says nothing of steps.
    """
    path = run / _SUMMARY
    how = "give the folder of a run that has ended"
    try:
        steps = json.loads(path.read_text())[_STEPS].values()
        counts = [(one["steps"], one["seconds"], one["spread"]) for one in steps if one["seconds"] > 0]
    except FileNotFoundError:
        raise ValueError(f"--times_of={run}: there is no {path}; {how}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"--times_of={run}: {path} says nothing of its workers' steps ({error!r}); {how}") from None
    if not counts:
        raise ValueError(f"--times_of={run}: none of its workers has made two steps; {how}")
    mean = len(counts) / sum(1 / seconds for _, seconds, _ in counts)  # so that together they are as fast
    total = sum(number for number, _, _ in counts)
    spread = math.sqrt(sum(number * spread**2 for number, _, spread in counts) / total)
    return Assumptions(len(counts), math.inf, mean, spread, relative_s=tuple(s / mean for _, s, _ in counts))
