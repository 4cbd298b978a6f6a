"""Rates of translated connections, by rule."""

from __future__ import annotations

import numpy as np
import pytest

from core.flows.meter import FlowMeter, Reading
from core.model import Conntrack, Firewall, FirewallRule
from core.rates import WINDOWS, History
from core.watch.rates import NatRates
from tests.support.flow_samples import flow, table

HOST, LAB = 100, 200


def rule(name: str, verdict: str, **more: str) -> FirewallRule:
    return FirewallRule("nft", "ip", "t", "c", name, "", verdict, **more)  # type: ignore[arg-type]


RULES = {
    HOST: Firewall(HOST, rules=(
        rule("masq", "masquerade", src="10.0.0.0/8"), rule("dnat", "dnat", to_address="10.0.0.2"),
        rule("pass", "accept"),
    )),
    LAB: Firewall(LAB, rules=(rule("masq", "masquerade"),)),
}  # fmt: skip


def tables(second: int) -> tuple[Conntrack, Conntrack]:
    """Return two connections per rule (1 and 2 Mbit/s), and one without translation."""
    rows = [
        flow("10.0.0.1:1", "1.1.1.1:443", seen_as="192.0.2.1:1"),
        flow("10.0.0.1:2", "1.1.1.1:443", seen_as="192.0.2.1:2"),
        flow("9.9.9.9:1", "192.0.2.1:80", "10.0.0.2:80"),
        flow("9.9.9.9:2", "192.0.2.1:80", "10.0.0.2:80"),
        flow("10.0.0.1:3", "10.0.0.9:80"),
    ]
    for place, row in enumerate(rows):
        row["counted"] = True
        row["bytes"], row["packets"] = second * 125_000 * (1 + place % 2), second * 100
    return table(HOST, *rows, accounting=True), table(LAB, *rows, accounting=True)


def fed(seconds: list[float]) -> History:
    """Return the history after polls at these times."""
    history, meter = History(2), FlowMeter()
    translations = NatRates(history)
    for second, now in enumerate(seconds):
        readings = [Reading(one, now, now) for one in tables(second)]
        translations.feed(meter.feed(readings, now=now, at=now), RULES.values(), now)
    return history


def newest(history: History, ns: int, name: str, now: float) -> list[float] | None:
    past = history.of([(ns, name)], WINDOWS[0], now)
    if past is None:
        return None
    known = past.values[~np.isnan(past.values).any(axis=1)]
    return [float(value) for value in known[-1]] if len(known) else None


def test_each_rule_has_the_rates_of_its_connections() -> None:
    history = fed([1000.0 + second for second in range(8)])
    # Both directions count, and the samples are equal in both.
    for ns, name in ((HOST, "masq"), (HOST, "dnat"), (LAB, "masq")):
        assert newest(history, ns, name, 1007.0) == pytest.approx([400.0, 6e6])
    assert newest(history, HOST, "pass", 1007.0) is None


def test_a_time_without_polls_is_a_gap() -> None:
    history = fed([1000.0, 1001.0, 1002.0, 1003.0, 1043.0, 1044.0])
    past = history.of([(HOST, "masq")], WINDOWS[0], 1044.0)
    assert past is not None
    assert np.isnan(past.values[-40:-2]).all()
