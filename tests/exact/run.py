"""Many random models: how many train exactly as in plain Keras, how many are refused, and why.

    python -m tests.exact.run --models=2000 --seed=0
    python -m tests.exact.run --seed=0 --only=17        (one of them again, with its recipe)

The last line is `RESULT {...}`. The exit code is 1 if a model was trained differently, crashed, or was refused without
one of its names or although it must train.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
from collections import Counter

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.exact.against_keras import Outcome, outcome_of
from tests.exact.models import Drawn

_MODELS_A_PROCESS = 200  # Keras and TensorFlow keep some 8 MB of every model that a process has traced


def summary(outcomes: list[Outcome], seconds: float) -> dict[str, object]:
    """What the models came to, as one dictionary."""
    by_status = Counter(outcome.status for outcome in outcomes)
    refusals = Counter(reason_of(outcome) for outcome in outcomes if outcome.status == "refused")
    equal = [outcome for outcome in outcomes if outcome.status == "equal"]
    return {
        "models": len(outcomes),
        "equal": by_status["equal"],
        "refused": by_status["refused"],
        "failed": by_status["failed"],
        "refusals": dict(refusals.most_common()),
        "with factors": sum(outcome.factored for outcome in equal),
        "largest error, in tolerances": round(max((outcome.error for outcome in equal), default=0.0), 3),
        "failed numbers": [outcome.number for outcome in outcomes if outcome.status == "failed"],
        "seconds": round(seconds, 1),
    }


def reason_of(outcome: Outcome) -> str:
    """A refusal's reason without names and numbers, so that equal reasons are counted together."""
    said = outcome.reason.strip().rpartition("ValueError: ")[2]  # AutoGraph puts a traceback before it
    words = said.splitlines()[0].split()
    return " ".join("NAME" if "/" in word else re.sub(r"\d+", "N", word) for word in words)[:120]


def report(outcome: Outcome, seed: int) -> None:
    """What came of a model, its recipe, and the command that draws it again."""
    print(
        f"\n{outcome.status.upper()} {outcome.number}: python -m tests.exact.run --seed={seed} --only={outcome.number}"
    )
    print("\n".join(f"    {line}" for line in outcome.recipe))
    print(outcome.reason, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    numbers = [given.only] if given.only is not None else range(given.first, given.first + given.models)
    begin, outcomes = time.monotonic(), []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=_MODELS_A_PROCESS) as pool:
        for outcome in pool.imap(outcome_of, (Drawn(given.seed, number) for number in numbers)):
            outcomes.append(outcome)
            print(f"{outcome.number} {outcome.status} {outcome.error:.2g} {outcome.seconds:.1f} s", flush=True)
            if outcome.status == "failed" or given.only is not None:
                report(outcome, given.seed)
    print("RESULT", json.dumps(summary(outcomes, time.monotonic() - begin)))
    sys.exit(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    main()
