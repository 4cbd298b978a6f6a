"""What `tune --no-track-dns` gains in a container on a user-defined network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

from tests.bench.fastpath_lab import FastPath, Lab, has_netperf
from tests.bench.fastpath_traffic import netperf
from tests.bench.fastpath_turns import alternate, gain
from tests.bench.report import Figure

_TUNE = ("tune", "bench", "--no-track-dns")


def figures(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    """Transactions with the one end that has Docker's DNS rules, with these alone and tuned, in turns."""
    if not has_netperf():
        return
    yield from _figures(lab, "the kernel's path", "(report)")
    fast.on()
    try:
        yield from _figures(lab, "the fast path", ">= 1.05 x")
    finally:
        fast.off()


def _figures(lab: Lab, path: str, to_reach: str) -> Iterator[Figure]:
    case = next(each for each in lab.cases if each.has_dns_rules)
    tuned = False

    def tune(on: bool) -> None:
        nonlocal tuned
        if on != tuned:
            lab.vnet(*_TUNE, "on" if on else "off")
            tuned = on

    for test in ("TCP_RR", "UDP_RR"):
        plain, without = alternate(partial(tune, False), partial(tune, True), partial(netperf, test, case))
        measured = f"{gain(without, plain)}; {median(plain):,.0f} / {median(without):,.0f}"
        how = "transactions a second; Docker's rules alone / tuned, in turns"
        yield Figure(f"{test}, other bridge, tune --no-track-dns, {path}", to_reach, measured, how)
    tune(False)
