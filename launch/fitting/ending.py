"""How a run of `fit` has ended, in its summary and as a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from downpour.launch.job.job import Job
from downpour.launch.local import RunConfig, saving
from downpour.launch.local.supervisor import Stopped


def summary_of_stop(error: BaseException | None, callback: str, config: RunConfig) -> dict[str, Any]:
    """The summary of a run that its caller, or a callback, has stopped; {} for one that has ended otherwise.

    Args:
        error: What the run has ended with.
        callback: Name of the callback; "" for none.
        config: The run's configuration.
    """
    if type(error) is not Stopped:  # an `Interrupted` is of a signal
        return {}
    by, because = "stop", "; ".join([str(error), *getattr(error, "__notes__", ())])
    if callback:
        by, because = f"callback {callback}", f"{callback} set model.stop_training"
    step = int(saving.newest(config).removeprefix("step-") or 0)
    return {"ended_by": by, "ended_because": because, "global_steps": step}


def line_of(summary: Mapping[str, Any], job: Job) -> str:
    """Why a run has ended before its last step, as one line; "" after that."""
    by, because = summary.get("ended_by", "steps"), summary.get("ended_because", "")
    if by == "max_train_s":
        because = f"max_train_s, {job.max_train_s:g} s of training, are over"
    return because if by == "stop" or not because else f"stopped early: {because}"


def state_text(summary: Mapping[str, Any], error: BaseException | None, num_steps: int) -> str:
    """How a run has ended, `ended by steps at step 50 of 50`.

    Args:
        summary: Its summary; {} where it has failed.
        error: What it has ended with.
        num_steps: Steps of the job.
    """
    if not summary:
        return f"failed: {error}".partition("\n")[0]
    return f"ended by {summary['ended_by']} at step {summary['global_steps']} of {num_steps}"
