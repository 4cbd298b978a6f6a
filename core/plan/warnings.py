"""What on this host would keep a network of ours from working, in words."""

from __future__ import annotations

from collections.abc import Sequence

from core.model import Link
from core.nat.letting import Published, Way, by_chain
from core.nat.packets import Kind
from core.nat.remedies import allow_words, drop_words
from core.ops import SetSysctl
from core.plan.draft import Draft
from core.tags import TABLE
from core.text import safe

_FORWARD = "net.ipv4.ip_forward"
_FORWARD6 = "net.ipv6.conf.all.forwarding"
BRIDGED = "net.bridge.bridge-nf-call-iptables"


def warn_of_filters(
    draft: Draft,
    bridge: str,
    kinds: Sequence[Kind],
    subnets: Sequence[str] = (),
    published: Published | None = None,
    to: str = "",
) -> None:
    """Warn where another table drops what is forwarded: our own accept cannot overrule it, and rules that are
    not ours are not edited. Without subnets both families count. What is switched is judged as well where
    rules see it (br_netfilter)."""
    judge = draft.topology.judge
    if judge is None:
        return
    if draft.snapshot.host.sysctls.get(BRIDGED) == "1" and not published and not to:
        kinds = (*kinds, "same")
    found = draft.topology.uplink(draft.topology.host)
    way = Way(bridge, found[0].name if found else "", tuple(subnets), published, to)
    for chain, dropped in by_chain(judge.dropping(way, kinds)):
        draft.warn(f"{drop_words(judge.firewall, chain, dropped, way)}; {allow_words(chain, dropped, way)}")


def warn_of_move(source: Link, to: str, draft: Draft) -> None:
    """Warn of what does not follow by itself when the host's addresses and routes move to another link."""
    name = safe(source.name)
    lent = [str(one) for one in source.addresses if one.valid_until]
    if lent:
        draft.warn(
            f"{', '.join(lent)} of {name} is lent for a time (by DHCP or router advertisements): it moves "
            f"with the time that is left, and what renews it must do so for {to}"
        )
    rules = [one.priority for one in draft.host.rules if source.name in (one.iif, one.oif)]
    if rules:
        told = ", ".join(map(str, dict.fromkeys(rules)))
        draft.warn(f"the routing rules of priority {told} name {name}: what they mean comes by {to} then")
    firewall = draft.snapshot.firewalls.get(draft.topology.host)
    named = [one for one in (firewall.rules if firewall else ()) if source.name in (one.iif, one.oif)]
    tables = dict.fromkeys(safe(one.table) for one in named if one.table != TABLE)
    if tables:
        draft.warn(f"rules of table {', '.join(tables)} name {name}: what they mean comes by {to} then")


def forward(draft: Draft, ipv4: bool, ipv6: bool) -> None:
    """Have the host forward; what it is set to now is not known where it cannot be read."""
    sysctls = draft.snapshot.host.sysctls
    if ipv4 and sysctls.get(_FORWARD, "0") != "1":
        _keep_links_forwarding(draft, "net.ipv4.conf.")
        draft.sysctl(_FORWARD, "1", sysctls.get(_FORWARD, "0"))
    if ipv6 and sysctls.get(_FORWARD6, "0") == "0":
        _warn_of_router_advertisements(draft)
        _keep_links_forwarding(draft, "net.ipv6.conf.")
        draft.sysctl(_FORWARD6, "1", "0")


def _keep_links_forwarding(draft: Draft, prefix: str) -> None:
    """Have an undo switch forwarding on again where links forward although the host does not: what it does
    before, to switch the host's off, switches off theirs as well."""
    for key, value in sorted(draft.snapshot.host.sysctls.items()):
        kept = SetSysctl(key, value, value)
        if key.startswith(prefix) and key != _FORWARD6 and kept not in draft.steps:
            draft.do(kept)


def _warn_of_router_advertisements(draft: Draft) -> None:
    for route in draft.host.routes:
        if route.protocol == "ra" and route.dst == "default":
            draft.guarded = True
            draft.warn(
                "the host has its IPv6 default route by router advertisement and stops taking those once it "
                "forwards IPv6; set net.ipv6.conf.LINK.accept_ra=2 on the link of that route to keep it"
            )
