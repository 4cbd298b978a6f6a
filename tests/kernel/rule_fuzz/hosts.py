"""Run two equal hosts, one with the fast path: same commands, same packets."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import Any

from tests.kernel.fastlab import FastLab
from tests.kernel.rule_fuzz.traffic import CLIENT, SERVER, Facts, Flow, Traffic, compared

# In scripts, a line that begins with the name of a container or router runs there.
PRELUDE = "".join(
    f'{name}() {{ nsenter --net="/run/netns/$PREFIX-{name}" "$@"; }}\n'
    for name in ("a", "b", "c", "world", "far")
)
# The fast path turns off conntrack's check of TCP windows for its connections, as docs/fast-path.md says:
# here it is off for all.
_PREPARE = """
sysctl -qw net.netfilter.nf_conntrack_tcp_be_liberal=1
world ip link set eth1 address 02:00:00:00:cb:02
sysctl -qw net.ipv6.conf.all.keep_addr_on_down=1 net.ipv6.conf.default.keep_addr_on_down=1
for each in docker0 br-two up0 up1; do sysctl -qw net.ipv6.conf.$each.keep_addr_on_down=1; done
# Neighbours stay known, whatever a rule drops for a while.
for family in ipv4 ipv6; do
  known=net.$family.neigh
  for each in docker0 br-two up0 up1; do sysctl -qw $known.$each.base_reachable_time_ms=3600000; done
  for each in eth0 eth1 down0; do world sysctl -qw $known.$each.base_reachable_time_ms=3600000; done
done
for tool in iptables ip6tables iptables-legacy ip6tables-legacy; do
  for table in raw mangle filter nat; do $tool -w -t $table -S; done
done
for each in 192.0.2.2 203.0.113.2 198.51.100.2 2001:db8::2 2001:db8:cb::2 2001:db8:1::2 \\
  172.17.0.2 172.17.0.3 172.18.0.2 fd17::2 fd17::3 fd18::2; do ping -qc1 -W9 $each & done
wait
"""
# Everything that a case may change and has to restore.
_STATE = """
exec 2>/dev/null
ip -o link | sed 's/<.*mtu/mtu/; s/state [A-Z]*//; s/qlen [0-9]*//'
ip -o -4 addr; ip -o -6 addr show scope global
ip route show table all type unicast; ip -6 route show default; ip route show table 77
ip rule; ip -6 rule; nft list tables | grep -vE 'ip6? (raw|mangle)'; ip xfrm policy; tc qdisc show
bridge -d link show; a ip -o link show eth0; a ip route; ip nexthop
sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.bridge
for each in docker0 br-two up0 up1 all; do
  sysctl net.ipv4.conf.$each.forwarding net.ipv4.conf.$each.rp_filter net.ipv6.conf.$each.forwarding
done
for each in docker0 br-two; do cat /sys/class/net/$each/bridge/nf_call_ip*tables; done
for tool in iptables ip6tables iptables-legacy ip6tables-legacy; do $tool-save; done | grep ^-A
"""
_TRIES = 3  # seconds to open a connection, before it counts as refused
_COUNTERS = re.compile(r"\[\d+:\d+\]|expires \d+sec|hoplimit \d+|mcast_n_groups \d+")


class FuzzHost:
    """Run scripts on one of the two hosts."""

    def __init__(self) -> None:
        self.lab = FastLab()
        self.traffic = Traffic(self.lab)

    def start(self, script: str) -> subprocess.Popen[str]:
        """Start a script on the host; `a COMMAND` runs inside container a."""
        host = self.lab.host
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{host.name}", "bash", "-c", PRELUDE + script],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PREFIX": host.prefix, "LC_ALL": "C"},
        )  # fmt: skip

    def run(self, script: str) -> tuple[int, str]:
        """Run a script to its end; return its exit code and output."""
        started = self.start(script)
        said, _ = started.communicate()
        return started.returncode, said

    def close(self) -> None:
        """Remove everything."""
        self.traffic.close()
        self.lab.close()


class HostPair:
    """Hold both hosts; with `is_control` neither has the fast path.

    That shows which results of the kernel itself vary.
    """

    def __init__(self, is_control: bool = False) -> None:
        self.kernel, self.fast = FuzzHost(), FuzzHost()
        self.places = (self.kernel, self.fast)
        self.number = 0
        self.sent = 0
        self.run(_PREPARE)
        if not is_control:
            self.fast.lab.accelerate()
        self._fresh = self._state()

    def run(self, script: str) -> tuple[tuple[int, str], tuple[int, str]]:
        """Run a script on both at the same time; return exit codes and outputs."""
        started = [place.start(script) for place in self.places]
        (one, two) = [(each.communicate()[0], each.returncode) for each in started]
        return (one[1], one[0]), (two[1], two[0])

    def _state(self) -> set[str]:
        """Return as lines what a case may change on the fast path's host.

        The fast path's own objects are left out.
        """
        lines = _COUNTERS.sub("", self.run(_STATE)[1][1]).splitlines()
        return {line for line in lines if "vnet_fastpath" not in line and "clsact" not in line}

    def left(self) -> list[str]:
        """Return the differences from the beginning."""
        now = self._state()
        return [f"+ {line}" for line in now - self._fresh] + [f"- {line}" for line in self._fresh - now]

    def begin(self, flows: list[Flow]) -> None:
        """Open these connections; leave out those that neither host allows."""
        for place in self.places:
            place.traffic.begin(flows)
        for _ in range(_TRIES):
            left = [place.traffic.open() for place in self.places]
            if not any(left):
                break
        for place in self.places:
            place.traffic.leave_out(left[0] & left[1])
        self.sent = len(flows) - len(left[0] & left[1])

    def round(self, facts: Facts, pause: float) -> int:
        """Send one packet per connection and direction through both; return its number."""
        self.number += 1
        for place in self.places:
            for side in (CLIENT, SERVER):
                place.traffic.send(side, self.number, facts)
                place.traffic.wait(self.sent, 0.001)
        time.sleep(pause)
        for place in self.places:
            place.traffic.take()
        return self.number

    def differences(self, numbers: range, flows: list[Flow]) -> list[str]:
        """Return what arrived differently on the hosts, after waiting for late packets."""
        for wait in (0.0, 0.02, 0.1, 0.3):
            time.sleep(wait)
            for place in self.places:
                place.traffic.take()
            found = self._differences(numbers, flows)
            if not found:
                break
        return found

    def _differences(self, numbers: range, flows: list[Flow]) -> list[str]:
        found = []
        kernel, fast = (place.traffic.arrivals for place in self.places)
        for flow in flows:
            for number in numbers:
                for side, name in enumerate(("client's", "server's", "intruder's")):
                    key = flow.index, side, number
                    expected, seen = compared(kernel.get(key, []), fast.get(key, []))
                    if expected != seen:
                        found.append(
                            f"{flow}, the {name} packet: {_format(expected)}; fast path: {_format(seen)}"
                        )
        return found

    def arrived(self, numbers: range) -> int:
        """Return the packets that arrived at their end on the fast path's host."""
        arrivals = self.fast.traffic.arrivals
        return sum(key[2] in numbers and bool(found) for key, found in arrivals.items())

    def status(self) -> dict[str, Any]:
        """Return the fast path's status; without a fast path it is off."""
        fast = self.fast.lab.fast
        return fast.status() if fast else {"state": "off", "verdicts": {}}

    def close(self) -> None:
        """Remove both hosts."""
        for place in self.places:
            place.close()


def _format(arrivals: list[object]) -> str:
    return " and ".join(map(str, arrivals)) or "nothing"
