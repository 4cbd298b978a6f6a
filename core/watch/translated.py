"""What translated connections carry, by the rule that translates them: the rule's own counter sees only the
first packet of each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np

from core.flows.rules import TRANSLATING, translated_by
from core.flows.table import FlowTable
from core.history import History
from core.model import Firewall, FirewallRule

_SHARE = 0.02  # of a core, for finding out whose connections are whose
_FORGOTTEN_AFTER = 15.0  # seconds after which an earlier look says nothing of the time between


class Translations:
    """Feeds the history of translating rules from one table of flows after another; from one thread."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._last = -np.inf
        self._due = 0.0
        self._generation = -1
        self._rows: dict[tuple[int, str, str], np.ndarray] = {}

    def feed(self, table: FlowTable, firewalls: Iterable[Firewall], now: float) -> None:
        """Take in the flows as they are `now` (monotonic seconds)."""
        if not table.measured or now < self._due:
            return
        spent = time.thread_time()
        if table.generation != self._generation:
            self._generation, self._rows = table.generation, {}
        found = dict(self._figures(table, firewalls))
        if found and now - self._last < _FORGOTTEN_AFTER:
            self._history.feed([*found], np.array([*found.values()]), self._last, now)
        self._last = now
        self._due = now + (time.thread_time() - spent) / _SHARE

    def _figures(
        self, table: FlowTable, firewalls: Iterable[Firewall]
    ) -> Iterator[tuple[tuple[int, str], tuple[float, float]]]:
        """Packets and bits a second of each rule's connections."""
        for firewall in firewalls:
            for rule in firewall.rules:
                if rule.verdict in TRANSLATING:
                    sums = np.nansum(table.speeds[self._rows_of(table, rule, firewall.ns)], axis=0)
                    yield (firewall.ns, rule.rule_id), (float(sums[2:].sum()), float(sums[:2].sum()))

    def _rows_of(self, table: FlowTable, rule: FirewallRule, ns: int) -> np.ndarray:
        key = ns, rule.rule_id, rule.text
        if key not in self._rows:
            here = table.columns.by_table(np.array([one.ns == ns for one in table.columns.tables], bool))
            self._rows[key] = np.flatnonzero(translated_by(table.columns, rule) & here)
        return self._rows[key]
