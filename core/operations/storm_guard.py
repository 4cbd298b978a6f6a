"""Change the storm guard of bridge ports."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

from core.model import StormLimits
from core.netlink.clsact import STORM_GUARD
from core.operations.base import LinkOperation
from core.operations.executor import Executor, inside, run_holding_lock
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import quoted
from core.tools import python_command, python_environment


@recorded()
@dataclass(frozen=True, slots=True)
class SetStormGuard(LinkOperation):
    """Set the storm guard of a link.

    `limits` and `before` are StormLimits as text, "" for none.
    """

    name: str
    limits: str
    before: str
    place: NetnsTarget = HOST

    def command(self) -> str:
        words = f"vnet-tui storm guard {quoted(self.name)}"
        if not self.limits:
            return self.place.inside(f"{words} off")
        limits = StormLimits.parse(self.limits)
        rates = f"--rate {limits.broadcast} --multicast {limits.multicast} --burst {limits.burst}"
        return self.place.inside(f"{words} on {rates}{' --xdp' if limits.xdp else ''}")

    def inverse(self) -> tuple[SetStormGuard, ...]:
        return (replace(self, limits=self.before, before=self.limits),)

    def describe(self) -> str:
        if not self.limits:
            return f"stop limiting broadcast and multicast of {self.name}"
        limits = StormLimits.parse(self.limits)
        where = " in its driver (XDP)" if limits.xdp else ""
        rates = f"{limits.broadcast} frames/s, multicast to {limits.multicast}"
        return f"limit broadcast, ARP and unknown unicast of {self.name} to {rates}{where}"

    def execute(self, executor: Executor) -> None:
        index = executor.index(self.place, self.name)
        with inside(self.place):
            if not self.limits and not StormLimits.parse(self.before or "1/1/1").xdp:
                STORM_GUARD.detach(index)
                return
            # A process of its own, as for tc(8): core doesn't load BPF programs.
            words = python_command("bpf.storm_guard", self.name, self.limits)
            done = run_holding_lock(words, environment=python_environment())
        if done.returncode:
            raise OSError(errno.EIO, done.stderr.strip() or f"{words[-3]} ended with {done.returncode}")
