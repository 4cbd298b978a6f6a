"""Measure Docker's DNS rules in a container, and `tune --no-track-dns`."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from tests.bench.cpu_time import transactions
from tests.bench.fastpath_alternating import SECONDS, alternate, gain
from tests.bench.fastpath_lab import Case, FastPath, Lab, inside
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.support.docker_dns import write_rules

_COUNT = sized(100_000, 2_000)  # transactions per second of a measurement
_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}

type _Switch = Callable[[bool], None]


def figures(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    """Measure transactions with the container that has the rules.

    Alternately with Docker's rules and tuned, then with Docker's rules and without any. Afterwards that
    container has no rules.
    """
    case = next(each for each in lab.cases if each.has_dns_rules)
    yield from _figures(case, _tuning(lab), "tune --no-track-dns, the kernel's path", "(report)")
    fast.on()
    try:
        yield from _figures(case, _tuning(lab), "tune --no-track-dns, the fast path", ">= 1.05 x")
        yield from _figures(
            case, partial(_strip, case), "no rules in the container, the fast path", "(report)"
        )
    finally:
        fast.off()


def _figures(case: Case, switch: _Switch, what: str, target: str) -> Iterator[Figure]:
    for name, kind in _KINDS.items():
        measure = partial(transactions, case, kind, SECONDS * _COUNT)
        before, after = alternate(partial(switch, False), partial(switch, True), measure)
        measured = f"{gain(after, before)}; {median(before):,.0f} / {median(after):,.0f}"
        how = "transactions a CPU second of both ends; Docker's rules / with this change, alternating"
        yield Figure(f"{name} transactions, {case.name}: {what}", target, measured, how)
        switch(False)


def _tuning(lab: Lab) -> _Switch:
    tuned = False

    def switch(on: bool) -> None:
        nonlocal tuned
        if on != tuned:
            lab.vnet("tune", "bench", "--no-track-dns", "on" if on else "off")
            tuned = on

    return switch


def _strip(case: Case, on: bool) -> None:
    subprocess.run(inside(case.server, "nft", "flush", "ruleset"), check=True)
    if not on:
        write_rules(case.server)
