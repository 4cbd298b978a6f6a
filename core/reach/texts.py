"""Format firewall rules as their tools print them."""

from __future__ import annotations

from core.model import Chain, FirewallRule


def evidence_of(rule: FirewallRule) -> str:
    """Return a rule as its tool prints it, with its handle and counter."""
    count = f" ({rule.packets:,} packets)" if rule.packets else ""
    if rule.backend == "nft":
        handle = rule.rule_id.rpartition("/")[2]
        return f"{rule.family} {rule.table} {rule.chain} handle {handle}: {rule.text}{count}"
    return f"{'ip6tables' if rule.family == 'ip6' else 'iptables'} -t {rule.table} {rule.text}{count}"


def policy_evidence(chain: Chain) -> str:
    """Return a chain's policy in one line."""
    return f"{chain.family} {chain.table} {chain.name}: policy {chain.policy}"
