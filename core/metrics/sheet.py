"""One scrape's values: collected by metric and labels, cleaned and bounded, then given out as families."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from core.metrics.names import METRICS
from core.text import safe

# Links, networks, containers, translations: of each kind so many at most get series of their own.
MOST = 2000
_LONGEST = 128


class Sheet:
    """Values by metric and labels. A counter that is added to twice under one set of labels holds the sum."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._values: dict[str, dict[tuple[str, ...], float]] = {}

    def add(self, name: str, labels: Iterable[object], value: float) -> None:
        """Add a value; a gauge's last one counts."""
        known = self._values.setdefault(name, {})
        key = tuple(cleaned(str(label)) for label in labels)
        known[key] = known.get(key, 0.0) + value if name.endswith("_total") else value

    def bounded[Thing](self, kind: str, things: Iterable[Thing]) -> list[Thing]:
        """The first MOST of them; how many are left out is a metric."""
        every = list(things)
        self.add("vnet_left_out", (kind,), max(0, len(every) - self._most))
        return every[: self._most]

    def families(self) -> Iterator[Metric]:
        """The metrics that have values, in the order of METRICS."""
        for metric in METRICS:
            values = self._values.get(metric.name)
            if not values:
                continue
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def cleaned(text: str) -> str:
    """A label's value of what may come from outside: one line of printable UTF-8, not endlessly long."""
    shown = safe(text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def unique[Key: Hashable](labels: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """What each thing is called; those that share a name, as it is shown, are told apart by their key."""
    named = [(key, cleaned(label)) for key, label in labels]
    counts: dict[str, int] = {}
    for _, label in named:
        counts[label] = counts.get(label, 0) + 1
    return {key: label if counts[label] == 1 else f"{label[: _LONGEST - 24]} [{key}]" for key, label in named}
