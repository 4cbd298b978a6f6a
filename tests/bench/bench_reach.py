"""Measure `why` and `doctor` without reading, with 1,000 and 100,000 rules."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from core.diagnose import findings
from core.diagnose.kept import forget
from core.model import Chain, Firewall, FirewallRule, IpSettings, NextHop, PolicyRule, Route, Snapshot
from core.reach import ask, why
from core.topology import Topology
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.support.host_builder import HOST
from tests.support.snapshots import many_namespaces

NAMESPACES = sized(200, 8)
RULES, MANY_RULES = sized(1000, 20), sized(100_000, 100)
_REPETITIONS = sized(5, 2)
_SPREAD = 250  # rules of published ports are in chains of that many


def run() -> list[Figure]:
    """Measure both with a new index."""
    usual, large = routed_host(RULES), routed_host(MANY_RULES)
    what = f"{NAMESPACES} namespaces and {RULES:,} rules"
    how = f"new index and topology, median of {_REPETITIONS}"
    return [
        Figure(f"why, {what}", "<= 100 ms", timed(usual, ask_why), how),
        Figure(f"doctor, {what}", "<= 500 ms", timed(usual, diagnose), how),
        Figure(f"why, {MANY_RULES:,} rules", "", timed(large, ask_why), how),
    ]  # fmt: skip


def timed(snapshot: Snapshot, work: Callable[[Topology], object]) -> str:
    """Return the median duration of work on a new topology, and the first one."""
    durations = []
    for _ in range(_REPETITIONS):
        forget()
        topology = Topology(replace(snapshot))
        started = time.perf_counter()
        work(topology)
        durations.append((time.perf_counter() - started) * 1000)
    return f"{statistics.median(durations):.0f} ms; the first time {durations[0]:.0f} ms"


def ask_why(topology: Topology) -> None:
    """Ask for a way through NAT and rules."""
    answer = why(topology, ask(topology, "ns001", f"ns{NAMESPACES - 1:03d}", "80/tcp"))
    assert answer.there


def diagnose(topology: Topology) -> None:
    """Find everything that is wrong."""
    findings(topology)


def routed_host(rules: int) -> Snapshot:
    """Return a host that forwards for containers, with that many rules."""
    snapshot = many_namespaces(NAMESPACES)
    nets = {ns: replace(net, routes=_routes(ns), settings=_settings()) for ns, net in snapshot.nets.items()}
    nets[HOST] = replace(nets[HOST], rules=(PolicyRule(4, 0, table="local"), PolicyRule(4, 32766)))
    return replace(snapshot, nets=nets, firewalls={HOST: _firewall(rules)})


def _routes(ns: int) -> tuple[Route, ...]:
    gateway = "192.0.2.254" if ns == HOST else "10.10.0.1"
    link = 2
    subnet = "192.0.2.0/24" if ns == HOST else "10.10.0.0/16"
    own = (Route(4, subnet, nexthops=(NextHop("", link),), protocol="kernel", scope="link"),)
    more = (Route(4, "10.10.0.0/16", nexthops=(NextHop("", 3),), scope="link"),) if ns == HOST else ()
    return (*own, *more, Route(4, "default", nexthops=(NextHop(gateway, link),)))


def _settings() -> tuple[IpSettings, ...]:
    return tuple(IpSettings(4, ifindex, True, 1) for ifindex in range(4))


def _firewall(count: int) -> Firewall:
    """Return filters by address, port and state, in chains of a few hundred."""
    chains = [
        Chain("nft", "inet", "fw", "forward", "forward", "filter", 0, "drop"),
        Chain("nft", "ip", "nat", "post", "postrouting", "nat", 100, "accept"),
    ]
    known = "established,related"
    rules = [
        _rule("forward", 0, f"ct state {known} accept", ct_state=known, verdict="accept"),
        _rule("post", 1, 'ip saddr 10.10.0.0/16 oifname != "br-many" masquerade', family="ip", table="nat",
              src="10.10.0.0/16", oif="!br-many", verdict="masquerade"),
    ]  # fmt: skip
    for start in range(0, count, _SPREAD):
        chain = f"part{start}"
        chains.append(Chain("nft", "inet", "fw", chain))
        rules.append(_rule("forward", start + 2, f"jump {chain}", verdict="jump", target=chain))
        rules += (_port_rule(chain, number) for number in range(start, min(start + _SPREAD, count)))
    rules.append(_rule("forward", count + 3, 'iifname "br-many" accept', iif="br-many", verdict="accept"))
    return Firewall(HOST, tuple(chains), tuple(rules))


def _port_rule(chain: str, number: int) -> FirewallRule:
    address = f"10.10.{number // 250 % 250}.{number % 250 + 2}"
    port = 1024 + number % 60000
    text = f"ip saddr != 198.51.100.0/24 ip daddr {address} tcp dport {port} tcp flags syn drop"
    return _rule(
        chain, number, text, src="!198.51.100.0/24", dst=address, l4_proto="tcp", dport=str(port),
        verdict="drop", understood=False,
    )  # fmt: skip


def _rule(chain: str, number: int, text: str, **fields: object) -> FirewallRule:
    usual: dict[str, object] = {"family": "inet", "table": "fw"}
    values = usual | fields
    rule_id = f"{values['family']}/{values['table']}/{chain}/{number}"
    return FirewallRule("nft", chain=chain, rule_id=rule_id, text=text, **values)  # type: ignore[arg-type]
