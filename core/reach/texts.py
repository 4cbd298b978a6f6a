"""Format rules and routes as their tools print them."""

from __future__ import annotations

from core.model import FirewallRule, NetState, Route
from core.reach.routing import Lookup


def evidence_of(rule: FirewallRule) -> str:
    """Return a rule as its tool prints it, with its handle and counter."""
    count = f" ({rule.packets:,} packets)" if rule.packets else ""
    if rule.backend == "nft":
        handle = rule.rule_id.rpartition("/")[2]
        return f"{rule.family} {rule.table} {rule.chain} handle {handle}: {rule.text}{count}"
    return f"{'ip6tables' if rule.family == 'ip6' else 'iptables'} -t {rule.table} {rule.text}{count}"


def route_text(net: NetState, route: Route) -> str:
    """Return a route as ip(8) prints it."""
    words = [] if route.kind in ("unicast", "") else [route.kind]
    words.append(route.dst)
    for hop in route.nexthops[:1]:
        words += ["via", hop.gateway] if hop.gateway else []
        link = net.links.get(hop.ifindex or 0)
        words += ["dev", link.name] if link else []
    words += ["table", route.table] if route.table not in ("main", "") else []
    words += ["metric", str(route.metric)] if route.metric else []
    return " ".join(words)


def rule_text(lookup: Lookup) -> str:
    """Return a policy rule as ip(8) prints it."""
    rule = lookup.rule
    if rule is None:
        return ""
    words = [f"{rule.priority}:", "from", rule.src or "all"]
    words += ["to", rule.dst] if rule.dst else []
    words += ["iif", rule.iif] if rule.iif else []
    words += ["oif", rule.oif] if rule.oif else []
    words += ["fwmark", hex(rule.fwmark)] if rule.fwmark is not None else []
    return " ".join([*words, *rule.more, rule.action, rule.table if rule.action == "lookup" else ""]).strip()
