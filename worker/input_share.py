"""Whether a worker computes faster than it reads: the share of its steps that it waits for data. Pure: no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

LIMIT = 0.2  # of a step; above it a worker is bound by its input
NUM_STEPS = 100  # over which a share is a mean


@dataclass(frozen=True)
class Spent:
    """Totals of a worker.

    Attributes:
        steps: Steps computed.
        examples: Examples of these.
        input_s: Seconds that the loop waited for batches.
        lease_s: Seconds that were waited for leases, of which some of `input_s` may consist.
        others_s: Seconds of everything else in the loop.
    """

    steps: int = 0
    examples: int = 0
    input_s: float = 0.0
    lease_s: float = 0.0
    others_s: float = 0.0

    def since(self, earlier: Spent) -> Spent:
        """What has been added since an earlier total."""
        return Spent(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))

    @property
    def data_s(self) -> float:
        """Seconds that were waited for data. A lease may wait for a score at the end of an epoch; no reading helps."""
        return max(self.input_s - self.lease_s, 0.0)


@dataclass
class InputShare:
    """The largest share of `NUM_STEPS` consecutive steps that a worker waited for data, and the one warning of it.

    Its first step does not count: pictures that are kept in memory are decoded before it.

    Attributes:
        largest: The share, from 0 to 1; 0 before it is known.
    """

    largest: float = 0.0
    _begin: Spent | None = None
    _has_warned: bool = False

    def add(self, totals: Spent) -> str | None:
        """Takes the totals after a step; returns a warning once, when a share is above `LIMIT`."""
        if self._begin is None:
            self._begin = replace(totals)
        window = totals.since(self._begin)
        if window.steps < NUM_STEPS:
            return None
        self._begin = replace(totals)
        total_s = window.data_s + window.others_s
        share = window.data_s / total_s if total_s else 0.0
        self.largest = max(self.largest, share)
        if share <= LIMIT or self._has_warned:
            return None
        self._has_warned = True
        return (
            f"this worker waits for its data for {share:.0%} of a step (mean of {window.steps} steps): it reads "
            f"{window.examples / total_s:.3g} examples/s and could compute {window.examples / window.others_s:.3g}; "
            "give the data more num_threads or num_processes; for ImageRecords a smaller resize, memory_bytes that "
            "hold the decoded pictures, or fewer workers a machine (docs/data.md, Waiting)"
        )
