"""The metrics of one scrape, made from counters that a process keeps anyway: nothing is counted twice in a hot loop.

Names follow Prometheus' conventions: base units, `_seconds`, `_bytes`, counters end with `_total`. Labels are of
bounded cardinality: `shard`, `worker`, a state, a part of a step. What process it is (`role`, `index`, `run`) is a
label of the target, which whoever scrapes sets: the PodMonitor and the file of targets do.

Imports prometheus-client; loaded only where metrics are served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Scrape:
    """Collects samples into families, in the order of their names' first use."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def gauge(self, name: str, text: str, value: float, **labels: str) -> None:
        """Adds a value that may fall."""
        self._family(GaugeMetricFamily, name, text, labels).add_metric(list(labels.values()), value)

    def counter(self, name: str, text: str, value: float, **labels: str) -> None:
        """Adds a value that only grows while its process lives; the name ends with `_total`."""
        assert name.endswith("_total"), name
        self._family(CounterMetricFamily, name, text, labels).add_metric(list(labels.values()), value)

    def state(self, name: str, text: str, value: str, states: Iterable[str], **labels: str) -> None:
        """Adds a state: 1 in the series of the present one, 0 in those of the others."""
        for one in states:
            self.gauge(name, text, float(one == value), **labels, state=one)

    def histogram(
        self, name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float, **labels: str
    ) -> None:
        """Adds a histogram.

        Args:
            name: Its name.
            text: Its description.
            bounds: Upper bounds, ascending, without infinity.
            counts: Of the values up to each bound and above the one before; then of all above.
            total: Sum of all values.
            labels: Its labels.
        """
        buckets, so_far = [], 0
        for bound, count in zip((*map(float, bounds), float("inf")), counts, strict=True):
            so_far += count
            buckets.append((f"{bound:g}" if bound != float("inf") else "+Inf", float(so_far)))
        family = self._family(HistogramMetricFamily, name, text, labels)
        family.add_metric(list(labels.values()), buckets, total)

    def families(self) -> Iterable[Metric]:
        """Returns all families."""
        return self._families.values()

    def _family(self, kind: Any, name: str, text: str, labels: Mapping[str, str]) -> Any:
        if name not in self._families:
            self._families[name] = kind(name, text, labels=list(labels))
        return self._families[name]


class Source(Collector):
    """Calls functions at every scrape, each of which adds samples.

    Args:
        add: The functions.
    """

    def __init__(self, *add: Callable[[Scrape], None]) -> None:
        self._add = add

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        scrape = Scrape()
        for add in self._add:
            add(scrape)
        yield from scrape.families()
